"""The compiled twins of `ordering` and `carrying`: counting sorts of records, records into columns, sums.

Owns: loops over records, a row of 64-bit words each, and over bits of features. Must not know: what the words mean, but
for the user in the lower half of one and the time in another. Needs numba; compiled once and cached on disk. Who has
this module has the kernels of `packing_kernels` too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.arrays import I32, I64
from genrec_batch.compiling import array_at, kernel, pointer_to
from genrec_batch.packing_kernels import (
    SLOT_BITS,
    U,
    Words,
    codes,
    extent,
    look_up,
    pack,
    places_by_bucket,
    slot_of,
    tally,
)

__all__ = [
    "SLOT_BITS", "codes", "extent", "group_by_user", "look_up", "multiply_add", "newest", "pack", "places_by_bucket",
    "slot_of", "tally",
]  # fmt: skip

RUN = 32  # keys that are ranked by comparing each with each, which vectorizes
LOW_HALF = np.uint64(0xFFFFFFFF)
WORD, HALF, BYTE, FLOAT = range(4)  # how a field is moved: as it is, or float32 into float64


@kernel()
def group_by_user(words_RW: Words, user_word: int, start: int, offsets_N1: I64, places: I64, out_RW: Words) -> bool:
    """Put the rows into `out_RW` by user, stable; False where a row is of no such user, or of one with more rows.

    `places` is where each user's next row goes, at first as `offsets_N1`; blocks that follow each other share it.
    """
    rows, width = words_RW.shape
    users = len(offsets_N1) - 1
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


@kernel()
def newest(
    words_RW: Words,
    words: Words,
    halves: npt.NDArray[np.uint32],
    floats: npt.NDArray[np.float32],
    octets: npt.NDArray[np.int8],
    time_word: int,
    offsets_N1: I64,
    most: int,
    keep: int,
    kind_C: I64,
    start_C: I64,
    address_C: I64,
    video_half: int,
    video_R: I32,
) -> None:
    """Of rows by user, write each user's newest `keep` by (time, input order), oldest first, column by column.

    `words`, `halves`, `floats` and `octets` are the rows as flat arrays; no user has more than `most` of them. Column c
    is the field at byte start_C[c], written to the array at address_C[c] in the way kind_C[c]. `video_R` is filled with
    the field at 4 x `video_half` bytes of every row, kept or not; empty: with nothing.
    """
    width = words_RW.shape[1]
    bits = 0
    while 1 << bits < most:
        bits += 1
    keys, other, places = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(4 << bits, np.int32)
    as_they_stand = np.arange(most)
    out = 0
    for user in range(len(offsets_N1) - 1):
        begin, count = offsets_N1[user], offsets_N1[user + 1] - offsets_N1[user]
        first, last, rises = _span(words_RW, time_word, begin, count)
        order = as_they_stand
        if not rises:
            order = _by_time(words_RW, time_word, begin, count, first, last, bits, keys, other, places)
        if len(video_R):
            half = begin * width * 2 + video_half
            for i in range(count):
                video_R[begin + i] = np.int32(halves[U(half + order[i] * width * 2)])
        kept = min(count, keep)
        for column in range(len(kind_C)):
            _field(
                kind_C[column], address_C[column], words_RW, words, halves, floats, octets,
                start_C[column], begin, order, count - kept, kept, out,
            )  # fmt: skip
        out += kept


@kernel()
def _field(
    kind: int, address: int, words_RW: Words, words: Words, halves: Any, floats: Any, octets: Any,
    start: int, begin: int, order: I64, oldest: int, kept: int, out: int,
) -> None:  # fmt: skip
    """Write the field at byte `start` of rows `begin` + order[oldest : oldest + kept] to an array, from `out` on."""
    width, pointer, oldest_out = words_RW.shape[1] * 8, pointer_to(address), U(out)
    at = begin * width + start
    if kind == WORD:
        to_words = array_at(pointer, out + kept, np.uint64)
        for i in range(kept):
            to_words[oldest_out + U(i)] = words[U((at + order[oldest + i] * width) >> 3)]
    elif kind == HALF:
        to_halves = array_at(pointer, out + kept, np.uint32)
        for i in range(kept):
            to_halves[oldest_out + U(i)] = halves[U((at + order[oldest + i] * width) >> 2)]
    elif kind == FLOAT:
        to_floats = array_at(pointer, out + kept, np.float64)
        for i in range(kept):
            to_floats[oldest_out + U(i)] = floats[U((at + order[oldest + i] * width) >> 2)]
    else:
        to_octets = array_at(pointer, out + kept, np.int8)
        for i in range(kept):
            to_octets[oldest_out + U(i)] = octets[U(at + order[oldest + i] * width)]


@kernel()
def _by_time(
    words_RW: Words, time_word: int, begin: int, count: int, first: int, last: int, bits: int, keys: I64, other: I64,
    places: I32,
) -> I64:  # fmt: skip
    """Return the places of a user's `count` rows in time order, equal times as they stand, in one of the two arrays."""
    if (last - first) >> (62 - bits) == 0:  # time and place fit one number
        for i in range(count):
            keys[i] = (np.int64(words_RW[begin + i, time_word]) - first) << bits | i
        ordered = (
            _sort(keys, other, count)
            if count <= RUN
            else _spread(keys, other, places, count, (last - first + 1) << bits)
        )
        for i in range(count):
            ordered[i] &= (1 << bits) - 1
        return ordered
    for i in range(count):
        keys[i] = words_RW[begin + i, time_word]
    other[:count] = np.argsort(keys[:count], kind="mergesort")
    return other


@kernel()
def _span(words_RW: Words, time_word: int, start: int, count: int) -> tuple[Any, Any, bool]:
    """Return the smallest and largest time of some rows, and whether times never fall."""
    first = last = before = np.int64(words_RW[start, time_word]) if count else np.int64(0)
    rises = True
    for i in range(start + 1, start + count):
        time = np.int64(words_RW[i, time_word])
        if time < before:
            rises = False
        first, last, before = min(first, time), max(last, time), time
    return first, last, rises


@kernel()
def _spread(keys: I64, other: I64, places: I32, count: int, top: int) -> I64:
    """Sort distinct keys from 0 to below `top`; the result is in one of the two arrays.

    Keys are counted into 2 to 4 times as many equal spans as there are keys, which puts times that lie evenly nearly in
    order; the rest is insertion. Where that moves more than it may, the keys are merged instead.
    """
    spans, shift = 2, 0
    while spans < 2 * count:
        spans *= 2
    for step in (32, 16, 8, 4, 2, 1):
        if top >> (shift + step) >= spans:
            shift += step
    if top >> shift >= spans:
        shift += 1
    places[:spans] = 0
    for i in range(count):
        places[U(keys[i] >> shift)] += 1
    before = 0
    for span in range(spans):
        here = places[span]
        places[span] = before
        before += here
    for i in range(count):
        mine = U(keys[i] >> shift)
        other[U(places[mine])] = keys[i]
        places[mine] += 1
    moves = 0
    for i in range(1, count):
        key, j = other[i], i - 1
        while j >= 0 and other[j] > key:
            other[j + 1] = other[j]
            j -= 1
        other[j + 1] = key
        moves += i - 1 - j
        if moves > 4 * count:
            return _sort(keys, other, count)
    return other


@kernel()
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


@kernel()
def multiply_add(bits_NF: npt.NDArray[np.uint32], by_WF: Words, total_NW: Words) -> None:
    """Sum each row's values times the multipliers of their places, modulo 2^64, once for each set of multipliers."""
    for row in range(bits_NF.shape[0]):
        for word in range(by_WF.shape[0]):
            total = np.uint64(0)
            for place in range(bits_NF.shape[1]):
                total += np.uint64(bits_NF[row, place]) * by_WF[word, place]
            total_NW[row, word] = total
