"""The first of four compiled passes: the columns of a chunk become values and masks of its events.

Owns: which values and masks of an event are counted, summed or sorted later. Must not know: users, feature slots.
Imports no constants of other kernels: numba renews what it keeps on disk when this file changes, and only then. So the
numbers that it shares with the other passes are arguments (`fill.Fields`). E events of all users, M of a chunk, W words
of 64 events of a chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32, F64, I8, I32, I64, U64
from genrec_batch.runtime.jit import borrowed, kernel
from genrec_batch.runtime.simd import above, higher, load, lower, masked, splat, store, unordered, will_read
from genrec_batch.runtime.simd_sort import sortable

NOTHING = np.int32(2**31 - 1)  # the key of null: sorts behind every float
DAY_US, HOUR_US = 86_400_000_000, 3_600_000_000
PER_HOUR, PER_DAY, PER_WEEK = (1 + 2**-50) / HOUR_US, (1 + 2**-40) / 24, (1 + 2**-40) / 168
MONDAY_US = (168 * 7_400 + 72) * HOUR_US  # microseconds from a Monday in 1828 to 1970-01-01, a Thursday
EXACT = 2**53  # from here on whole numbers are rounded in float64
SECONDS = np.float32(1e-6)
LARGEST = float(np.finfo(np.float32).max)
AHEAD = 1024  # values by which prefetches lead reads; the processor's own lead is shorter
NULL, NOWHERE = 16, 31  # fields of `bits_W32`: the first of nulls, and one that is never read


@kernel()
def scan(
    at: Any,
    numbers: tuple[F64, ...],
    flags: tuple[I8, ...],
    time_us_E: I64,
    tokens_E: I32,
    offsets_N1: I64,
    start: int,
    stop: int,
    bits_W32: U64,
    values_2M: F64,
    keys_6M: I32,
    bins_3M: I8,
    inner_2M: F32,
    padded_64: F64,
) -> None:
    """Read the events of the users start..stop once.

    In: `numbers` and `flags`, the columns of `fill.COLUMNS`, empty where the log lacks one of that type. Out:
    `bits_W32`, a bit per event (from the second word on) and mask; duration and percentage, 0 for null, and integers
    that sort as they do; hour and weekday as whole numbers, -1 for null; gap in seconds and position, 0 for null, whose
    logarithms are taken next.
    """
    first, end = offsets_N1[start], offsets_N1[stop]
    bits_W32[: (end - first) // 64 + 3] = 0
    for column in range(at.flags):
        if len(flags[column]):
            _mark_flags(borrowed(flags[column])[first:end], bits_W32, column, NULL + column, padded_64)
        elif len(numbers[column]):
            _mark(borrowed(numbers[column])[first:end], bits_W32, column, NULL + column, padded_64)
    _mark_tokens(at, borrowed(tokens_E)[first:end], borrowed(bins_3M)[2], bits_W32)
    time_us = borrowed(time_us_E)[first:end]
    _gaps(at, time_us, offsets_N1, start, stop, borrowed(inner_2M)[0], borrowed(bins_3M)[2], bits_W32)
    _bins(
        at, time_us, borrowed(numbers[at.hour])[first:end], borrowed(numbers[at.weekday])[first:end],
        len(flags[at.weekend]) > 0, borrowed(bins_3M), bits_W32,
    )  # fmt: skip
    _position(at, borrowed(numbers[at.position])[first:end], borrowed(inner_2M)[1], bits_W32, padded_64)
    for kind in range(2):
        raw = borrowed(numbers[at.duration if kind == 0 else at.percentage])[first:end]
        values, keys = borrowed(values_2M)[kind], borrowed(keys_6M)[kind]
        _watched(at, kind, raw, end - first, values, keys, bits_W32, padded_64)


@kernel()
def _mark_tokens(at: Any, tokens: I32, small: I8, bits_W32: U64) -> None:
    for e in range(len(tokens)):
        small[e] = np.int8(min(tokens[e], np.int32(2)))
    _mark_small(small, len(tokens), 1, bits_W32, at.known)
    _mark_small(small, len(tokens), 0, bits_W32, at.tokened)


@kernel()
def _gaps(at: Any, time_us: I64, offsets_N1: I64, start: int, stop: int, gap_s: F32, small: I8, bits_W32: U64) -> None:
    for e in range(1, len(time_us)):
        gap_us = time_us[e] - time_us[e - 1]
        gap_s[e] = np.float32(gap_us) * SECONDS
        small[e] = gap_us > at.session_gap_us
    for user in range(start, stop):
        oldest = offsets_N1[user] - offsets_N1[start]
        if oldest < len(time_us):
            gap_s[oldest], small[oldest] = 0, 0
    _mark_small(small, len(time_us), 0, bits_W32, at.session_break)


@kernel()
def _bins(
    at: Any, time_us: I64, of_hours: F64, of_weekdays: F64, has_weekend: bool, bins_3M: I8, bits_W32: U64
) -> None:
    """Find hours and weekdays, by the log's columns where it has them, and weekends where it has no such column."""
    hours, weekdays, derived = bins_3M[0], bins_3M[1], bins_3M[2]
    if not has_weekend or min(len(of_hours), len(of_weekdays)) == 0:
        _clock(time_us, hours, derived)
    if not has_weekend:
        _mark_small(derived, len(time_us), 4, bits_W32, at.weekend)
    if len(of_hours):
        _bin(of_hours, hours, 24)
    if len(of_weekdays):
        _bin(of_weekdays, weekdays, 7)
    else:
        for e in range(len(time_us)):
            weekdays[e] = derived[e]


@kernel()
def _position(at: Any, raw: F64, position: F32, bits_W32: U64, padded_64: F64) -> None:
    if len(raw):
        _mark(raw, bits_W32, NOWHERE, NULL + at.position_null, padded_64)
    for e in range(len(raw)):
        position[e] = min(max(raw[e], 0.0), LARGEST) if raw[e] == raw[e] else 0.0


@kernel()
def _watched(at: Any, kind: int, raw: F64, count: int, values: F64, keys: I32, bits_W32: U64, padded_64: F64) -> None:
    """Write durations (kind 0) in hundreds of seconds, or clipped percentages; all null where the log lacks them."""
    null = NULL + (at.duration_null if kind == 0 else at.percentage_null)
    if len(raw) == 0:
        values[:count], keys[:count] = 0, NOTHING
        bits_W32[: count // 64 + 2, null] = ~np.uint64(0)
        return
    words, padded_64 = count // 64, borrowed(padded_64)
    for word in range(words + 1):
        from_64, start, nulls = raw, 64 * word, np.uint64(0)
        if word == words:
            padded_64[:] = 0
            padded_64[: count - start] = raw[start:]
            from_64, start = padded_64, 0
        for byte in range(8):
            eight = load(from_64, start + 8 * byte)
            will_read(raw, 64 * word + 8 * byte + AHEAD)
            null_8 = unordered(eight, eight)
            nulls |= null_8 << np.uint64(8 * byte)
            if kind == 0:
                eight = masked(eight * splat(eight, 0.01), ~null_8)
            else:  # a null is not higher than 0
                eight = lower(higher(eight, splat(eight, 0.0)), splat(eight, at.percentage_limit))
            store(values, 64 * word + 8 * byte, eight)
            store(keys, 64 * word + 8 * byte, sortable(eight, null_8))
        bits_W32[np.uint64(word + 1), np.uint64(null)] = nulls


@kernel()
def _mark(raw: F64, bits_W32: U64, set_field: int, null_field: int, padded_64: F64) -> None:
    """Set a bit per value above 0, and one per null."""
    words, padded_64 = len(raw) // 64, borrowed(padded_64)
    for word in range(words + 1):
        from_64, start = raw, 64 * word
        if word == words:
            padded_64[:] = 0
            padded_64[: len(raw) - 64 * words] = raw[64 * words :]
            from_64, start = padded_64, 0
        positive = null = np.uint64(0)
        for byte in range(8):
            eight = load(from_64, start + 8 * byte)
            will_read(raw, 64 * word + 8 * byte + AHEAD)
            positive |= above(eight, splat(eight, 0.0)) << np.uint64(8 * byte)
            null |= unordered(eight, eight) << np.uint64(8 * byte)
        bits_W32[np.uint64(word + 1), np.uint64(set_field)] = positive
        bits_W32[np.uint64(word + 1), np.uint64(null_field)] = null


@kernel()
def _mark_flags(flags: I8, bits_W32: U64, set_field: int, null_field: int, padded_64: F64) -> None:
    """Set a bit per 1, and one per -1, which is null."""
    words, padded = len(flags) // 64, borrowed(padded_64).view(np.int8)
    for word in range(words + 1):
        from_64, start = flags, 64 * word
        if word == words:
            padded[:64] = 0
            padded[: len(flags) - start] = flags[start:]
            from_64, start = padded, 0
        these = load(from_64, start)
        bits_W32[np.uint64(word + 1), np.uint64(set_field)] = above(these, splat(these, 0))
        bits_W32[np.uint64(word + 1), np.uint64(null_field)] = above(splat(these, 0), these)


@kernel()
def _mark_small(small: I8, count: int, limit: int, bits_W32: U64, field: int) -> None:
    """Set a bit per number above a limit."""
    for word in range(count // 64 + 1):
        these = load(small, 64 * word)
        bits_W32[np.uint64(word + 1), np.uint64(field)] = above(these, splat(these, limit))


@kernel()
def _clock(time_us: I64, hours: I8, weekdays: I8) -> None:
    """Compute hour and weekday (Monday 0) from times.

    From 1829 to 2112 in float64: hours since a Monday, by a product that is never too small, minus one where it is too
    large; no other quotient can be wrong.
    """
    outside = 0
    for e in range(len(time_us)):
        since_us = time_us[e] + MONDAY_US
        outside += (since_us < 0) | (since_us >= EXACT)
        us = np.float64(since_us)
        hour = np.floor(us * PER_HOUR)
        hour = hour - 1.0 if hour * HOUR_US > us else hour
        of_week = hour - np.floor(hour * PER_WEEK) * 168.0
        day = np.floor(of_week * PER_DAY)
        weekdays[e] = np.int8(np.int32(day))
        hours[e] = np.int8(np.int32(of_week - 24.0 * day))
    if outside:
        for e in range(len(time_us)):
            hours[e] = np.int8(time_us[e] // HOUR_US % 24)
            weekdays[e] = np.int8((time_us[e] // DAY_US + 3) % 7)


@kernel()
def _bin(raw: F64, bins: I8, divisor: int) -> None:
    outside = 0
    for e in range(len(raw)):
        outside += (raw[e] < 0) | (raw[e] >= divisor)
        bins[e] = np.int8(np.int32(raw[e] if raw[e] == raw[e] else -1.0))
    if outside:
        for e in range(len(raw)):
            bins[e] = np.int8(np.floor(raw[e]) % divisor) if raw[e] == raw[e] else np.int8(-1)
