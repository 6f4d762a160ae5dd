"""Intervals: how far a mean could have come out otherwise with other users.

Owns: the resampling of rows, seeded. Must not know: what the values are. In: one value a row. Out: a mean with its
interval. Rows are drawn with replacement (Efron 1979); all values of a row are drawn together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from genrec_batch.core.arrays import F64, I64

RESAMPLES, LEAST_RESAMPLES = 1000, 200
DRAWS = 20_000_000  # rows drawn in all, beyond which there are fewer resamples
LEVEL = 0.95
AT_ONCE = 1 << 22  # weights that are held at once


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and its interval; all None where there is nothing to take it of."""

    value: float | None
    low: float | None
    high: float | None


NOTHING = Estimate(value=None, low=None, high=None)


def resamples(rows: int, seed: int) -> Iterator[F64]:
    """Yield how often each row was drawn in each of some resamples at a time, [resamples, rows]."""
    left = max(LEAST_RESAMPLES, min(RESAMPLES, DRAWS // max(1, rows)))
    random = np.random.Generator(np.random.Philox(seed))
    while left:
        some = min(left, max(1, AT_ONCE // max(1, rows)))
        drawn = random.integers(0, rows, (some, rows)) + (np.arange(some) * rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=some * rows).reshape(some, rows).astype(np.float64)
        left -= some


def means(values: Mapping[str, F64], seed: int) -> dict[str, Estimate]:
    """Return the mean of each array over its rows that are not NaN, with intervals; all have one value a row."""
    if not values:
        return {}
    value_MX = np.stack(list(values.values()), axis=1)
    there_MX = ~np.isnan(value_MX)
    filled_MX, count_MX = np.where(there_MX, value_MX, 0.0), there_MX.astype(np.float64)
    whole_X = _ratio(filled_MX.sum(axis=0), count_MX.sum(axis=0))
    if not len(value_MX):
        return dict.fromkeys(values, NOTHING)
    drawn_RX = np.concatenate([_ratio(w @ filled_MX, w @ count_MX) for w in resamples(len(value_MX), seed)])
    return {name: estimate(whole_X[i], drawn_RX[:, i]) for i, name in enumerate(values)}


def estimate(value: float, drawn_R: F64) -> Estimate:
    """Return a figure with the interval of its resamples; resamples without one (NaN) do not count."""
    drawn_R = drawn_R[~np.isnan(drawn_R)]
    if np.isnan(value) or not len(drawn_R):
        return NOTHING
    low, high = np.quantile(drawn_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=float(value), low=float(low), high=float(high))


def _ratio(total: F64, number: F64 | I64) -> F64:
    ratio: F64 = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return ratio
