"""Events as packed records: all that a history needs of an event, in a few dozen bytes.

Owns: the record's fields and how contract columns become them. Must not know: files, where records are kept. A record
is one event; it is moved with one memory copy, whatever columns the log has. Numbers keep the precision of the log:
Float32 where the log's type fits it, else Float64.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrec_batch.core import layout
from genrec_batch.events.columns import KINDS
from genrec_batch.events.convert import EXACT_IN_FLOAT32

Records = npt.NDArray[Any]  # structured: user, video, time_us, then the log's columns
AT_ONCE = 4096  # records that are filled or read field by field: they stay in a core's own cache
CODED = {"flag", "category"}  # int8: -1 for null


@dataclass(frozen=True, kw_only=True)
class RecordType:
    """The fields of a log's records: `user` and `video` (int32, rows of the survey), `time_us`, and its columns."""

    columns: tuple[str, ...]  # contract columns that the log has, without ids and time
    kind: np.dtype[np.void]

    @staticmethod
    def of(columns: tuple[str, ...], types: Mapping[str, pl.DataType]) -> RecordType:
        """Return the record type of a log with these contract columns, whose own types are `types`."""
        fields: list[tuple[str, str]] = [("user", "<i4"), ("video", "<i4"), ("time_us", "<i8")]
        held = tuple(name for name in columns if name not in ("user_id", "video_id", "timestamp"))
        for name in held:
            wanted = KINDS[name]
            if wanted in CODED:
                fields.append((name, "i1"))
            elif wanted == "id":
                fields.append((name, "<i8"))
            else:
                fields.append((name, "<f4" if types[name] in EXACT_IN_FLOAT32 else "<f8"))
        fields.sort(key=lambda field: -np.dtype(field[1]).itemsize)  # so that user and video fill one word of 8 bytes
        spare = -sum(np.dtype(form).itemsize for _, form in fields) % 8
        filler = [("filler", "u1", (spare,))] if spare else []  # padding would be lost where chunks are joined
        return RecordType(columns=held, kind=np.dtype([*fields, *filler]))

    def codes(self, types: Mapping[str, pl.DataType], uncoded: Collection[str] = ()) -> list[pl.Expr]:
        """Return all fields but `user` and `video`, from contract columns of these types; those `uncoded` as they are.

        They are one query: sixteen threads that evaluate one column at a time wait for the interpreter's lock.
        """
        time = pl.col("timestamp").cast(pl.Int64).alias("time_us")
        coded = {name: _code(name, types[name], self.kind[name]) for name in self.columns if name not in uncoded}
        return [time, *(coded.get(name, pl.col(name)).alias(name) for name in self.columns)]


def field_start(kind: np.dtype[Any], name: str) -> int:
    """Return the byte of a record at which a field begins."""
    start: int = kind.fields[name][1]  # type: ignore[index]
    return start


def joined(chunks: Sequence[Records], kind: np.dtype[Any]) -> Records:
    """Return chunks of records as one array."""
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate(chunks) if chunks else np.empty(0, kind)


def columns(records: Records, targets: Mapping[str, npt.NDArray[Any]]) -> None:
    """Fill arrays with the records' fields of their names, converted to the arrays' types."""
    for start in range(0, len(records), AT_ONCE):
        some = records[start : start + AT_ONCE]
        for name, target in targets.items():
            target[start : start + AT_ONCE] = some[name]


def _code(name: str, type_: pl.DataType, kind: np.dtype[Any]) -> pl.Expr:
    column, wanted = pl.col(name), KINDS[name]
    if wanted == "flag":
        return column.cast(pl.Int8).fill_null(-1)
    if wanted == "category":  # the place in the list, from 1; 0 for any other value, -1 for null
        known = pl.Enum(layout.CATEGORIES[name][1:])
        place = column.cast(known, strict=False).to_physical().cast(pl.Int8) + 1
        return pl.when(column.is_null()).then(pl.lit(-1, pl.Int8)).otherwise(place.fill_null(0))
    if wanted == "id":
        return _session(column, type_)
    return column.cast(pl.Float32 if kind == np.float32 else pl.Float64).fill_null(np.nan)


def _session(column: pl.Expr, type_: pl.DataType) -> pl.Expr:
    """Return a number from 0 for each id, equal where ids are, -1 for null.

    A number below 2^63 is kept, any other id becomes 63 bits of its hash.
    """
    number = (column.hash(0) // 2).cast(pl.Int64)
    if type_.is_integer():
        own = column.cast(pl.Int64, strict=False)
        number = pl.when(own >= 0).then(own).otherwise(number)
    return pl.when(column.is_null()).then(pl.lit(-1, pl.Int64)).otherwise(number)
