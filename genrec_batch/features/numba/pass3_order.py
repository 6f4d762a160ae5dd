"""The third of four compiled passes: order statistics and distinct codes of each user.

Owns: what `from_log` and `from_videos` leave to `segments.moments`, `segments.distinct` and `segments.groups`, to the
same bits. Must not know: what a code means, which feature slot a result fills. numba renews what it keeps on disk when
this file changes, and only then: what the passes share is an argument (`fill.Facts`).

Shape suffixes as in `arrays.py`; M events of a chunk. Sixteen users at a time have their keys sorted side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32, F64, I32, I64
from genrec_batch.runtime.jit import borrowed, kernel
from genrec_batch.runtime.simd import above, equal, float_of_bits, higher, load, lower, masked, splat, store, unequal
from genrec_batch.runtime.simd_sort import lay_16

NOTHING = np.int32(2**31 - 1)  # sorts behind every float
U = np.uint64  # of an index: numba checks signed ones for counting from the end
LANES = 16  # users whose keys are sorted side by side
VIDEO, SESSION, CREATOR, CATEGORY = range(2, 6)  # rows of `keys_6M`, behind duration and percentage
GAP = 2  # column of gaps among the sorted ones, before the codes
NARROW = 2 * LANES  # columns of the newest values that are sorted: duration and percentage


def sorted_at_once(longest: int) -> int:
    """Return how many integers are sorted at once if the longest history has so many events."""
    return ((longest + 15) // 16 * 16 + 3) * LANES * 7 + 48 * NARROW


@kernel()
def order(
    fact: Any, offsets_N1: I64, start: int, stop: int, keys_6M: I32, gap_keys_M: I32, codes_E: I32, session_E: I64,
    row_E: I32, codes_R2: I32, logarithms_X: F64, steps_X: I64, scale: float, there_N6: I64, facts_N64: F32,
    logarithms_7N: F64, sorting_X: I32, whole_X: I64, small_X: I32,
) -> None:  # fmt: skip
    """Compute the values of the users start..stop that need sorted keys.

    In: keys of duration, percentage and gap; each event's video, session (empty: gaps begin them) and row of the videos
    table; `codes_R2`, empty without that table, else creator and category of each row, -1 for null, and a last row for
    no video. Out: facts, and the numbers of sessions, whose logarithms come next.
    """
    keys_6M, gap_keys_M, sorting_X = borrowed(keys_6M), borrowed(gap_keys_M), borrowed(sorting_X)
    facts_N64, there_N6, logarithms_7N = borrowed(facts_N64), borrowed(there_N6), borrowed(logarithms_7N)
    whole_X, small_X = borrowed(whole_X), borrowed(small_X)
    begin, count = offsets_N1[start], offsets_N1[stop] - offsets_N1[start]
    by_id, tables = len(session_E) > 0, len(codes_R2) > 0
    width = LANES * (4 + by_id + 2 * tables)
    _take_codes(keys_6M, codes_E, session_E, row_E, codes_R2, begin, count)
    starts_L, lengths_L, terms_L = whole_X[:LANES], whole_X[LANES : 2 * LANES], whole_X[2 * LANES : 3 * LANES]
    distinct_X, runs_L, events_L = small_X[: 4 * LANES], small_X[4 * LANES : 5 * LANES], small_X[5 * LANES : 6 * LANES]
    commonest_L = small_X[6 * LANES : 7 * LANES]
    few_keys, some_keys, all_keys = sorting_X, sorting_X[16 * NARROW :], sorting_X[48 * NARROW :]
    for first_user in range(start, stop, LANES):
        users, longest = min(LANES, stop - first_user), 0
        for user in range(first_user, first_user + users):
            longest = max(longest, offsets_N1[user + 1] - offsets_N1[user])
        _reach(offsets_N1, first_user, users, begin, 5, 0, starts_L, lengths_L)
        _lay_watched(keys_6M, starts_L, lengths_L, min(longest, 5), count, few_keys, NARROW)
        _reach(offsets_N1, first_user, users, begin, 20, 0, starts_L, lengths_L)
        _lay_watched(keys_6M, starts_L, lengths_L, min(longest, 20), count, some_keys, NARROW)
        _reach(offsets_N1, first_user, users, begin, longest, 1, starts_L, lengths_L)
        _lay(gap_keys_M, starts_L, lengths_L, longest, count, all_keys, LANES * GAP, width)
        _reach(offsets_N1, first_user, users, begin, longest, 0, starts_L, lengths_L)
        column = LANES * (GAP + 1)
        for kind in range(VIDEO, CATEGORY + 1):
            if kind == VIDEO or (by_id if kind == SESSION else tables):
                _lay(keys_6M[kind], starts_L, lengths_L, longest, count, all_keys, column, width)
                column += LANES
        _lay_watched(keys_6M, starts_L, lengths_L, longest, count, all_keys, width)
        _distinct(all_keys, longest, width, distinct_X)
        if tables:
            _spread(all_keys, longest, width, steps_X, runs_L, events_L, commonest_L, terms_L)
        for lane in range(users):
            place, n = first_user + lane - start, lengths_L[lane]
            if n == 0:
                continue
            facts = facts_N64[place]
            for kind in range(2):
                column, first = LANES * kind + lane, 15 * kind + 2
                _middle(few_keys, column, NARROW, there_N6[place, 3 * kind], facts, first)
                _middle(some_keys, column, NARROW, there_N6[place, 3 * kind + 1], facts, first + 5)
                _middle(all_keys, column, width, there_N6[place, 3 * kind + 2], facts, first + 10)
            _middle(all_keys, LANES * GAP + lane, width, n - 1, facts, fact.gaps + 2)
            facts[fact.distinct_share] = distinct_X[lane] / n
            if by_id:
                logarithms_7N[3, place] = distinct_X[LANES + lane]
                facts[fact.newest_session] = _newest_session(keys_6M[SESSION], starts_L[lane], n) / n
            sessions = logarithms_7N[3, place]
            logarithms_7N[4, place] = n / sessions if sessions else 0.0
            if tables:
                creators, categories = distinct_X[width - LANES * 5 + lane], distinct_X[width - LANES * 4 + lane]
                facts[fact.variety], facts[fact.variety + 1] = creators / n, categories / n
                events, terms = events_L[lane], terms_L[lane] / scale
                _write_spread(events, categories, terms, commonest_L[lane], logarithms_X, facts, fact.variety + 2)


@kernel(inline=True)
def _write_spread(
    events: int, categories: int, terms: float, commonest: int, logarithms_X: F64, facts: F32, first: int
) -> None:
    if categories > 1:
        facts[first] = (logarithms_X[events] - terms / events) / logarithms_X[categories]
    if categories:
        facts[first + 1] = commonest / events


@kernel()
def _take_codes(keys_6M: I32, codes_E: I32, session_E: I64, row_E: I32, codes_R2: I32, begin: int, count: int) -> None:
    """Copy the chunk's codes to arrays in which 16 more can be read behind the last."""
    codes, sessions = borrowed(codes_E)[begin : begin + count], borrowed(session_E)[begin : begin + count]
    rows, codes_R2 = borrowed(row_E)[begin : begin + count], borrowed(codes_R2)
    of_video, of_session, creators, categories = keys_6M[VIDEO], keys_6M[SESSION], keys_6M[CREATOR], keys_6M[CATEGORY]
    for e in range(len(codes)):
        of_video[e] = codes[e]
    for e in range(len(sessions)):
        of_session[e] = np.int32(sessions[e])
    if len(codes_R2):
        for e in range(len(rows)):
            row = rows[e] if rows[e] >= 0 else np.int32(len(codes_R2) - 1)
            creators[e], categories[e] = codes_R2[U(row), U(0)], codes_R2[U(row), U(1)]


@kernel()
def _reach(
    offsets_N1: I64, first_user: int, users: int, begin: int, newest: int, skipped: int, starts_L: I64, lengths_L: I64
) -> None:
    """Write where each user's newest events begin in the chunk, without the oldest `skipped`, and how many they are."""
    starts_L[:], lengths_L[:] = 0, 0
    for lane in range(users):
        oldest, end = offsets_N1[first_user + lane] - begin + skipped, offsets_N1[first_user + lane + 1] - begin
        starts_L[lane] = max(oldest, end - newest)
        lengths_L[lane] = max(end - starts_L[lane], 0)


@kernel()
def _lay(
    keys: I32, starts_L: I64, lengths_L: I64, longest: int, count: int, rows: I32, column: int, width: int
) -> None:
    """Write 16 users' keys side by side, 16 sorted rows at a time."""
    for i in range(0, longest, 16):
        lay_16(keys, starts_L, lengths_L, i, count, NOTHING, rows, i * width + column, width)


@kernel()
def _lay_watched(keys_6M: I32, starts_L: I64, lengths_L: I64, longest: int, count: int, rows: I32, width: int) -> None:
    """Write durations and percentages into the first columns of the rows, and sort all columns."""
    for kind in range(2):
        _lay(keys_6M[kind], starts_L, lengths_L, longest, count, rows, LANES * kind, width)
    merge_columns(rows, longest, width)


@kernel(inline=True)
def _newest_session(sessions: I32, start: int, n: int) -> int:
    """Return how many events are in the newest event's session; -1 means no session."""
    newest, same = sessions[start + n - 1], 0
    for i in range(start, start + n):
        same += sessions[U(i)] == newest
    return same if newest >= 0 else 0


@kernel()
def _distinct(keys: I32, length: int, width: int, distinct_X: I32) -> None:
    """Count the distinct codes of each sorted column, from the videos' on; -1 is null."""
    first = LANES * (GAP + 1)
    for column in range(first, width, LANES):
        before = load(keys, column)
        one, least, nothing = splat(before, 1), splat(before, -1), splat(before, NOTHING)
        found = masked(one, above(before, least) & unequal(before, nothing) if length else U(0))
        for at in range(column + width, column + length * width, width):
            key = load(keys, at)
            found = found + masked(one, unequal(key, before) & above(key, least) & unequal(key, nothing))
            before = key
        store(distinct_X, column - first, found)


@kernel()
def _spread(
    keys: I32, length: int, width: int, steps_X: I64, runs_L: I32, events_L: I32, commonest_L: I32, terms_L: I64
) -> None:
    """Compute how the last 16 sorted columns spread: codes that are not null, the commonest one's, sum of c ln c.

    `steps_X[c]` is what the c-th occurrence of a code adds to that sum, a whole number: exact in any order.
    """
    terms_L[:] = 0
    before = load(keys, width - LANES)
    one, least, nothing = splat(before, 1), splat(before, -1), splat(before, NOTHING)
    runs = events = commonest = splat(before, 0)
    for row in range(length):
        key = load(keys, (row + 1) * width - LANES)
        there = above(key, least) & unequal(key, nothing)
        runs = masked(masked(runs, equal(key, before)) + one, there)
        events, commonest, before = events + masked(one, there), higher(commonest, runs), key
        store(runs_L, 0, runs)
        for lane in range(LANES):
            terms_L[U(lane)] += steps_X[U(runs_L[U(lane)])]
    store(events_L, 0, events)
    store(commonest_L, 0, commonest)


@kernel()
def _middle(keys: I32, column: int, width: int, there: int, facts: F32, first: int) -> None:
    """Write minimum, maximum and median of a sorted column's first `there` keys, if any."""
    if there > 0:
        facts[U(first)] = _value(keys[U(column)])
        facts[U(first + 1)] = _value(keys[U(column + (there - 1) * width)])
        below, above = _value(keys[U(column + (there - 1) // 2 * width)]), _value(keys[U(column + there // 2 * width)])
        facts[U(first + 2)] = (np.float64(below) + np.float64(above)) / 2


@kernel(inline=True)
def _value(key: np.int32) -> np.float32:
    return np.float32(float_of_bits(key ^ ((key >> np.int32(31)) & NOTHING)))


@kernel()
def merge_columns(keys: I32, length: int, width: int) -> None:
    """Sort each column of a [length, width] array whose groups of 16 rows are sorted; the last group is filled up.

    By Batcher's odd-even merge sort (Knuth, The Art of Computer Programming 3, 5.3.4): which places are compared does
    not depend on the values, so all columns are sorted side by side.
    """
    run = 16
    while run < length:
        distance = run
        while distance:
            apart = distance * width
            for begin in range(distance % run, length - distance, 2 * distance):
                for i in range(begin, min(begin + distance, length - distance)):
                    if i ^ (i + distance) < 2 * run:
                        for at in range(i * width, (i + 1) * width, LANES):
                            _exchange(keys, at, at + apart)
            distance //= 2
        run *= 2


@kernel(inline=True)
def _exchange(keys: I32, first: int, second: int) -> None:
    a, b = load(keys, first), load(keys, second)
    store(keys, first, lower(a, b))
    store(keys, second, higher(a, b))
