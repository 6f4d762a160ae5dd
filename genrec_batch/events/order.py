"""Records into another order: grouped by bucket, or by (user, time, input order).

Owns: the two sorts that every event goes through, compiled where numba is installed and the log is large, else in
NumPy (`compiled` is what `for_job` returns). Both give the same bytes: a stable sort has one answer. Must not know:
files, what a record holds beside its user and its time. Records are moved as rows of 64-bit words, so one compiled
kernel serves every log.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import I32, I64, address
from genrec_batch.events.records import Records, columns, field_start, joined
from genrec_batch.runtime.console import LOG

COMPILED_FROM = 4_000_000  # rows of a log from which loading compiled code pays
CELL_BYTES = 1 << 20  # of records that are put in order together: half of a core's own cache
DIGIT = 1 << 16  # NumPy sorts 16-bit integers by counting, in one pass


@cache
def kernels() -> Any:
    """Return the compiled kernels, None where numba is not installed or does not load."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        from genrec_batch.events import order_numba
        from genrec_batch.runtime import jit
    except ImportError as error:
        LOG.warning("numba is installed but does not load (%s); NumPy sorts the events, more slowly", error)
        return None
    jit.tell_if_not_kept()
    return order_numba


def for_job(rows: int) -> Any:
    """Return what counts and sorts the events of a log of that many rows: the compiled kernels, or None for NumPy."""
    return kernels() if rows >= COMPILED_FROM else None


def places_by_bucket(
    user_R: I32, bucket_of_user: npt.NDArray[np.uint16], buckets: int, compiled: Any = None
) -> tuple[I32, I64]:
    """Return each row's place once rows stand by the bucket of their user, in input order within each, and its count.

    [R], and the rows of each bucket, [buckets].
    """
    if compiled is not None:
        place_R = np.empty(len(user_R), np.int32)
        return place_R, compiled.places_by_bucket(user_R, bucket_of_user, buckets, place_R)
    bucket_R = bucket_of_user.take(user_R)
    if buckets <= 256:
        bucket_R = bucket_R.astype(np.uint8)  # half the passes of 16 bits
    place_R = np.empty(len(user_R), np.int32)
    place_R[np.argsort(bucket_R, kind="stable")] = np.arange(len(user_R), dtype=np.int32)
    return place_R, np.bincount(bucket_R, minlength=buckets)


def entries(table: I32, place_R: I32, compiled: Any = None) -> I32:
    """Return the table's entries at some places, all of which it has, [R]."""
    if compiled is None:
        return table.take(place_R)
    found_R = np.empty(len(place_R), np.int32)
    compiled.take(table, place_R, found_R)
    return found_R


def cells(total_N: I64, kind: np.dtype[Any]) -> I64:
    """Cut neighbouring users with so many records each into cells that are put in order in a core's own cache.

    Returns: the first user of each cell, and the end, [cells + 1].
    """
    cell_N = (np.cumsum(total_N) - total_N) * kind.itemsize // CELL_BYTES
    return np.concatenate([[0], np.flatnonzero(np.diff(cell_N)) + 1, [len(total_N)]])


def newest(
    held: Sequence[Records],
    kind: np.dtype[Any],
    *,
    start: int,
    total_N: I64,
    keep: int,
    targets: Mapping[str, npt.NDArray[Any]],
    video_R: I32 | None,
    compiled: Any = None,
) -> bool:
    """Write each user's newest `keep` records by (time, input order), oldest first, as columns.

    Args:
        held: all records of users `start`.., each user's in input order, in blocks. Compiled code is faster where each
            block stands by the users' `cells`.
        kind: what a record holds.
        start: the first user.
        total_N: records of each user.
        keep: of a user, at most.
        targets: an array [E] for each field that is wanted, of its type, or float64 for one of float32.
        video_R: is filled with `video` of every record, kept or not, in the same order.
        compiled: what `for_job` returned.

    Returns: False where the records are others than so many of each user; what is filled then means nothing.
    """
    if sum(map(len, held)) != int(total_N.sum()):
        return False
    if compiled is not None:
        return _newest_compiled(held, kind, start, total_N, keep, targets, video_R, compiled)
    by_time = by_user_and_time(joined(held, kind), start, total_N)
    if by_time is None:
        return False
    all_kept = int(total_N.max(initial=0)) <= keep
    columns(by_time if all_kept else by_time.take(np.flatnonzero(_from_newest(total_N) < keep)), targets)
    if video_R is not None:
        video_R[:] = by_time["video"]
    return True


def _newest_compiled(
    held: Sequence[Records],
    kind: np.dtype[Any],
    start: int,
    total_N: I64,
    keep: int,
    targets: Mapping[str, npt.NDArray[Any]],
    video_R: I32 | None,
    compiled: Any,
) -> bool:
    offsets_N1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(total_N)])

    def done(cuts: I64) -> bool:
        written: bool = compiled.newest(
            np.array([address(block) for block in held], np.int64),
            np.array([len(block) for block in held], np.int64),
            kind.itemsize // 8,
            _word(kind, "user"),
            _word(kind, "time_us"),
            start,
            offsets_N1,
            cuts,
            keep,
            np.array([_way(kind[name], target.dtype, compiled) for name, target in targets.items()]),
            np.array([field_start(kind, name) for name in targets]),
            np.array([address(target) for target in targets.values()]),
            field_start(kind, "video") // 4,
            np.empty(0, np.int32) if video_R is None else video_R,
        )
        return written

    return done(cells(total_N, kind)) or done(np.array([0, len(total_N)]))


def _way(field: np.dtype[Any], target: np.dtype[Any], compiled: Any) -> int:
    """Return how the compiled kernel moves a field into an array."""
    if field == target:
        ways = {8: compiled.WORD, 4: compiled.HALF, 1: compiled.BYTE}
        way: int = ways[field.itemsize]
        return way
    assert field == np.float32, (field, target)
    assert target == np.float64, (field, target)
    return int(compiled.FLOAT)


def by_user_and_time(records: Records, start: int, total_N: I64) -> Records | None:
    """Return the records by (user, time, input order); users are `start`.. and have `total_N` records each.

    None where the records are others than so many of each user.
    """
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


def _word(kind: np.dtype[Any], name: str) -> int:
    """Return which word of a record a field begins."""
    start = field_start(kind, name)
    assert start % 8 == 0, f"{name} begins a word"
    return start // 8


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
