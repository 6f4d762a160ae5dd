"""Kernels that count and look up ids, and that pack columns into records.

Owns: loops over the values of columns. Must not know: what a value means. Columns come as addresses, however many there
are, so that one compiled kernel serves every log; the caller holds the arrays until a kernel returns. Needs numba;
compiled once and cached on disk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import I32, I64
from genrec_batch.runtime.jit import array_at, kernel, pointer_to, will_write

Words = npt.NDArray[np.uint64]
AT_ONCE = 256  # rows that are written column by column: they stay in a core's nearest cache
READ_TWICE = 2048  # values: they stay there too
LINE = 64  # bytes of a cache line
SLOT_BITS = 7  # of the hash table of short texts: few texts in many slots
U = np.uint64  # of an index: numba checks signed ones for counting from the end


@kernel()
def extent_of(value_R: I64) -> tuple[np.int64, np.int64, int]:
    """Return the smallest and largest of at least one value, and how many are smaller than the one before."""
    least = largest = value_R[0]
    falls = 0
    for begin in range(0, len(value_R), READ_TWICE):
        end = min(begin + READ_TWICE, len(value_R))
        for row in range(begin, end):
            least, largest = min(least, value_R[U(row)]), max(largest, value_R[U(row)])
        for row in range(max(1, begin), end):
            falls += value_R[U(row)] < value_R[U(row - 1)]
    return least, largest, falls


@kernel()
def extent(address_C: I64, rows_C: I64) -> tuple[np.int64, np.int64, bool]:
    """Return the smallest and largest of int64 values, and whether none is smaller than the one before.

    They come in chunks of at least one value, rows_C[c] of them at address_C[c].
    """
    values = array_at(pointer_to(address_C[0]), rows_C[0], np.int64)
    least, largest, falls = extent_of(values)
    for chunk in range(1, len(rows_C)):
        last = values[-1]
        values = array_at(pointer_to(address_C[chunk]), rows_C[chunk], np.int64)
        low, high, fallen = extent_of(values)
        least, largest = min(least, low), max(largest, high)
        falls += fallen + (values[0] < last)
    return least, largest, falls == 0


@kernel()
def tally(address_C: I64, rows_C: I64, least: int, counts: I32) -> None:
    """Add to `counts` how often each int64 value occurs in such chunks; the first count is that of `least`."""
    for chunk in range(len(rows_C)):
        values = array_at(pointer_to(address_C[chunk]), rows_C[chunk], np.int64)
        for row in range(len(values)):
            counts[U(values[U(row)] - least)] += 1


@kernel()
def look_up(address_C: I64, rows_C: I64, least: int, table: I32, found_R: I32) -> bool:
    """Fill `found_R` with the table's entries for int64 values in such chunks; the first entry is that of `least`.

    Returns False where a value has no entry.
    """
    outside, found = 0, 0
    for chunk in range(len(rows_C)):
        values = array_at(pointer_to(address_C[chunk]), rows_C[chunk], np.int64)
        for row in range(len(values)):
            place = U(values[U(row)] - least)
            inside = place < U(len(table))
            outside += not inside
            found_R[U(found + row)] = table[place if inside else U(0)]
        found += len(values)
    return outside == 0


@kernel()
def take(table: I32, place_R: I32, out_R: I32) -> None:
    """Fill `out_R` with the table's entries at some places, all of which it has."""
    for row in range(len(place_R)):
        out_R[U(row)] = table[U(place_R[U(row)])]


@kernel()
def slot_of(head: Any, tail: Any, odd: Any) -> Any:
    """Return the slot of a short text, one of 2^SLOT_BITS."""
    return ((head ^ (tail * U(3))) * odd) >> U(64 - SLOT_BITS)


@kernel()
def codes(address_K: I64, rows_K: I64, odd: Any, head_S: Words, tail_S: Words, code_S: Any, code_R: Any) -> None:
    """Fill `code_R` with the code of each text, 0 for one that is not in its slot of the table.

    Texts are Arrow string views of two words: length and first 4 bytes, then the next 8, enough for 12 bytes. They come
    in chunks, rows_K[k] of them at address_K[k].
    """
    first = 0
    for chunk in range(len(rows_K)):
        views = array_at(pointer_to(address_K[chunk]), 2 * rows_K[chunk], np.uint64)
        for row in range(rows_K[chunk]):
            head, tail = views[U(2 * row)], views[U(2 * row + 1)]
            slot = slot_of(head, tail, odd)
            code_R[U(first + row)] = code_S[slot] if (head == head_S[slot]) & (tail == tail_S[slot]) else 0
        first += rows_K[chunk]


@kernel()
def places_by_bucket(user_R: I32, bucket_of_user: npt.NDArray[np.uint16], buckets: int, place_R: I32) -> I64:
    """Fill `place_R` with the place of each row once rows are grouped by bucket, stable; return each bucket's rows."""
    counts = np.zeros(buckets, np.int64)
    for row in range(len(user_R)):
        counts[bucket_of_user[user_R[row]]] += 1
    places = np.zeros(buckets, np.int64)
    for bucket in range(1, buckets):
        places[bucket] = places[bucket - 1] + counts[bucket - 1]
    for row in range(len(user_R)):
        bucket = bucket_of_user[user_R[row]]
        place_R[row] = places[bucket]
        places[bucket] += 1
    return counts


@kernel()
def pack(
    address_CK: Any, size_C: I64, start_C: I64, rows_K: I64, width: int, place_R: I32, address: int, words: Words,
    halves: Any, octets: Any,
) -> None:  # fmt: skip
    """Put row r of every column into record place_R[r], at byte start_C[c] of it.

    `words`, `halves` and `octets` are the records of `width` bytes at `address`, as flat arrays of 8, 4 and 1 bytes;
    columns have items of size_C bytes and come in chunks, rows_K[k] of them at address_CK[c, k].
    """
    first = 0
    for chunk in range(len(rows_K)):
        place = place_R[first : first + rows_K[chunk]]
        pack_chunk(address_CK[:, chunk], size_C, start_C, width, place, address, words, halves, octets)
        first += rows_K[chunk]


@kernel()
def pack_chunk(
    address_C: Any, size_C: I64, start_C: I64, width: int, place_R: I32, address: int, words: Words, halves: Any,
    octets: Any,
) -> None:  # fmt: skip
    """Do the same with columns of one chunk each."""
    rows = len(place_R)
    for begin in range(0, rows, AT_ONCE):
        end = min(begin + AT_ONCE, rows)
        for row in range(begin, end):
            at = address + np.int64(place_R[U(row)]) * width
            for line in range(0, width, LINE):
                will_write(at + line)
        for column in range(len(address_C)):
            start, size, pointer = start_C[column], size_C[column], pointer_to(address_C[column])
            if size == 8:
                from_words = array_at(pointer, rows, np.uint64)
                for row in range(begin, end):
                    words[U((np.int64(place_R[U(row)]) * width + start) >> 3)] = from_words[U(row)]
            elif size == 4:
                from_halves = array_at(pointer, rows, np.uint32)
                for row in range(begin, end):
                    halves[U((np.int64(place_R[U(row)]) * width + start) >> 2)] = from_halves[U(row)]
            else:
                from_octets = array_at(pointer, rows, np.uint8)
                for row in range(begin, end):
                    octets[U(np.int64(place_R[U(row)]) * width + start)] = from_octets[U(row)]
