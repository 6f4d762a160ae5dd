"""The slots that the log alone decides, user by user, compiled: the second of two passes.

Owns: the formulas of `events.py` again, in the same order of additions, so that both give the same bits. Must not know:
how a value was read. Imports nothing of this package: what numba keeps on disk is renewed when this file changes, and
by nothing else. So slots are arguments (`compiled.Slots`), as are the numbers shared with `kernel_columns.py`.

Shape suffixes as in `arrays.py`; M events of a part, a user's being a..b. No slices where a user has many: each costs
as much as summing fifty numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch.arrays import F32, F64, I8, I32, I64
from genrec_batch.features.kernel import borrowed, kernel

HOUR_US = 3_600_000_000
NOTHING = np.int32(2**31 - 1)  # sorts behind every float
U = np.uint64  # of an index: only signed ones are looked at for counting from the end
LANES = 16  # users whose values are sorted side by side
WIDE, NARROW = 3 * LANES, 2 * LANES  # columns sorted at once: duration, percentage, gap; the newest have no gaps


@kernel()
def fill(
    at: Any, slot: Any, one_hots: I64, codes: tuple[I8, ...], offsets_N1: I64, start: int, stop: int, time_us_E:
    I64, marks_4M: I64, values_7M: F64, bins_2M: I8, keys_3M: I32, distinct_N: I64, sessions_2N: I64,
    total_events_N: I64, dense_NF: F32, logarithms_7N: F64, scratch_X: F64, sorting_X: I32, whole_X: I64,
) -> None:  # fmt: skip
    """Fill the features of the users start..stop, of whom the first has row 0 of all that has a row per user and part.

    In: what `scan` wrote; `codes`, a column or nothing for each row of `one_hots` (first slot, values, events); each
    user's distinct videos, and sessions with the newest one's events, empty where gaps begin them.
    """
    marks_4M, values_7M, bins_2M = borrowed(marks_4M), borrowed(values_7M), borrowed(bins_2M)
    keys_3M, time_us_E, logarithms_7N = borrowed(keys_3M), borrowed(time_us_E), borrowed(logarithms_7N)
    dense_NF, sorting_X = borrowed(dense_NF), borrowed(sorting_X)
    scratch_X, whole_X = borrowed(scratch_X), borrowed(whole_X)
    one_hots, codes = borrowed(one_hots), (borrowed(codes[0]), borrowed(codes[1]), borrowed(codes[2]))
    begin = offsets_N1[start]
    sets_WC, nulls_WC, counts = whole_X[:64].reshape(4, 16), whole_X[64:128].reshape(4, 16), whole_X[128:160]
    there_L33, picked = whole_X[160 : 160 + LANES * 9].reshape(LANES, 3, 3), sorting_X[:4]
    sorting_X = sorting_X[4:]
    rates_WC = scratch_X[:64].reshape(4, 16)
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
                at, slot, one_hots, codes, begin, a, b, time_us_E, marks_4M, values_7M, bins_2M, keys_3M, there_33,
                sets_WC, nulls_WC, rates_WC, counts, distinct_N[user - start], logs, row,
            )  # fmt: skip
            if sessions_2N.shape[1]:
                logs[3] = sessions_2N[0, user - start]
                row[slot.newest_session] = sessions_2N[1, user - start] / (b - a)
            logs[4] = (b - a) / logs[3] if logs[3] else 0.0
            for kind in range(3):
                _lay(keys_3M, kind, a, b, all_keys, LANES * kind + lane, WIDE)
            for kind in range(2):
                _lay(keys_3M, kind, max(a, b - 20), b, some_keys, LANES * kind + lane, NARROW)
                _lay(keys_3M, kind, max(a, b - 5), b, few_keys, LANES * kind + lane, NARROW)
        rows = dense_NF[block - start : block - start + users]
        _order_statistics(slot, all_keys, some_keys, few_keys, longest, there_L33, rows, picked)


@kernel(inline=True)
def _fill_user(
    at: Any, slot: Any, one_hots: I64, codes: tuple[I8, ...], begin: int, a: int, b: int, time_us_E: I64,
    marks_4M: I64, values_7M: F64, bins_2M: I8, keys_3M: I32, there_33: I64, sets_WC: I64, nulls_WC: I64,
    rates_WC: F64, counts: I64, videos: int, logs: F64, row: F32,
) -> None:  # fmt: skip
    """Fill a user's slots but for what is sorted; note how many values are not null in each span."""
    n = b - a
    _newest(at, slot, one_hots, codes, begin + b, values_7M, a, b, row)
    _count(marks_4M, a, b, sets_WC, nulls_WC)
    for window, reach in enumerate((1, 5, 20, n)):
        for field in range(16):
            there = min(reach, n) - nulls_WC[U(window), U(field)]
            rates_WC[U(window), U(field)] = sets_WC[U(window), U(field)] / there if there > 0 else 0.0
        if window:
            there_33[0, window - 1] = min(reach, n) - nulls_WC[window, at.duration_null]
            there_33[1, window - 1] = min(reach, n) - nulls_WC[window, at.percentage_null]
    there_33[2, 2] = n - 1
    _place_rates(slot, rates_WC, row)
    row[slot.weekend], row[slot.holiday] = rates_WC[3, at.weekend], rates_WC[3, at.holiday]
    row[slot.complete_share] = rates_WC[3, 0]
    row[slot.cold_start] = sets_WC[3, at.known] == 0
    row[slot.unknown_share] = sets_WC[3, at.unknown] / n
    _shares(bins_2M, 0, a, b, row, slot.hours, 24, counts)
    _shares(bins_2M, 1, a, b, row, slot.weekdays, 7, counts)
    keys_3M[2, a] = NOTHING  # no gap before the oldest event
    _deviations(values_7M, keys_3M, a, b, there_33, slot, row)
    row[slot.mean_position] = _sum(values_7M, 4, a, b) / max(n - nulls_WC[3, at.position_null], 1)
    row[slot.distinct_share] = videos / n
    row[slot.kept_share] = n / at.max_events
    time_us = time_us_E[begin + a : begin + b]
    logs[1], logs[2] = n, max(_sum(values_7M, 0, a, b) * 100, 0.0)
    logs[3], newest = _sessions(time_us, at.session_gap_us)
    row[slot.newest_session] = newest / n
    logs[5] = (time_us[n - 1] - time_us[0]) / HOUR_US
    logs[6] = max(at.as_of_us - time_us[n - 1], 0) / HOUR_US


@kernel(inline=True)
def _newest(
    at: Any, slot: Any, one_hots: I64, codes: tuple[I8, ...], stop: int, values_7M: F64, a: int, b: int, row: F32
) -> None:
    n = b - a
    for r in range(min(n, slot.newest_values)):
        row[U(slot.durations + r)] = min(max(values_7M[U(0), U(b - 1 - r)], 0.0), at.duration_limit)
        row[U(slot.percentages + r)] = values_7M[U(1), U(b - 1 - r)]
    for r in range(min(n, slot.newest_times)):
        row[U(slot.newest_hours + r)] = values_7M[U(2), U(b - 1 - r)] / 24
        row[U(slot.newest_weekdays + r)] = values_7M[U(3), U(b - 1 - r)] / 7
    for r in range(min(n, slot.newest_positions)):
        row[U(slot.positions + r)] = values_7M[U(4), U(b - 1 - r)] / at.position_unit
    for column in range(3):
        if len(codes[column]):
            first, several, events = one_hots[column, 0], one_hots[column, 1], one_hots[column, 2]
            for r in range(min(n, events)):
                code = codes[column][U(stop - 1 - r)]
                if code >= 0:
                    row[U(first + several * r + code)] = 1


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
                total, counts = np.int64(0), sets_WC if word < 2 else nulls_WC
                for e in range(b - until, b - newer):
                    total += marks_4M[U(word), U(e)]
                for byte in range(8):
                    counts[U(window), U(8 * (word % 2) + byte)] += (total >> (8 * byte)) & 255
            newer = until


@kernel(inline=True)
def _place_rates(slot: Any, rates_WC: F64, row: F32) -> None:
    for column in range(slot.rate_columns):
        for span in range(3):
            row[U(slot.rates + 3 * column + span)] = rates_WC[U(1 + span), U(column)]
    for column in range(slot.flag_columns):
        for window in range(4):
            row[U(slot.flags + 4 * column + window)] = rates_WC[U(window), U(slot.first_flag + column)]


@kernel()
def _shares(bins_2M: I8, kind: int, a: int, b: int, row: F32, first: int, several: int, counts: I64) -> None:
    """Write the share of each bin among the bins that are not null."""
    counts[:] = 0
    for i in range(a, b):
        counts[U(bins_2M[U(kind), U(i)] + 1)] += 1
    total = max(b - a - counts[0], 1)
    for i in range(several):
        row[U(first + i)] = counts[U(i + 1)] / total


@kernel(inline=True)
def _sessions(time_us: I64, gap_us: int) -> tuple[int, int]:
    """Return the sessions that gaps begin, and the events of the newest one."""
    sessions, newest = 1, 0
    for i in range(1, len(time_us)):
        if time_us[U(i)] - time_us[U(i - 1)] > gap_us:
            sessions += 1
            newest = i
    return sessions, len(time_us) - newest


@kernel(inline=True)
def _deviations(values_7M: F64, keys_3M: I32, a: int, b: int, there_33: I64, slot: Any, row: F32) -> None:
    """Write means and deviations of duration, percentage and gaps, and what follows from them."""
    n = b - a
    for kind in range(2):
        newest_5 = mean = deviation = 0.0
        for span, reach in enumerate((5, 20, n)):
            if span == 0 or n > (5, 20)[span - 1]:
                mean, deviation = _moments(values_7M, kind, keys_3M, kind, max(a, b - reach), b, there_33[kind, span])
            row[slot.statistics + 15 * kind + 5 * span] = mean
            row[slot.statistics + 15 * kind + 5 * span + 1] = deviation
            newest_5 = mean if span == 0 else newest_5
        row[slot.duration_deviation if kind == 0 else slot.percentage_deviation] = deviation
        row[slot.duration_change if kind == 0 else slot.percentage_change] = newest_5 - mean
    mean, deviation = _moments(values_7M, 5, keys_3M, 2, a, b, n - 1)
    row[slot.gaps], row[slot.gaps + 1] = mean, deviation


@kernel()
def _moments(values_7M: F64, kind: int, keys_3M: I32, key: int, a: int, b: int, there: int) -> tuple[float, float]:
    """Return the mean and the population deviation of the `there` values that are not null (null is 0)."""
    many = max(there, 1)
    mean = _sum(values_7M, kind, a, b) / many
    for i in range(a, b):
        centred = values_7M[U(kind), U(i)] - mean if keys_3M[U(key), U(i)] != NOTHING else 0.0
        values_7M[U(6), U(i)] = centred * centred
    return mean, np.sqrt(_sum(values_7M, 6, a, b) / many)


@kernel()
def _sum(values_7M: F64, kind: int, a: int, b: int) -> np.float64:
    """Return the sum of at least one value in NumPy's order: the first, and the rest of them pairwise."""
    return np.float64(values_7M[kind, a]) + _pairwise(values_7M, kind, a + 1, b)


@kernel(signature="float64(float64[:, ::1], int64, int64, int64)")
def _pairwise(values_7M: F64, kind: int, a: int, b: int) -> np.float64:
    total, row = 0.0, U(kind)
    if b - a > 128:
        half = a + (b - a) // 16 * 8
        return _pairwise(values_7M, kind, a, half) + _pairwise(values_7M, kind, half, b)
    if b - a >= 8:
        c, d, e, f = values_7M[row, U(a)], values_7M[row, U(a + 1)], values_7M[row, U(a + 2)], values_7M[row, U(a + 3)]
        g, h, k, m = (
            values_7M[row, U(a + 4)],
            values_7M[row, U(a + 5)],
            values_7M[row, U(a + 6)],
            values_7M[row, U(a + 7)],
        )
        for i in range(a + 8, b - (b - a) % 8, 8):
            c += values_7M[row, U(i)]
            d += values_7M[row, U(i + 1)]
            e += values_7M[row, U(i + 2)]
            f += values_7M[row, U(i + 3)]
            g += values_7M[row, U(i + 4)]
            h += values_7M[row, U(i + 5)]
            k += values_7M[row, U(i + 6)]
            m += values_7M[row, U(i + 7)]
        total += ((c + d) + (e + f)) + ((g + h) + (k + m))
    for i in range(b - (b - a) % 8, b):
        total += values_7M[row, U(i)]
    return np.float64(total)


@kernel()
def _lay(keys_3M: I32, kind: int, a: int, b: int, columns: I32, column: int, width: int) -> None:
    """Lay a user's keys into a column of what is sorted together."""
    for i in range(b - a):
        columns[U(column + i * width)] = keys_3M[U(kind), U(a + i)]


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
            _middle(few_keys, column, few_width, there[0], row, first + 2, picked)
            _middle(some_keys, column, some_width, there[1], row, first + 7, picked)
            _middle(all_keys, column, all_width, there[2], row, first + 12, picked)
        _middle(all_keys, 2 * LANES + lane, all_width, there_L33[lane, 2, 2], row, slot.gaps + 2, picked)


@kernel()
def _middle(keys: I32, column: int, width: np.int64, there: int, row: F32, slot: int, picked: I32) -> None:
    """Write the least, the greatest and the median of a sorted column's first `there` keys, if any."""
    if there > 0:
        picked[0] = keys[U(column)]
        picked[1] = keys[U(column + (there - 1) * width)]
        picked[2] = keys[U(column + (there - 1) // 2 * width)]
        picked[3] = keys[U(column + there // 2 * width)]
        for i in range(4):
            picked[i] ^= (picked[i] >> np.int32(31)) & NOTHING
        values = picked.view(np.float32)
        row[U(slot)], row[U(slot + 1)] = values[0], values[1]
        row[U(slot + 2)] = (np.float64(values[2]) + np.float64(values[3])) / 2


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
