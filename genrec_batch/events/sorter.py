"""Counting, packing and sorting events: the loops over every row of a log, in NumPy.

Owns: `Sorter`, whose methods `sorter_numba.NumbaSorter` replaces by compiled loops. Both return the same bytes: a
stable sort has one result. Must not know: files, what an event means, which version a log gets (`sorter_choice`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrec_batch.core.arrays import I32, I64, U64
from genrec_batch.events.records import AT_ONCE, Records, RecordType, columns, joined

DIGIT = 1 << 16  # NumPy sorts 16-bit integers by counting, in one pass
ROWS_AT_ONCE = 64  # rows of values that are summed together: they stay in a core's own cache


class Sorter:
    """The NumPy version."""

    def extent(self, numbers: pl.Series) -> tuple[int, int, bool]:
        """Return the smallest and the largest of some integers, and whether none is smaller than the one before.

        There is at least one integer, and no null.
        """
        return numbers.min(), numbers.max(), numbers.is_sorted()  # type: ignore[return-value]

    def tally(self, ids: pl.Series, first: int, counts_R: I32) -> None:
        """Add to `counts_R` how often each id occurs; its first entry counts the id `first`."""
        place_R = ids.cast(pl.Int64).to_numpy() - first
        low = int(place_R.min())
        found_R = np.bincount(place_R - low)
        counts_R[low : low + len(found_R)] += found_R.astype(np.int32)

    def look_up(self, ids: pl.Series, first: int, table_R: I32) -> I32 | None:
        """Return the table's entry for each id, where entry 0 is that of `first`; None where an id has no entry."""
        low, high = int(ids.min()), int(ids.max())  # type: ignore[arg-type]
        if low < first or high >= first + len(table_R):
            return None
        return table_R.take(ids.cast(pl.Int64).to_numpy() - first)

    def take(self, table_R: I32, place_E: I32) -> I32:
        """Return the table's entries at some places, [E]; the table has every place."""
        return table_R.take(place_E)

    def pack(
        self, record: RecordType, frame: pl.DataFrame, user_R: I32, video_R: I32, place_R: I32 | None = None
    ) -> Records:
        """Return the frame's rows as records: in their order, or row r at `place_R[r]`, a permutation."""
        coded = frame.select(record.codes(frame.schema))
        arrays = {"user": user_R, "video": video_R} | {c.name: c.to_numpy() for c in coded}
        records = np.empty(len(frame), record.kind)
        for start in range(0, len(frame), AT_ONCE):
            some = records[start : start + AT_ONCE]
            for name, array in arrays.items():
                some[name] = array[start : start + AT_ONCE]
        if place_R is None:
            return records
        placed = np.empty_like(records)
        placed[place_R] = records
        return placed

    def places_by_bucket(self, user_R: I32, bucket_of_user: npt.NDArray[np.uint16], buckets: int) -> tuple[I32, I64]:
        """Return each row's place once rows are grouped by the bucket of their user, and the rows of each bucket.

        [R] and [buckets]; within a bucket, rows keep the input order.
        """
        bucket_R = bucket_of_user.take(user_R)
        if buckets <= 256:
            bucket_R = bucket_R.astype(np.uint8)  # half the passes of 16 bits
        place_R = np.empty(len(user_R), np.int32)
        place_R[np.argsort(bucket_R, kind="stable")] = np.arange(len(user_R), dtype=np.int32)
        return place_R, np.bincount(bucket_R, minlength=buckets)

    def tiles(self, total_N: I64, kind: np.dtype[Any]) -> I64:
        """Cut neighbouring users, with so many records each, into tiles that `newest` sorts one at a time.

        Returns: the first user of each tile, and the end, [tiles + 1].
        """
        del kind
        return np.array([0, len(total_N)])

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
        """Write each user's newest `keep` records by (time, input order), oldest first, as columns.

        Args:
            chunks: all records of users `start`.., each user's in input order. The compiled version is faster where the
                records of each chunk are grouped by `tiles`.
            kind: the record's type.
            start: the first user.
            total_N: records of each user.
            keep: of a user, at most.
            targets: an array [E] for each field that is wanted, of its type, or float64 for one of float32.
            video_R: is filled with `video` of every record, kept or not, in the same order.

        Returns: False where the records do not match `total_N`; the arrays are then meaningless.
        """
        if sum(map(len, chunks)) != int(total_N.sum()):
            return False
        by_time = _by_user_and_time(joined(chunks, kind), start, total_N)
        if by_time is None:
            return False
        all_kept = int(total_N.max(initial=0)) <= keep
        columns(by_time if all_kept else by_time.take(np.flatnonzero(_from_newest(total_N) < keep)), targets)
        if video_R is not None:
            video_R[:] = by_time["video"]
        return True

    def weighted_sums(self, bits_NF: npt.NDArray[np.uint32], by_FW: U64) -> U64:
        """Return the sums of each row's values times each column of multipliers, modulo 2^64, [N, W]."""
        total_NW = np.empty((len(bits_NF), by_FW.shape[1]), np.uint64)
        for start in range(0, len(bits_NF), ROWS_AT_ONCE):
            wide = bits_NF[start : start + ROWS_AT_ONCE].astype(np.uint64)
            for word in range(by_FW.shape[1]):
                total_NW[start : start + ROWS_AT_ONCE, word] = (wide * by_FW[:, word]).sum(axis=1)
        return total_NW


NUMPY = Sorter()


def _by_user_and_time(records: Records, start: int, total_N: I64) -> Records | None:
    """Return the records by (user, time, input order), None where the users do not have `total_N` records each."""
    user_R = records["user"] - np.int32(start)
    if len(user_R) and not (user_R.min() >= 0 and user_R.max() < len(total_N)):
        return None
    if not (np.bincount(user_R, minlength=len(total_N)) == total_N).all():
        return None
    return records.take(_order(user_R, records["time_us"], total_N))


def _from_newest(lengths_N: I64) -> I64:
    """Return each event's distance from its user's newest event, 0 for the newest, [E], for events sorted by user."""
    ends_N = np.cumsum(lengths_N)
    distance_E: I64 = np.repeat(ends_N, lengths_N) - 1 - np.arange(int(lengths_N.sum()))
    return distance_E


def _order(user_R: I32, time_us_R: I64, total_N: I64) -> I64:
    """Return the rows by (user, time, input order), [R]; rows that come in time order need no comparison."""
    order_R = _by_user(user_R, len(total_N))
    time_R = time_us_R[order_R]
    falls_R = time_R[1:] < time_R[:-1]
    ends = np.cumsum(total_N)[:-1]
    falls_R[ends[(ends > 0) & (ends < len(time_R))] - 1] = False  # from one user to the next it may
    return np.lexsort((time_us_R, user_R)) if falls_R.any() else order_R


def _by_user(user_R: I32, users: int) -> I64:
    low = np.argsort((user_R & (DIGIT - 1)).astype(np.uint16), kind="stable")
    if users <= DIGIT:
        return low
    high = (user_R >> 16).astype(np.uint16)
    return low[np.argsort(high[low], kind="stable")]
