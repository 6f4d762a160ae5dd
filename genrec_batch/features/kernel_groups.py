"""Distinct codes of each user, how they are spread, and means of table rows, compiled.

Owns: the arithmetic that `events.py` and `videos.py` leave to `segments.distinct`, `segments.groups` and
`segments.weighted_sums`, to the same bits. Must not know: what a code stands for. Imports nothing of this package: what
numba keeps on disk is renewed when this file changes, and by nothing else.

Shape suffixes as in `arrays.py`; H places of a hash table, a power of two with room for any user's codes.
"""

from __future__ import annotations

import numpy as np
from numba import njit

MULTIPLIER = 2654435761  # of Fibonacci hashing, 2**32 over the golden ratio (Knuth, volume 3, 6.4)


@njit(cache=True, nogil=True)
def distinct(codes_E, offsets_N1, start, stop, stamp, seen_H, distinct_N, newest_N):
    """Count each user's distinct codes, and how often the newest event's code occurs; -1 is null.

    `seen_H` holds nothing of a stamp from `stamp` up to `stamp` + stop - start yet.
    """
    shift = _shift(len(seen_H))
    for user in range(start, stop):
        codes = codes_E[offsets_N1[user] : offsets_N1[user + 1]]
        mine = np.int64(stamp + user - start) << 32
        found, same = 0, 0
        last = codes[len(codes) - 1] if len(codes) else -1
        for i in range(len(codes)):
            code = codes[i]
            same += code == last
            if code >= 0:
                place = _place(seen_H, mine | code, shift)
                found += seen_H[place] != mine | code
                seen_H[place] = mine | code
        distinct_N[user - start] = found
        newest_N[user - start] = same if last >= 0 else 0


@njit(cache=True, nogil=True)
def groups(
    slots_4, codes_R2, row_E, offsets_N1, start, stop, stamp, logarithms_X, steps_X, scale, seen_2H, sizes_H, dense_NF
):
    """Write distinct creators and categories per event, the entropy of categories, and the commonest one's share.

    `codes_R2` are the creator and the category of each table row, -1 for null; the last row is that of no video.
    `steps_X[c]` is what a category that occurs for the c-th time adds to the sum of c ln c, times `scale`, in whole
    numbers: their sum is exact in any order.
    """
    creators_H, categories_H = seen_2H[0], seen_2H[1]
    shift = _shift(len(sizes_H))
    for user in range(start, stop):
        rows = row_E[offsets_N1[user] : offsets_N1[user + 1]]
        mine = np.int64(stamp + user - start) << 32
        creators, categories, events, commonest, terms = 0, 0, 0, 0, np.int64(0)
        for i in range(len(rows)):
            creator, category = codes_R2[rows[i], 0], codes_R2[rows[i], 1]
            if creator >= 0:
                place = _place(creators_H, mine | creator, shift)
                creators += creators_H[place] != mine | creator
                creators_H[place] = mine | creator
            if category >= 0:
                place = _place(categories_H, mine | category, shift)
                size = sizes_H[place] + 1 if categories_H[place] == mine | category else 1
                categories_H[place], sizes_H[place] = mine | category, size
                categories += size == 1
                events += 1
                terms += steps_X[size]
                commonest = max(commonest, size)
        row = dense_NF[user]
        if len(rows):
            row[slots_4[0]] = creators / len(rows)
            row[slots_4[1]] = categories / len(rows)
        if categories > 1:
            entropy = logarithms_X[events] - terms / scale / events
            row[slots_4[2]] = entropy / logarithms_X[categories]
        if events:
            row[slots_4[3]] = commonest / events


@njit(cache=True, nogil=True)
def _shift(places):
    shift = 32
    while places > 1:
        places //= 2
        shift -= 1
    return shift


@njit(cache=True, nogil=True)
def _place(seen_H, key, shift):
    """Return where a key stands, or where it may: the first place that holds it, or another user's key."""
    place = ((key & 0xFFFFFFFF) * MULTIPLIER & 0xFFFFFFFF) >> shift
    while seen_H[place] >> 32 == key >> 32 and seen_H[place] != key:
        place = (place + 1) & (len(seen_H) - 1)
    return place


@njit(cache=True, nogil=True)
def weighted_means(
    table_RD, has_R, row_E, percentage_E, limit, offsets_N1, start, stop, rows_X, weights_X, first_slot, dense_NF, count_N
):
    """Write each user's mean of table rows, weighted by watch percentage where there is such a column.

    A null percentage weighs 1; where all weights are 0, every row weighs the same. Users without a row keep what stands
    in `dense_NF`, whose row 0 is user `start`. Sums run from the oldest event to the newest, in float32.
    """
    for user in range(start, stop):
        known, total = 0, 0.0
        for e in range(offsets_N1[user], offsets_N1[user + 1]):
            if row_E[e] >= 0 and has_R[row_E[e]]:
                weight = 1.0
                if len(percentage_E) and percentage_E[e] == percentage_E[e]:
                    weight = min(max(percentage_E[e], 0.0), limit)
                rows_X[known], weights_X[known] = row_E[e], weight
                total += weight
                known += 1
        count_N[user - start] = known
        if known == 0:
            continue
        if total == 0:
            weights_X[:known] = 1
            total = known
        sums = dense_NF[user - start, first_slot : first_slot + table_RD.shape[1]]
        _weighted_sum(table_RD, rows_X[:known], weights_X[:known], sums)
        divisor = np.float32(total)
        for d in range(len(sums)):
            sums[d] /= divisor


@njit(cache=True, nogil=True)
def _weighted_sum(table_RD, rows, weights, sums):
    """Sum rows one after the other; four in one go, so that a sum is loaded and stored once for four of them."""
    sums[:] = 0
    fours = len(rows) - len(rows) % 4
    for i in range(0, fours, 4):
        a, b, c, d = table_RD[rows[i]], table_RD[rows[i + 1]], table_RD[rows[i + 2]], table_RD[rows[i + 3]]
        v, w, x, y = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for j in range(len(sums)):
            sums[j] = (((sums[j] + v * a[j]) + w * b[j]) + x * c[j]) + y * d[j]
    for i in range(fours, len(rows)):
        a, v = table_RD[rows[i]], weights[i]
        for j in range(len(sums)):
            sums[j] += v * a[j]


@njit(cache=True, nogil=True)
def copy_rows(table_RD, row_N, first_slot, dense_NF):
    """Copy each user's table row into the slots from `first_slot` on; row -1 leaves what stands there."""
    for user in range(len(row_N)):
        if row_N[user] >= 0:
            slots = dense_NF[user, first_slot : first_slot + table_RD.shape[1]]
            slots[:] = table_RD[row_N[user]]
