"""A part's columns turned into what its users need of them, compiled: the first of two passes.

Owns: which values and masks of an event are counted, summed or sorted later. Must not know: users, feature slots.
Imports nothing of this package: what numba keeps on disk is renewed when this file changes, and by nothing else. So
the numbers that it shares with `kernel_users.py` are arguments (`compiled.Fields`). E events of all users, M of a part.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch.arrays import F64, I8, I32, I64, U8
from genrec_batch.features.kernel import kernel

NOTHING = np.int32(2**31 - 1)  # the key of null: sorts behind every float
DAY_US, HOUR_US = 86_400_000_000, 3_600_000_000


@kernel()
def scan(
    at: Any,
    numbers: tuple[F64, ...],
    time_us_E: I64,
    tokens_E: I32,
    first: int,
    stop: int,
    marks_4M: I64,
    values_7M: F64,
    bins_2M: I8,
    keys_3M: I32,
) -> None:
    """Read the events first..stop once.

    In: `numbers`, the columns of `compiled.COLUMNS`, empty where the log lacks one; the logarithms of positions and of
    gaps in rows 4 and 5 of `values_7M`. Out: `marks_4M`, a byte per mask that is set (words 0 and 1) and per null
    (words 2 and 3); in `values_7M` duration, percentage, hour, weekday, position and gap, 0 for null; `bins_2M`, hour
    and weekday as whole numbers, -1 for null; `keys_3M`, integers that sort as duration, percentage and gap do.
    """
    count = stop - first
    time_us, tokens = time_us_E[first:stop], tokens_E[first:stop]
    marks_4M[:, :count] = 0
    for column in range(at.flags):
        if len(numbers[column]):
            _mark(numbers[column][first:stop], marks_4M[column // 8], marks_4M[2 + column // 8], 8 * (column % 8))
    hours, weekdays = values_7M[2][:count], values_7M[3][:count]
    there = np.ones(count, np.bool_)
    unknown, known = 8 * (at.unknown % 8), 8 * (at.known % 8)
    sets = marks_4M[1][:count]
    for e in range(count):
        sets[e] |= (np.int64(tokens[e] == 1) << unknown) | (np.int64(tokens[e] > 1) << known)
    if min(len(numbers[at.hour]), len(numbers[at.weekday]), len(numbers[at.weekend])) == 0:
        weekend = np.int64(len(numbers[at.weekend]) == 0) << (8 * (at.weekend % 8))
        for e in range(count):
            day = time_us[e] // DAY_US
            hours[e] = (time_us[e] - day * DAY_US) / HOUR_US
            weekday = (day + 3) % 7  # Monday 0: 1970-01-01 was a Thursday
            weekdays[e] = weekday
            sets[e] |= weekend if weekday >= 5 else np.int64(0)
    if len(numbers[at.hour]):
        _hold(numbers[at.hour][first:stop], hours, there)
    _bin(hours, there, bins_2M[0], 24)
    there[:] = True
    if len(numbers[at.weekday]):
        _hold(numbers[at.weekday][first:stop], weekdays, there)
    _bin(weekdays, there, bins_2M[1], 7)
    nulls = marks_4M[3]
    duration = values_7M[0][:count]
    _hold_or_none(numbers[at.duration][first:stop], duration, there)
    for e in range(count):
        duration[e] /= 100
    _note(there, nulls, 8 * (at.duration_null % 8))
    _sortable(duration, there, keys_3M[0])
    percentage = values_7M[1][:count]
    _hold_or_none(numbers[at.percentage][first:stop], percentage, there)
    for e in range(count):
        percentage[e] = min(max(percentage[e], 0.0), at.percentage_limit)
    _note(there, nulls, 8 * (at.percentage_null % 8))
    _sortable(percentage, there, keys_3M[1])
    positions = values_7M[4][:count]
    _hold_or_none(positions[: count if len(numbers[at.position]) else 0], positions, there)
    _note(there, nulls, 8 * (at.position_null % 8))
    there[:] = True
    _sortable(values_7M[5][:count], there, keys_3M[2])


@kernel()
def _mark(raw: F64, sets: I64, nulls: I64, shift: int) -> None:
    for e in range(len(raw)):
        sets[e] |= np.int64(raw[e] > 0) << shift
        nulls[e] |= np.int64(raw[e] != raw[e]) << shift


@kernel()
def _note(there: U8, nulls: I64, shift: int) -> None:
    for e in range(len(there)):
        nulls[e] |= np.int64(not there[e]) << shift


@kernel()
def _hold(raw: F64, values: F64, there: U8) -> None:
    for e in range(len(raw)):
        real = raw[e] == raw[e]
        there[e] = real
        values[e] = raw[e] if real else 0.0


@kernel()
def _hold_or_none(raw: F64, values: F64, there: U8) -> None:
    """Hold a column, or only nulls where the log lacks it."""
    if len(raw):
        _hold(raw, values, there)
    else:
        values[:] = 0
        there[:] = False


@kernel()
def _bin(values: F64, there: U8, bins: I8, divisor: int) -> None:
    low, high = 0.0, 0.0
    for value in values:
        low, high = min(low, value), max(high, value)
    if low >= 0 and high < divisor:
        for e in range(len(values)):
            bins[e] = np.int8(np.int32(values[e])) if there[e] else np.int8(-1)
    else:
        for e in range(len(values)):
            bins[e] = np.int8(np.floor(values[e]) % divisor) if there[e] else np.int8(-1)


@kernel()
def _sortable(values: F64, there: U8, keys: I32) -> None:
    """Store each value, rounded to float32, as the integer that sorts like it; NOTHING for null."""
    as_float = keys.view(np.float32)
    for e in range(len(values)):
        as_float[e] = values[e]
    for e in range(len(values)):
        key = keys[e] ^ ((keys[e] >> np.int32(31)) & NOTHING)
        keys[e] = key if there[e] else NOTHING
