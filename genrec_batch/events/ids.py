"""How often each id occurs in a log, and which row an id has, in memory that grows with the number of ids only.

Owns: counts by id and the way from an id to its row. Must not know: what an id names. Integers in a narrow range, which
most logs have, go through plain arrays; others through Polars' hash tables. Where the ids of a row group lie far apart
(millions of users in any order), an array for each row group would be many times longer than the row group: threads
then take turns to count into shared arrays, which are added up once at the end.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrec_batch.core.arrays import I32, I64
from genrec_batch.events.sorter import NUMPY, Sorter

NARROW = 1 << 24  # from the smallest to the largest id, up to which an array has a place for each
IdRange = tuple[int | str, int | str]  # smallest and largest id
MERGED_ROWS = 1 << 22  # counts of single row groups that may wait before they are added up
SPREAD = 8  # places of an array for each row, above which a row group has no array of its own
MOST_ROWS = (1 << 31) - 1  # that int32 can count in any case


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Counts of the ids of one row group: an array from the smallest id on where the range is narrow, else a frame.

    Neither if shared tallies have the counts.
    """

    kind: pl.DataType
    range: IdRange | None  # None where there is no id
    counts_R: I32 | None = None
    frame: pl.DataFrame | None = None


@dataclass(kw_only=True)
class Tally:
    """Counts of the ids from `first` to `last` in `rows` rows; the array may have more places."""

    first: int
    last: int
    counts_R: I32
    rows: int = 0


class Tallies:
    """Arrays into which threads count the ids of row groups; one is made when no other is free."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Tally] = []

    def __len__(self) -> int:
        return len(self._free)

    def add(self, ids: pl.Series, low: int, high: int, sorter: Sorter) -> bool:
        """Count ids from `low` to `high`, a narrow range; False, and nothing counted, where no array takes them."""
        with self._lock:
            tally = self._free.pop() if self._free else Tally(first=low, last=low, counts_R=np.zeros(1, np.int32))
        fits = _make_place(tally, low, high, len(ids))
        if fits:
            sorter.tally(ids, tally.first, tally.counts_R)
            tally.rows += len(ids)
        with self._lock:
            self._free.append(tally)
        return fits

    def drain(self) -> list[Tally]:
        """Hand over all counts; no thread counts any more."""
        tallies, self._free = self._free, []
        return tallies


def _make_place(tally: Tally, low: int, high: int, rows: int) -> bool:
    first, last = min(low, tally.first), max(high, tally.last)
    if last - first >= NARROW or tally.rows + rows > MOST_ROWS:
        return False
    if first < tally.first or last - first >= len(tally.counts_R):
        tally.counts_R = _grown(tally.counts_R, tally.first, first, last)
    tally.first, tally.last = first, last
    return True


def _grown(counts_R: npt.NDArray[Any], old: int, first: int, last: int) -> npt.NDArray[Any]:
    """Return counts from id `old` on as counts from `first` to `last`, with spare places so that it rarely grows."""
    spare = min(NARROW, 2 * (last - first + 1)) - (last - first + 1)
    grown_R = np.zeros(last - first + 1 + spare, counts_R.dtype)
    kept_R = counts_R[: last - old + 1]
    grown_R[old - first :][: len(kept_R)] = kept_R
    return grown_R


def count(ids: pl.Series, sorter: Sorter = NUMPY, tallies: Tallies | None = None) -> Counted:
    """Count the ids of one row group; none of them is null. Threads may count row groups at the same time.

    Ids that lie far apart are counted in `tallies`, if given.
    """
    if not ids.dtype.is_integer() or not len(ids):
        ends = (ids.min(), ids.max()) if len(ids) else None
        return Counted(kind=ids.dtype, range=ends, frame=_grouped(ids))  # type: ignore[arg-type]
    low, high, _ = sorter.extent(ids)
    if high - low >= NARROW or high >= 1 << 63:
        return Counted(kind=ids.dtype, range=(low, high), frame=_grouped(ids))
    spread = (high - low) * SPREAD > len(ids)
    if spread and tallies is not None and tallies.add(ids, low, high, sorter):
        return Counted(kind=ids.dtype, range=(low, high))
    counts_R = np.zeros(high - low + 1, np.int32)
    sorter.tally(ids, low, counts_R)
    return Counted(kind=ids.dtype, range=(low, high), counts_R=counts_R)


def _grouped(ids: pl.Series) -> pl.DataFrame:
    return ids.alias("id").to_frame().group_by("id").agg(count=pl.len().cast(pl.UInt64))


class Counter:
    """Counts of ids, added up over row groups. `tallies` is for `count`."""

    def __init__(self, name: str) -> None:
        self.tallies = Tallies()
        self._name = name
        self._kind: pl.DataType | None = None
        self._first = 0
        self._counts_R: I64 | None = None  # of the ids from `_first` on, while they are narrow
        self._waiting: list[pl.DataFrame] = []
        self._waiting_rows = self._merged_rows = 0

    def add(self, counted: Counted) -> None:
        """Add the counts of one row group."""
        self._kind = counted.kind
        if counted.frame is not None and len(counted.frame):
            self._widen()
            self._wait(counted.frame.rename({"id": self._name}))
        if counted.counts_R is not None:
            assert counted.range is not None
            self._add(int(counted.range[0]), counted.counts_R)

    def _add(self, first: int, counts_R: I32 | I64) -> None:
        if not self._waiting and self._make_room(first, first + len(counts_R) - 1):
            assert self._counts_R is not None
            start = first - self._first
            self._counts_R[start : start + len(counts_R)] += counts_R
            return
        self._widen()
        self._wait(self._narrow(first, counts_R))

    def _widen(self) -> None:
        """Go on without an array: the ids lie too far apart."""
        if self._counts_R is not None:
            self._wait(self._narrow(self._first, self._counts_R))
            self._counts_R = None

    def _make_room(self, low: int, high: int) -> bool:
        """Return whether the range of all ids so far and of `low` to `high` is narrow; if so, make a place for each."""
        counts_R = self._counts_R
        first = low if counts_R is None else min(low, self._first)
        last = high if counts_R is None else max(high, self._first + len(counts_R) - 1)
        if last - first >= NARROW or last >= 1 << 63:
            return False
        if counts_R is None:
            self._counts_R, self._first = np.zeros(last - first + 1, np.int64), first
        elif first < self._first or last - first >= len(counts_R):
            self._counts_R, self._first = _grown(counts_R, self._first, first, last), first
        return True

    def _narrow(self, first: int, counts_R: I32 | I64) -> pl.DataFrame:
        there_R = np.flatnonzero(counts_R)
        ids = pl.Series(self._name, there_R + first).cast(self._kind)  # type: ignore[arg-type]
        return pl.DataFrame([ids, pl.Series("count", counts_R[there_R].astype(np.uint64))])

    def _wait(self, counted: pl.DataFrame) -> None:
        self._waiting.append(counted)
        self._waiting_rows += len(counted)
        if self._waiting_rows > max(MERGED_ROWS, 2 * self._merged_rows):
            self._merge()

    def _merge(self) -> None:
        merged = pl.concat(self._waiting).group_by(self._name).agg(pl.col("count").sum())
        self._waiting, self._waiting_rows, self._merged_rows = [merged], len(merged), len(merged)

    def frame(self) -> pl.DataFrame:
        """Return the ids in rising order with their counts (UInt64)."""
        for tally in self.tallies.drain():
            self._add(tally.first, tally.counts_R[: tally.last - tally.first + 1])
        if self._counts_R is not None:
            return self._narrow(self._first, self._counts_R)
        if not self._waiting:
            return pl.DataFrame(schema={self._name: self._kind or pl.Int64(), "count": pl.UInt64})
        self._merge()
        return self._waiting[0].sort(self._name)


class IdIndex:
    """The row of each of some distinct ids."""

    def __init__(self, ids: pl.Series) -> None:
        self._ids = ids
        self._rows_R: I32 | None = None
        if len(ids) and ids.dtype.is_integer():
            self._first, last = int(ids.min()), int(ids.max())  # type: ignore[arg-type]
            if last - self._first < NARROW and last < 1 << 63:
                self._rows_R = np.full(last - self._first + 1, -1, np.int32)
                self._rows_R[self._places(ids)] = np.arange(len(ids), dtype=np.int32)

    def _places(self, ids: pl.Series) -> I64:
        places: I64 = ids.cast(pl.Int64).to_numpy() - self._first
        return places

    def rows(self, ids: pl.Series, sorter: Sorter = NUMPY) -> I32:
        """Return the row of each id, -1 for an unknown one (or null), [len(ids)]."""
        if self._rows_R is not None and ids.dtype == self._ids.dtype and not ids.null_count() and len(ids):
            found_R = sorter.look_up(ids, self._first, self._rows_R)
            if found_R is not None:
                return found_R
        known = self._ids.alias("id").to_frame().with_row_index("row")
        wanted = ids.cast(self._ids.dtype).alias("id").to_frame()
        joined = wanted.join(known, on="id", how="left", maintain_order="left")
        found: I32 = joined["row"].cast(pl.Int32).fill_null(-1).to_numpy()
        return found
