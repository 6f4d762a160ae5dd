"""The population stability index in plain Python: deciles by counting, bins by comparing, one value after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence


def decile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least so large a share of the values does not exceed."""
    rising = sorted(values)
    return rising[max(0, math.ceil(round(share * len(rising), 9)) - 1)]


def bin_of(value: float, tops: Sequence[tuple[float, bool]]) -> int:
    """Return the bin of a value: the first whose top is not below it; an open top is itself outside of its bin."""
    if math.isnan(value):
        return len(tops) + 1
    for place, (top, closed) in enumerate(tops):
        if value < top or (closed and value == top):
            return place
    return len(tops)


def tops_of(values: Sequence[float]) -> list[tuple[float, bool]]:
    """Return the tops of the bins of a reference, and whether each is in its bin."""
    there = [value for value in values if not math.isnan(value)]
    if len(set(there)) <= 9:
        edges, alone = sorted(set(there)), [min(there)] if there else []
    else:
        deciles = [decile(there, place / 10) for place in range(1, 10)]
        edges = sorted(set(deciles))
        alone = [edge for edge in edges if deciles.count(edge) > 1]
    return sorted([(edge, True) for edge in edges] + [(edge, False) for edge in alone])


def psi(before: Sequence[float], now: Sequence[float]) -> float:
    """Return the index of values now against values before."""
    tops = tops_of(before)
    total = 0.0
    for place in range(len(tops) + 2):
        q, p = (
            max(1e-4, sum(bin_of(value, tops) == place for value in values) / len(values)) for values in (before, now)
        )
        total += (p - q) * math.log(p / q)
    return total
