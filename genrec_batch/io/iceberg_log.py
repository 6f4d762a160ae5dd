"""The log of an Iceberg table that a run writes to: its snapshots, in a catalog of pyiceberg.

Owns: one commit by the package pyiceberg, and what a version of the table holds. Must not know: how a run's files are
written, what `--if-exists` means. In: a run's files. Out: one version of the table more. A replacement is two snapshots
of one commit, as Iceberg has it: all rows go, and those of the run come; no reader sees the first alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import pyarrow as pa

from genrec_batch.core.errors import ConfigError, GenrecError, RetryError
from genrec_batch.io import catalogs, tables
from genrec_batch.io.catalogs import TableName, said
from genrec_batch.io.places import local_path
from genrec_batch.io.stored import failures
from genrec_batch.io.table_log import RUN_ID, Commit, State, unknown_types
from genrec_batch.io.table_root import RUN, TableRoot, check_scheme

AGAIN = "run the same command again: its parts are there, and only the commit is left"
LOST = ("CommitFailedException", "ValidationException", "TableAlreadyExistsError")  # another writer was first
UNKNOWN = "CommitStateUnknownException"


@dataclass(frozen=True, kw_only=True)
class IcebergLog:
    """An Iceberg table in a catalog."""

    where: str
    name: TableName
    kind: str = "Iceberg"
    column_in_files: bool = True  # as Iceberg has it: values are read from the files

    @cached_property
    def root(self) -> TableRoot:
        """The folder of data in the table's location."""
        return TableRoot.of(f"{local_path(self.location)}/data", self.where)

    @cached_property
    def location(self) -> str:
        """The table's location as its catalog says; of a table that is not there yet, as it will say."""
        with catalogs.opened(self.name, self.where) as catalog:
            if catalogs.asked(lambda: catalog.table_exists(self.name.identifier), self.where):
                found = catalogs.asked(lambda: catalog.load_table(self.name.identifier), self.where).location()
            else:
                begun = catalog.create_table_transaction
                any_column = pa.schema([("user_id", pa.int64())])
                found = catalogs.asked(
                    lambda: begun(self.name.identifier, any_column).table_metadata.location, self.where
                )
        return str(found).rstrip("/")

    def check(self) -> None:
        """Raise ConfigError where no table can be made there; EngineError without the package."""
        namespace = self.name.identifier.rpartition(".")[0]
        with catalogs.opened(self.name, self.where) as catalog:
            if not catalogs.asked(lambda: catalog.namespace_exists(namespace), self.where):
                raise ConfigError(f"{self.where}: the catalog has no namespace {namespace}; create it first")
        check_scheme(local_path(self.location), self.where)
        if self.root.store is not None:
            with failures(self.where):
                self.root.store.probe(f"{self.root.store.key}/.")

    def state(self, version: str | None = None) -> State | None:
        """Return a version of the table; see `TableLog.state`."""
        with catalogs.opened(self.name, self.where) as catalog:
            if not catalogs.asked(lambda: catalog.table_exists(self.name.identifier), self.where):
                return None
            return catalogs.asked(lambda: self._state(catalog.load_table(self.name.identifier), version), self.where)

    def _state(self, table: Any, version: str | None) -> State:
        snapshot = tables.snapshot_of(table, self.where, version)
        runs, each = [], snapshot
        while each is not None:
            runs.append(each.summary.additional_properties.get(RUN_ID) if each.summary else None)
            each = table.snapshot_by_id(each.parent_snapshot_id) if each.parent_snapshot_id else None
        tasks = [] if snapshot is None else list(table.scan(snapshot_id=snapshot.snapshot_id).plan_files())
        below = f"{self.location}/data/"
        return State(
            version=snapshot.snapshot_id if snapshot else 0,
            files=frozenset(task.file.file_path.removeprefix(below) for task in tasks),
            runs=tuple(dict.fromkeys(str(run) for run in runs if run is not None)),
            partition=tuple(table.schema().find_column_name(each.source_id) for each in table.spec().fields),
            altered=any(task.delete_files for task in tasks),
            opened=table,
        )

    def faults(self, schema: pa.Schema, state: State | None, *, replaces: bool) -> list[str]:
        """Return which columns the table cannot take; a replacement may have other ones, of no other type."""
        found = unknown_types(schema)
        if found or state is None:
            return found
        there, now = _fields(state.opened.schema().as_arrow()), _fields(schema)
        names = [name for name in there if name in now] if replaces else list(dict.fromkeys([*there, *now]))
        return [
            f"column {name!r} is {now.get(name, 'missing')}, and {there.get(name, 'missing')} in the table"
            for name in names
            if there.get(name) != now.get(name)
        ]

    def commit(self, commit: Commit, state: State | None) -> int:
        """Commit one run; see `TableLog.commit`."""
        with catalogs.opened(self.name, self.where) as catalog:
            try:
                if state is None:
                    return self._created(catalog, commit)
                return self._changed(catalog, commit, state)
            except GenrecError:
                raise
            except catalogs.failures() as error:
                raise self._refused(error) from error

    def _refused(self, error: Exception) -> Exception:
        kind = type(error).__name__
        if kind in LOST:
            return RetryError(
                f"{self.where}: another writer was first ({said(error)}), so this run committed nothing; {AGAIN}"
            )
        if kind == UNKNOWN or isinstance(error, (ConnectionError, TimeoutError)):
            return RetryError(
                f"{self.where}: the catalog did not say whether it took the commit ({said(error)}); run the same "
                "command again, which commits nothing twice"
            )
        return ConfigError(f"{self.where}: the table takes no commit: {said(error)}")

    def _created(self, catalog: Any, commit: Commit) -> int:
        transaction = catalog.create_table_transaction(self.name.identifier, commit.schema, location=self.location)
        if commit.partition is not None:
            with transaction.update_spec() as update:
                update.add_identity(commit.partition.column)
        return self._added(transaction, commit)

    def _changed(self, catalog: Any, commit: Commit, state: State) -> int:
        table = catalog.load_table(self.name.identifier)
        snapshot = table.current_snapshot()
        now = snapshot.snapshot_id if snapshot else 0
        if commit.replaces and now != state.version:
            raise RetryError(
                f"{self.where}: another writer committed snapshot {now} first, so this run committed nothing; {AGAIN}"
            )
        transaction = table.transaction()
        if commit.replaces:
            new = set(commit.schema.names)
            gone = [each.name for each in table.schema().fields if each.name not in new]
            if gone or not new <= {each.name for each in table.schema().fields}:
                with transaction.update_schema(allow_incompatible_changes=True) as update:
                    for name in gone:
                        update.delete_column(name)
                    update.union_by_name(commit.schema)
            every: Callable[[], Any] = import_module("pyiceberg.expressions").AlwaysTrue
            transaction.delete(every(), snapshot_properties=commit.properties)
        return self._added(transaction, commit)

    def _added(self, transaction: Any, commit: Commit) -> int:
        """Add the files and commit; return the snapshot."""
        folder = f"{self.location}/data/{RUN}{commit.run_id}"
        if commit.partition is not None:
            _check_values(commit, self.root)
        files = [f"{folder}/{entry['file']}" for entry in commit.entries]
        transaction.add_files(files, snapshot_properties=commit.properties)
        return int(transaction.commit_transaction().current_snapshot().snapshot_id)


def _check_values(commit: Commit, root: TableRoot) -> None:
    """Raise ConfigError where a file has nulls and empty texts, which are one folder, and two partitions."""
    assert commit.partition is not None
    for about in root.footers(commit.files):
        for number in range(about.num_row_groups):
            group = about.row_group(number)
            columns = [group.column(at) for at in range(group.num_columns)]
            (found,) = [each.statistics for each in columns if each.path_in_schema == commit.partition.column]
            if found is not None and found.null_count not in (0, group.num_rows):
                raise ConfigError(
                    f"--partition-by {commit.partition.column}: it has nulls and empty texts, which are two partitions "
                    "of an Iceberg table; make them one"
                )


def _fields(schema: pa.Schema) -> dict[str, str]:
    """Return the types of columns by name, as Iceberg tells them apart."""
    return {each.name: _type(each.type) + ("" if each.nullable else ", never null") for each in schema}


def _type(kind: pa.DataType) -> str:
    """Return a type in words: Iceberg has no short integers, and one kind each of texts, lists and moments."""
    if pa.types.is_struct(kind):
        return "struct<" + ", ".join(f"{each.name}: {_type(each.type)}" for each in kind) + ">"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{_type(kind.value_type)}>"
    if pa.types.is_timestamp(kind):
        return "timestamp" if kind.tz is None else "timestamp in UTC"
    short = pa.types.is_int8(kind) or pa.types.is_int16(kind)
    return "int32" if short else str(kind).removeprefix("large_")
