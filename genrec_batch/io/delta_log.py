"""The log of a Delta table that a run writes to.

Owns: one commit by the package deltalake, and what a version of the table holds. Must not know: how a run's files are
written, what `--if-exists` means. In: a run's files. Out: one version of the table more. A run is an application
transaction (`txn`) of its own, so its id is found in every version after it, whatever becomes of the log's old entries.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.core.errors import ConfigError, EngineError, InputError, RetryError
from genrec_batch.io import tables
from genrec_batch.io.attempt import reading
from genrec_batch.io.catalogs import said
from genrec_batch.io.durable import disk_errors, missing_folder
from genrec_batch.io.places import Store
from genrec_batch.io.stored import failures
from genrec_batch.io.table_log import RUN_ID, Commit, State, unknown_types
from genrec_batch.io.table_root import RUN, TableRoot, check_scheme

LOG_FOLDER = "_delta_log"
APPLICATION = "genrec-batch/"  # and a run's id: of the transaction
BOUNDED = "user_id"  # rises through the files of a run, so its bounds tell a reader which files to leave out


@dataclass(frozen=True, kw_only=True)
class DeltaLog:
    """A Delta table in a folder."""

    where: str
    path: str  # or URI
    kind: str = "Delta"
    column_in_files: bool = False

    @cached_property
    def root(self) -> TableRoot:
        """The folder of the table."""
        return TableRoot.of(self.path, self.where)

    def exists(self) -> bool:
        """Return whether a table is there; OSError where a store cannot be asked."""
        store = self.root.store
        if store is None:
            return Path(self.path, LOG_FOLDER).is_dir()
        return bool(store.below(f"{store.key}/{LOG_FOLDER}"))

    def check(self) -> None:
        """Raise ConfigError where no table can be made there; EngineError without the package."""
        _package(self.where)
        if self.root.store is None:
            self._check_others(self._names(Path(self.path)))
        else:
            check_scheme(self.root.path, self.where)
            with failures(self.where):
                names = _first_names(self.root.store)
                self.root.store.probe(f"{self.root.store.key}/.")
            self._check_others(names)

    def _names(self, folder: Path) -> list[str]:
        """Return the names in a folder in which a table can be made, or is."""
        if not folder.parent.is_dir():
            raise ConfigError(f"{self.where}: {missing_folder(folder.parent)}")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{self.where}: is a file, and a Delta table is a folder; name another")
        if not os.access(folder if folder.exists() else folder.parent, os.W_OK | os.X_OK):
            raise ConfigError(f"{self.where}: may not be written by this user")
        with disk_errors(folder):
            return [each.name for each in folder.iterdir()] if folder.is_dir() else []

    def _check_others(self, names: Sequence[str]) -> None:
        others = [name for name in names if not name.removeprefix(".").startswith(RUN)]
        if others and LOG_FOLDER not in names:
            raise ConfigError(f"{self.where}: a folder with other files ({', '.join(others[:3])}), no Delta table")

    def state(self, version: str | None = None) -> State | None:
        """Return a version of the table; see `TableLog.state`."""
        package = _package(self.where)
        try:
            if not reading(lambda: package.DeltaTable.is_deltatable(self.root.path, self._options), self.where):
                return None
            return reading(lambda: self._state(package, version), self.where)
        except (package.exceptions.DeltaError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.where}: the Delta table cannot be read: {said(error)}") from error

    def _state(self, package: ModuleType, version: str | None) -> State:
        table = tables.delta_at(package, self.root.path, self.where, version)
        features = table.protocol().reader_features or []
        return State(
            version=int(table.version()),
            files=frozenset(map(unquote, pa.table(table.get_add_actions(flatten=True))["path"].to_pylist())),
            runs=tuple(str(entry[RUN_ID]) for entry in table.history() if RUN_ID in entry),
            partition=tuple(table.metadata().partition_columns),
            altered="deletionVectors" in features and pa.table(table.deletion_vectors()).num_rows > 0,
            opened=table,
        )

    def faults(self, schema: pa.Schema, state: State | None, *, replaces: bool) -> list[str]:
        """Return which columns the table cannot take."""
        found = unknown_types(schema)
        if found or state is None or replaces:
            return found
        there, now = _fields(state.opened.schema()), _fields(_package(self.where).Schema.from_arrow(schema))
        return [
            f"column {name!r} is {now.get(name, 'missing')}, and {there.get(name, 'missing')} in the table"
            for name in dict.fromkeys([*there, *now])
            if there.get(name) != now.get(name)
        ]

    def commit(self, commit: Commit, state: State | None) -> int:
        """Commit one run; see `TableLog.commit`."""
        package = _package(self.where)
        transaction = import_module("deltalake.transaction")
        actions = self._added(transaction.AddAction, commit)
        schema = package.Schema.from_arrow(commit.schema)
        columns = [commit.partition.column] if commit.partition else None
        application = APPLICATION + commit.run_id
        before = None if state is None else state.opened.transaction_version(application)
        properties = package.CommitProperties(
            custom_metadata=dict(commit.properties),
            max_commit_retries=0,  # a commit on top of another's would be one that nobody has looked at
            app_transactions=[package.Transaction(application, 1 if before is None else before + 1)],
        )
        try:
            if state is None:
                transaction.create_table_with_add_actions(
                    self.root.path,
                    schema,
                    actions,
                    mode="error",
                    partition_by=columns,
                    storage_options=self._options,
                    commit_properties=properties,
                )
                return 0
            mode = "overwrite" if commit.replaces else "append"
            state.opened.create_write_transaction(actions, mode, schema, columns, commit_properties=properties)
            return state.version + 1
        except package.exceptions.DeltaError as error:
            now = self.state()
            if now is not None and (state is None or now.version > state.version):
                raise RetryError(
                    f"{self.where}: another writer committed version {now.version} first, so this run committed "
                    "nothing; run the same command again: its parts are there, and only the commit is left"
                ) from error
            raise ConfigError(f"{self.where}: the table takes no commit: {said(error)}") from error

    @property
    def _options(self) -> dict[str, str] | None:
        return tables.options_of(self.root.path)

    def _added(self, action: Any, commit: Commit) -> list[Any]:
        """Return what adds the files of a run."""
        found, moment = [], time.time_ns() // 10**6
        for entry, about in zip(commit.entries, self.root.footers(commit.files), strict=True):
            values = {}
            if commit.partition is not None:
                value = commit.partition.value(entry["file"].rpartition("/")[0])
                values[commit.partition.column] = _text(value)
            stats = json.dumps(_bounds(about) | {"numRecords": entry["rows"]})
            name = f"{RUN}{commit.run_id}/{entry['file']}"
            found.append(action(name, entry["bytes"], values, moment, True, stats))
        return found


def _first_names(store: Store) -> list[str]:
    """Return the names directly in the folder of a store's URI."""
    return sorted({each.removeprefix(f"{store.key}/").partition("/")[0] for each in store.keys_below(store.key)})


def _text(value: Any) -> str | None:
    """Return the text of a partition's value in a log."""
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _bounds(about: pq.FileMetaData) -> dict[str, Any]:
    """Return the smallest and the largest user_id of a file, where it says so."""
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    columns = [group.column(at) for group in groups for at in range(group.num_columns)]
    found = [each.statistics for each in columns if each.path_in_schema == BOUNDED]
    if not found or not all(each is not None and each.has_min_max for each in found):
        return {}
    least, most = min(each.min for each in found), max(each.max for each in found)
    return {"minValues": {BOUNDED: least}, "maxValues": {BOUNDED: most}, "nullCount": {BOUNDED: 0}}


def _fields(schema: Any) -> dict[str, str]:
    """Return the types of columns by name."""
    listed = json.loads(schema.to_json())["fields"]
    return {
        each["name"]: json.dumps(each["type"]).strip('"') + ("" if each["nullable"] else ", never null")
        for each in listed
    }


def _package(where: str) -> ModuleType:
    try:
        return import_module("deltalake")
    except ImportError as error:
        raise EngineError(
            f"{where}: a Delta table, which the package deltalake writes: pip install 'genrec-batch[delta]'"
        ) from error
