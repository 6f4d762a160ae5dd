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

AT_ONCE = 1024  # rows of which every field in turn is written: they stay in a core's own cache
NEAR, FAR = 8, 16  # neighbours on each side that a key is compared with
RUN = 32  # keys that are ranked by comparing each with each, which vectorizes
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
    near = np.full(FAR + most + FAR, -1, np.int64)  # what stands before the first key is smaller
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
    """Write the newest rows of users `first` to `end`, in `words` by user, after those written; return how many are."""
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
    """Return the most by which a number is larger than the one before."""
    largest = 0
    for i in range(1, len(rising)):
        largest = max(largest, rising[i] - rising[i - 1])
    return largest


@kernel()
def _group(
    address: int, rows: int, reached: int, width: int, user_word: int, start: int, first: int, end: int,
    offsets_N1: I64, places: I64, out: Words,
) -> int:  # fmt: skip
    """Put the rows of users `first` to `end` that stand together from `reached` on by user, stable; return their end.

    `places` is where each user's next row goes; `out` begins with those of `first`.
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
    """Write the fields of the first `rows` rows chosen, of `width` bytes each, to the columns, from `out` on."""
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
    """Fill `order` with the places of a user's `count` rows in time order, equal times as they stand."""
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
    elif (last - first) >> (62 - bits) == 0:  # time and place fit one number
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
    """Fill `order` where times span more than a key holds beside a place."""
    order[:count] = np.argsort(times[:count], kind="mergesort")


@kernel(inline=True)
def _spread(keys: I64, sorted_: I64, near: I64, places: I32, count: int, top: int) -> bool:
    """Sort distinct keys from 0 to below `top`, where they lie evenly enough; False, and no key has moved, where not.

    Keys are counted into equal spans, of one or two keys each if times lie evenly. A key's rank is then the places
    before its span and how many of its neighbours are smaller, which needs no branch.
    """
    if count > FAR:
        crowd = _by_span(keys, near, places, count, top)
    else:
        crowd = count
        for i in range(count):
            near[U(FAR + i)] = keys[U(i)]
    if crowd > FAR:
        return False
    for i in range(FAR):
        near[U(FAR + count + i)] = top
    if crowd <= NEAR:
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
def _by_span(keys: I64, near: I64, places: I32, count: int, top: int) -> int:
    """Put keys into `near`, from FAR on, by equal spans of 0 to `top`; return the most of one, undone if beyond FAR."""
    spans, shift = 1, 0
    while 2 * spans < count:
        spans *= 2
    for step in (32, 16, 8, 4, 2, 1):
        if top >> (shift + step) >= spans:
            shift += step
    if top >> shift >= spans:
        shift += 1
    for span in range(spans):
        places[U(span)] = 0
    for i in range(count):
        places[U(keys[U(i)] >> shift)] += 1
    before = crowd = 0
    for span in range(spans):
        here = places[U(span)]
        places[U(span)] = before
        before += here
        crowd = max(crowd, here)
    if crowd <= FAR:
        for i in range(count):
            mine = U(keys[U(i)] >> shift)
            near[U(places[mine] + FAR)] = keys[U(i)]
            places[mine] += 1
    return crowd


@kernel()
def _sort(keys: I64, sorted_: I64, count: int) -> None:
    """Sort distinct keys; `keys` is scratch then. Runs are ranked, then merged, without a branch."""
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
    """Sum each row's values times the multipliers of their places, modulo 2^64, once for each set of multipliers."""
    for row in range(bits_NF.shape[0]):
        for word in range(by_WF.shape[0]):
            total = np.uint64(0)
            for place in range(bits_NF.shape[1]):
                total += np.uint64(bits_NF[row, place]) * by_WF[word, place]
            total_NW[row, word] = total
