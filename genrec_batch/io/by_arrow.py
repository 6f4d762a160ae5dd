"""Parquet files that Polars refuses, read by Arrow as tables that Polars takes.

Owns: over which types Polars panics, and what their values become: zones UTC, texts that are no UTF-8 null. Must not
know: which columns are wanted, and why.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Collection, Iterator, Sequence

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.io.places import Place

OFFSET = re.compile(r"[+-]\d\d:\d\d")  # a time zone without a name
REFUSED = (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, ValueError, TypeError)


def unknown_to_polars(schema: pq.ParquetSchema) -> bool:
    """Return whether Polars would panic over a type, and print that it did."""
    return any(map(_panics, schema.to_arrow_schema().types)) or (
        any(kind == pa.binary(12) for kind in schema.to_arrow_schema().types)
        and any(leaf.converted_type == "INTERVAL" for leaf in map(schema.column, range(len(schema))))
    )


def _panics(kind: pa.DataType) -> bool:
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return True
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return not _is_zone(kind.tz)
    return any(_panics(kind.field(at).type) for at in range(kind.num_fields))


def _is_zone(name: str) -> bool:
    if OFFSET.fullmatch(name):
        return True
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def polars_type(column: pa.Field) -> pl.DataType | None:
    """Return the type that a column has in Polars, None where it has none."""
    if _panics(_known_type(column.type)):
        return None
    try:
        empty = _known(pa.table({"column": pa.array([], column.type)}))  # Polars renames one without a name
        return pl.DataFrame(empty).schema["column"]
    except REFUSED:
        return None


def _known_type(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp(kind.unit, "UTC") if pa.types.is_timestamp(kind) and kind.tz is not None else kind


def _known(table: pa.Table, raw: Collection[str] = ()) -> pa.Table:
    """Return a table with the zones, UUIDs and texts that Polars would refuse as types that it takes.

    Bytes become text, too, except in the columns `raw`.
    """
    for at, column in enumerate(table.schema):
        kind = column.type
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            table = table.set_column(at, column.name, table[at].cast(_known_type(kind)))
        elif isinstance(kind, pa.BaseExtensionType):
            storage = [chunk.storage for chunk in table[at].chunks]
            table = table.set_column(at, column.name, pa.chunked_array(storage, kind.storage_type))
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            table = table.set_column(at, column.name, _valid_text(table[at]))
        elif _is_bytes(kind) and column.name not in raw:
            large = table[at].cast(pa.large_binary())
            text = pa.chunked_array([chunk.view(pa.large_string()) for chunk in large.chunks], pa.large_string())
            table = table.set_column(at, column.name, _valid_text(text))
    return table


def valid_texts(table: pa.Table) -> pa.Table:
    """Return a table of texts, of which those that are no UTF-8 are null."""
    return pa.table([_valid_text(column) for column in table.columns], schema=table.schema)


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _valid_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts of which those that are no UTF-8 are null."""
    bytes_of = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
    raw = pa.chunked_array([chunk.view(bytes_of) for chunk in column.chunks], bytes_of)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        bad = [value for value in raw.unique().to_pylist() if value is not None and not _is_utf8(value)]
        from pyarrow import compute as pc  # a twentieth of a second, for damaged files only

        kept = pc.if_else(pc.is_in(raw, pa.array(bad, bytes_of)), pa.scalar(None, bytes_of), raw)
        return kept.cast(column.type)
    return column


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def rows_of(
    place: Place,
    files: Sequence[str],
    columns: Sequence[str],
    start: int,
    stop: int | None,
    raw: Collection[str] = (),
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield those of the columns that a file has, with its name, a row group at a time.

    The rows are those from `start` to `stop` of all files together; columns of bytes but for `raw` are texts.
    """
    at = 0
    for file in files:
        with place.open(file) as content, pq.ParquetFile(content) as opened:
            there = [name for name in columns if name in opened.schema_arrow.names]
            for number in range(opened.num_row_groups):
                rows = opened.metadata.row_group(number).num_rows
                first, last = max(start - at, 0), rows if stop is None else min(rows, stop - at)
                at += rows
                if first < last:
                    table = opened.read_row_group(number, columns=there).slice(first, last - first)
                    yield file, pl.DataFrame(_known(table, raw)) if there else pl.select(pl.repeat(None, last - first))
