"""The arms of a finished output, compared: users, scores, sources, and which videos each recommends.

Owns: these figures. Must not know: how an output is made, opened or shown. In: its rows and metadata. Out: plain
dictionaries, with the names that a run's summary uses for the same figures. Everything is a streaming scan.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from genrec_batch.core.arrays import HEADS, POPULAR, SOURCES
from genrec_batch.scoring import arm_counts
from genrec_batch.scoring.fingerprints import ARMS

MEANS = ("log_prob", *HEADS)


def compared(rows: pl.LazyFrame, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the facts of each arm by name, the first arm first, then those of its shadows; none without arms.

    `coverage` is of the arm's catalog, by rows that are no fallback. `overlap` is how alike the mixes of recommended
    videos are: the sum over videos of the smaller of their shares of the two arms' rows, 1 for the same mix. `shift` is
    the difference of means. Both compare with the first arm; those of a shadow with what is published for the same
    users, video by video (`arm_counts.of_shadow`).
    """
    known: dict[str, Any] = json.loads(metadata.get(ARMS, "{}"))
    if "arm" not in rows.collect_schema():
        return {}
    empty = {name: {"arm": name, "rows": 0, "users": 0} for name, about in known.items() if not about["shadow"]}
    found = empty | {each["arm"]: each for each in _counted(rows)}
    popular = pl.col("source") == SOURCES[POPULAR] if "source" in rows.collect_schema() else pl.lit(value=False)
    mixes = rows.group_by("arm", "video_id").agg(lists=pl.len(), own=~popular.all()).collect(engine="streaming")
    names = sorted(found, key=lambda name: (known.get(name, {}).get("buckets", [0]), name))
    facts = {}
    for name in names:
        about, each = known.get(name, {}), {key: value for key, value in found[name].items() if key != "arm"}
        videos, known_videos = mixes.filter(pl.col("arm") == name), about.get("catalog_videos")
        both = name != names[0] and each["rows"] and found[names[0]]["rows"]  # have something to compare
        facts[name] = {
            "shadow": False,
            "model": str(about.get("model", ""))[:16] or None,
            **{key: about.get(key) for key in ("buckets", "engine", "precision", "decode", "own")},
            **each,
            "videos": len(videos),
            "coverage": round(int(videos["own"].sum()) / known_videos, 4) if known_videos else None,
            **(_beside(each, found[names[0]], videos, mixes, names[0]) if both else {}),
        }
    return facts | _shadows(known, metadata)


def _counted(rows: pl.LazyFrame) -> list[dict[str, Any]]:
    there = rows.collect_schema()
    first = pl.col("rank") == 1  # a row for each user with recommendations
    figures = [pl.len().alias("rows"), first.sum().alias("users")]
    if "cold_start" in there:
        figures.append((first & pl.col("cold_start")).sum().alias("cold_start_users"))
    figures += [pl.col(name).mean().cast(pl.Float64).round(6).alias(f"mean_{name}") for name in MEANS if name in there]
    counted = rows.group_by("arm").agg(figures).collect(engine="streaming").to_dicts()
    if "source" not in there:
        return counted
    sources = rows.group_by("arm", "source").agg(rows=pl.len()).collect(engine="streaming").sort("source")
    return [
        {**each, "sources": dict(sources.filter(pl.col("arm") == each["arm"]).select("source", "rows").iter_rows())}
        for each in counted
    ]


def _beside(
    each: Mapping[str, Any], first: Mapping[str, Any], videos: pl.DataFrame, mixes: pl.DataFrame, name: str
) -> dict[str, Any]:
    """Return how far an arm is from the first one."""
    theirs = mixes.filter(pl.col("arm") == name)
    joined = videos.join(theirs, on="video_id", how="inner", suffix="_first")
    shares = (joined["lists"] / each["rows"], joined["lists_first"] / first["rows"])
    overlap = pl.DataFrame(shares).min_horizontal().sum()
    means = [key for key in each if key.startswith("mean_") and each[key] is not None and first[key] is not None]
    return {
        "overlap": round(float(overlap), 4),
        "shift": {key: round(each[key] - first[key], 6) for key in means},
    }


def _shadows(known: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what the run counted of its shadows, whose rows are not in the output."""
    shadows = {name: {**about, "model": about["model"][:16]} for name, about in known.items() if about.get("shadow")}
    counts = json.loads(metadata.get("counts", "{}"))
    return dict(arm_counts.by_arm({ARMS: shadows, **counts})[ARMS])
