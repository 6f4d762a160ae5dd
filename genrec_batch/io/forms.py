"""The columns of Parquet files: which files have the same ones, and a lazy frame over those that do.

Owns: the types of a file's columns, hive partitions, UUIDs as text, files that only Arrow can open. Must not know:
which files there are (`find`), the events contract. In: a file. Out: its `Form`; files of one form are read together.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

from genrec_batch.core.errors import InputError

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
OFFSET = re.compile(r"[+-]\d\d:\d\d")  # a time zone without a name
UUID_GROUPS = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))  # first hexadecimal digit and count of each


@dataclass(frozen=True, kw_only=True)
class Form:
    """The columns that some files have in common: names and types, in any order."""

    columns: Mapping[str, pl.DataType]  # in the files
    hive: Mapping[str, pl.DataType] = field(default_factory=dict)  # in the names of folders
    uuids: frozenset[str] = frozenset()  # columns that become text, 8-4-4-4-12 hexadecimal digits
    unreadable: Mapping[str, str] = field(default_factory=dict)  # columns that no library here knows, with their type
    by_arrow: bool = False  # Polars refuses such a file for the type of some column, and Arrow does not

    @property
    def key(self) -> object:
        """Return what is equal for files that can be scanned together."""
        return frozenset(self.columns.items()), self.uuids, frozenset(self.unreadable.items()), self.by_arrow

    def scan(self, files: Sequence[str], start: int = 0, rows: int | None = None) -> pl.LazyFrame:
        """Return the rows of files of this form, or `rows` of them from row `start` on."""
        if self.by_arrow:
            return self.scan_by_arrow(files, start, rows)
        frame = pl.scan_parquet(
            list(files),
            schema={**self.columns, **self.hive},
            hive_partitioning=bool(self.hive),
            hive_schema=dict(self.hive) or None,
            extra_columns="ignore",  # the unreadable ones
            glob=False,
        )
        return self._with_text(frame if rows is None else frame.slice(start, rows))

    def scan_by_arrow(self, files: Sequence[str], start: int = 0, rows: int | None = None) -> pl.LazyFrame:
        """Return the same rows, read by Arrow: slower, and a text that is no UTF-8 is null."""
        schema = {**self.columns, **self.hive}
        cut = (0, None) if rows is None else (start, start + rows)

        def read(
            columns: list[str] | None, predicate: pl.Expr | None, most: int | None, size: int | None
        ) -> Iterator[pl.DataFrame]:
            del size
            left = most
            for frame in _by_arrow(files, columns or list(schema), schema, *cut):
                kept = frame if left is None else frame.head(left)
                left = None if left is None else left - len(kept)
                yield kept if predicate is None else kept.filter(predicate)
                if left == 0:
                    return

        return self._with_text(register_io_source(read, schema=schema))

    def _with_text(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        return frame.with_columns(map(_uuid_text, sorted(self.uuids))) if self.uuids else frame


def _uuid_text(name: str) -> pl.Expr:
    digits = pl.col(name).bin.encode("hex")
    return pl.concat_str([digits.str.slice(at, count) for at, count in UUID_GROUPS], separator="-").alias(name)


def form_of(file: str, metadata: pq.FileMetaData | None) -> Form:
    """Return the columns of a Parquet file with this metadata, None where Arrow does not know a column's type.

    Raises:
        PolarsError, PanicException: neither library can read its schema.
    """
    if metadata is not None and _unknown_to_polars(metadata.schema):
        return _arrow_form(metadata.schema)
    try:
        with Path(file).open("rb") as opened:  # Polars would take some file names for globs
            columns = pl.Schema(pl.read_parquet_schema(opened))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        if metadata is None:
            raise
        return _arrow_form(metadata.schema)
    unreadable = {name: str(kind) for name, kind in columns.items() if not _is_usable(kind)}
    columns = pl.Schema({name: kind for name, kind in columns.items() if name not in unreadable})
    binary = {name for name, kind in columns.items() if kind == pl.Binary}
    return Form(
        columns=columns,
        unreadable=unreadable,
        uuids=_uuids(metadata.schema) & binary if binary and metadata else frozenset(),
    )


@cache
def _is_usable(kind: pl.DataType) -> bool:
    """Return whether a column of a type that Polars reads from a schema can also be in a frame."""
    try:
        return pl.DataFrame(schema={"column": kind}).schema["column"] == kind
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, TypeError):
        return False


def group_rows(file: str, metadata: pq.FileMetaData | None) -> list[int]:
    """Return the rows of each row group of a Parquet file, or of all together where Arrow cannot open it."""
    if metadata is None:
        return [pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()]
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _unknown_to_polars(schema: pq.ParquetSchema) -> bool:
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


def _uuids(schema: pq.ParquetSchema) -> frozenset[str]:
    leaves = map(schema.column, range(len(schema)))
    return frozenset(leaf.path for leaf in leaves if leaf.logical_type.type == "UUID")


def _arrow_form(schema: pq.ParquetSchema) -> Form:
    columns: dict[str, pl.DataType] = {}
    unreadable = {}
    uuids = _uuids(schema)
    for column in schema.to_arrow_schema():
        try:
            if _panics(_known_type(column.type)):
                raise TypeError  # noqa: TRY301 (as Polars would, if it did not print a stack)
            empty = _known(pa.table({column.name: pa.array([], column.type)}))
            columns[column.name] = pl.DataFrame(empty).schema[column.name]
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, ValueError, TypeError):
            unreadable[column.name] = str(column.type)
    columns |= {name: pl.Binary() for name in uuids & columns.keys()}
    return Form(columns=columns, uuids=uuids, unreadable=unreadable, by_arrow=True)


def _known_type(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp(kind.unit, "UTC") if pa.types.is_timestamp(kind) and kind.tz is not None else kind


def _known(table: pa.Table) -> pa.Table:
    """Return a table with the zones, UUIDs and texts that Polars would refuse as types that it takes."""
    for at, column in enumerate(table.schema):
        kind = column.type
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            table = table.set_column(at, column.name, table[at].cast(_known_type(kind)))
        elif isinstance(kind, pa.BaseExtensionType):
            storage = [chunk.storage for chunk in table[at].chunks]
            table = table.set_column(at, column.name, pa.chunked_array(storage, kind.storage_type))
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            table = table.set_column(at, column.name, _valid_text(table[at]))
    return table


def _valid_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts of which those that are no UTF-8 are null."""
    bytes_of = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
    raw = pa.chunked_array([chunk.view(bytes_of) for chunk in column.chunks], bytes_of)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        bad = [value for value in raw.unique().to_pylist() if value is not None and not _is_utf8(value)]
        kept = pc.if_else(pc.is_in(raw, pa.array(bad, bytes_of)), pa.scalar(None, bytes_of), raw)
        return kept.cast(column.type)
    return column


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _by_arrow(
    files: Sequence[str], columns: list[str], schema: Mapping[str, pl.DataType], start: int, stop: int | None
) -> Iterator[pl.DataFrame]:
    """Yield the rows from `start` to `stop` of all files together, a row group at a time."""
    at = 0
    for file in files:
        opened = pq.ParquetFile(file)
        there = [name for name in columns if name in opened.schema_arrow.names]
        values = hive_values(file)
        for number in range(opened.num_row_groups):
            rows = opened.metadata.row_group(number).num_rows
            first, last = max(start - at, 0), rows if stop is None else min(rows, stop - at)
            at += rows
            if first >= last:
                continue
            table = opened.read_row_group(number, columns=there)
            frame = pl.DataFrame(_known(table.slice(first, last - first)))
            partitions = [
                pl.lit(values.get(name)).cast(schema[name]).alias(name) for name in columns if name not in there
            ]
            yield frame.with_columns(partitions).select(pl.col(name).cast(schema[name]) for name in columns)


def hive_values(name: str) -> dict[str, str]:
    """Return the partition values in a path such as `day=1/a.parquet`."""
    parts = [part.partition("=") for part in Path(name).parts[:-1]]
    return {key: unquote(value) for key, equals, value in parts if equals and value != NO_VALUE}


def hive_types(names: Sequence[str]) -> dict[str, pl.DataType]:
    """Return the type of each hive partition column: integer, date, or else (also for 007) string."""
    values: dict[str, list[str]] = {}
    for name in names:
        for key, value in hive_values(name).items():
            values.setdefault(key, []).append(value)
    return {
        key: pl.Int64()
        if all(re.fullmatch(r"0|-?[1-9]\d{0,17}", value) for value in texts)
        else pl.Date()
        if all(re.fullmatch(r"\d{4}-\d\d-\d\d", value) for value in texts)
        else pl.String()
        for key, texts in values.items()
    }


def common_types(schemas: Sequence[tuple[str, Mapping[str, pl.DataType]]], where: str) -> dict[str, pl.DataType]:
    """Return one type for each column of several tables, each with the name of its first file.

    Numbers widen, texts meet in String, times in microseconds (in UTC where one has a zone), lists by their values.

    Raises:
        InputError: two types have no type in common; the message names a file of each.
    """
    types: dict[str, pl.DataType] = {}
    first_seen: dict[str, str] = {}
    faults = []
    for file, schema in schemas:
        for name, kind in schema.items():
            have = types.setdefault(name, kind)
            first_seen.setdefault(name, file)
            wide = common_type(have, kind)
            if wide is None:
                faults.append(f"column {name!r} is {have} in {first_seen[name]} and {kind} in {file}")
            else:
                types[name] = wide
    if faults:
        hint = "convert one of them with --schema FILE.toml, or write the column again in one type"
        raise InputError(f"{where}: its files disagree; {hint}:\n  " + "\n  ".join(faults[:20]))
    return types


def common_type(a: pl.DataType, b: pl.DataType) -> pl.DataType | None:
    """Return a type that values of both types can be cast to, None if there is none."""
    if a == b:
        return a
    if pl.Null in (a, b):  # a file without any value has no type
        return b if a == pl.Null else a
    if a.is_integer() and b.is_integer() and a.is_signed_integer() == b.is_signed_integer():
        return max(a, b, key=lambda kind: int(str(kind).lstrip("UInt")))
    if a.is_integer() and b.is_integer():
        return pl.Int64()
    if all(kind.is_numeric() or kind == pl.Boolean for kind in (a, b)):
        return pl.Float64() if any(kind.is_float() or kind.is_decimal() for kind in (a, b)) else pl.Int64()
    if all(kind in (pl.String, pl.Categorical, pl.Enum) for kind in (a, b)):
        return pl.String()
    if all(kind in (pl.Datetime, pl.Date) for kind in (a, b)):
        zoned = any(getattr(kind, "time_zone", None) for kind in (a, b))
        return pl.Datetime("us", "UTC" if zoned else None)
    if isinstance(a, pl.List | pl.Array) and isinstance(b, pl.List | pl.Array):
        inner = common_type(_inner(a), _inner(b))
        return None if inner is None else pl.List(inner)
    return None


def _inner(kind: pl.List | pl.Array) -> pl.DataType:
    return kind.inner if isinstance(kind.inner, pl.DataType) else kind.inner()


def in_types(frame: pl.LazyFrame, types: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    """Return a frame in types that `common_types` has found; columns that it does not have are null."""
    have = frame.collect_schema()
    return frame.select(
        _in_type(name, have[name], kind) if name in have else pl.lit(None, kind).alias(name)
        for name, kind in types.items()
    )


def _in_type(name: str, have: pl.DataType, kind: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if have == kind:
        return column
    if isinstance(kind, pl.Datetime) and kind.time_zone:
        zoned = isinstance(have, pl.Datetime) and have.time_zone
        moved = (
            column.dt.convert_time_zone("UTC") if zoned else column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        )
        return moved.cast(kind)
    return column.cast(kind)
