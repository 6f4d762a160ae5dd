"""The second of four compiled passes: each user's rates and moments.

Owns: the formulas of `from_log` again, in the same order of additions, so that both give the same bits. Must not know:
how a value was read, which feature slot it fills. numba renews what it keeps on disk when this file changes, and only
then: what the passes share is an argument (`fill.Fields`, `fill.Facts`).

Shape suffixes as in `arrays.py`; M events of a chunk, a user's being a..b; W words of 64 events.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32, F64, I32, I64, U64
from genrec_batch.runtime.jit import borrowed, kernel
from genrec_batch.runtime.simd import (
    above,
    as_floats,
    leading_zeros,
    load,
    load_floats,
    load_half,
    masked,
    ones,
    splat,
    store,
    total,
    unequal,
)

HOUR_US = 3_600_000_000
NOTHING = np.int32(2**31 - 1)  # sorts behind every float
ALL = ~np.uint64(0)
U = np.uint64  # of an index: numba checks signed ones for counting from the end
NULL = 16  # the first field of nulls
SERIAL = 128  # values that NumPy adds in eight running sums; it halves more than that


@kernel()
def summarize(
    at: Any, fact: Any, offsets_N1: I64, start: int, stop: int, time_us_E: I64, bits_W32: U64, values_2M: F64,
    keys_6M: I32, logs_2M: F32, total_events_N: I64, as_of_us_N: I64, rates_N64: F32, facts_N64: F32, there_N6: I64,
    logarithms_7N: F64, counts_432: I64,
) -> None:  # fmt: skip
    """Compute the values of the users start..stop; the first has row 0 of every array with a row per user.

    In: what `scan` wrote, with its logarithms. Out: `rates_N64`, 16 masks over each of four windows; the facts, except
    those that need sorted values; how many durations and percentages each window has; and the numbers whose logarithms
    come next, among them the sessions that gaps begin.
    """
    bits_W32, values_2M, keys_6M, logs_2M = (
        borrowed(bits_W32),
        borrowed(values_2M),
        borrowed(keys_6M),
        borrowed(logs_2M),
    )
    rates_N64, facts_N64, logarithms_7N = borrowed(rates_N64), borrowed(facts_N64), borrowed(logarithms_7N)
    time_us_E, there_N6, counts_432 = borrowed(time_us_E), borrowed(there_N6), borrowed(counts_432)
    gaps, positions, begin = logs_2M[0], logs_2M[1], offsets_N1[start]
    for user in range(start, stop):
        place = user - start
        a, b = offsets_N1[user] - begin, offsets_N1[user + 1] - begin
        n, facts, there_6 = b - a, facts_N64[place], there_N6[place]
        facts[:], logarithms_7N[:, place] = 0, 0
        logarithms_7N[0, place] = total_events_N[user]
        facts[fact.cold_start] = n == 0
        if n == 0:
            continue
        newest = _count(bits_W32, a, b, counts_432, at.session_break, rates_N64[place])
        for kind in range(2):
            for window in range(1, 4):
                nulls = counts_432[U(window), U(NULL + at.duration_null + kind)]
                there_6[U(3 * kind + window - 1)] = min((1, 5, 20, n)[window], n) - nulls
        facts[fact.cold_start] = counts_432[3, at.known] == 0
        facts[fact.unknown_share] = (counts_432[3, at.tokened] - counts_432[3, at.known]) / n
        facts[fact.newest_session] = newest / n
        facts[fact.mean_position] = _sum(positions, a, b) / max(n - counts_432[3, NULL + at.position_null], 1)
        oldest_us, newest_us = time_us_E[begin + a], time_us_E[begin + b - 1]
        logarithms_7N[1, place] = n
        logarithms_7N[2, place] = _moments_of(fact, values_2M, keys_6M, gaps, a, b, there_6, facts)
        logarithms_7N[3, place] = counts_432[3, at.session_break] + 1
        logarithms_7N[5, place] = (newest_us - oldest_us) / HOUR_US
        logarithms_7N[6, place] = max(as_of_us_N[user] - newest_us, 0) / HOUR_US


@kernel(inline=True)
def _count(bits_W32: U64, a: int, b: int, counts_432: I64, session_break: int, rates_64: F32) -> int:
    """Count each mask among the newest 1, 5, 20 and all events, and compute the rates among values that are not null.

    Returns the events since the newest session break.
    """
    n, newest, bits_X = b - a, b - a, bits_W32.reshape(-1)
    for first in range(0, NULL, 8):
        all_set = all_null = splat(load(bits_X, 0), 0)
        for newer in range(0, n, 64):
            word, shift, older = (b - newer) // 64 * 32 + first, (b - newer) % 64, ALL << U(64 - min(n - newer, 64))
            is_set = _aligned(bits_X, word, shift) & splat(all_set, older)
            is_null = _aligned(bits_X, word + NULL, shift) & splat(all_set, older)
            if newer == 0:
                for window in range(3):
                    reach = (1, 5, 20)[window]
                    those = splat(all_set, ALL << U(64 - reach))
                    found, null = ones(is_set & those), ones(is_null & those)
                    _note(found, null, min(reach, n), window, first, counts_432, rates_64)
            all_set, all_null = all_set + ones(is_set), all_null + ones(is_null)
        _note(all_set, all_null, n, 3, first, counts_432, rates_64)
    for newer in range(0, n, 64):
        place, below = U((b - newer) // 64), U((b - newer) % 64)
        breaks = bits_W32[place, U(session_break)] >> below
        breaks |= bits_W32[place + U(1), U(session_break)] << U(1) << (U(63) - below)
        breaks &= ALL << U(64 - min(n - newer, 64))
        if breaks:
            return newer + int(leading_zeros(breaks)) + 1
    return newest


@kernel(inline=True)
def _aligned(bits_X: U64, word: int, shift: int) -> Any:
    """Return 64 bits of 8 fields, starting at a bit of a word."""
    low, high = load(bits_X, word), load(bits_X, word + 32)
    return low >> splat(low, shift) | high << splat(high, 1) << splat(high, 63 - shift)


@kernel(inline=True)
def _note(found: Any, null: Any, reach: int, window: int, first: int, counts_432: I64, rates_64: F32) -> None:
    counts_X = counts_432.reshape(-1)
    store(counts_X, 32 * window + first, found)
    store(counts_X, 32 * window + NULL + first, null)
    there = as_floats(splat(null, reach) - null)
    rates = as_floats(found) / there
    store(rates_64, 16 * window + first, masked(rates, above(there, splat(there, 0.0))))


@kernel(inline=True)
def _moments_of(
    fact: Any, values_2M: F64, keys_6M: I32, gaps: F32, a: int, b: int, there_6: I64, facts: F32
) -> np.float64:
    """Write means and deviations of duration, percentage and gaps, and their changes; return the watched seconds."""
    n, watched = b - a, 0.0
    for kind in range(2):
        values, keys = borrowed(values_2M)[kind], borrowed(keys_6M)[kind]
        newest_5 = mean = deviation = 0.0
        for window, reach in enumerate((5, 20, n)):
            if window == 0 or n > (5, 20)[window - 1]:
                begin, many = max(a, b - reach), max(there_6[3 * kind + window], 1)
                summed = _sum(values, begin, b)
                mean = summed / many
                first = values[U(begin)] - mean if keys[U(begin)] != NOTHING else 0.0
                squares = first * first + _squares(values, keys, mean, begin + 1, b)
                deviation = np.sqrt(squares / many)
            facts[U(15 * kind + 5 * window)], facts[U(15 * kind + 5 * window + 1)] = mean, deviation
            if window == 0:
                newest_5 = mean
        facts[fact.change + kind] = newest_5 - mean
        if kind == 0:
            watched = max(summed * 100, 0.0)
    if n > 1:
        mean = _sum(gaps, a, b) / (n - 1)
        facts[fact.gaps] = mean
        facts[fact.gaps + 1] = np.sqrt(_squares(gaps, gaps.view(np.int32), mean, a + 1, b) / (n - 1))
    return np.float64(watched)


@kernel(inline=True)
def _sum(values: Any, a: int, b: int) -> np.float64:
    """Return the sum of at least one value in NumPy's order: the first, then the others pairwise."""
    rest = _pairwise(values, a + 1, b) if b - a > SERIAL else _eights(values, a + 1, b)
    return np.float64(values[U(a)]) + rest


@kernel()
def _pairwise(values: Any, a: int, b: int) -> np.float64:
    if b - a <= SERIAL:
        return _eights(values, a, b)
    half = a + (b - a) // 16 * 8
    return _pairwise(values, a, half) + _pairwise(values, half, b)


@kernel(inline=True)
def _eights(values: Any, a: int, b: int) -> np.float64:
    summed, end = 0.0, b - (b - a) % 8
    if a < end:
        eight = load_floats(values, a)
        for i in range(a + 8, end, 8):
            eight = eight + load_floats(values, i)
        summed += total(eight)
    for i in range(end, b):
        summed += values[U(i)]
    return np.float64(summed)


@kernel(inline=True)
def _squares(values: Any, keys: I32, mean: float, a: int, b: int) -> np.float64:
    """Return the sum of squared distances from the mean of values that are not null, pairwise like NumPy."""
    return _pairwise_squares(values, keys, mean, a, b) if b - a > SERIAL else _eight_squares(values, keys, mean, a, b)


@kernel()
def _pairwise_squares(values: Any, keys: I32, mean: float, a: int, b: int) -> np.float64:
    if b - a <= SERIAL:
        return _eight_squares(values, keys, mean, a, b)
    half = a + (b - a) // 16 * 8
    return _pairwise_squares(values, keys, mean, a, half) + _pairwise_squares(values, keys, mean, half, b)


@kernel(inline=True)
def _eight_squares(values: Any, keys: I32, mean: float, a: int, b: int) -> np.float64:
    summed, end = 0.0, b - (b - a) % 8
    if a < end:
        eight = _centred_squares(values, keys, mean, a)
        for i in range(a + 8, end, 8):
            eight = eight + _centred_squares(values, keys, mean, i)
        summed += total(eight)
    for i in range(end, b):
        one = values[U(i)] - mean if keys[U(i)] != NOTHING else 0.0
        summed += one * one
    return np.float64(summed)


@kernel(inline=True)
def _centred_squares(values: Any, keys: I32, mean: float, i: int) -> Any:
    eight, of_eight = load_floats(values, i), load_half(keys, i)
    eight = masked(eight - splat(eight, mean), unequal(of_eight, splat(of_eight, NOTHING)))
    return eight * eight
