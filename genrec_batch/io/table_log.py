"""The border of tables as outputs: what a table's log says of a version, and what a run commits to it.

Owns: these types, and which types of columns tables have. Must not know: Delta, Iceberg, `--if-exists`. Who speaks
them: `delta_log` and `iceberg_log` on one side, `table_output` and `table_runs` on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from genrec_batch.io.hive import Partition
from genrec_batch.io.table_root import RUN, TableRoot

RUN_ID = "genrec.run_id"  # in what a commit records
LARGE = ("genrec.distribution",)  # entries of the metadata that the manifest has, and no commit


@dataclass(frozen=True, kw_only=True)
class State:
    """A version of a table."""

    version: int
    files: frozenset[str]  # of its rows: names below `TableLog.root`, full names of those elsewhere
    runs: tuple[str, ...]  # that its log names, the newest first
    partition: tuple[str, ...]  # its columns
    altered: bool  # rows of files were removed beside them
    opened: Any  # the package's own object

    def active(self) -> list[str]:
        """Return the runs whose files it has, the newest first."""
        found = {name.partition("/")[0].removeprefix(RUN) for name in self.files if name.startswith(RUN)}
        known = [run for run in dict.fromkeys(self.runs) if run in found]
        return [*known, *sorted(found - set(known))]


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What a commit says: the files of one run, which are all that the table has, or are added to it."""

    run_id: str
    folder: str  # its path or URI
    entries: Sequence[Mapping[str, Any]]  # of the manifest
    metadata: Mapping[str, str]
    schema: pa.Schema  # of the table
    partition: Partition | None
    replaces: bool

    @property
    def files(self) -> list[str]:
        """The files, each by its path or URI."""
        return [f"{self.folder}/{entry['file']}" for entry in self.entries]

    @property
    def properties(self) -> dict[str, str]:
        """What the commit's own metadata records."""
        return {name: value for name, value in self.metadata.items() if name not in LARGE}


class TableLog(Protocol):
    """The log of a table of one format."""

    @property
    def kind(self) -> str:
        """The format."""

    @property
    def where(self) -> str:
        """What names the table in errors."""

    @property
    def column_in_files(self) -> bool:
        """Whether files in folders keep the column that these are named by."""

    @property
    def root(self) -> TableRoot:
        """The folder that runs have theirs in."""

    def check(self) -> None:
        """Raise ConfigError where no table can be made there."""

    def state(self, version: str | None = None) -> State | None:
        """Return a version of the table, by default the newest; None where there is no table.

        Raises:
            InputError: it cannot be read, or has no such version.
        """

    def faults(self, schema: pa.Schema, state: State | None, *, replaces: bool) -> list[str]:
        """Return which columns the format, or the table that is there, cannot take."""

    def commit(self, commit: Commit, state: State | None) -> int:
        """Commit to a table in a state that `state` returned, None where there was none; return the new version.

        Raises:
            RetryError: the table has changed since.
            ConfigError: it takes no such commit.
        """


def plain(schema: pa.Schema) -> pa.Schema:
    """Return columns without dictionaries and metadata, as readers see them."""
    return pa.schema([pa.field(each.name, _plain(each.type)) for each in schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(each.name, _plain(each.type)) for each in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind


def unknown_types(schema: pa.Schema) -> list[str]:
    """Return which columns have a type that neither Delta nor Iceberg has, and that no reader may guess."""
    return [
        f"column {each.name!r} is {each.type}, which tables of this format do not have; convert it before, or leave it "
        "out by --columns"
        for each in schema
        if _is_unknown(each.type)
    ]


def _is_unknown(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(_is_unknown(kind.field(at).type) for at in range(kind.num_fields))
    odd = (
        pa.types.is_unsigned_integer,
        pa.types.is_float16,
        pa.types.is_duration,
        pa.types.is_time,
        pa.types.is_null,
        pa.types.is_interval,
    )
    return any(test(kind) for test in odd) or kind == pa.timestamp("ns", getattr(kind, "tz", None))
