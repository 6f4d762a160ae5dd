"""Drift: how far the distribution of a quantity over users has moved from one that was recorded earlier.

Owns: bins that are made of a reference, the shares in them, the population stability index, and samples of users as
text. Must not know: which quantities there are (`features/sampled.py`), what is compared with what
(`scoring/drift.py`), files.

The index of shares q (before) and p (now) over bins is the sum of (p - q) ln(p / q), the symmetric Kullback-Leibler
divergence (Siddiqi 2006, Credit Risk Scorecards; Yurdakul 2018, Statistical Properties of Population Stability Index).
By custom, less than 0.1 is stable, up to 0.25 has moved, more has shifted. Without any drift it is about
(1/n + 1/m) times a chi-square with one degree of freedom less than there are bins, for samples of n and m users: of
`LEAST_USERS` each, 0.04 on average and under 0.1 in 99 of 100 cases.

Shapes: S sampled users, Q quantities.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32, F64

SMALLEST_SHARE = 1e-4  # an emptier bin counts as this full: ln(p / q) has no value at 0 (a custom of the field)
LEAST_USERS = 500  # on either side of a comparison
DECILES = tuple(place / 10 for place in range(1, 10))
MOVED, SHIFTED = 0.1, 0.25  # the customary reading
NO_VALUE = "users without a value"
SAME = 0.02  # of a mean or median: what differs by less tells nobody which way a quantity moved


@dataclass(frozen=True, kw_only=True)
class Bins:
    """How one quantity was distributed over users.

    Bin i holds values above edge i - 1 and up to edge i; the first and the last are open. `shares` has one more for
    users without a value (NaN), and adds up to 1.
    """

    edges: tuple[float, ...]  # rising, as float32
    shares: tuple[float, ...]
    mean: float | None  # over the users with a value; None without any
    median: float | None

    @staticmethod
    def of(values_S: F32, edges: Sequence[float] | None = None) -> Bins:
        """Return the distribution of S values, at least one; without edges, the bins are made of the values."""
        there = values_S[~np.isnan(values_S)]
        chosen = _edges(there) if edges is None else np.asarray(edges, np.float32)
        mean, median = _middles(there)
        return Bins(
            edges=tuple(float(f"{edge:.9g}") for edge in chosen),
            shares=tuple(round(float(share), 6) for share in _shares(values_S, chosen)),
            mean=mean,
            median=median,
        )

    @staticmethod
    def read(entry: Mapping[str, Any]) -> Bins:
        """Return what `dataclasses.asdict` made of bins.

        Raises:
            KeyError, TypeError, ValueError: the entry is damaged.
        """
        edges, shares = tuple(map(float, entry["edges"])), tuple(map(float, entry["shares"]))
        if len(shares) != len(edges) + 2 or list(edges) != sorted(edges) or abs(sum(shares) - 1) > 0.01:
            raise ValueError(f"{len(edges)} edges and {len(shares)} shares of bins do not fit")
        middles = (None if entry[name] is None else float(entry[name]) for name in ("mean", "median"))
        return Bins(edges=edges, shares=shares, mean=next(middles), median=next(middles))

    def shares_of(self, values_S: F32) -> F64:
        """Return the shares of S values in these bins, [edges + 2]."""
        return _shares(values_S, np.asarray(self.edges, np.float32))


def _edges(values: F32) -> F32:
    """Return edges at the deciles; a value that is several deciles, or one of few, has a bin of its own."""
    distinct = np.unique(values)
    if len(distinct) <= len(DECILES):
        at, alone = distinct, distinct[:1]
    else:
        at, times = np.unique(np.quantile(values, DECILES, method="inverted_cdf"), return_counts=True)
        alone = at[times > 1]
    edges: F32 = np.unique(np.concatenate([at, np.nextafter(alone, np.float32(-np.inf))])).astype(np.float32)
    return edges


def _shares(values_S: F32, edges: F32) -> F64:
    place_S = np.searchsorted(edges, values_S, side="left")  # a NaN is behind all edges
    place_S[np.isnan(values_S)] = len(edges) + 1
    shares: F64 = np.bincount(place_S, minlength=len(edges) + 2) / max(1, len(values_S))
    return shares


def _middles(values: F32) -> tuple[float | None, float | None]:
    """Return mean and median, None where there is no value."""
    if not len(values):
        return None, None
    return _short(float(values.mean(dtype=np.float64))), _short(float(np.median(values)))


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def terms(now: F64, before: F64) -> F64:
    """Return what each bin adds to the population stability index of two lists of shares."""
    p, q = np.maximum(now, SMALLEST_SHARE), np.maximum(before, SMALLEST_SHARE)
    found: F64 = (p - q) * np.log(p / q)
    return found


@dataclass(frozen=True, kw_only=True)
class Move:
    """How far a quantity has moved, and by one figure which way: `measure` is what `before` and `now` are."""

    quantity: str
    psi: float
    measure: str
    before: float | None
    now: float | None

    def __str__(self) -> str:
        shown = ["none" if value is None else f"{value:.4g}" for value in (self.before, self.now)]
        return f"{self.quantity} {self.psi:.2f} ({self.measure} {shown[0]} before, {shown[1]} now)"


def move(quantity: str, before: Bins, values_S: F32, labels: Sequence[str] = ()) -> Move:
    """Return how far S values have moved from a distribution; `labels` name the bins of a category."""
    now, then = before.shares_of(values_S), np.asarray(before.shares)
    by_bin = terms(now, then)
    psi = round(float(by_bin.sum()), 6)
    largest = int(np.abs(now - then).argmax()) if labels else int(by_bin.argmax())
    mean, median = _middles(values_S[~np.isnan(values_S)])
    if not labels and largest < len(before.edges) + 1:
        for measure, was, is_now in (("median", before.median, median), ("mean", before.mean, mean)):
            if was is None or is_now is None or abs(is_now - was) > SAME * abs(was):
                return Move(quantity=quantity, psi=psi, measure=measure, before=was, now=is_now)
    measure = f"share of {_bin_name(before.edges, largest, labels)}"
    return Move(quantity=quantity, psi=psi, measure=measure, before=_short(then[largest]), now=_short(now[largest]))


def _bin_name(edges: Sequence[float], place: int, labels: Sequence[str]) -> str:
    if place > len(edges):
        return NO_VALUE
    if labels:
        return labels[place] if place < len(labels) else "others"
    low, high = (f"{edges[at]:.4g}" if 0 <= at < len(edges) else "" for at in (place - 1, place))
    if low == high:
        return f"users at {low}"
    return f"users above {low}" if not high else f"users up to {high}" if not low else f"users from {low} to {high}"


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """What was recorded of some users: each quantity of their inputs, and their scores by the mode of decoding."""

    users: int
    inputs: Mapping[str, Bins]
    scores: Mapping[str, Mapping[str, Bins]]

    def stored(self) -> dict[str, Any]:
        """Return it JSON-able."""
        scores = {mode: {name: asdict(bins) for name, bins in found.items()} for mode, found in self.scores.items()}
        return {
            "users": self.users,
            "inputs": {name: asdict(bins) for name, bins in self.inputs.items()},
            "scores": scores,
        }

    @staticmethod
    def read(entry: Mapping[str, Any]) -> Distribution:
        """Return what `stored` returned.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the entry is damaged.
        """
        scores = {mode: {name: Bins.read(bins) for name, bins in of.items()} for mode, of in entry["scores"].items()}
        inputs = {name: Bins.read(bins) for name, bins in entry["inputs"].items()}
        return Distribution(users=int(entry["users"]), inputs=inputs, scores=scores)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Quantities of S users; NaN is no value, infinity one that is not known."""

    names: tuple[str, ...]
    values_SQ: F32

    def __len__(self) -> int:
        return len(self.values_SQ)

    def text(self) -> str:
        """Return the sample as text."""
        raw = base64.b64encode(self.values_SQ.astype("<f4").tobytes()).decode()
        return json.dumps({"names": self.names, "values": raw})

    @staticmethod
    def joined(texts: Sequence[str]) -> Sample | None:
        """Return the samples of several texts as one, None where they are not of the same quantities.

        Raises:
            KeyError, TypeError, ValueError: a text is damaged.
        """
        entries = [json.loads(text) for text in texts]
        if len({tuple(entry["names"]) for entry in entries}) != 1:
            return None
        names = tuple(entries[0]["names"])
        raw = b"".join(base64.b64decode(entry["values"]) for entry in entries)
        return Sample(names=names, values_SQ=np.frombuffer(raw, "<f4").astype(np.float32).reshape(-1, len(names)))

    def take(self, chosen_S: Any) -> Sample:
        """Return some of the users."""
        return Sample(names=self.names, values_SQ=self.values_SQ[chosen_S])

    def of(self, name: str) -> F32:
        """Return the values of a quantity, [S]."""
        values_S: F32 = self.values_SQ[:, self.names.index(name)]
        return values_S
