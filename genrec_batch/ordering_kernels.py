"""The compiled twins of `ordering` and `carrying`: counting sorts of records, each user's few events by time, sums.

Owns: loops over records, a row of 64-bit words each, and over bits of features. Must not know: what the words mean, but
for the user in the lower half of one and the time in another. Needs numba; compiled once and cached on disk.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from genrec_batch.arrays import I64

Words = npt.NDArray[np.uint64]
RUN = 32  # keys that are ranked by comparing each with each, which vectorizes
LOW_HALF = np.uint64(0xFFFFFFFF)


@njit(cache=True, nogil=True)
def group_by_bucket(
    words_RW: Words, user_word: int, bucket_of_user: npt.NDArray[np.uint16], buckets: int, out_RW: Words
) -> I64:
    """Fill `out_RW` with the rows by bucket, stable; return each bucket's rows."""
    counts = np.zeros(buckets, np.int64)
    rows, width = words_RW.shape
    for row in range(rows):
        counts[bucket_of_user[words_RW[row, user_word] & LOW_HALF]] += 1
    places = np.zeros(buckets, np.int64)
    for bucket in range(1, buckets):
        places[bucket] = places[bucket - 1] + counts[bucket - 1]
    for row in range(rows):
        bucket = bucket_of_user[words_RW[row, user_word] & LOW_HALF]
        place = places[bucket]
        places[bucket] = place + 1
        for word in range(width):
            out_RW[place, word] = words_RW[row, word]
    return counts


@njit(cache=True, nogil=True)
def group_by_user(words_RW: Words, user_word: int, start: int, offsets_N1: I64, out_RW: Words) -> bool:
    """Fill `out_RW` with the rows by user, stable; False where a row is of no such user, or of one with more rows."""
    rows, width = words_RW.shape
    users = len(offsets_N1) - 1
    places = offsets_N1[:-1].copy()
    for row in range(rows):
        user = np.int64(words_RW[row, user_word] & LOW_HALF) - start
        if user < 0 or user >= users:
            return False
        place = places[user]
        if place >= offsets_N1[user + 1]:
            return False
        places[user] = place + 1
        for word in range(width):
            out_RW[place, word] = words_RW[row, word]
    return True


@njit(cache=True, nogil=True)
def sort_by_time(words_RW: Words, time_word: int, offsets_N1: I64, most: int) -> None:
    """Bring each user's rows into time order, in place, equal times as they stand; `most` rows of one user at most."""
    width = words_RW.shape[1]
    keys, other = np.empty(most, np.int64), np.empty(most, np.int64)
    rows = np.empty((most, width), np.uint64)
    bits = 0
    while 1 << bits < most:
        bits += 1
    for user in range(len(offsets_N1) - 1):
        start, count = offsets_N1[user], offsets_N1[user + 1] - offsets_N1[user]
        first, last, rises = _span(words_RW, time_word, start, count)
        if rises:
            continue
        if (last - first) >> (62 - bits) == 0:  # time and place fit one number
            for i in range(count):
                keys[i] = (np.int64(words_RW[start + i, time_word]) - first) << bits | i
            ordered = _sort(keys, other, count)
            for i in range(count):
                ordered[i] &= (1 << bits) - 1
        else:
            for i in range(count):
                keys[i] = words_RW[start + i, time_word]
            ordered = np.argsort(keys[:count], kind="mergesort")
        for i in range(count):
            for word in range(width):
                rows[i, word] = words_RW[start + i, word]
        for i in range(count):
            for word in range(width):
                words_RW[start + i, word] = rows[ordered[i], word]


@njit(cache=True, nogil=True)
def _span(words_RW: Words, time_word: int, start: int, count: int) -> tuple[np.int64, np.int64, bool]:
    """Return the smallest and largest time of some rows, and whether times never fall."""
    first = last = before = np.int64(words_RW[start, time_word]) if count else np.int64(0)
    rises = True
    for i in range(start + 1, start + count):
        time = np.int64(words_RW[i, time_word])
        if time < before:
            rises = False
        first, last, before = min(first, time), max(last, time), time
    return first, last, rises


@njit(cache=True, nogil=True)
def _sort(keys: I64, other: I64, count: int) -> I64:
    """Sort distinct keys; the result is in one of the two arrays. Runs are ranked, then merged, without a branch."""
    for begin in range(0, count, RUN):
        end = min(begin + RUN, count)
        for i in range(begin, end):
            smaller, own = 0, keys[i]
            for j in range(begin, end):
                smaller += keys[j] < own
            other[begin + smaller] = own
    source, target, size = other, keys, RUN
    while size < count:
        for begin in range(0, count, 2 * size):
            middle, end = min(begin + size, count), min(begin + 2 * size, count)
            left, right, i = begin, middle, begin
            while left < middle and right < end:
                a, b = source[left], source[right]
                take_left = a < b
                target[i] = a if take_left else b
                left += take_left
                right += not take_left
                i += 1
            while left < middle:
                target[i] = source[left]
                left, i = left + 1, i + 1
            while right < end:
                target[i] = source[right]
                right, i = right + 1, i + 1
        source, target = target, source
        size *= 2
    return source


@njit(cache=True, nogil=True)
def multiply_add(bits_NF: npt.NDArray[np.uint32], by_WF: Words, total_NW: Words) -> None:
    """Sum each row's values times the multipliers of their places, modulo 2^64, once for each set of multipliers."""
    for row in range(bits_NF.shape[0]):
        for word in range(by_WF.shape[0]):
            total = np.uint64(0)
            for place in range(bits_NF.shape[1]):
                total += np.uint64(bits_NF[row, place]) * by_WF[word, place]
            total_NW[row, word] = total
