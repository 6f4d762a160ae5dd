"""The slots that the log alone decides, user by user, compiled: the second of two passes.

Owns: the formulas of `events.py` again, in the same order of additions, so that both give the same bits. Must not know:
how a value was read. Imports nothing of this package: what numba keeps on disk is renewed when this file changes, and
by nothing else. So slots are arguments (`compiled.Slots`), as are the numbers shared with `kernel_columns.py`.

Shape suffixes as in `arrays.py`; M events of a part. Loops run from 0 over slices: those become vector code.
"""

from __future__ import annotations

import numpy as np
from numba import njit

HOUR_US = 3_600_000_000
NOTHING = np.int32(2**31 - 1)  # sorts behind every float
LANES = 16  # users whose values are sorted side by side
WIDE, NARROW = 3 * LANES, 2 * LANES  # columns sorted at once: duration, percentage, gap; the newest have no gaps


@njit(cache=True, nogil=True)
def fill(
    at, slot, one_hots, codes, offsets_N1, start, stop, time_us_E, marks_4M, values_6M, bins_2M, keys_3M, distinct_N,
    sessions_2N, total_events_N, dense_NF, logarithms_7N, scratch_X, sorting_X,
):  # fmt: skip
    """Fill the rows start..stop of `dense_NF`, whose part begins at its first event; row 0 of `distinct_N` is `start`.

    In: what `scan` wrote; `codes`, three columns for the rows of `one_hots` (first slot, values, events), empty where
    the log lacks one; distinct videos, sessions and the newest session's events of each user (`sessions_2N` is empty
    where a gap begins a session). Out: `logarithms_7N`, what `finish` reads.
    """
    begin = offsets_N1[start]
    there_L33 = np.empty((LANES, 3, 3), np.int64)
    sets_WC, nulls_WC, rates_WC = np.zeros((4, 16), np.int64), np.zeros((4, 16), np.int64), np.zeros((4, 16))
    counts = np.zeros(32, np.int64)
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
            row = dense_NF[user]
            row[:] = 0
            a, b = offsets_N1[user] - begin, offsets_N1[user + 1] - begin
            n = b - a
            logs = logarithms_7N[:, user - start]
            logs[:] = 0
            logs[0] = total_events_N[user]
            there_33 = there_L33[lane]
            there_33[:] = 0
            row[slot.cold_start] = n == 0
            if n == 0:
                continue
            _newest(at, slot, one_hots, codes, begin + b, values_6M, a, b, row)
            _count(marks_4M, a, b, sets_WC, nulls_WC)
            for window, reach in enumerate((1, 5, 20, n)):
                _rates(sets_WC[window], nulls_WC[window], min(reach, n), rates_WC[window])
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
            _deviations(values_6M, keys_3M, a, b, there_33, slot, row, scratch_X)
            row[slot.mean_position] = _sum(values_6M[4][a:b]) / max(n - nulls_WC[3, at.position_null], 1)
            row[slot.distinct_share] = distinct_N[user - start] / n
            row[slot.kept_share] = n / at.max_events
            time_us = time_us_E[begin + a : begin + b]
            if sessions_2N.shape[1]:
                sessions, newest = sessions_2N[0, user - start], sessions_2N[1, user - start]
            else:
                sessions, newest = _sessions(time_us, at.session_gap_us)
            row[slot.newest_session] = newest / n
            logs[1] = n
            logs[2] = max(_sum(values_6M[0][a:b]) * 100, 0.0)
            logs[3] = sessions
            logs[4] = n / sessions if sessions else 0.0
            logs[5] = (time_us[n - 1] - time_us[0]) / HOUR_US
            logs[6] = max(at.as_of_us - time_us[n - 1], 0) / HOUR_US
            for kind in range(3):
                _lay(keys_3M[kind][a:b], all_keys[LANES * kind + lane :], WIDE, n)
            for kind in range(2):
                _lay(keys_3M[kind][a:b], some_keys[LANES * kind + lane :], NARROW, min(n, 20))
                _lay(keys_3M[kind][a:b], few_keys[LANES * kind + lane :], NARROW, min(n, 5))
        rows = dense_NF[block : block + users]
        _order_statistics(slot, all_keys, some_keys, few_keys, longest, there_L33, rows)


@njit(cache=True, nogil=True)
def finish(slots_7, logarithms_7N, dense_NF):
    """Write the logarithms that were taken of a part's users all at once."""
    for user in range(len(dense_NF)):
        row = dense_NF[user]
        for i in range(7):
            row[slots_7[i]] = logarithms_7N[i, user]


@njit(cache=True, nogil=True)
def _newest(at, slot, one_hots, codes, stop, values_6M, a, b, row):
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


@njit(cache=True, nogil=True)
def _count(marks_4M, a, b, sets_WC, nulls_WC):
    """Count each mask among the newest 1, 5, 20 and all events, [4, 16] each."""
    n, newer = b - a, 0
    for window, reach in enumerate((1, 5, 20, n)):
        older = min(reach, n)
        for field in range(16):
            sets_WC[window, field] = sets_WC[window - 1, field] if window else 0
            nulls_WC[window, field] = nulls_WC[window - 1, field] if window else 0
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


@njit(cache=True, nogil=True)
def _rates(sets, nulls, reach, rates):
    for field in range(16):
        there = reach - nulls[field]
        rates[field] = sets[field] / there if there > 0 else 0.0


@njit(cache=True, nogil=True)
def _place_rates(slot, rates_WC, row):
    for column in range(slot.rate_columns):
        for span in range(3):
            row[slot.rates + 3 * column + span] = rates_WC[1 + span, column]
    for column in range(slot.flag_columns):
        for window in range(4):
            row[slot.flags + 4 * column + window] = rates_WC[window, slot.first_flag + column]


@njit(cache=True, nogil=True)
def _shares(bins, slots, counts):
    """Write the share of each bin among the bins that are not null."""
    counts[:] = 0
    for i in range(len(bins)):
        counts[bins[i] + 1] += 1
    total = max(len(bins) - counts[0], 1)
    for i in range(len(slots)):
        slots[i] = counts[i + 1] / total


@njit(cache=True, nogil=True)
def _sessions(time_us, gap_us):
    """Return the sessions that gaps begin, and the events of the newest one."""
    sessions, newest = 1, 0
    for i in range(1, len(time_us)):
        if time_us[i] - time_us[i - 1] > gap_us:
            sessions += 1
            newest = i
    return sessions, len(time_us) - newest


@njit(cache=True, nogil=True)
def _deviations(values_6M, keys_3M, a, b, there_33, slot, row, squares):
    """Write means and deviations of duration, percentage and gaps, and what follows from them."""
    n = b - a
    for kind in range(2):
        newest_5, mean, deviation = 0.0, 0.0, 0.0
        for span, reach in enumerate((5, 20, n)):
            if span == 0 or n > (5, 20)[span - 1]:
                older = max(n - reach, 0)
                values, keys = values_6M[kind][a + older : b], keys_3M[kind][a + older : b]
                mean, deviation = _moments(values, keys, there_33[kind, span], squares)
            row[slot.statistics + 15 * kind + 5 * span] = mean
            row[slot.statistics + 15 * kind + 5 * span + 1] = deviation
            newest_5 = mean if span == 0 else newest_5
        if kind == 0:
            row[slot.duration_deviation], row[slot.duration_change] = deviation, newest_5 - mean
        else:
            row[slot.percentage_deviation], row[slot.percentage_change] = deviation, newest_5 - mean
    mean, deviation = _moments(values_6M[5][a:b], keys_3M[2][a:b], n - 1, squares)
    row[slot.gaps], row[slot.gaps + 1] = mean, deviation


@njit(cache=True, nogil=True)
def _moments(values, keys, there, squares):
    """Return the mean and the population deviation of the `there` values that are not null (null is 0)."""
    many = max(there, 1)
    mean = _sum(values) / many
    squares = squares[: len(values)]
    for i in range(len(values)):
        centred = values[i] - mean if keys[i] != NOTHING else 0.0
        squares[i] = centred * centred
    return mean, np.sqrt(_sum(squares) / many)


@njit(cache=True, nogil=True)
def _sum(values):
    """Return a sum in NumPy's order: the first value, and the rest of them pairwise."""
    if len(values) < 2:
        return values[0] if len(values) else 0.0
    return values[0] + _pairwise(values[1:])


@njit("float64(float64[::1])", cache=True, nogil=True)
def _pairwise(values):
    count = len(values)
    if count < 8:
        total = 0.0
        for i in range(count):
            total += values[i]
        return total
    if count > 128:
        half = count // 2 - count // 2 % 8
        return _pairwise(values[:half]) + _pairwise(values[half:])
    a, b, c, d, e, f, g, h = values[0], values[1], values[2], values[3], values[4], values[5], values[6], values[7]
    eights = count - count % 8
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
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(eights, count):
        total += values[i]
    return total


@njit(cache=True, nogil=True)
def _lay(keys, column, width, newest):
    """Lay a user's newest keys into a column of what is sorted together."""
    keys = keys[len(keys) - newest :]
    for i in range(len(keys)):
        column[i * width] = keys[i]


@njit(cache=True, nogil=True)
def _order_statistics(slot, all_keys, some_keys, few_keys, longest, there_L33, dense_LF):
    """Sort a block's values, and write the least, the greatest and the median of each user."""
    sort_columns(all_keys, longest, WIDE)
    if longest > 20:
        sort_columns(some_keys, 20, NARROW)
    if longest > 5:
        sort_columns(few_keys, 5, NARROW)
    for lane in range(len(dense_LF)):
        row = dense_LF[lane]
        for kind in range(2):
            first, there = slot.statistics + 15 * kind, there_L33[lane, kind]
            column = LANES * kind + lane
            if longest > 5:
                _middle(few_keys[column:], NARROW, there[0], row[first + 2 : first + 5])
            else:
                _middle(all_keys[column:], WIDE, there[0], row[first + 2 : first + 5])
            if longest > 20:
                _middle(some_keys[column:], NARROW, there[1], row[first + 7 : first + 10])
            else:
                _middle(all_keys[column:], WIDE, there[1], row[first + 7 : first + 10])
            _middle(all_keys[column:], WIDE, there[2], row[first + 12 : first + 15])
        _middle(all_keys[2 * LANES + lane :], WIDE, there_L33[lane, 2, 2], row[slot.gaps + 2 : slot.gaps + 5])


@njit(cache=True, nogil=True)
def _middle(column, width, there, slots):
    """Write the least, the greatest and the median of a sorted column's first `there` keys, 0 where there are none."""
    if there > 0:
        picked = np.empty(4, np.int32)
        picked[0] = column[0]
        picked[1] = column[(there - 1) * width]
        picked[2] = column[(there - 1) // 2 * width]
        picked[3] = column[there // 2 * width]
        for i in range(4):
            picked[i] ^= (picked[i] >> np.int32(31)) & NOTHING
        values = picked.view(np.float32)
        slots[0], slots[1] = values[0], values[1]
        slots[2] = (np.float64(values[2]) + np.float64(values[3])) / 2


@njit(cache=True, nogil=True)
def sort_columns(keys, length, width):
    """Sort each column of a [length, width] array in place.

    By Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M): which places are compared
    does not depend on the values, so all columns go through it side by side.
    """
    largest = 1
    while 2 * largest < length:
        largest *= 2
    run = largest if length > 1 else 0
    while run > 0:
        reach, begin, distance = largest, 0, run
        while True:
            for start in range(begin, length - distance, 2 * run):
                several = (min(start + run, length - distance) - start) * width
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


