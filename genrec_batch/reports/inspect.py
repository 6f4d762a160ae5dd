"""`inspect`: the facts of a finished output, and whether its files are what its metadata says.

Owns: metadata and lineage, counts, scores by rank, recommended videos. Must not know: how an output is made, opened or
checked. In: a file or a directory that `score` wrote. Out: a plain dictionary. Memory is bounded by one row group and
the catalog: everything over rows is a streaming scan, quantiles come from a histogram.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from genrec_batch.core.arrays import HEADS
from genrec_batch.core.errors import GateError
from genrec_batch.io import fetched, table_runs
from genrec_batch.io.attempt import reading
from genrec_batch.model import opening, registry
from genrec_batch.model.catalog import Catalog
from genrec_batch.reports import arm_facts
from genrec_batch.reports.checks import checks
from genrec_batch.reports.finished import Finished, opened
from genrec_batch.runtime import console

LOOKS = 6  # over all rows: counts, videos, two for the scores, the arms, and the checks
BINS = 4096  # of the histogram behind the quantiles, over all scores' range
QUANTILES = (0.05, 0.5, 0.95)
LINEAGE = ("run_id", "version", "model", "catalog", "layout", "engine", "device", "precision")


def inspected(place: str, *, model: str | None = None, root: str | None = None, top: int = 10) -> dict[str, Any]:
    """Return the facts of a finished output.

    Args:
        place: a .parquet file or a directory of parts.
        model: model directory whose catalog coverage is computed; by default that of the run, if it still exists.
        root: directory of the registry that the model is in.
        top: how many of the most recommended videos to list.

    Raises:
        InputError: missing, unfinished, not an output of `score`, or a single file whose end is damaged.
    """
    path = fetched.local(table_runs.newest(place, "OUT"), "OUT")
    with fetched.named(place, path):
        found = opened(path)
    where = f"OUT {place}"
    rows = found.rows()
    total = int(found.metadata.get("users", 0))
    with console.progress("inspect", LOOKS * found.stored, "rows") as advance:
        facts = reading(lambda: _counts(rows, total), where)
        advance(found.stored)
        videos = reading(lambda: _videos(rows, top), where)
        advance(found.stored)
        scores = reading(lambda: _scores(rows), where)
        advance(2 * found.stored)
        arms = reading(lambda: arm_facts.compared(rows, found.metadata), where)
        advance(found.stored)
        found_checks = reading(lambda: checks(found, advance), where)
    videos["catalog"] = _coverage(found, model, root, videos["distinct"])
    return {
        "output": place,
        "form": _form(found),
        "files": len(found.files),
        "bytes": sum(file.stat().st_size for file in found.files),
        "lineage": {name: found.metadata.get(name) for name in LINEAGE},
        "registry": json.loads(found.metadata.get("registry", "null")),
        "config": json.loads(found.metadata.get("config", "{}")),
        "input": json.loads(found.metadata.get("input", "{}")),
        "counts": facts,
        "scores": scores,
        "videos": videos,
        "drift": json.loads(found.metadata.get("drift", "null")),
        **({"arms": arms} if arms else {}),
        "checks": found_checks,
    }


def check(facts: Mapping[str, Any]) -> None:
    """Raise GateError (exit code 6) if a check of `inspect` failed."""
    faults = [f"{c['check']}: {c['found']}" for c in facts["checks"] if not c["ok"]]
    if faults:
        raise GateError(f"OUT {facts['output']} failed its checks:\n  " + "\n  ".join(faults))


def _form(found: Finished) -> str:
    if found.form is None:
        return "no file can be read"
    place = "a directory of parts" if found.manifest else "one file"
    by = f", in folders by {found.form.partition.column}" if found.form.partition else ""
    return f"{found.form.layout}, {place}{by}"


def _counts(rows: pl.LazyFrame, users: int) -> dict[str, Any]:
    """Return counts and means over the output; None for those of a column that it lacks."""
    first, there = pl.col("rank") == 1, rows.collect_schema()  # the first is a row for each user with recommendations
    figures = {
        "cold_start_users": ("cold_start", (first & pl.col("cold_start")).sum()),
        "mean_history_length": ("history_length", pl.col("history_length").filter(first).mean()),
        **{f"mean_{head}": (head, pl.col(head).filter(pl.col(head).is_finite()).mean()) for head in HEADS},
    }
    chosen = {name: figure if column in there else pl.lit(None) for name, (column, figure) in figures.items()}
    counted = rows.select(rows=pl.len(), users_with_rows=first.sum(), longest=pl.col("rank").max(), **chosen)
    found = counted.collect(engine="streaming").row(0, named=True)
    return {"users": users, **{k: round(v, 6) if isinstance(v, float) else v for k, v in found.items()}}


def _scores(rows: pl.LazyFrame) -> list[dict[str, Any]]:
    """Return min, quantiles, max and mean of the score at each rank."""
    if "score" not in rows.collect_schema():
        return []
    score = pl.col("score").cast(pl.Float64)
    rows = rows.filter(score.is_finite())  # others are a fault that the checks count
    ranks = (
        rows.group_by("rank")
        .agg(users=pl.len(), least=score.min(), most=score.max(), mean=score.mean())
        .collect(engine="streaming")
        .sort("rank")
    )
    if not len(ranks):
        return []
    low, high = float(ranks["least"].min()), float(ranks["most"].max())  # type: ignore[arg-type]
    step = (high - low) / BINS or 1.0
    binned = (
        rows.select("rank", bin=((score - low) / step).floor().clip(0, BINS - 1).cast(pl.Int32))
        .group_by("rank", "bin")
        .agg(users=pl.len())
        .collect(engine="streaming")
        .sort("rank", "bin")
        .with_columns(below=pl.col("users").cum_sum().over("rank"))
    )
    out = []
    for row in ranks.iter_rows(named=True):
        mine = binned.filter(pl.col("rank") == row["rank"])
        at = {
            f"p{round(100 * q):02d}": round(
                low + step * (0.5 + int(mine.filter(pl.col("below") >= q * row["users"])["bin"][0])), 4
            )
            for q in QUANTILES
        }
        ends = {"min": round(row["least"], 4), **at, "max": round(row["most"], 4), "mean": round(row["mean"], 4)}
        out.append({"rank": row["rank"], "users": row["users"], **ends})
    return out


def _videos(rows: pl.LazyFrame, top: int) -> dict[str, Any]:
    counted = (
        rows.group_by("video_id")
        .agg(users=pl.len())
        .collect(engine="streaming")
        .sort(["users", "video_id"], descending=[True, False])
    )
    total = int(counted["users"].sum())
    first = max(1, round(len(counted) / 100))
    return {
        "distinct": len(counted),
        "top_1_percent_share": round(int(counted["users"].head(first).sum()) / total, 4) if total else 0.0,
        "most_recommended": [
            {"video_id": row["video_id"], "rows": row["users"], "share": round(row["users"] / total, 4)}
            for row in counted.head(top).iter_rows(named=True)
        ],
    }


def _coverage(found: Finished, model: str | None, root: str | None, distinct: int) -> dict[str, Any]:
    """Return the share of the catalog that was recommended to any user, or why it is not known."""
    if "arms" in found.metadata and model is None:
        return {"videos": None, "coverage": None, "why": "each arm has a catalog of its own: see the table of arms"}
    named = model or json.loads(found.metadata.get("config", "{}")).get("model")
    if not named:
        return {"videos": None, "coverage": None, "why": "the run had no model directory; name one with --model"}
    if registry.is_reference(named):
        taken = json.loads(found.metadata.get("registry", "null"))
        version = named if model or taken is None else f"{registry.PREFIX}{taken['name']}@{taken['version']}"
        if not root:
            return {"videos": None, "coverage": None, "why": f"the model is {version}; name its --registry"}
        named = str(registry.on_disk(opening.version_of(version, root, "--model")).path)
    file = opening.directory(named, "--model") / "catalog.parquet"
    if not file.is_file():
        return {"videos": None, "coverage": None, "why": f"{file} is not there; name the model's place with --model"}
    catalog = Catalog.read(file, vocabulary=2**31)
    if catalog.fingerprint() != found.metadata.get("catalog"):
        return {"videos": None, "coverage": None, "why": f"{file} is not the catalog that the run had"}
    return {"videos": len(catalog), "coverage": round(distinct / max(1, len(catalog)), 4), "why": ""}
