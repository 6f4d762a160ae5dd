"""The compiled version of the sorter.

Owns: handing columns and records to the kernels of `records_numba` and `order_numba`, as addresses: one call takes all
chunks of all columns, because threads that call once per chunk wait for the interpreter's lock. Must not know: files,
what an event means. Needs numba.
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
from genrec_batch.core.arrays import I32, I64, U64, address, offsets_of
from genrec_batch.events import order_numba, records_numba
from genrec_batch.events.columns import KINDS
from genrec_batch.events.records import Records, RecordType, field_start
from genrec_batch.events.sorter import Sorter

TILE_BYTES = 1 << 20  # of records that are sorted together: half of a core's own cache
VIEW = 16  # bytes of an Arrow string view


class NumbaSorter(Sorter):
    """The compiled version; types that its kernels do not take go to NumPy."""

    def extent(self, numbers: pl.Series) -> tuple[int, int, bool]:
        """See `Sorter`."""
        if numbers.dtype != pl.Int64:
            return super().extent(numbers)
        arrays = _arrays(numbers)
        low, high, rises = records_numba.extent(*_places(arrays))
        return int(low), int(high), bool(rises)

    def tally(self, ids: pl.Series, first: int, counts_R: I32) -> None:
        """See `Sorter`."""
        if ids.dtype != pl.Int64:
            super().tally(ids, first, counts_R)
            return
        arrays = _arrays(ids)
        records_numba.tally(*_places(arrays), first, counts_R)

    def look_up(self, ids: pl.Series, first: int, table_R: I32) -> I32 | None:
        """See `Sorter`."""
        if ids.dtype != pl.Int64:
            return super().look_up(ids, first, table_R)
        arrays = _arrays(ids)
        found_R = np.empty(len(ids), np.int32)
        return found_R if records_numba.look_up(*_places(arrays), first, table_R, found_R) else None

    def take(self, table_R: I32, place_E: I32) -> I32:
        """See `Sorter`."""
        found_E = np.empty(len(place_E), np.int32)
        records_numba.take(table_R, place_E, found_E)
        return found_E

    def pack(
        self, record: RecordType, frame: pl.DataFrame, user_R: I32, video_R: I32, place_R: I32 | None = None
    ) -> Records:
        """See `Sorter`; short texts are coded by a kernel, the other columns by Polars in one query."""
        kind, types = record.kind, frame.schema
        texts = {name for name in record.columns if KINDS[name] == "category" and types[name] == pl.String}
        coded = frame.select(record.codes(types, uncoded=texts))
        memory = ArrowColumns.of(coded)
        whole: dict[str, npt.NDArray[Any]] = {
            "user": np.ascontiguousarray(user_R, np.int32),
            "video": np.ascontiguousarray(video_R, np.int32),
        }
        whole |= {name: _text_codes(memory, name, coded[name]) for name in memory.texts}
        starts_K = np.cumsum(memory.rows_K) - memory.rows_K
        names = [*whole, *(name for name in memory.address_K if name not in whole)]
        addresses = {name: address(array) + starts_K * array.itemsize for name, array in whole.items()}
        records = np.empty(len(frame), kind)
        records_numba.pack(
            np.array([addresses.get(name, memory.address_K.get(name)) for name in names]),
            np.array([kind[name].itemsize for name in names]),
            np.array([field_start(kind, name) for name in names]),
            memory.rows_K,
            kind.itemsize,
            np.arange(len(frame), dtype=np.int32) if place_R is None else place_R,
            address(records),
            records.view(np.uint64),
            records.view(np.uint32),
            records.view(np.uint8),
        )
        return records

    def places_by_bucket(self, user_R: I32, bucket_of_user: npt.NDArray[np.uint16], buckets: int) -> tuple[I32, I64]:
        """See `Sorter`."""
        place_R = np.empty(len(user_R), np.int32)
        return place_R, records_numba.places_by_bucket(user_R, bucket_of_user, buckets, place_R)

    def tiles(self, total_N: I64, kind: np.dtype[Any]) -> I64:
        """See `Sorter`; a tile's records fit in a core's own cache."""
        tile_N = (np.cumsum(total_N) - total_N) * kind.itemsize // TILE_BYTES
        return np.concatenate([[0], np.flatnonzero(np.diff(tile_N)) + 1, [len(total_N)]])

    def newest(
        self,
        chunks: Sequence[Records],
        kind: np.dtype[Any],
        *,
        start: int,
        total_N: I64,
        keep: int,
        targets: Mapping[str, npt.NDArray[Any]],
        video_R: I32 | None,
    ) -> bool:
        """See `Sorter`."""
        if sum(map(len, chunks)) != int(total_N.sum()):
            return False
        offsets_N1 = offsets_of(total_N)

        def done(cuts: I64) -> bool:
            written: bool = order_numba.newest(
                *_places(chunks),
                kind.itemsize // 8,
                _word(kind, "user"),
                _word(kind, "time_us"),
                start,
                offsets_N1,
                cuts,
                keep,
                np.array([_move(kind[name], target.dtype) for name, target in targets.items()]),
                np.array([field_start(kind, name) for name in targets]),
                np.array([address(target) for target in targets.values()]),
                field_start(kind, "video") // 4,
                np.empty(0, np.int32) if video_R is None else video_R,
            )
            return written

        return done(self.tiles(total_N, kind)) or done(np.array([0, len(total_N)]))

    def weighted_sums(self, bits_NF: npt.NDArray[np.uint32], by_FW: U64) -> U64:
        """See `Sorter`."""
        total_NW = np.empty((len(bits_NF), by_FW.shape[1]), np.uint64)
        order_numba.multiply_add(bits_NF, np.ascontiguousarray(by_FW.T), total_NW)
        return total_NW


@dataclass(frozen=True, kw_only=True)
class ArrowColumns:
    """The addresses of a frame's columns: rows_K[k] rows of each at address_K[name][k], while `held` lives."""

    rows_K: I64
    address_K: dict[str, I64]
    texts: list[str]  # columns of Arrow string views
    held: pa.Table

    @staticmethod
    def of(frame: pl.DataFrame) -> ArrowColumns:
        """Return the addresses of a frame of numbers and texts."""
        table = frame.to_arrow(compat_level=pl.CompatLevel.newest())
        chunks = {name: [chunk for chunk in table[name].chunks if len(chunk)] for name in table.column_names}
        return ArrowColumns(
            rows_K=np.array([len(chunk) for chunk in next(iter(chunks.values()))], np.int64),
            address_K={name: np.array([_first_item(c) for c in each], np.int64) for name, each in chunks.items()},
            texts=[field.name for field in table.schema if field.type == pa.string_view()],
            held=table,
        )


def _first_item(chunk: pa.Array) -> int:
    values = chunk.buffers()[1]
    start: int = values.address + chunk.offset * (VIEW if chunk.type == pa.string_view() else chunk.type.bit_width // 8)
    return start


def _arrays(numbers: pl.Series) -> list[I64]:
    """Return a column of 64-bit integers without nulls as the arrays that hold it, not copied."""
    return [chunk.to_numpy() for chunk in numbers.get_chunks() if len(chunk)]


def _places(arrays: Sequence[npt.NDArray[Any]]) -> tuple[I64, I64]:
    """Return the addresses and the lengths of arrays, which the caller holds while they are used."""
    return np.array([address(each) for each in arrays], np.int64), np.array([len(each) for each in arrays], np.int64)


def _word(kind: np.dtype[Any], name: str) -> int:
    """Return which word of a record a field begins."""
    start = field_start(kind, name)
    assert start % 8 == 0, f"{name} begins a word"
    return start // 8


def _move(field: np.dtype[Any], target: np.dtype[Any]) -> int:
    """Return how the kernel moves a field into an array."""
    if field == target:
        return {8: order_numba.WORD, 4: order_numba.HALF, 1: order_numba.BYTE}[field.itemsize]
    assert field == np.float32, (field, target)
    assert target == np.float64, (field, target)
    return order_numba.FLOAT


def _text_codes(memory: ArrowColumns, name: str, column: pl.Series) -> npt.NDArray[np.int8]:
    """Return a column of texts as the codes of `RecordType.codes`; a text of at most 12 bytes is its own view."""
    coded = np.empty(len(column), np.int8)
    odd, head_S, tail_S, code_S = _table(tuple(layout.CATEGORIES[name][1:]))
    records_numba.codes(memory.address_K[name], memory.rows_K, odd, head_S, tail_S, code_S, coded)
    if column.null_count():
        coded[column.is_null().to_numpy()] = -1
    return coded


@lru_cache(maxsize=16)
def _table(known: tuple[str, ...]) -> tuple[Any, ...]:
    """Return a hash table with a slot of its own for each known text, and the odd multiplier that makes it so."""
    texts: Any = pl.Series(known).to_arrow(compat_level=pl.CompatLevel.newest())
    views = np.frombuffer(texts.buffers()[1], np.uint64).reshape(-1, 2)[: len(known)]
    odd = np.uint64(0x9E3779B97F4A7C15)
    while True:
        slots = [int(records_numba.slot_of(head, tail, odd)) for head, tail in views]
        if len(set(slots)) == len(slots):
            break
        odd += np.uint64(2)
    head_S, tail_S = np.zeros((2, 1 << records_numba.SLOT_BITS), np.uint64)
    code_S = np.zeros(1 << records_numba.SLOT_BITS, np.int8)
    head_S[slots], tail_S[slots], code_S[slots] = views[:, 0], views[:, 1], np.arange(1, len(known) + 1)
    return odd, head_S, tail_S, code_S
