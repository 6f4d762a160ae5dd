"""The arms of an experiment compared: the metrics of each arm's own rows, and how far they are from the first arm's.

Owns: means by arm, differences, and their intervals. Must not know: who is in which arm, how a metric is measured. In:
a value for each row. Out: plain dictionaries. Rows of all arms are drawn together (Efron 1979): an interval of a
difference that leaves out 0 says that users of another draw would hardly have turned it around. Of few users it is too
narrow, down to no width where all of them missed: a draw has no user but those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genrec_batch.core.arrays import F64
from genrec_batch.evaluation import bootstrap
from genrec_batch.evaluation.judge import ByRow, Figure, figure
from genrec_batch.evaluation.lists import ArmRows
from genrec_batch.runtime.console import LOG

LEAST_USERS = 30  # of an arm; an interval of fewer is no ground for a decision
FEW = (
    "arms with fewer than {least} users who came back: {arms}; their intervals and differences are too narrow to "
    "decide anything, so judge a longer time or more users"
)


def compared(values: ByRow, main: str, arms: ArmRows, *, seed: int) -> list[dict[str, Any]]:
    """Return for each arm, at each horizon, its rows, its metrics, and their difference to the first arm's."""
    horizons = sorted({horizon for name, horizon, _ in values if name == main})
    made = [each for horizon in horizons for each in _at(horizon, values, main, arms, seed)]
    few = too_few(made)
    if few:
        LOG.warning("%s", few)
    return made


def too_few(compared: Sequence[Mapping[str, Any]]) -> str:
    """Return which arms have too few rows for their intervals to mean much, "" where all have enough."""
    few = {each["arm"]: f"{each['arm']} ({each['rows']})" for each in compared if each["rows"] < LEAST_USERS}
    return FEW.format(least=LEAST_USERS, arms=", ".join(few.values())) if few else ""


def _at(horizon: int, values: ByRow, main: str, arms: ArmRows, seed: int) -> list[dict[str, Any]]:
    mine = {
        metric: value_M
        for (name, at, metric), value_M in values.items()
        if (name, at) == (main, horizon) and "|" not in metric  # of all its rows, not of a group of them
    }
    split: dict[tuple[int, str], F64] = {
        (place, metric): np.where(arms.arm_M == place, value_M, np.nan)
        for place in range(len(arms.names))
        for metric, value_M in mine.items()
    }
    whole_X, drawn_RX = bootstrap.drawn_means(split, seed)
    column = {key: number for number, key in enumerate(split)}

    def figures(place: int, less: int | None) -> dict[str, Figure]:
        found = {}
        for metric in mine:
            x = column[place, metric]
            whole, drawn_R = whole_X[x], drawn_RX[:, x]
            if less is not None:
                y = column[less, metric]
                whole, drawn_R = whole - whole_X[y], drawn_R - drawn_RX[:, y]
            found[metric] = figure(bootstrap.estimate(whole, drawn_R))
        return found

    return [
        {
            "arm": name,
            "next": horizon,
            "rows": int((arms.arm_M == place).sum()),
            "metrics": figures(place, None),
            "difference": figures(place, 0) if place else {},
        }
        for place, name in enumerate(arms.names)
    ]
