"""The slots that the log alone decides, user by user, compiled: the second of two passes.

Owns: the formulas of `events.py` again, in the same order of additions, so that both give the same bits. Must not know:
how a value was read. Imports nothing of this package: what numba keeps on disk is renewed when this file changes, and
by nothing else. So slots are arguments (`compiled.Slots`), as are the numbers shared with `kernel_columns.py`.

Shape suffixes as in `arrays.py`; M events of a part. Loops run from 0 over slices: those become vector code.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch.arrays import F32, F64, I8, I32, I64
from genrec_batch.features.kernel import borrowed, kernel

HOUR_US = 3_600_000_000
NOTHING = np.int32(2**31 - 1)  # sorts behind every float
LANES = 16  # users whose values are sorted side by side
WIDE, NARROW = 3 * LANES, 2 * LANES  # columns sorted at once: duration, percentage, gap; the newest have no gaps


@kernel()
def fill(
    at: Any, slot: Any, one_hots: I64, codes: tuple[I8, ...], offsets_N1: I64, start: int, stop: int, time_us_E:
    I64, marks_4M: I64, values_6M: F64, bins_2M: I8, keys_3M: I32, distinct_N: I64, sessions_2N: I64,
    total_events_N: I64, dense_NF: F32, logarithms_7N: F64, scratch_X: F64, sorting_X: I32, whole_X: I64,
) -> None:  # fmt: skip
    """Fill the features of the users start..stop, of whom the first has row 0 of all that has a row per user and part.

    In: what `scan` wrote; `codes`, a column or nothing for each row of `one_hots` (first slot, values, events); each
    user's distinct videos, and sessions with the newest one's events, empty where gaps begin them.
    """
    marks_4M, values_6M, bins_2M = borrowed(marks_4M), borrowed(values_6M), borrowed(bins_2M)
    keys_3M, time_us_E, logarithms_7N = borrowed(keys_3M), borrowed(time_us_E), borrowed(logarithms_7N)
    dense_NF, sorting_X = borrowed(dense_NF), borrowed(sorting_X)
    scratch_X, whole_X = borrowed(scratch_X), borrowed(whole_X)
    one_hots, codes = borrowed(one_hots), (borrowed(codes[0]), borrowed(codes[1]), borrowed(codes[2]))
    begin = offsets_N1[start]
    sets_WC, nulls_WC, counts = whole_X[:64].reshape(4, 16), whole_X[64:128].reshape(4, 16), whole_X[128:160]
    there_L33, picked = whole_X[160 : 160 + LANES * 9].reshape(LANES, 3, 3), sorting_X[:4]
    sorting_X = sorting_X[4:]
    rates_WC, squares_X = scratch_X[:64].reshape(4, 16), scratch_X[64:]
    for block in range(start, stop, LANES):
        users = min(LANES, stop - block)
        longest = np.int64(0)
        for user in range(block, block + users):
            longest = max(longest, offsets_N1[user + 1] - offsets_N1[user])
        all_keys = sorting_X[: longest * WIDE]
        some_keys = sorting_X[longest * WIDE : longest * WIDE + 20 * NARROW]
        few_keys = sorting_X[longest * WIDE + 20 * NARROW : longest * WIDE + 25 * NARROW]
        sorting_X[: longest * WIDE + 25 * NARROW] = NOTHING
        for lane in range(users):
            user = block + lane
            row = dense_NF[user - start]
            row[:] = 0
            a, b = offsets_N1[user] - begin, offsets_N1[user + 1] - begin
            logs, there_33 = logarithms_7N[:, user - start], there_L33[lane]
            logs[:], there_33[:] = 0, 0
            logs[0] = total_events_N[user]
            row[slot.cold_start] = a == b
            if a == b:
                continue
            _fill_user(
                at, slot, one_hots, codes, begin, a, b, time_us_E, marks_4M, values_6M, bins_2M, keys_3M, there_33,
                sets_WC, nulls_WC, rates_WC, counts, squares_X, distinct_N[user - start], logs, row,
            )  # fmt: skip
            if sessions_2N.shape[1]:
                logs[3] = sessions_2N[0, user - start]
                row[slot.newest_session] = sessions_2N[1, user - start] / (b - a)
            logs[4] = (b - a) / logs[3] if logs[3] else 0.0
            for kind in range(3):
                _lay(keys_3M[kind][a:b], all_keys[LANES * kind + lane :], WIDE, b - a)
            for kind in range(2):
                _lay(keys_3M[kind][a:b], some_keys[LANES * kind + lane :], NARROW, min(b - a, 20))
                _lay(keys_3M[kind][a:b], few_keys[LANES * kind + lane :], NARROW, min(b - a, 5))
        rows = dense_NF[block - start : block - start + users]
        _order_statistics(slot, all_keys, some_keys, few_keys, longest, there_L33, rows, picked)


@kernel(inline=True)
def _fill_user(
    at: Any, slot: Any, one_hots: I64, codes: tuple[I8, ...], begin: int, a: int, b: int, time_us_E: I64,
    marks_4M: I64, values_6M: F64, bins_2M: I8, keys_3M: I32, there_33: I64, sets_WC: I64, nulls_WC: I64,
    rates_WC: F64, counts: I64, squares: F64, videos: int, logs: F64, row: F32,
) -> None:  # fmt: skip
    """Fill a user's slots but for what is sorted; note how many values are not null in each span."""
    n = b - a
    _newest(at, slot, one_hots, codes, begin + b, values_6M, a, b, row)
    _count(marks_4M, a, b, sets_WC, nulls_WC)
    for window, reach in enumerate((1, 5, 20, n)):
        for field in range(16):
            there = min(reach, n) - nulls_WC[window, field]
            rates_WC[window, field] = sets_WC[window, field] / there if there > 0 else 0.0
        if window:
            there_33[0, window - 1] = min(reach, n) - nulls_WC[window, at.duration_null]
            there_33[1, window - 1] = min(reach, n) - nulls_WC[window, at.percentage_null]
    there_33[2, 2] = n - 1
    _place_rates(slot, rates_WC, row)
    row[slot.weekend], row[slot.holiday] = rates_WC[3, at.weekend], rates_WC[3, at.holiday]
    row[slot.complete_share] = rates_WC[3, 0]
    row[slot.cold_start] = sets_WC[3, at.known] == 0
    row[slot.unknown_share] = sets_WC[3, at.unknown] / n
    _shares(bins_2M[0][a:b], row[slot.hours : slot.hours + 24], counts)
    _shares(bins_2M[1][a:b], row[slot.weekdays : slot.weekdays + 7], counts)
    keys_3M[2, a] = NOTHING  # no gap before the oldest event
    _deviations(values_6M, keys_3M, a, b, there_33, slot, row, squares)
    row[slot.mean_position] = _sum(values_6M[4][a:b]) / max(n - nulls_WC[3, at.position_null], 1)
    row[slot.distinct_share] = videos / n
    row[slot.kept_share] = n / at.max_events
    time_us = time_us_E[begin + a : begin + b]
    logs[1], logs[2] = n, max(_sum(values_6M[0][a:b]) * 100, 0.0)
    logs[3], newest = _sessions(time_us, at.session_gap_us)
    row[slot.newest_session] = newest / n
    logs[5] = (time_us[n - 1] - time_us[0]) / HOUR_US
    logs[6] = max(at.as_of_us - time_us[n - 1], 0) / HOUR_US


@kernel(inline=True)
def _newest(
    at: Any, slot: Any, one_hots: I64, codes: tuple[I8, ...], stop: int, values_6M: F64, a: int, b: int, row: F32
) -> None:
    n = b - a
    for r in range(min(n, slot.newest_values)):
        row[slot.durations + r] = min(max(values_6M[0, b - 1 - r], 0.0), at.duration_limit)
        row[slot.percentages + r] = values_6M[1, b - 1 - r]
    for r in range(min(n, slot.newest_times)):
        row[slot.newest_hours + r] = values_6M[2, b - 1 - r] / 24
        row[slot.newest_weekdays + r] = values_6M[3, b - 1 - r] / 7
    for r in range(min(n, slot.newest_positions)):
        row[slot.positions + r] = values_6M[4, b - 1 - r] / at.position_unit
    for column in range(3):
        if len(codes[column]):
            first, several, events = one_hots[column]
            newest = codes[column][stop - min(n, events) : stop]
            for r in range(len(newest)):
                code = newest[len(newest) - 1 - r]
                if code >= 0:
                    row[first + several * r + code] = 1


@kernel(inline=True)
def _count(marks_4M: I64, a: int, b: int, sets_WC: I64, nulls_WC: I64) -> None:
    """Count each mask among the newest 1, 5, 20 and all events, [4, 16] each."""
    n, newer = b - a, 0
    sets_WC[0], nulls_WC[0] = 0, 0
    for window, reach in enumerate((1, 5, 20, n)):
        older = min(reach, n)
        for field in range(16):
            sets_WC[window, field] = sets_WC[max(window - 1, 0), field]
            nulls_WC[window, field] = nulls_WC[max(window - 1, 0), field]
        while newer < older:
            until = min(older, newer + 255)  # as much as a byte counts
            for word in range(4):
                marks = marks_4M[word][b - until : b - newer]
                total = np.int64(0)
                for i in range(len(marks)):
                    total += marks[i]
                counts = (sets_WC if word < 2 else nulls_WC)[window][word % 2 * 8 : word % 2 * 8 + 8]
                for byte in range(8):
                    counts[byte] += (total >> (8 * byte)) & 255
            newer = until


@kernel(inline=True)
def _place_rates(slot: Any, rates_WC: F64, row: F32) -> None:
    for column in range(slot.rate_columns):
        for span in range(3):
            row[slot.rates + 3 * column + span] = rates_WC[1 + span, column]
    for column in range(slot.flag_columns):
        for window in range(4):
            row[slot.flags + 4 * column + window] = rates_WC[window, slot.first_flag + column]


@kernel()
def _shares(bins: I8, slots: F32, counts: I64) -> None:
    """Write the share of each bin among the bins that are not null."""
    counts[:] = 0
    for i in range(len(bins)):
        counts[bins[i] + 1] += 1
    total = max(len(bins) - counts[0], 1)
    for i in range(len(slots)):
        slots[i] = counts[i + 1] / total


@kernel(inline=True)
def _sessions(time_us: I64, gap_us: int) -> tuple[int, int]:
    """Return the sessions that gaps begin, and the events of the newest one."""
    sessions, newest = 1, 0
    for i in range(1, len(time_us)):
        if time_us[i] - time_us[i - 1] > gap_us:
            sessions += 1
            newest = i
    return sessions, len(time_us) - newest


@kernel(inline=True)
def _deviations(values_6M: F64, keys_3M: I32, a: int, b: int, there_33: I64, slot: Any, row: F32, squares: F64) -> None:
    """Write means and deviations of duration, percentage and gaps, and what follows from them."""
    n = b - a
    for kind in range(2):
        newest_5 = mean = deviation = 0.0
        for span, reach in enumerate((5, 20, n)):
            if span == 0 or n > (5, 20)[span - 1]:
                older = max(n - reach, 0)
                values, keys = values_6M[kind][a + older : b], keys_3M[kind][a + older : b]
                mean, deviation = _moments(values, keys, there_33[kind, span], squares)
            row[slot.statistics + 15 * kind + 5 * span] = mean
            row[slot.statistics + 15 * kind + 5 * span + 1] = deviation
            newest_5 = mean if span == 0 else newest_5
        row[slot.duration_deviation if kind == 0 else slot.percentage_deviation] = deviation
        row[slot.duration_change if kind == 0 else slot.percentage_change] = newest_5 - mean
    mean, deviation = _moments(values_6M[5][a:b], keys_3M[2][a:b], n - 1, squares)
    row[slot.gaps], row[slot.gaps + 1] = mean, deviation


@kernel()
def _moments(values: F64, keys: I32, there: int, squares: F64) -> tuple[float, float]:
    """Return the mean and the population deviation of the `there` values that are not null (null is 0)."""
    many = max(there, 1)
    mean = _sum(values) / many
    squares = squares[: len(values)]
    for i in range(len(values)):
        centred = values[i] - mean if keys[i] != NOTHING else 0.0
        squares[i] = centred * centred
    return mean, np.sqrt(_sum(squares) / many)


@kernel()
def _sum(values: F64) -> np.float64:
    """Return the sum of at least one value in NumPy's order: the first, and the rest of them pairwise."""
    return np.float64(values[0]) + _pairwise(values[1:])


@kernel(signature="float64(float64[::1])")
def _pairwise(values: F64) -> np.float64:
    total, count = np.float64(0), len(values)
    if count < 8:
        for value in values:
            total += value
        return total
    if count > 128:
        half = count // 16 * 8
        return _pairwise(values[:half]) + _pairwise(values[half:])
    eights, first = count - count % 8, values[:8]
    a, b, c, d, e, f, g, h = first[0], first[1], first[2], first[3], first[4], first[5], first[6], first[7]
    for i in range(8, eights, 8):
        eight = values[i : i + 8]
        a += eight[0]
        b += eight[1]
        c += eight[2]
        d += eight[3]
        e += eight[4]
        f += eight[5]
        g += eight[6]
        h += eight[7]
    total += ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(eights, count):
        total += values[i]
    return np.float64(total)


@kernel()
def _lay(keys: I32, column: I32, width: int, newest: int) -> None:
    """Lay a user's newest keys into a column of what is sorted together."""
    keys = keys[len(keys) - newest :]
    for i in range(len(keys)):
        column[i * width] = keys[i]


@kernel(inline=True)
def _order_statistics(
    slot: Any,
    all_keys: I32,
    some_keys: I32,
    few_keys: I32,
    longest: np.int64,
    there_L33: I64,
    dense_LF: F32,
    picked: I32,
) -> None:
    """Sort a block's values, and write the least, the greatest and the median of each user."""
    all_width = some_width = few_width = np.int64(WIDE)
    sort_columns(all_keys, longest, all_width)
    if longest > 20:
        some_width = np.int64(NARROW)
        sort_columns(some_keys, np.int64(20), some_width)
    else:
        some_keys = all_keys
    if longest > 5:
        few_width = np.int64(NARROW)
        sort_columns(few_keys, np.int64(5), few_width)
    else:
        few_keys = all_keys
    for lane in range(len(dense_LF)):
        row = dense_LF[lane]
        for kind in range(2):
            first, there = slot.statistics + 15 * kind, there_L33[lane, kind]
            column = LANES * kind + lane
            _middle(few_keys[column:], few_width, there[0], row[first + 2 : first + 5], picked)
            _middle(some_keys[column:], some_width, there[1], row[first + 7 : first + 10], picked)
            _middle(all_keys[column:], all_width, there[2], row[first + 12 : first + 15], picked)
        _middle(
            all_keys[2 * LANES + lane :], all_width, there_L33[lane, 2, 2], row[slot.gaps + 2 : slot.gaps + 5], picked
        )


@kernel()
def _middle(column: I32, width: np.int64, there: int, slots: F32, picked: I32) -> None:
    """Write the least, the greatest and the median of a sorted column's first `there` keys, if any."""
    if there > 0:
        picked[0] = column[0]
        picked[1] = column[(there - 1) * width]
        picked[2] = column[(there - 1) // 2 * width]
        picked[3] = column[there // 2 * width]
        for i in range(4):
            picked[i] ^= (picked[i] >> np.int32(31)) & NOTHING
        values = picked.view(np.float32)
        slots[0], slots[1] = values[0], values[1]
        slots[2] = (np.float64(values[2]) + np.float64(values[3])) / 2


@kernel()
def sort_columns(keys: I32, length: np.int64, width: np.int64) -> None:
    """Sort each column of a [length, width] array in place; both are int64, so that numba compiles this once.

    By Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M): which places are
    compared does not depend on the values, so all columns go through it side by side.
    """
    largest = 1
    while 2 * largest < length:
        largest *= 2
    run = largest if length > 1 else 0
    while run > 0:
        reach, begin, distance = largest, 0, run
        while True:
            for start in range(begin, length - distance, 2 * run):
                several = (min(start + run, int(length) - distance) - start) * width
                low = keys[start * width : start * width + several]
                high = keys[(start + distance) * width : (start + distance) * width + several]
                for i in range(several):
                    a, b = low[i], high[i]
                    low[i] = min(a, b)
                    high[i] = max(a, b)
            if reach == run:
                break
            distance, begin, reach = reach - run, run, reach // 2
        run //= 2
