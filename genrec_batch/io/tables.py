"""Tables of files with a log of changes: Delta and Iceberg, at the version that is the newest when a run begins.

Owns: opening a table, and what tells its versions apart. Must not know: which of its files hold what. In: the place of
a table. Out: a `Table`, whose rows stay those of one version whatever others write.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import polars as pl

from genrec_batch.core.errors import EngineError, InputError
from genrec_batch.io.attempt import reading

PACKAGES = {"Delta": "deltalake", "Iceberg": "pyiceberg.table"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """One version of a table."""

    frame: pl.LazyFrame
    rows: int
    version: str  # differs from that of every other version and table


def opened(path: str, kind: str, where: str) -> Table:
    """Open the newest version of a table of a kind, "Delta" or "Iceberg"; `where` names the input in errors.

    Raises:
        EngineError: the package for such tables is not installed.
        InputError: the table cannot be read.
        RetryError: a connection was lost.
    """
    package = _package(kind, where)
    open_table = _delta if kind == "Delta" else _iceberg
    try:
        frame, version = reading(lambda: open_table(package, path, where), where)
        rows = reading(lambda: int(frame.select(pl.len()).collect().item()), where)
    except (ValueError, RuntimeError) as error:  # the base classes of what both packages raise
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: the {kind} table cannot be read: {error}") from error
    return Table(frame=frame, rows=rows, version=version)


def _package(kind: str, where: str) -> ModuleType:
    try:
        return import_module(PACKAGES[kind])
    except ImportError as error:
        name = PACKAGES[kind].partition(".")[0]
        raise EngineError(
            f"{where}: a {kind} table, which the package {name} reads: pip install 'genrec-batch[{kind.lower()}]'"
        ) from error


def _delta(package: ModuleType, path: str, where: str) -> tuple[pl.LazyFrame, str]:
    del where
    table = package.DeltaTable(path)
    version = table.version()
    return pl.scan_delta(path, version=version), f"Delta {table.metadata().id} {version}"


def _iceberg(package: ModuleType, path: str, where: str) -> tuple[pl.LazyFrame, str]:
    os.environ.setdefault("POLARS_ICEBERG_PLANNER", "pyiceberg")  # else Polars warns of another package
    table = package.StaticTable.from_metadata(path if path.endswith(".json") else _newest(path, where))
    snapshot = table.current_snapshot()
    if snapshot is None:
        raise InputError(f"{where}: the Iceberg table has no rows yet")
    found = snapshot.snapshot_id
    return pl.scan_iceberg(table, snapshot_id=found), f"Iceberg {table.metadata.table_uuid} {found}"


def _newest(path: str, where: str) -> str:
    """Return the newest metadata file of a local Iceberg table: the number in its name says which it is."""
    if "://" in path:
        raise InputError(f"{where}: an Iceberg table in a store; name its newest metadata file, *.metadata.json")
    numbered = [
        (int(number[1]), file)
        for file in Path(path, "metadata").glob("*.metadata.json")
        if (number := re.match(r"v?(\d+)", file.name))
    ]
    if not numbered:
        raise InputError(f"{where}: the Iceberg table has no metadata file with a number")
    return str(max(numbered)[1])
