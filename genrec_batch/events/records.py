"""Events as packed records: what a history needs of an event, in a few dozen bytes.

Owns: the record's fields and how contract columns become them. Must not know: files, who keeps the records. One record
is one event; a block of them is moved with one memory copy a row, whatever columns the log has. Numbers keep the
precision of the log: Float32 where the log's type fits it, else Float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from genrec_batch.core import layout
from genrec_batch.core.arrays import I32, I64, address
from genrec_batch.events.columns import SCORED

Records = npt.NDArray[Any]  # structured: user, video, time_us, then the log's columns
AT_ONCE = 4096  # records that are filled or read field by field: they stay in a core's own cache
VIEW = 16  # bytes of an Arrow string view
CODED = {"flag", "category"}  # int8: -1 for null
EXACT_IN_FLOAT32 = (pl.Float32, pl.Int8, pl.Int16, pl.UInt8, pl.UInt16)


@dataclass(frozen=True, kw_only=True)
class RecordType:
    """What a record of one log holds: `user` and `video` (int32, rows of the survey), `time_us`, and its columns."""

    columns: tuple[str, ...]  # contract columns that the log has, without ids and time
    kind: np.dtype[np.void]

    @staticmethod
    def of(columns: tuple[str, ...], types: Mapping[str, pl.DataType]) -> RecordType:
        """Return the record type of a log with these contract columns, whose own types are `types`."""
        fields: list[tuple[str, str]] = [("user", "<i4"), ("video", "<i4"), ("time_us", "<i8")]
        held = tuple(name for name in columns if name not in ("user_id", "video_id", "timestamp"))
        for name in held:
            wanted = SCORED[name]
            if wanted in CODED:
                fields.append((name, "i1"))
            elif wanted == "id":
                fields.append((name, "<i8"))
            else:
                fields.append((name, "<f4" if types[name] in EXACT_IN_FLOAT32 else "<f8"))
        fields.sort(key=lambda field: -np.dtype(field[1]).itemsize)  # so that user and video fill one word of 8 bytes
        spare = -sum(np.dtype(form).itemsize for _, form in fields) % 8
        filler = [("filler", "u1", (spare,))] if spare else []  # padding would be lost where blocks are joined
        return RecordType(columns=held, kind=np.dtype([*fields, *filler]))

    def pack(
        self, frame: pl.DataFrame, user_R: I32, video_R: I32, place_R: I32 | None = None, compiled: Any = None
    ) -> Records:
        """Return the frame's rows as records: in their order, or row r at `place_R[r]`; places are each number once."""
        records = np.empty(len(frame), self.kind)
        coded = frame.select(pl.col("timestamp").cast(pl.Int64).alias("time_us"), *self._codes(frame.schema, compiled))
        if compiled is not None:
            places = np.arange(len(frame), dtype=np.int32) if place_R is None else place_R
            self._pack({"user": user_R, "video": video_R}, coded, places, records, compiled)
            return records
        arrays = {"user": user_R, "video": video_R} | {c.name: c.to_numpy() for c in coded}
        for start in range(0, len(frame), AT_ONCE):
            block = records[start : start + AT_ONCE]
            for name, array in arrays.items():
                block[name] = array[start : start + AT_ONCE]
        if place_R is None:
            return records
        placed = np.empty_like(records)
        placed[place_R] = records
        return placed

    def _codes(self, types: Mapping[str, pl.DataType], compiled: Any) -> list[pl.Expr]:
        """Return what goes into the records of each column; of short texts, with `compiled`, the texts themselves.

        Together they are one query: sixteen threads that ask for a column at a time wait for the interpreter's lock.
        """
        texts = [n for n in self.columns if compiled is not None and SCORED[n] == "category" and types[n] == pl.String]
        codes = {name: _code(name, types[name], self.kind[name]) for name in self.columns if name not in texts}
        return [codes.get(name, pl.col(name)).alias(name) for name in self.columns]

    def _pack(self, rows: dict[str, I32], coded: pl.DataFrame, place_R: I32, records: Records, compiled: Any) -> None:
        """Put `rows` and codes into their places among the records, chunks as they lie, in one call."""
        chunks = Chunks.of(coded)
        whole = {name: np.ascontiguousarray(array, self.kind[name]) for name, array in rows.items()}
        whole |= {name: _text_codes(chunks, name, coded[name], compiled) for name in chunks.texts}
        starts_K = np.cumsum(chunks.rows_K) - chunks.rows_K
        names = [*whole, *(name for name in chunks.address_K if name not in whole)]
        sizes = [self.kind[name].itemsize for name in names]
        addresses = {name: address(array) + starts_K * array.itemsize for name, array in whole.items()}
        compiled.pack(
            np.array([addresses.get(name, chunks.address_K.get(name)) for name in names]),
            np.array(sizes),
            np.array([field_start(self.kind, name) for name in names]),
            chunks.rows_K,
            self.kind.itemsize,
            place_R,
            address(records),
            records.view(np.uint64),
            records.view(np.uint32),
            records.view(np.uint8),
        )


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """Where a frame's columns lie: rows_K[k] rows of each at address_K[name][k], while `held` lives."""

    rows_K: I64
    address_K: dict[str, I64]
    texts: list[str]  # columns of Arrow string views
    held: pa.Table

    @staticmethod
    def of(frame: pl.DataFrame) -> Chunks:
        """Look at a frame of numbers and texts."""
        table = frame.to_arrow(compat_level=pl.CompatLevel.newest())
        parts = {name: [chunk for chunk in table[name].chunks if len(chunk)] for name in table.column_names}
        return Chunks(
            rows_K=np.array([len(chunk) for chunk in next(iter(parts.values()))], np.int64),
            address_K={name: np.array([_first_item(c) for c in chunks], np.int64) for name, chunks in parts.items()},
            texts=[field.name for field in table.schema if field.type == pa.string_view()],
            held=table,
        )


def _first_item(chunk: pa.Array) -> int:
    values = chunk.buffers()[1]
    start: int = values.address + chunk.offset * (VIEW if chunk.type == pa.string_view() else chunk.type.bit_width // 8)
    return start


def field_start(kind: np.dtype[Any], name: str) -> int:
    """Return the byte of a record at which a field begins."""
    start: int = kind.fields[name][1]  # type: ignore[index]
    return start


def joined(blocks: Sequence[Records], kind: np.dtype[Any]) -> Records:
    """Return blocks as one."""
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.empty(0, kind)


def columns(records: Records, targets: Mapping[str, npt.NDArray[Any]]) -> None:
    """Fill arrays with the records' fields of their names, converted to the arrays' types."""
    for start in range(0, len(records), AT_ONCE):
        part = records[start : start + AT_ONCE]
        for name, target in targets.items():
            target[start : start + AT_ONCE] = part[name]


def _code(name: str, type_: pl.DataType, kind: np.dtype[Any]) -> pl.Expr:
    column, wanted = pl.col(name), SCORED[name]
    if wanted == "flag":
        return column.cast(pl.Int8).fill_null(-1)
    if wanted == "category":  # the place among those known, from 1; 0 for any other, -1 for null
        known = pl.Enum(layout.CATEGORIES[name][1:])
        place = column.cast(known, strict=False).to_physical().cast(pl.Int8) + 1
        return pl.when(column.is_null()).then(pl.lit(-1, pl.Int8)).otherwise(place.fill_null(0))
    if wanted == "id":
        return _session(column, type_)
    return column.cast(pl.Float32 if kind == np.float32 else pl.Float64).fill_null(np.nan)


def _session(column: pl.Expr, type_: pl.DataType) -> pl.Expr:
    """Return a number from 0 for each id, equal where ids are, -1 for null.

    A number below 2^63 stands for itself, any other id for 63 bits of its hash.
    """
    number = (column.hash(0) // 2).cast(pl.Int64)
    if type_.is_integer():
        own = column.cast(pl.Int64, strict=False)
        number = pl.when(own >= 0).then(own).otherwise(number)
    return pl.when(column.is_null()).then(pl.lit(-1, pl.Int64)).otherwise(number)


def _text_codes(chunks: Chunks, name: str, column: pl.Series, compiled: Any) -> npt.NDArray[np.int8]:
    """Return a column of texts as the codes that `_code` gives; one of at most 12 bytes is its own view."""
    coded = np.empty(len(column), np.int8)
    table = _table(tuple(layout.CATEGORIES[name][1:]), compiled)
    compiled.codes(chunks.address_K[name], chunks.rows_K, *table, coded)
    if column.null_count():
        coded[column.is_null().to_numpy()] = -1
    return coded


@lru_cache(maxsize=16)
def _table(known: tuple[str, ...], compiled: Any) -> tuple[Any, ...]:
    """Return a table with a slot of its own for each known text, and the odd number that makes it so."""
    texts: Any = pl.Series(known).to_arrow(compat_level=pl.CompatLevel.newest())
    views = np.frombuffer(texts.buffers()[1], np.uint64).reshape(-1, 2)[: len(known)]
    odd = np.uint64(0x9E3779B97F4A7C15)
    while True:
        slots = [int(compiled.slot_of(head, tail, odd)) for head, tail in views]
        if len(set(slots)) == len(slots):
            break
        odd += np.uint64(2)
    head_S, tail_S = np.zeros((2, 1 << compiled.SLOT_BITS), np.uint64)
    code_S = np.zeros(1 << compiled.SLOT_BITS, np.int8)
    head_S[slots], tail_S[slots], code_S[slots] = views[:, 0], views[:, 1], np.arange(1, len(known) + 1)
    return odd, head_S, tail_S, code_S
