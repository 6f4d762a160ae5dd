"""Arithmetic over many short segments of one flat array, without a loop over segments.

Owns: counts, sums, order statistics and groups per segment. Must not know: what a user, an event or a slot is. Shape
suffixes: E values of all segments together, G segments, C masks, W windows, R table rows, D floats of a table row. A
segment's result depends on that segment only, to the last bit: counts are whole numbers, the order of a sum depends on
the segment's length, and order statistics are picked from sorted values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genrec_batch.core.arrays import F32, F64, I32, I64, U8

CHUNK_EVENTS, CHUNK_USERS = 1 << 14, 1 << 10  # computed at once: their arrays stay in a core's own cache
CACHE_LINE = 64  # bytes
_BYTE = np.arange(256)
POPULATION = np.array([int(byte).bit_count() for byte in _BYTE], np.uint8)  # bits set in a byte
POPULATION_BELOW = np.concatenate([POPULATION[_BYTE & ((1 << bit) - 1)] for bit in range(8)])  # bits set below a bit
NULL_KEY = np.int32(2**31 - 1)  # sorts behind every float
GATHERED_FLOATS = 1 << 18  # of a weighted sum at once: 1 MiB
ENTROPY_SCALE = 2.0**36  # c ln c becomes a whole number: sums are exact in any order


@dataclass(frozen=True, kw_only=True)
class Segments:
    """G neighbouring segments that fill a flat array of E values; none is empty. The last value is the newest."""

    lengths_G: I64

    def __len__(self) -> int:
        return len(self.lengths_G)

    @cached_property
    def ends_G(self) -> I64:
        """Place after the last value of each segment, [G]."""
        ends_G: I64 = np.cumsum(self.lengths_G)
        return ends_G

    @cached_property
    def starts_G(self) -> I64:
        """Place of the first value of each segment, [G]."""
        return self.ends_G - self.lengths_G

    @cached_property
    def owners_E(self) -> I64:
        """Number of the segment that each value belongs to, [E]."""
        return np.repeat(np.arange(len(self)), self.lengths_G)

    @cached_property
    def width(self) -> int | None:
        """Length of every segment, None where they differ."""
        shortest = int(self.lengths_G.min())
        return shortest if shortest == int(self.lengths_G.max()) else None

    def sums(self, values_E: F64) -> F64:
        """Return the sum of each segment, [G]."""
        summed_G: F64 = np.add.reduceat(values_E, self.starts_G)
        return summed_G

    def counts(self, mask_E: U8) -> I64:
        """Return how often the mask is set in each segment, [G]."""
        if mask_E.all():
            return self.lengths_G
        counts_G: I64 = window_counts(mask_E[None], self, (None,))[0, 0].astype(np.int64)
        return counts_G

    def sort(self, values_E: I32) -> None:
        """Sort the values of each segment, in place."""
        if self.width is not None:
            values_E.reshape(-1, self.width).sort(axis=1)
        else:  # segments are kept apart by their number in the upper 32 bits
            keyed_E = (self.owners_E << 32) + values_E
            keyed_E.sort()
            values_E[:] = keyed_E.astype(np.int32)

    def newest(self, count: int | None) -> tuple[I64, Segments]:
        """Return the places of each segment's last `count` values (None: all), and the segments that they form."""
        if count is None or not (self.lengths_G > count).any():
            return np.arange(int(self.ends_G[-1])), self
        shorter = Segments(lengths_G=np.minimum(self.lengths_G, count))
        places_M = np.arange(int(shorter.ends_G[-1])) + np.repeat(self.ends_G - shorter.ends_G, shorter.lengths_G)
        return places_M, shorter


def chunks(offsets_N1: I64, events: int = CHUNK_EVENTS) -> Iterator[tuple[int, int]]:
    """Cut N users into chunks of neighbours that are computed together: few enough events and users, or one user."""
    start, users = 0, len(offsets_N1) - 1
    while start < users:
        fit = int(np.searchsorted(offsets_N1, offsets_N1[start] + events, side="right")) - 1
        stop = min(max(fit, start + 1), start + CHUNK_USERS, users)
        yield start, stop
        start = stop


def ratio(numerator: F64, denominator: F64) -> F64:
    """Return the quotient, 0 where the denominator is 0; both of one shape, or broadcast to the numerator's."""
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator != 0)


def window_counts(masks_CE: U8, segments: Segments, windows: Sequence[int | None]) -> F64:
    """Return how often each mask is set among the newest values of each segment, for each window, [C, W, G].

    By ranks of a bit vector (Jacobson 1989): the bits set before a place are those of the whole bytes before it, summed
    once, plus those below it in its own byte; a window's count is the difference of two ranks.
    """
    bytes_of = masks_CE.shape[1] // 8 + 1
    packed_CX = np.zeros((len(masks_CE), bytes_of), np.uint8)
    bits_CX = np.packbits(masks_CE, axis=1, bitorder="little")
    packed_CX[:, : bits_CX.shape[1]] = bits_CX
    before_CX = np.zeros((len(masks_CE), bytes_of), np.int32)
    np.cumsum(POPULATION.take(packed_CX[:, :-1]), axis=1, dtype=np.int32, out=before_CX[:, 1:])
    reach_WG = [segments.lengths_G if window is None else np.minimum(segments.lengths_G, window) for window in windows]
    edges = np.concatenate([segments.ends_G, *(segments.ends_G - reach_G for reach_G in reach_WG)])
    byte, bit = edges >> 3, (edges & 7) << 8
    ranks = before_CX.take(byte, axis=1) + POPULATION_BELOW.take(packed_CX.take(byte, axis=1) + bit)
    ranks = ranks.reshape(len(masks_CE), 1 + len(windows), len(segments))
    counts_CWG: F64 = (ranks[:, :1] - ranks[:, 1:]).astype(np.float64)
    return counts_CWG


def moments(values: Sequence[F64], there: Sequence[U8], segments: Sequence[Segments]) -> F64:
    """Return mean, population deviation, minimum, maximum and median of the values that are there, [5, G of all lists].

    0 where no value is there. `values` are 0 where `there` is False. Minima, maxima and medians are those of the values
    rounded to float32.
    """
    values_E, there_E = np.concatenate(values), np.concatenate(there)
    whole = Segments(lengths_G=np.concatenate([each.lengths_G for each in segments]))
    complete = bool(there_E.all())
    count_G = whole.lengths_G if complete else whole.counts(there_E)
    many_G = np.maximum(count_G, 1)
    mean_G = whole.sums(values_E) / many_G
    centred_E = values_E - np.repeat(mean_G, whole.lengths_G)
    if not complete:
        centred_E *= there_E
    centred_E *= centred_E
    std_G = np.sqrt(whole.sums(centred_E) / many_G)
    sorted_E = _ordered_as_integers(values_E.astype(np.float32).view(np.int32))
    if not complete:
        sorted_E[~there_E] = NULL_KEY
    first = 0
    for each in segments:
        last = first + int(each.ends_G[-1])
        each.sort(sorted_E[first:last])
        first = last
    places = [0 * many_G, many_G - 1, (many_G - 1) // 2, many_G // 2]  # minimum, maximum, the two in the middle
    picked = _ordered_as_integers(sorted_E.take(np.concatenate([whole.starts_G + place for place in places])))
    low_G, high_G, below_G, above_G = picked.view(np.float32).astype(np.float64).reshape(4, -1)
    return np.where(count_G > 0, np.stack([mean_G, std_G, low_G, high_G, (below_G + above_G) / 2]), 0.0)


def _ordered_as_integers(bits: I32) -> I32:
    """Return integers that sort like the floats with these bits; its own inverse."""
    flipped = bits >> 31
    flipped &= NULL_KEY
    flipped ^= bits
    return flipped


def distinct(codes_E: I32, segments: Segments) -> tuple[I64, U8]:
    """Return each segment's number of distinct codes [G], and which of its sorted codes are the first of theirs [E].

    A code of -1 is null and is not counted.
    """
    sorted_E = codes_E.astype(np.int32)
    segments.sort(sorted_E)
    first_E = np.empty(len(sorted_E), np.bool_)
    np.not_equal(sorted_E[1:], sorted_E[:-1], out=first_E[1:])
    first_E[segments.starts_G] = True
    first_E &= sorted_E >= 0
    return segments.counts(first_E), first_E


def groups(codes_E: I32, segments: Segments) -> tuple[I64, F64, F64]:
    """Return distinct codes, their entropy over ln(distinct) (0 for one), and the commonest one's share, [G] each.

    Codes of -1 are null and left out. The entropy is Shannon's (1948), in natural logarithms, as ln t - (sum of c ln c)
    / t over groups of c codes, t in all.
    """
    distinct_G, first_E = distinct(codes_E, segments)
    begin_H = np.flatnonzero(first_E)
    owner_H = segments.owners_E[begin_H]
    sizes_H = np.minimum(np.append(begin_H[1:], len(first_E)), segments.ends_G[owner_H]) - begin_H  # nulls sort first
    total_G = np.bincount(owner_H, sizes_H, len(segments)).astype(np.int64)
    share_H = sizes_H / total_G[owner_H]
    logarithms_X, steps_X = size_terms(int(segments.lengths_G.max()))
    terms_G = np.bincount(owner_H, np.cumsum(steps_X)[sizes_H], len(segments))
    entropy_G: F64 = logarithms_X[total_G] - terms_G / ENTROPY_SCALE / np.maximum(total_G, 1)
    entropy_G = np.where(distinct_G > 1, entropy_G / logarithms_X[np.maximum(distinct_G, 2)], 0.0)
    commonest_G = np.zeros(len(segments))
    some_G = distinct_G > 0
    if len(begin_H):
        commonest_G[some_G] = np.maximum.reduceat(share_H, (np.cumsum(distinct_G) - distinct_G)[some_G])
    return distinct_G, entropy_G, commonest_G


def size_terms(longest: int) -> tuple[F64, I64]:
    """Return ln(c), and c ln c - (c - 1) ln(c - 1) times `ENTROPY_SCALE`, for c from 0 to `longest`, at least to 2."""
    sizes_X = np.arange(max(longest, 2) + 1)
    logarithms_X = np.log(np.maximum(sizes_X, 1))
    terms_X = np.rint(sizes_X * logarithms_X * ENTROPY_SCALE).astype(np.int64)
    return logarithms_X, np.diff(terms_X, prepend=0)


def weighted_sums(table_RD: F32, rows_E: I64, weights_E: F32, segments: Segments) -> F32:
    """Return the weighted sum of each segment's rows of a table, float32 [G, D].

    Segments of similar length are gathered together; a shorter one repeats its own last row with weight 0, which adds
    nothing. Sums run from a segment's first value to its last.
    """
    sums_GD = np.empty((len(segments), table_RD.shape[1]), np.float32)
    order_G = np.argsort(segments.lengths_G, kind="stable")
    first = 0
    while first < len(order_G):
        shortest = int(segments.lengths_G[order_G[first]])
        some_P = order_G[first : first + max(1, GATHERED_FLOATS // (shortest * table_RD.shape[1]))]
        lengths_P1 = segments.lengths_G[some_P][:, None]
        place_L = np.arange(int(lengths_P1[-1, 0]))
        places_PL = segments.starts_G[some_P][:, None] + np.minimum(place_L, lengths_P1 - 1)
        weights_PL = np.where(place_L < lengths_P1, weights_E.take(places_PL), np.float32(0))
        sums_GD[some_P] = np.einsum("pl,pld->pd", weights_PL, table_RD.take(rows_E.take(places_PL), axis=0))
        first += len(some_P)
    return sums_GD
