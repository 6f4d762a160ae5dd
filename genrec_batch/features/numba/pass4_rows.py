"""The last of four compiled passes: the rows of features.

Owns: values that are copied from events (newest values, one-hots), the shares of hours and weekdays, and means of the
videos table's rows. Must not know: how a rate or a moment is computed. Slots are arguments (`fill.Slots`), and so is
what the passes share (`fill.Facts`): numba renews what it keeps on disk when this file changes, and only then.

Shape suffixes as in `arrays.py`; M events of a chunk, a user's being a..b.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32, F64, I8, I32, I64, U8
from genrec_batch.runtime.jit import borrowed, kernel
from genrec_batch.runtime.simd import (
    above,
    equal,
    load,
    load_4,
    load_8,
    load_half,
    ones,
    splat,
    store,
    will_write,
)

DAY_US, HOUR_US = 86_400_000_000, 3_600_000_000
ALL = ~np.uint64(0)
AHEAD = 2  # users by which prefetches lead writes
U = np.uint64  # of an index: numba checks signed ones for counting from the end


@kernel()
def place(
    at: Any, fact: Any, slot: Any, one_hots: I64, codes: tuple[I8, ...], raw_hour_E: F64, raw_weekday_E: F64,
    offsets_N1: I64, start: int, stop: int, time_us_E: I64, values_2M: F64, logs_2M: F32, bins_3M: I8,
    rates_N64: F32, facts_N64: F32, slots_7: I64, logarithms_7N: F64, profile_RD: F32, user_row_N: I32,
    videos_RD: F32, has_R: U8, video_row_E: I32, percentage_E: F64, rows_X: I32, weights_X: F32, counts_32: F32,
    row: F32, dense_NF: F32,
) -> None:  # fmt: skip
    """Fill the rows of the users start..stop from the results of the other passes, with all logarithms.

    `codes` has a column, perhaps empty, for each row of `one_hots` (first slot, values, events); a missing table has no
    rows. A user's features are collected in `row`, which is then written in whole cache lines.
    """
    raw_hour_E, raw_weekday_E, time_us_E = borrowed(raw_hour_E), borrowed(raw_weekday_E), borrowed(time_us_E)
    values_2M, logs_2M, bins_3M = borrowed(values_2M), borrowed(logs_2M), borrowed(bins_3M)
    rates_N64, facts_N64, logarithms_7N = borrowed(rates_N64), borrowed(facts_N64), borrowed(logarithms_7N)
    counts_32, one_hots, row = borrowed(counts_32), borrowed(one_hots), borrowed(row)
    profile_RD, videos_RD, has_R = borrowed(profile_RD), borrowed(videos_RD), borrowed(has_R)
    video_row_E, percentage_E, rows_X = borrowed(video_row_E), borrowed(percentage_E), borrowed(rows_X)
    weights_X, dense_NF = borrowed(weights_X), borrowed(dense_NF)
    codes = (borrowed(codes[0]), borrowed(codes[1]), borrowed(codes[2]))
    begin = offsets_N1[start]
    for user in range(start, stop):
        here = user - start
        facts, rates = facts_N64[here], rates_N64[here]
        row[:] = 0
        if here + AHEAD < stop - start:
            for i in range((here + AHEAD) * len(row), (here + AHEAD + 1) * len(row), 16):
                will_write(dense_NF, i)
        for i in range(7):
            row[U(slots_7[U(i)])] = logarithms_7N[U(i), U(here)]
        row[slot.cold_start] = facts[fact.cold_start]
        if len(profile_RD) and user_row_N[user] >= 0:
            row[slot.profile : slot.profile + profile_RD.shape[1]] = profile_RD[user_row_N[user]]
        a, b = offsets_N1[user] - begin, offsets_N1[user + 1] - begin
        if a < b:
            _newest(at, slot, values_2M, logs_2M, a, b, row)
            _times(slot, raw_hour_E, raw_weekday_E, time_us_E, bins_3M, begin, a, b, row)
            for column in range(3):
                if len(codes[column]):
                    _one_hot(codes[column], begin + b, b - a, one_hots, column, row)
            _copy(at, fact, slot, facts, rates, row)
            _shares(bins_3M, 0, a, b, row, slot.hours, 24, counts_32)
            _shares(bins_3M, 1, a, b, row, slot.weekdays, 7, counts_32)
            row[slot.kept_share] = (b - a) / at.max_events
            if len(videos_RD):
                known, weight = _weights(
                    has_R, video_row_E, percentage_E, at.percentage_limit, begin + a, begin + b, rows_X, weights_X
                )
                if known:
                    _mean(videos_RD, rows_X, weights_X, known, np.float32(weight), row, slot.videos)
        for i in range(0, len(row), 16):
            store(dense_NF, here * len(row) + i, load(row, i))


@kernel(inline=True)
def _copy(at: Any, fact: Any, slot: Any, facts: F32, rates: F32, row: F32) -> None:
    for i in range(30):
        row[U(slot.statistics + i)] = facts[U(i)]
    for i in range(5):
        row[U(slot.gaps + i)] = facts[U(fact.gaps + i)]
    for i in range(4):
        row[U(slot.variety + i)] = facts[U(fact.variety + i)]
    for column in range(slot.rate_columns):
        for window in range(3):
            row[U(slot.rates + 3 * column + window)] = rates[U(16 + 16 * window + column)]
    for column in range(slot.flag_columns):
        for window in range(4):
            row[U(slot.flags + 4 * column + window)] = rates[U(16 * window + slot.first_flag + column)]
    row[slot.weekend], row[slot.holiday], row[slot.complete_share] = (
        rates[48 + at.weekend],
        rates[48 + at.holiday],
        rates[48],
    )
    row[slot.unknown_share], row[slot.newest_session] = facts[fact.unknown_share], facts[fact.newest_session]
    row[slot.mean_position], row[slot.distinct_share] = facts[fact.mean_position], facts[fact.distinct_share]
    row[slot.duration_deviation], row[slot.percentage_deviation] = facts[11], facts[26]
    row[slot.duration_change], row[slot.percentage_change] = facts[fact.change], facts[fact.change + 1]


@kernel(inline=True)
def _newest(at: Any, slot: Any, values_2M: F64, logs_2M: F32, a: int, b: int, row: F32) -> None:
    n, newest = b - a, b - 1
    for r in range(min(n, slot.newest_values)):
        row[U(slot.durations + r)] = min(max(values_2M[U(0), U(newest - r)], 0.0), at.duration_limit)
        row[U(slot.percentages + r)] = values_2M[U(1), U(newest - r)]
    unit = np.float32(at.position_unit)
    for r in range(min(n, slot.newest_positions)):
        row[U(slot.positions + r)] = logs_2M[U(1), U(newest - r)] / unit


@kernel(inline=True)
def _times(
    slot: Any, raw_hour_E: F64, raw_weekday_E: F64, time_us_E: I64, bins_3M: I8, begin: int, a: int, b: int, row: F32
) -> None:  # fmt: skip
    newest, several = begin + b - 1, min(b - a, slot.newest_times)
    for r in range(several):
        if len(raw_hour_E):
            hour = raw_hour_E[U(newest - r)]
            hour = 0.0 if np.isnan(hour) else hour
        else:
            hour = (time_us_E[U(newest - r)] % DAY_US) / HOUR_US
        row[U(slot.newest_hours + r)] = hour / 24
    for r in range(several):
        if len(raw_weekday_E):
            weekday = raw_weekday_E[U(newest - r)]
            weekday = 0.0 if np.isnan(weekday) else weekday
        else:
            weekday = np.float64(bins_3M[U(1), U(b - 1 - r)])
        row[U(slot.newest_weekdays + r)] = weekday / 7


@kernel()
def _one_hot(codes: I8, stop: int, n: int, one_hots: I64, column: int, row: F32) -> None:
    first, several, events = one_hots[column, 0], one_hots[column, 1], one_hots[column, 2]
    for r in range(min(n, events)):
        code = np.int64(codes[U(stop - 1 - r)])  # null writes 0 over 0
        row[U(first + several * r + max(code, 0))] = np.float32(code >= 0)


@kernel()
def _shares(bins_3M: I8, kind: int, a: int, b: int, row: F32, first: int, several: int, counts_32: F32) -> None:
    """Write the share of each bin among the events whose bin is not null."""
    bins, counted = bins_3M[kind], 0
    for start in range(a, b, 64):
        these = load(bins, start)
        inside = ALL >> U(64 - min(b - start, 64))
        counted += int(ones(above(these, splat(these, -1)) & inside))
        for i in range(several):
            count = np.float32(np.int32(ones(equal(these, splat(these, i)) & inside)))
            counts_32[U(i)] = count if start == a else counts_32[U(i)] + count
    there = np.float32(max(counted, 1))
    for i in range(several):
        row[U(first + i)] = counts_32[U(i)] / there


@kernel(inline=True)
def _weights(
    has_R: U8, row_E: I32, percentage_E: F64, limit: float, a: int, b: int, rows_X: I32, weights_X: F32
) -> tuple[int, float]:
    """Write the table rows of a user's mean and their weights; return how many, and the sum of weights.

    Weights are watch percentages if the log has that column; a null weighs 1, and if all weights are 0, all rows weigh
    the same.
    """
    known, weight = 0, 0.0
    for e in range(a, b):
        row = row_E[U(e)]
        if row >= 0 and has_R[U(row)]:
            one = 1.0
            if len(percentage_E) and percentage_E[U(e)] == percentage_E[U(e)]:
                one = min(max(percentage_E[U(e)], 0.0), limit)
            rows_X[U(known)], weights_X[U(known)] = row, one
            weight += one
            known += 1
    if weight == 0:
        weights_X[:known] = 1
        weight = float(known)
    return known, weight


@kernel()
def _mean(table_RD: F32, rows_X: I32, weights_X: F32, known: int, weight: np.float32, means: F32, first: int) -> None:
    """Write the weighted mean of table rows, summed in float32 in order; 128 columns at once, then fewer."""
    width: int = table_RD.shape[1]
    done, flat = 0, table_RD.reshape(-1)
    while done < width:
        start = np.int64(rows_X[0]) * width + done
        if width - done >= 128:
            sums = load_8(flat, start) * splat(load_8(flat, start), weights_X[0])
            for k in range(1, known):
                more = load_8(flat, np.int64(rows_X[U(k)]) * width + done)
                sums = sums + more * splat(more, weights_X[U(k)])
            store(means, first + done, sums / splat(sums, weight))
            done += 128
        elif width - done >= 64:
            quarter = load_4(flat, start) * splat(load_4(flat, start), weights_X[0])
            for k in range(1, known):
                more_4 = load_4(flat, np.int64(rows_X[U(k)]) * width + done)
                quarter = quarter + more_4 * splat(more_4, weights_X[U(k)])
            store(means, first + done, quarter / splat(quarter, weight))
            done += 64
        elif width - done >= 8:
            eight = load_half(flat, start) * splat(load_half(flat, start), weights_X[0])
            for k in range(1, known):
                more_half = load_half(flat, np.int64(rows_X[U(k)]) * width + done)
                eight = eight + more_half * splat(more_half, weights_X[U(k)])
            store(means, first + done, eight / splat(eight, weight))
            done += 8
        else:
            one = flat[start] * weights_X[0]
            for k in range(1, known):
                one += flat[np.int64(rows_X[U(k)]) * width + done] * weights_X[U(k)]
            means[first + done] = one / weight
            done += 1


@kernel()
def video_means(
    table_RD: F32, has_R: U8, row_E: I32, offsets_N1: I64, rows_X: I32, weights_X: F32, means_ND: F32, count_N: I64
) -> None:
    """Write each user's plain mean of table rows, and the number of rows; users without rows keep the old values."""
    table_RD, means_ND = borrowed(table_RD), borrowed(means_ND)
    nothing = np.zeros(0)
    for user in range(len(count_N)):
        a, b = offsets_N1[user], offsets_N1[user + 1]
        count_N[user], weight = _weights(has_R, row_E, nothing, 1.0, a, b, rows_X, weights_X)
        if count_N[user]:
            _mean(table_RD, rows_X, weights_X, count_N[user], np.float32(weight), means_ND[user], 0)
