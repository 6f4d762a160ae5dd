"""Copies of Delta tables that Polars does not read: with renamed columns, or with escaped names of files in a store.

Owns: when a copy is made, and the order of its rows. Must not know: which version is asked for. In: an opened table of
the package deltalake, whose own engine reads them. Out: a Parquet file in a temporary folder, until the process ends.
"""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.io.durable import disk_errors
from genrec_batch.io.spill import SpillFolder, remove_abandoned
from genrec_batch.runtime import leftovers, progress
from genrec_batch.runtime.console import ADVICE, LOG
from genrec_batch.stores.bucket import is_uri

IN_ORDER = "SET datafusion.execution.target_partitions = 1"  # else the same rows come in another order each time


def has_escapes(table: Any, path: str) -> bool:
    """Return whether a table in a store has files whose names are escaped in its log, which Polars asks for as such."""
    return is_uri(path) and any("%" in name for name in table.file_uris())


def copied(table: Any, why: str, where: str, spill_to: Path | None) -> pl.LazyFrame:
    """Return the rows of a table from a copy, which each run makes anew; `why` says what Polars does not read.

    Raises:
        DeltaError: deltalake does not read it either.
        RetryError, ConfigError, OSError: the disk refuses the copy.
    """
    LOG.warning("%s: %s, so each run copies the table to the disk first", where, why, extra=ADVICE)
    package = import_module("deltalake")
    builder = package.QueryBuilder()
    builder.execute(IN_ORDER)
    found = builder.register("rows", table).execute("SELECT * FROM rows")
    place = spill_to or Path(tempfile.gettempdir())
    remove_abandoned(place)
    with disk_errors(place, "--spill-dir"):
        folder = SpillFolder.make(place)
    leftovers.at_end(folder.close)
    target = folder.path / "table.parquet"
    reader = pa.RecordBatchReader.from_stream(found)
    schema = pa.schema([pa.field(each.name, _without_views(each.type)) for each in reader.schema])
    with progress.growing(target), pq.ParquetWriter(target, schema, compression="lz4") as writer:
        for batch in reader:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
    return pl.scan_parquet(target, glob=False)


def _without_views(kind: pa.DataType) -> pa.DataType:
    """Return a type that Parquet files are written with; that of a text or bytes may be a view."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind
