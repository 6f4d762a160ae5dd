"""Intervals: how far a mean could have come out otherwise with other users.

Owns: the resampling of rows, seeded. Must not know: what the values are. In: one value a row. Out: a mean with its
interval. Rows are drawn with replacement (Efron 1979); all values of a row are drawn together.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from genrec_batch.core.arrays import F64, I64, U8

Name = TypeVar("Name", bound=Hashable)
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


def means(values: Mapping[Name, F64], seed: int) -> dict[Name, Estimate]:
    """Return the mean of each array over its rows that are not NaN, with intervals; all have one value a row."""
    if not values:
        return {}
    whole_X, drawn_RX = drawn_means(values, seed)
    return {name: estimate(whole_X[i], drawn_RX[:, i]) for i, name in enumerate(values)}


def drawn_means(values: Mapping[Name, F64], seed: int) -> tuple[F64, F64]:
    """Return the mean of each array over its rows that are not NaN, [X], and those of each resample, [R, X]."""
    value_MX = np.stack(list(values.values()), axis=1)
    there_MX = ~np.isnan(value_MX)
    some_X: U8 = ~np.all(there_MX, axis=0)  # columns that some rows lack: the number of the others is resampled, too
    filled_MX, there_MS = np.where(there_MX, value_MX, 0.0), there_MX[:, some_X].astype(np.float32)
    whole_X = _ratio(filled_MX.sum(axis=0), there_MX.sum(axis=0))
    single_MX = filled_MX.astype(np.float32)  # single precision is enough for an interval, and half the time

    def drawn(weight_RM: F64) -> F64:
        weight_RM = weight_RM.astype(np.float32)
        number_RX = np.full((len(weight_RM), len(some_X)), np.float64(len(value_MX)))
        number_RX[:, some_X] = weight_RM @ there_MS
        return _ratio((weight_RM @ single_MX).astype(np.float64), number_RX)

    return whole_X, np.concatenate([drawn(weight_RM) for weight_RM in resamples(len(value_MX), seed)])


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
