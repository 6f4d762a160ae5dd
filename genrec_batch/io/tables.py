"""Tables of files with a log of changes: Delta and Iceberg, at a given version or the one that is the newest.

Owns: opening a table, what tells its versions apart, and `TABLE@VERSION`. Must not know: which of its files hold what.
In: the place of a table. Out: a `Table`, whose rows stay those of one version whatever others write.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl

from genrec_batch.core.errors import ConfigError, EngineError, InputError
from genrec_batch.core.option_values import moment_us
from genrec_batch.io import catalogs, delta_copy
from genrec_batch.io.attempt import reading
from genrec_batch.io.places import Store
from genrec_batch.stores.bucket import allows_http

PACKAGES = {"Delta": "deltalake", "Iceberg": "pyiceberg.table"}
EQUALITY = "equality deletes"  # rows of an Iceberg table that are removed by their values, as Flink does
ZERO = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One version of a table."""

    frame: pl.LazyFrame
    rows: int
    version: str  # differs from that of every other version and table
    about: Mapping[str, Any] = field(default_factory=dict)  # for the lineage: format, id, version, when it was made


def split(path: str) -> tuple[str, str | None]:
    """Return the table and the version of TABLE@VERSION; every other path as it is, with None."""
    base, at, version = path.rpartition("@")
    if not at or not base or not version or "/" in version or base.endswith(":/"):
        return path, None
    return base, version


def opened(path: str, kind: str, where: str, version: str | None = None, spill_to: Path | None = None) -> Table:
    """Open a version of a table of a kind, "Delta" or "Iceberg", by default the newest.

    Args:
        path: its folder or URI; of Iceberg also a metadata file, or its name in a catalog.
        kind: "Delta" or "Iceberg".
        where: names the input in errors.
        version: of Delta a version or a moment; of Iceberg a snapshot, a tag, a branch or a moment.
        spill_to: the folder for a copy of a table that Polars does not read, by default the system's temporary one.

    Raises:
        EngineError: the package for such tables is not installed.
        InputError: the table cannot be read, or has no such version.
        RetryError: a connection was lost.
    """
    package = _package(kind, where)

    def open_table(package: ModuleType) -> tuple[pl.LazyFrame, dict[str, Any]]:
        if kind == "Delta":
            return _delta(package, path, where, version, spill_to)
        return _iceberg(package, path, where, version)

    failures = catalogs.failures() if kind == "Iceberg" else (package.exceptions.DeltaError, ValueError, RuntimeError)
    try:
        frame, about = reading(lambda: open_table(package), where)
        rows = reading(lambda: int(frame.select(pl.len()).collect().item()), where)
    except failures as error:
        if isinstance(error, InputError):
            raise
        out = "; rewrite its data files first, such as by rewrite_data_files" if EQUALITY in str(error) else ""
        raise InputError(f"{where}: the {kind} table cannot be read: {catalogs.said(error)}{out}") from error
    return Table(frame=frame, rows=rows, version=f"{kind} {about['id']} {about['version']}", about=about)


def _package(kind: str, where: str) -> ModuleType:
    try:
        return import_module(PACKAGES[kind])
    except ImportError as error:
        name = PACKAGES[kind].partition(".")[0]
        raise EngineError(
            f"{where}: a {kind} table, which the package {name} reads: pip install 'genrec-batch[{kind.lower()}]'"
        ) from error


def _delta(
    package: ModuleType, path: str, where: str, asked: str | None, spill_to: Path | None
) -> tuple[pl.LazyFrame, dict[str, Any]]:
    table = delta_at(package, path, where, asked)
    version = int(table.version())
    about = {"format": "Delta", "id": str(table.metadata().id), "version": version}
    if delta_copy.has_escapes(table, path):
        return delta_copy.copied(table, "names of its files are escaped", where, spill_to), about
    frame = pl.scan_delta(path, version=version, storage_options=options_of(path))
    try:
        frame.collect_schema()
    except package.exceptions.DeltaProtocolError as error:
        frame = delta_copy.copied(table, catalogs.said(error), where, spill_to)
    return frame, about


def options_of(path: str) -> dict[str, str] | None:
    """Return what the package deltalake is to know of a store beside the environment, None of a disk."""
    return {"allow_http": "true"} if allows_http(path) and not path.startswith("http") else None  # as `Bucket` does


def delta_at(package: ModuleType, path: str, where: str, asked: str | None) -> Any:
    """Return a Delta table at a version, or as of a moment; by default the newest.

    Raises:
        InputError: there is no such version.
    """
    table = package.DeltaTable(path, storage_options=options_of(path))
    if asked is None:
        return table
    newest = table.version()
    if asked.isdecimal():
        if int(asked) > newest:
            raise InputError(f"{where}: the Delta table has no version {asked}; the newest is {newest}")
        table.load_as_version(int(asked))
        return table
    moment = _moment(asked, where, "a version (a number) or a moment")
    table.load_as_version(moment)
    made = next((entry.get("timestamp") for entry in table.history(1)), None)
    if made is not None and made > (moment - ZERO) / dt.timedelta(milliseconds=1):
        raise InputError(f"{where}: the Delta table has no version as of {asked}; its first one is of a later moment")
    return table


def _moment(text: str, where: str, expected: str) -> dt.datetime:
    try:
        return ZERO + dt.timedelta(microseconds=moment_us(text, "@"))
    except ConfigError:
        raise InputError(f"{where}: {text!r} is not {expected}, such as 2026-04-30T23:59:59Z") from None


def _iceberg(package: ModuleType, path: str, where: str, asked: str | None) -> tuple[pl.LazyFrame, dict[str, Any]]:
    os.environ.setdefault("POLARS_ICEBERG_PLANNER", "pyiceberg")  # else Polars warns of another package
    if catalogs.is_name(path):
        name = catalogs.TableName.read(path, where)
        with catalogs.opened(name, where) as catalog:
            table = catalogs.table_of(catalog, name, where)
    else:
        metadata = path if path.endswith(".json") else _newest(path, where)
        table = package.StaticTable.from_metadata(metadata, catalogs.of_store())
    snapshot = snapshot_of(table, where, asked)
    if snapshot is None:
        raise InputError(f"{where}: the Iceberg table has no rows yet")
    found = snapshot.snapshot_id
    about = {"format": "Iceberg", "id": str(table.metadata.table_uuid), "version": found}
    return pl.scan_iceberg(table, snapshot_id=found), about


def snapshot_of(table: Any, where: str, asked: str | None) -> Any:
    """Return a snapshot of an Iceberg table by its tag or branch, its id, or as of a moment; by default the newest.

    Raises:
        InputError: there is no such snapshot.
    """
    if asked is None:
        return table.current_snapshot()
    if asked in table.metadata.refs:
        return table.snapshot_by_name(asked)
    if asked.isdecimal():
        found = table.snapshot_by_id(int(asked))
    else:
        refs = ", ".join(sorted(table.metadata.refs))
        moment = _moment(asked, where, f"a snapshot's id, a tag, a branch ({refs}) or a moment")
        found = table.snapshot_as_of_timestamp(int((moment - ZERO) / dt.timedelta(milliseconds=1)))
    if found is None:
        raise InputError(f"{where}: the Iceberg table has no snapshot {asked}")
    return found


def _newest(path: str, where: str) -> str:
    """Return the newest metadata file of an Iceberg table: the number in its name says which it is."""
    if "://" in path:
        store = Store(path, where.partition(" ")[0])
        files = [store.uri(key) for key in store.keys_below(f"{store.key}/metadata")]
    else:
        files = [str(file) for file in Path(path, "metadata").glob("*.metadata.json")]
    numbered = [
        (int(number[1]), file)
        for file in files
        if file.endswith(".metadata.json") and (number := re.match(r"v?(\d+)", file.rpartition("/")[2]))
    ]
    if not numbered:
        raise InputError(f"{where}: the Iceberg table has no metadata file with a number")
    return max(numbered)[1]
