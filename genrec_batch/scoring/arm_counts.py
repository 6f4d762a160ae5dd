"""What is counted of each arm: users, rows, sums of scores, sources, and how far a shadow is from what is published.

Owns: the counts of a part by arm, and the table of arms in a summary. Must not know: engines, how users are divided.
In: rows of recommendations. Out: flat counts that are added up over parts, and nested facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from genrec_batch.core.arrays import HEADS
from genrec_batch.io.parquet import summed
from genrec_batch.scoring import shortfalls
from genrec_batch.scoring.fingerprints import ARMS
from genrec_batch.scoring.results import RankedRows

PREFIX = "arm "  # of the count of one arm: "arm NAME: COUNT"
MEANS = ("log_prob", *HEADS)
SUM, NUMBER, SOURCE = "sum of ", "number of ", "source "
COMMON, THEIRS = "rows in common", "published: "  # of a shadow: of the lists that its users get


def together(arms: Mapping[str, tuple[int, RankedRows]]) -> dict[str, Any]:
    """Return the counts of all published arms together and of each, from its users and their rows."""
    counts: dict[str, Any] = summed(found.counts for _, found in arms.values())
    for name, (users, found) in arms.items():
        counts |= _named(name, {"users": users, **_of_rows(found.items), **found.counts})
    return counts


def of_shadow(name: str, shadow: RankedRows, published: pl.DataFrame, ids: pl.Series) -> dict[str, Any]:
    """Return the counts of a shadow for the users `ids`, and of what is published for them."""
    theirs = published.filter(published["user_id"].is_in(ids.implode()))
    common = shadow.items.select("user_id", "video_id").join(theirs, on=["user_id", "video_id"], how="semi")
    counts = {"users": len(ids), **_of_rows(shadow.items), **shadow.counts, COMMON: len(common)}
    return _named(name, counts | {THEIRS + name: count for name, count in _of_rows(theirs).items()})


def _of_rows(rows: pl.DataFrame) -> dict[str, Any]:
    """Return the number of rows, the sum and the number of each score, and the number of rows of each source."""
    counts: dict[str, Any] = {"rows": len(rows)}
    for name in MEANS:
        if name in rows.columns:
            values = rows[name].drop_nulls().to_numpy().astype(np.float64)
            counts |= {SUM + name: round(float(values.sum()), 6), NUMBER + name: len(values)}
    if "source" in rows.columns:
        by_source = rows["source"].value_counts().sort("source")
        counts |= {SOURCE + name: count for name, count in by_source.iter_rows()}
    return counts


def _named(arm: str, counts: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{PREFIX}{arm}: {name}": count for name, count in counts.items()}


def by_arm(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary whose counts of arms are in its table of arms, sums as means."""
    if ARMS not in summary:
        return dict(summary)
    found: dict[str, dict[str, Any]] = {name: {} for name in summary[ARMS]}
    rest = {}
    for key, count in summary.items():
        arm, colon, name = key.removeprefix(PREFIX).partition(": ")
        if key.startswith(PREFIX) and colon and arm in found:
            found[arm][name] = count
        else:
            rest[key] = count
    arms = {name: {**facts, **_told(found[name])} for name, facts in summary[ARMS].items()}
    return {**rest, ARMS: arms}


def partly(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report of a run that computed only some of its parts: what is counted over all is not known."""
    if ARMS not in report:
        return dict(report)
    unknown = {"videos": None, "coverage": None}
    return {**report, ARMS: {name: {**facts, **unknown} for name, facts in report[ARMS].items()}}


def _told(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of one arm as a summary tells them."""
    mine = {name: count for name, count in counts.items() if not name.startswith(THEIRS) and name != COMMON}
    told = shortfalls.nested(_means(mine))
    if COMMON in counts:
        theirs = _means({name[len(THEIRS) :]: count for name, count in counts.items() if name.startswith(THEIRS)})
        told["published"] = theirs
        told["overlap"] = round(counts[COMMON] / theirs["rows"], 4) if theirs["rows"] else None
        told["shift"] = {name: _difference(told[name], theirs[name]) for name in theirs if name.startswith("mean_")}
    return told


def _means(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return counts with the mean of each score in the place of its sum, and the sources in one entry."""
    told: dict[str, Any] = {}
    sources = {}
    for name, count in counts.items():
        if name.startswith(SUM):
            number = counts[NUMBER + name[len(SUM) :]]
            told["mean_" + name[len(SUM) :]] = round(count / number, 6) if number else None
        elif name.startswith(SOURCE):
            sources[name[len(SOURCE) :]] = count
        elif not name.startswith(NUMBER):
            told[name] = count
    return told | ({"sources": sources} if sources else {})


def _difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else round(ours - theirs, 6)
