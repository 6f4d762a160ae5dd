"""The columns of Parquet files: which files have the same ones, and a lazy frame over those that do.

Owns: the types of a file's columns, hive partitions, UUIDs as text, files that only Arrow can open. Must not know:
which files there are (`find`), the events contract. In: a file. Out: its `Form`; files of one form are read together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import polars as pl
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

from genrec_batch.io import by_arrow
from genrec_batch.io.places import LOCAL, Place

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
UUID_GROUPS = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))  # first hexadecimal digit and count of each


@dataclass(frozen=True, kw_only=True)
class Form:
    """The columns that some files have in common: names and types, in any order."""

    columns: Mapping[str, pl.DataType]  # in the files
    hive: Mapping[str, pl.DataType] = field(default_factory=dict)  # in the names of folders
    uuids: frozenset[str] = frozenset()  # columns that become text, 8-4-4-4-12 hexadecimal digits
    unreadable: Mapping[str, str] = field(default_factory=dict)  # columns that no library here knows, with their type
    refused: bool = False  # Polars refuses such a file for the type of some column, and Arrow does not
    typed: Mapping[str, pl.DataType] = field(default_factory=dict)  # columns of text that become Booleans or numbers
    text: bool = False  # the files were made of texts
    place: Place = LOCAL
    keeps: object = field(default=None, repr=False)  # what must not be freed as long as the files are needed

    @property
    def key(self) -> object:
        """Return what is equal for files that can be scanned together."""
        return (
            frozenset(self.columns.items()),
            frozenset(self.hive),
            self.uuids,
            frozenset(self.unreadable.items()),
            self.refused,
            self.text,
        )

    def scan(self, files: Sequence[str], start: int = 0, rows: int | None = None) -> pl.LazyFrame:
        """Return the rows of files of this form, or `rows` of them from row `start` on."""
        if self.refused:
            return self.scan_by_arrow(files, start, rows)
        above = dict.fromkeys(hive_keys(files[0]), pl.String()) if self.hive else {}  # also above the input's folder
        frame = pl.scan_parquet(
            list(files),
            schema={**self.columns, **above, **self.hive},
            hive_partitioning=bool(self.hive),
            hive_schema={**above, **self.hive} or None,
            extra_columns="ignore",  # the unreadable ones
            glob=False,
        ).drop(above.keys() - self.hive.keys())
        return self._with_text(frame if rows is None else frame.slice(start, rows))

    def scan_by_arrow(self, files: Sequence[str], start: int = 0, rows: int | None = None) -> pl.LazyFrame:
        """Return the same rows, read by Arrow: slower, bytes are texts, and a text that is no UTF-8 is null."""
        texts = {name: pl.String() for name, kind in self.columns.items() if kind == pl.Binary}
        schema = {**self.columns, **texts, **{name: pl.Binary() for name in self.uuids}, **self.hive}
        first, stop = (0, None) if rows is None else (start, start + rows)

        def read(
            columns: list[str] | None, predicate: pl.Expr | None, most: int | None, size: int | None
        ) -> Iterator[pl.DataFrame]:
            del size
            left = most
            wanted = columns or list(schema)
            for file, there in by_arrow.rows_of(self.place, files, wanted, first, stop, self.uuids):
                frame = _in_schema(there, wanted, schema, hive_values(file))
                kept = frame if left is None else frame.head(left)
                left = None if left is None else left - len(kept)
                yield kept if predicate is None else kept.filter(predicate)
                if left == 0:
                    return

        return self._with_text(register_io_source(read, schema=schema))

    def _with_text(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        if self.uuids:
            frame = frame.with_columns(map(_uuid_text, sorted(self.uuids)))
        if self.typed:
            frame = frame.with_columns(_typed(name, kind) for name, kind in self.typed.items())
        return frame


def _in_schema(
    there: pl.DataFrame, names: Sequence[str], schema: Mapping[str, pl.DataType], partition: Mapping[str, str]
) -> pl.DataFrame:
    absent = [pl.lit(partition.get(name)).alias(name) for name in names if name not in there.columns]
    return there.with_columns(absent).select(pl.col(name).cast(schema[name]) for name in names)


def _uuid_text(name: str) -> pl.Expr:
    digits = pl.col(name).bin.encode("hex")
    return pl.concat_str([digits.str.slice(at, count) for at, count in UUID_GROUPS], separator="-").alias(name)


def _typed(name: str, kind: pl.DataType) -> pl.Expr:
    text = pl.col(name)
    if kind == pl.Boolean:
        return (text.str.to_lowercase() == "true").alias(name)
    return (text.str.replace(",", ".", literal=True) if kind == pl.Float64 else text).cast(kind)


def form_of(file: str, metadata: pq.FileMetaData | None, place: Place = LOCAL) -> Form:
    """Return the columns of a Parquet file with this metadata, None where Arrow does not know a column's type.

    Raises:
        PolarsError, PanicException: neither library can read its schema.
    """
    if metadata is not None and by_arrow.unknown_to_polars(metadata.schema):
        return _arrow_form(metadata.schema, place)
    try:
        columns = pl.scan_parquet(file, glob=False, hive_partitioning=False).collect_schema()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        if metadata is None:
            raise
        return _arrow_form(metadata.schema, place)
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


def _uuids(schema: pq.ParquetSchema) -> frozenset[str]:
    leaves = map(schema.column, range(len(schema)))
    return frozenset(leaf.path for leaf in leaves if leaf.logical_type.type == "UUID")


def _arrow_form(schema: pq.ParquetSchema, place: Place) -> Form:
    columns: dict[str, pl.DataType] = {}
    unreadable = {}
    uuids = _uuids(schema)
    for column in schema.to_arrow_schema():
        kind = by_arrow.polars_type(column)
        if kind is None:
            unreadable[column.name] = str(column.type)
        else:
            columns[column.name] = kind
    columns |= {name: pl.Binary() for name in uuids & columns.keys()}
    return Form(columns=columns, uuids=uuids, unreadable=unreadable, refused=True, place=place)


def hive_values(name: str) -> dict[str, str]:
    """Return the partition values in a path such as `day=1/a.parquet`."""
    return {key: unquote(value) for key, value in _partitions(name) if value != NO_VALUE}


def hive_keys(name: str) -> list[str]:
    """Return the partition columns in a path such as `day=1/a.parquet`."""
    return [key for key, _ in _partitions(name)]


def _partitions(name: str) -> list[tuple[str, str]]:
    parts = [part.partition("=") for part in Path(name).parts[:-1]]
    return [(key, value) for key, equals, value in parts if equals]


def hive_types(names: Sequence[str]) -> dict[str, pl.DataType]:
    """Return the type of each hive partition column: integer, date, or else (also for 007) string."""
    values: dict[str, list[str]] = {}
    for name in names:
        for key, value in _partitions(name):
            values.setdefault(key, []).extend([] if value == NO_VALUE else [unquote(value)])
    return {
        key: pl.Int64()
        if texts and all(re.fullmatch(r"0|-?[1-9]\d{0,17}", value) for value in texts)
        else pl.Date()
        if texts and all(re.fullmatch(r"\d{4}-\d\d-\d\d", value) for value in texts)
        else pl.String()
        for key, texts in values.items()
    }
