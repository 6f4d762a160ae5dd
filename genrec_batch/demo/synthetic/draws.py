"""Random draws that need no generator: every draw is a hash of a seed, a purpose and a counter.

Owns: the hash and the tables that turn its bits into Zipf ranks, weighted choices and normal quantiles. Must not know:
users, videos, files. The same counter gives the same bits wherever, whenever and in whatever chunk it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import F64, I32, I64

U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(seed: int, purpose: int) -> U64:
    """Return the 64-bit start of one stream of draws, [1], mixed from the seed and the purpose by `SeedSequence`."""
    start: U64 = np.random.SeedSequence(seed, spawn_key=(purpose,)).generate_state(1, np.uint64).view(np.uint64)
    return start


def bits(stream: U64, counter_E: I64) -> U64:
    """Return 64 random bits per counter, [E]: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), random access."""
    x = counter_E.astype(np.uint64)
    x *= GOLDEN
    x += stream
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def quarters(bits_E: U64) -> tuple[U16, U16, U16, U16]:
    """Return the four independent 16-bit draws of each hash, lowest bits first, as views [E]."""
    parts = bits_E.view(np.uint16).reshape(-1, 4)
    return parts[:, 0], parts[:, 1], parts[:, 2], parts[:, 3]


def halves(bits_E: U64) -> tuple[U32, U32]:
    """Return the two independent 32-bit draws of each hash, lowest bits first, as views [E]."""
    parts = bits_E.view(np.uint32).reshape(-1, 2)
    return parts[:, 0], parts[:, 1]


def chance(probability: float) -> np.uint16:
    """Return t such that a 16-bit draw is below t with this probability (0..1, to 1/65536)."""
    return np.uint16(min(round(probability * 65536), 65535))


def choices(weights: Sequence[float] | F64, size_bits: int) -> I32:
    """Return a table of 2**size_bits places in `weights`, each as often as its share says, lower places first."""
    cumulative = np.cumsum(np.asarray(weights, np.float64))
    middle = (np.arange(1 << size_bits) + 0.5) / (1 << size_bits) * cumulative[-1]
    places: I32 = np.searchsorted(cumulative, middle, side="right").astype(np.int32)
    return places


def zipf(items: int, size_bits: int) -> I32:
    """Return a table of 2**size_bits ranks 0..items-1 in which rank r is as frequent as 1 / (r + 1) (Zipf 1949)."""
    return choices(1.0 / np.arange(1, items + 1), size_bits)


def lognormal(median: float, sigma: float, size_bits: int) -> F64:
    """Return the 2**size_bits mid-quantiles of a lognormal distribution, ascending."""
    size = 1 << size_bits
    inverse = NormalDist().inv_cdf
    return median * np.exp(sigma * np.array([inverse((i + 0.5) / size) for i in range(size)]))
