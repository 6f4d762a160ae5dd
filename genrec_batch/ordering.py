"""Records into another order: grouped by bucket, or by (user, time, input order).

Owns: the two sorts that every event goes through, compiled where numba is installed and the log is large, else in
NumPy (`compiled` is what `for_job` returns). Both give the same bytes: a stable sort has one answer. Must not know:
files, what a record holds beside its user and its time. Records are moved as rows of 64-bit words, so one compiled
kernel serves every log.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.arrays import I32, I64
from genrec_batch.blocks import Records
from genrec_batch.console import LOG

COMPILED_FROM = 4_000_000  # events of a job from which loading compiled code pays
DIGIT = 1 << 16  # NumPy sorts 16-bit integers by counting, in one pass


@cache
def kernels() -> Any:
    """Return the compiled kernels, None where numba is not installed or does not load."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        from genrec_batch import ordering_kernels
    except ImportError as error:
        LOG.warning("numba is installed but does not load (%s); NumPy sorts the events, more slowly", error)
        return None
    return ordering_kernels


def for_job(events: int) -> Any:
    """Return what sorts the events of a job of that many: the compiled kernels, or None for NumPy."""
    return kernels() if events >= COMPILED_FROM else None


def by_bucket(
    records: Records, bucket_of_user: npt.NDArray[np.uint16], buckets: int, compiled: Any = None
) -> tuple[Records, I64]:
    """Return the records grouped by the bucket of their user, in input order within each, and each bucket's count."""
    if compiled is not None:
        grouped = np.empty_like(records)
        counts = compiled.group_by_bucket(
            _words(records), _user_word(records), bucket_of_user, buckets, _words(grouped)
        )
        return grouped, counts
    bucket_R = bucket_of_user.take(records["user"])
    if buckets <= 256:
        bucket_R = bucket_R.astype(np.uint8)  # half the passes of 16 bits
    return records.take(np.argsort(bucket_R, kind="stable")), np.bincount(bucket_R, minlength=buckets)


def by_user_and_time(records: Records, start: int, total_N: I64, compiled: Any = None) -> Records | None:
    """Return the records by (user, time, input order); users are `start`.. and have `total_N` records each.

    None where the records are others than so many of each user.
    """
    if compiled is None:
        user_R = records["user"] - np.int32(start)
        if len(user_R) and not (user_R.min() >= 0 and user_R.max() < len(total_N)):
            return None
        if not (np.bincount(user_R, minlength=len(total_N)) == total_N).all():
            return None
        return records.take(_order(user_R, records["time_us"], total_N))
    if len(records) != int(total_N.sum()):
        return None
    ordered = np.empty_like(records)
    offsets_N1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(total_N)])
    if not compiled.group_by_user(_words(records), _user_word(records), start, offsets_N1, _words(ordered)):
        return None
    time_word = records.dtype.fields["time_us"][1] // 8  # type: ignore[index]
    compiled.sort_by_time(_words(ordered), time_word, offsets_N1, int(total_N.max(initial=0)))
    return ordered


def _words(records: Records) -> npt.NDArray[np.uint64]:
    return records.view(np.uint64).reshape(len(records), records.dtype.itemsize // 8)


def _user_word(records: Records) -> int:
    """Return which word has the user in its lower half."""
    start: int = records.dtype.fields["user"][1]  # type: ignore[index]
    assert start % 8 == 0, "the user begins a word"
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
