"""Kernels that sort records and move them into columns, and that sum rows of values.

Owns: loops over records, a row of 64-bit words each, and over bits of features. Must not know: what the words mean,
except that one holds the user in its lower half and another the time. Records are rows of words so that one compiled
kernel serves every log. Needs numba; compiled once and cached on disk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import I32, I64
from genrec_batch.events.records_numba import U, Words
from genrec_batch.runtime.jit import array_at, borrowed, kernel, pointer_to

AT_ONCE = 1024  # rows that are written field by field: they stay in a core's own cache
NEAR, FAR = 8, 16  # neighbours on each side to which a key is compared
RUN = 32  # keys that are ranked by comparing all pairs, which vectorizes
LOW_HALF = np.uint64(0xFFFFFFFF)
WORD, HALF, BYTE, FLOAT = range(4)  # how a field is moved: as it is, or float32 into float64


@kernel()
def newest(
    address_K: I64,
    rows_K: I64,
    width: int,
    user_word: int,
    time_word: int,
    start: int,
    offsets_N1: I64,
    cuts: I64,
    keep: int,
    kind_C: I64,
    start_C: I64,
    address_C: I64,
    video_half: int,
    video_R: I32,
) -> bool:
    """Write each user's newest `keep` rows by (time, input order), oldest first, column by column.

    Chunk k has rows_K[k] rows of `width` words at address_K[k]. Users are `start`.. with offsets_N1[1:] - offsets_N1
    rows each, sorted a tile at a time, from cuts[t] to cuts[t + 1]: in each chunk, rows of an earlier tile come before
    rows of a later one. Column c is the field at byte start_C[c], moved to the array at address_C[c] as kind_C[c] says.
    `video_R` is filled with the field at 4 x `video_half` bytes of every row, kept or not, unless it is empty.
    Returns False where a row is out of place, or a user has another number of rows.
    """
    most, room = _largest_step(offsets_N1), _largest_step(offsets_N1[cuts])
    bits = 0
    while 1 << bits < most:
        bits += 1
    keys, order, counts = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(1 << bits, np.int32)
    near = np.full(FAR + most + FAR, -1, np.int64)  # smaller than any key
    chosen = np.empty(AT_ONCE + most, np.int64)  # rows whose fields are not written yet
    words = np.empty(room * width, np.uint64)  # the rows of a tile, by user
    reached_K, places = np.zeros(len(rows_K), np.int64), offsets_N1[:-1].copy()
    written = 0
    for tile in range(len(cuts) - 1):
        first, end = cuts[tile], cuts[tile + 1]
        for chunk in range(len(rows_K)):
            reached_K[chunk] = _group(
                address_K[chunk], rows_K[chunk], reached_K[chunk], width, user_word, start, first, end,
                offsets_N1, places, words,
            )  # fmt: skip
        if not np.array_equal(places[first:end], offsets_N1[first + 1 : end + 1]):
            return False
        written = _newest_of_tile(
            words, words.view(np.uint32), words.view(np.float32), words.view(np.int8), width, time_word, first, end,
            offsets_N1, keep, bits, keys, order, near, counts, chosen, written, kind_C, start_C, address_C, video_half,
            video_R,
        )  # fmt: skip
    return True


@kernel()
def _newest_of_tile(
    words: Words, halves: Any, floats: Any, octets: Any, width: int, time_word: int, first: int, end: int,
    offsets_N1: I64, keep: int, bits: int, keys: I64, order: I64, near: I64, counts: I32, chosen: I64, written: int,
    kind_C: I64, start_C: I64, address_C: I64, video_half: int, video_R: I32,
) -> int:  # fmt: skip
    """Write the newest rows of users `first` to `end`, which `words` has by user; return the rows written so far."""
    base, waiting = offsets_N1[first], 0
    for user in range(first, end):
        begin, count = offsets_N1[U(user)] - base, offsets_N1[U(user + 1)] - offsets_N1[U(user)]
        if not count:
            continue
        _order(
            borrowed(words), width, time_word, begin, count, bits, borrowed(keys), borrowed(order), borrowed(near),
            borrowed(counts),
        )  # fmt: skip
        if len(video_R):
            half = begin * width * 2 + video_half
            for i in range(count):
                video_R[U(base + begin + i)] = np.int32(halves[U(half + order[U(i)] * width * 2)])
        kept = min(count, keep)
        for i in range(count - kept, count):
            chosen[U(waiting)] = begin + order[U(i)]
            waiting += 1
        if waiting >= AT_ONCE:
            _write(chosen, waiting, written, width * 8, words, halves, floats, octets, kind_C, start_C, address_C)
            written, waiting = written + waiting, 0
    _write(chosen, waiting, written, width * 8, words, halves, floats, octets, kind_C, start_C, address_C)
    return written + waiting


@kernel()
def _largest_step(rising: I64) -> int:
    """Return the largest difference between neighbouring numbers."""
    largest = 0
    for i in range(1, len(rising)):
        largest = max(largest, rising[i] - rising[i - 1])
    return largest


@kernel()
def _group(
    address: int, rows: int, reached: int, width: int, user_word: int, start: int, first: int, end: int,
    offsets_N1: I64, places: I64, out: Words,
) -> int:  # fmt: skip
    """Copy the rows of users `first` to `end`, which begin at `reached`, to `out` by user, stable; return their end.

    `places` has the place of each user's next row; `out` begins with the rows of `first`.
    """
    base = offsets_N1[first]
    words = array_at(pointer_to(address), rows * width, np.uint64)
    while reached < rows:
        user = np.int64(words[U(reached * width + user_word)] & LOW_HALF) - start
        if user < first or user >= end or places[U(user)] >= offsets_N1[U(user + 1)]:
            break
        place = places[U(user)]
        places[U(user)] = place + 1
        for word in range(width):
            out[U((place - base) * width + word)] = words[U(reached * width + word)]
        reached += 1
    return reached


@kernel()
def _write(
    chosen: I64, rows: int, out: int, width: int, words: Words, halves: Any, floats: Any, octets: Any,
    kind_C: I64, start_C: I64, address_C: I64,
) -> None:  # fmt: skip
    """Write the fields of the first `rows` chosen rows, of `width` bytes each, to the columns, from `out` on."""
    for column in range(len(kind_C)):
        kind, start, pointer = kind_C[column], start_C[column], pointer_to(address_C[column])
        if kind == WORD:
            to_words = array_at(pointer, out + rows, np.uint64)
            for i in range(rows):
                to_words[U(out + i)] = words[U((chosen[U(i)] * width + start) >> 3)]
        elif kind == HALF:
            to_halves = array_at(pointer, out + rows, np.uint32)
            for i in range(rows):
                to_halves[U(out + i)] = halves[U((chosen[U(i)] * width + start) >> 2)]
        elif kind == FLOAT:
            to_floats = array_at(pointer, out + rows, np.float64)
            for i in range(rows):
                to_floats[U(out + i)] = floats[U((chosen[U(i)] * width + start) >> 2)]
        else:
            to_octets = array_at(pointer, out + rows, np.int8)
            for i in range(rows):
                to_octets[U(out + i)] = octets[U(chosen[U(i)] * width + start)]


@kernel(inline=True)
def _order(
    words: Words, width: int, time_word: int, begin: int, count: int, bits: int, keys: I64, order: I64, near: I64,
    places: I32,
) -> None:  # fmt: skip
    """Fill `order` with the places of a user's `count` rows in time order, equal times in input order."""
    at = begin * width + time_word
    first = last = before = np.int64(words[U(at)])
    falls: Any = 0
    for i in range(count):
        time = np.int64(words[U(at + i * width)])
        keys[U(i)] = time
        falls |= time < before
        first, last, before = min(first, time), max(last, time), time
    if not falls:
        for i in range(count):
            order[U(i)] = i
    elif (last - first) >> (62 - bits) == 0:  # time and place fit in one number
        for i in range(count):
            keys[U(i)] = (keys[U(i)] - first) << bits | i
        if not _spread(keys, order, near, places, count, int((last - first + 1) << bits)):
            _sort(keys, order, count)
        for i in range(count):
            order[U(i)] &= (1 << bits) - 1
    else:
        _far_apart(keys, order, count)


@kernel()
def _far_apart(times: I64, order: I64, count: int) -> None:
    """Fill `order` where the range of times does not fit in a key beside a place."""
    order[:count] = np.argsort(times[:count], kind="mergesort")


@kernel(inline=True)
def _spread(keys: I64, sorted_: I64, near: I64, places: I32, count: int, top: int) -> bool:
    """Sort distinct keys from 0 to below `top` if they are spread evenly enough; else return False and move no key.

    Keys are counted into equal bins, of one or two keys each if times are spread evenly. A key's rank is then the
    number of places before its bin plus the number of smaller neighbours, which needs no branch.
    """
    if count > FAR:
        most_in_bin = _by_bin(keys, near, places, count, top)
    else:
        most_in_bin = count
        for i in range(count):
            near[U(FAR + i)] = keys[U(i)]
    if most_in_bin > FAR:
        return False
    for i in range(FAR):
        near[U(FAR + count + i)] = top
    if most_in_bin <= NEAR:
        for i in range(count):
            rank = i - NEAR
            for j in range(2 * NEAR):
                rank += near[U(FAR - NEAR + i + j)] < near[U(FAR + i)]
            keys[U(i)] = rank
    else:
        for i in range(count):
            rank = i - FAR
            for j in range(2 * FAR):
                rank += near[U(i + j)] < near[U(FAR + i)]
            keys[U(i)] = rank
    for i in range(count):
        sorted_[U(keys[U(i)])] = near[U(FAR + i)]
    return True


@kernel(inline=True)
def _by_bin(keys: I64, near: I64, places: I32, count: int, top: int) -> int:
    """Put keys into `near`, from FAR on, by equal bins of 0 to `top`; return the most in a bin, undone if over FAR."""
    bins, shift = 1, 0
    while 2 * bins < count:
        bins *= 2
    for step in (32, 16, 8, 4, 2, 1):
        if top >> (shift + step) >= bins:
            shift += step
    if top >> shift >= bins:
        shift += 1
    for number in range(bins):
        places[U(number)] = 0
    for i in range(count):
        places[U(keys[U(i)] >> shift)] += 1
    before = most_in_bin = 0
    for number in range(bins):
        here = places[U(number)]
        places[U(number)] = before
        before += here
        most_in_bin = max(most_in_bin, here)
    if most_in_bin <= FAR:
        for i in range(count):
            mine = U(keys[U(i)] >> shift)
            near[U(places[mine] + FAR)] = keys[U(i)]
            places[mine] += 1
    return most_in_bin


@kernel()
def _sort(keys: I64, sorted_: I64, count: int) -> None:
    """Sort distinct keys by ranking runs and merging them, without a branch; `keys` is scratch."""
    for begin in range(0, count, RUN):
        end = min(begin + RUN, count)
        for i in range(begin, end):
            smaller, own = 0, keys[i]
            for j in range(begin, end):
                smaller += keys[j] < own
            sorted_[U(begin + smaller)] = own
    source, target, size, swapped = sorted_, keys, RUN, False
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
        source, target, swapped = target, source, not swapped
        size *= 2
    if swapped:
        sorted_[:count] = source[:count]


@kernel()
def multiply_add(bits_NF: npt.NDArray[np.uint32], by_WF: Words, total_NW: Words) -> None:
    """Sum each row's values times the multipliers of their places, modulo 2^64, for each set of multipliers."""
    for row in range(bits_NF.shape[0]):
        for word in range(by_WF.shape[0]):
            total = np.uint64(0)
            for place in range(bits_NF.shape[1]):
                total += np.uint64(bits_NF[row, place]) * by_WF[word, place]
            total_NW[row, word] = total
