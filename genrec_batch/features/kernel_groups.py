"""Distinct codes of each user, how they are spread, and means of table rows, compiled.

Owns: the arithmetic that `events.py` and `videos.py` leave to `segments.distinct`, `segments.groups` and
`segments.weighted_sums`, to the same bits. Must not know: what a code stands for. Imports nothing of this package: what
numba keeps on disk is renewed when this file changes, and by nothing else.

Shape suffixes as in `arrays.py`; H places of a hash table, a power of two with room for any user's codes.
"""

from __future__ import annotations

import numpy as np

from genrec_batch.arrays import F32, F64, I32, I64, U8, U64
from genrec_batch.features.kernel import borrowed, kernel

HALF, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
MULTIPLIER = np.uint64(2654435761)  # of Fibonacci hashing, 2**32 over the golden ratio (Knuth, volume 3, 6.4)


@kernel()
def distinct(
    codes_E: I32, offsets_N1: I64, start: int, stop: int, stamp: int, seen_H: U64, distinct_N: I64, newest_N: I64
) -> None:
    """Count each user's distinct codes, and how often the newest event's code occurs; -1 is null.

    `seen_H` holds nothing of a stamp from `stamp` up to `stamp` + stop - start yet.
    """
    codes_E, offsets_N1, seen_H = borrowed(codes_E), borrowed(offsets_N1), borrowed(seen_H)
    shift = _shift(len(seen_H))
    for user in range(start, stop):
        codes = codes_E[offsets_N1[user] : offsets_N1[user + 1]]
        mine = np.uint64(stamp + user - start) << HALF
        found, same = 0, 0
        last = codes[len(codes) - 1] if len(codes) else np.int32(-1)
        for i in range(len(codes)):
            same += codes[i] == last
            if codes[i] >= 0:
                key = mine | np.uint64(codes[i])
                place = _place(seen_H, key, mine, shift)
                found += seen_H[place] != key
                seen_H[place] = key
        distinct_N[user - start] = found
        newest_N[user - start] = same if last >= 0 else 0


@kernel()
def groups(
    slots_4: I64,
    codes_R2: I32,
    row_E: I32,
    offsets_N1: I64,
    start: int,
    stop: int,
    stamp: int,
    logarithms_X: F64,
    steps_X: I64,
    scale: float,
    seen_2H: U64,
    sizes_H: I64,
    dense_NF: F32,
) -> None:
    """Write distinct creators and categories per event, the entropy of categories, and the commonest one's share.

    `codes_R2` are the creator and the category of each table row, -1 for null; the last row is that of no video.
    `steps_X[c]` is what a category that occurs for the c-th time adds to the sum of c ln c, times `scale`, in whole
    numbers: their sum is exact in any order.
    """
    codes_R2, row_E = borrowed(codes_R2), borrowed(row_E)
    offsets_N1, dense_NF = borrowed(offsets_N1), borrowed(dense_NF)
    creators_H, categories_H = borrowed(seen_2H)[0], borrowed(seen_2H)[1]
    shift = _shift(len(sizes_H))
    for user in range(start, stop):
        rows = row_E[offsets_N1[user] : offsets_N1[user + 1]]
        mine = np.uint64(stamp + user - start) << HALF
        creators, categories, events, commonest, terms = 0, 0, 0, 0, np.int64(0)
        for i in range(len(rows)):
            creator, category = codes_R2[rows[i], 0], codes_R2[rows[i], 1]
            if creator >= 0:
                key = mine | np.uint64(creator)
                place = _place(creators_H, key, mine, shift)
                creators += creators_H[place] != key
                creators_H[place] = key
            if category >= 0:
                key = mine | np.uint64(category)
                place = _place(categories_H, key, mine, shift)
                size = sizes_H[place] + 1 if categories_H[place] == key else 1
                categories_H[place], sizes_H[place] = key, size
                categories += size == 1
                events += 1
                terms += steps_X[size]
                commonest = max(commonest, size)
        row = dense_NF[user - start]
        if len(rows):
            row[slots_4[0]] = creators / len(rows)
            row[slots_4[1]] = categories / len(rows)
        if categories > 1:
            entropy = logarithms_X[events] - terms / scale / events
            row[slots_4[2]] = entropy / logarithms_X[categories]
        if events:
            row[slots_4[3]] = commonest / events


@kernel()
def _shift(places: int) -> np.uint64:
    shift = 32
    while places > 1:
        places //= 2
        shift -= 1
    return np.uint64(shift)


@kernel()
def _place(seen_H: U64, key: np.uint64, mine: np.uint64, shift: np.uint64) -> np.uint64:
    """Return where a key stands, or where it may: the first place that holds it, or what an earlier user left."""
    place = ((key & LOW) * MULTIPLIER & LOW) >> shift
    last = np.uint64(len(seen_H) - 1)
    while seen_H[place] >= mine and seen_H[place] != key:
        place = (place + np.uint64(1)) & last
    return place


@kernel()
def weighted_means(
    table_RD: F32,
    has_R: U8,
    row_E: I32,
    percentage_E: F64,
    limit: float,
    offsets_N1: I64,
    start: int,
    stop: int,
    rows_X: I32,
    weights_X: F32,
    first_slot: int,
    dense_NF: F32,
    count_N: I64,
) -> None:
    """Write each user's mean of table rows, weighted by watch percentage where there is such a column.

    A null percentage weighs 1; where all weights are 0, every row weighs the same. Users without a row keep what stands
    in `dense_NF`, whose row 0 is user `start`. Sums run from the oldest event to the newest, in float32.
    """
    table_RD, has_R = borrowed(table_RD), borrowed(has_R)
    row_E, percentage_E = borrowed(row_E), borrowed(percentage_E)
    rows_X, weights_X, dense_NF = borrowed(rows_X), borrowed(weights_X), borrowed(dense_NF)
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


@kernel()
def _weighted_sum(table_RD: F32, rows: I32, weights: F32, sums: F32) -> None:
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


@kernel()
def copy_rows(table_RD: F32, row_N: I32, first_slot: int, dense_NF: F32) -> None:
    """Copy each user's table row into the slots from `first_slot` on; row -1 leaves what stands there."""
    table_RD, dense_NF = borrowed(table_RD), borrowed(dense_NF)
    for user in range(len(row_N)):
        if row_N[user] >= 0:
            slots = dense_NF[user, first_slot : first_slot + table_RD.shape[1]]
            slots[:] = table_RD[row_N[user]]


@kernel()
def finish(slots_7: I64, logarithms_7N: F64, dense_NF: F32) -> None:
    """Write the logarithms that were taken of a part's users all at once."""
    for user in range(len(dense_NF)):
        row = dense_NF[user]
        for i in range(7):
            row[slots_7[i]] = logarithms_7N[i, user]
