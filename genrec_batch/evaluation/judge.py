"""Lists compared with what users did next: every metric of every list, with intervals and groups of rows.

Owns: which metrics of which lists make the report, and their names in it. Must not know: where lists come from, files.
In: lists by name, rows. Out: plain dictionaries, and figures by the names that gates use.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from genrec_batch.core.arrays import F64, U8
from genrec_batch.evaluation import bootstrap, metrics
from genrec_batch.evaluation.bootstrap import Estimate
from genrec_batch.evaluation.lists import Lists
from genrec_batch.evaluation.metrics import Videos
from genrec_batch.evaluation.targets import Targets

OF_GROUPS = ("hr", "ndcg")
Figure = dict[str, float | None]
ByRow = dict[tuple[str, int, str], F64]  # list, horizon, metric: a value for each row


def figure(estimate: Estimate) -> Figure:
    """Return an estimate, JSON-able."""
    return {name: rounded(getattr(estimate, name)) for name in ("value", "low", "high")}


def rounded(value: float | None) -> float | None:
    """Return a figure with the digits that a report needs."""
    return None if value is None else float(f"{value:.6g}")


def rankings(
    values: ByRow,
    lists: Mapping[str, Lists],
    *,
    horizons: Sequence[int],
    ks: Sequence[int],
    main_k: int,
    groups: Collection[str],
    videos: Videos,
    seed: int,
) -> list[dict[str, Any]]:
    """Return every metric of each list at each horizon, in that order, from what `by_row` found.

    All intervals come from the same resamples of the rows, so that lists can be compared.
    """
    estimates = bootstrap.means(values, seed)
    covered = {name: metrics.coverage(each.tokens_MK, len(videos.views_V), ks) for name, each in lists.items()}
    made = []
    for horizon in horizons:
        for name in lists:
            found = {metric: figure(e) for (n, h, metric), e in estimates.items() if (n, h) == (name, horizon)}
            plain = {metric: found[metric] for metric in found if "|" not in metric}
            plain |= {
                metric: {"value": rounded(value), "low": None, "high": None} for metric, value in covered[name].items()
            }
            made.append(
                {
                    "list": name,
                    "next": horizon,
                    "metrics": {metric: plain[metric] for metric in metrics.names(ks)},
                    "groups": {
                        group: {f"{metric}@{main_k}": found[f"{group}|{metric}@{main_k}"] for metric in OF_GROUPS}
                        for group in groups
                    },
                }
            )
    return made


def by_row(
    lists: Mapping[str, Lists],
    targets: Mapping[int, Targets],
    *,
    ks: Sequence[int],
    main_k: int,
    groups: Mapping[str, U8],
    videos: Videos,
) -> ByRow:
    """Return the metrics of each row, [M] each, by list, horizon and metric; NaN where a row has none."""
    values: ByRow = {}
    for name, each in lists.items():
        of_lists = _merged(metrics.beyond_accuracy(best, videos, some) for best, some in each.by_length(ks))
        for horizon, wanted in targets.items():
            accuracy = _merged(metrics.accuracy(best, wanted, some) for best, some in each.by_length(ks))
            values |= {(name, horizon, metric): found_M for metric, found_M in (accuracy | of_lists).items()}
            values |= {
                (name, horizon, f"{group}|{metric}@{main_k}"): np.where(rows_M, accuracy[f"{metric}@{main_k}"], np.nan)
                for group, rows_M in groups.items()
                for metric in OF_GROUPS
            }
    return values


def _merged(parts: Any) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}


def named(values: ByRow, main: str) -> dict[str, F64]:
    """Return what `by_row` found by the names that gates use; those of the list `main` also without its name."""
    found: dict[str, F64] = {}
    for (name, horizon, metric), value_M in values.items():
        ahead = f"next{horizon}." if horizon > 1 else ""
        found |= {f"{name}.{ahead}{metric}": value_M} | ({f"{ahead}{metric}": value_M} if name == main else {})
    return found


def measured(made: Sequence[Mapping[str, Any]], heads: Mapping[str, Any], main: str) -> dict[str, float | None]:
    """Return all figures by the names that gates use; those of the list `main` also without its name."""
    found: dict[str, float | None] = {}
    for each in made:
        horizon = f"next{each['next']}." if each["next"] > 1 else ""
        for metric, one in each["metrics"].items():
            found[f"{each['list']}.{horizon}{metric}"] = one["value"]
            if each["list"] == main:
                found[f"{horizon}{metric}"] = one["value"]
    for head, figures in heads.items():
        found |= {f"{head}.{metric}": one["value"] for metric, one in figures.get("metrics", {}).items()}
    return found
