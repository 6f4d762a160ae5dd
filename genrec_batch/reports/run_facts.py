"""What a run did: time, rows and bytes by stage, how its threads overlapped, and what bounded it.

Owns: the arithmetic over spans. Must not know: what the stages are, beyond which of them compute, read and write. In:
the run's `Stages` and its summary. Out: plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from genrec_batch.model.weights import ModelConfig
from genrec_batch.reports import model_facts
from genrec_batch.reports.ceilings import product_ceiling
from genrec_batch.runtime.clock import Span, Stages

MODEL = "model run"
COMPUTE = ("prefill", "decode")
PARTS = ("wait", "graphs", "copy in", *COMPUTE, "copy out")  # of the model run, on its thread or on the device
READ_STAGES = ("scan", "partition")
WRITE_STAGES = ("write",)
MOST_BARS = 1200  # of the timeline; neighbours on one lane are joined to stay under it
LEAST_SHARE = 0.01  # of the run, from which on the verdict names a part of the model run
LEAST_S = 1e-3  # of a stage, from which on its rate means anything


def describe(
    stages: Stages,
    summary: Mapping[str, Any],
    *,
    elapsed_s: float | None = None,
    config: ModelConfig | None = None,
    ceilings: Mapping[str, Any] | None = None,
    input_bytes: int | None = None,
    top_k: int = 10,
    beams: int = 1,
) -> dict[str, Any]:
    """Return the facts of a run.

    Args:
        stages: its spans.
        summary: the run's summary.
        elapsed_s: its wall time in seconds, by default up to the end of the last span.
        config: sizes of its model; without them there are no FLOPs.
        ceilings: what this machine can do (`ceilings.measure`), None where it was not measured.
        input_bytes: of the log's files; by default those that the reading stages counted.
        top_k: videos decoded for each user, one after the other.
        beams: lists decoded in parallel for a user: beams or candidates.
    """
    spans = stages.spans
    wall_s = elapsed_s if elapsed_s is not None else max((s.stop_s for s in spans), default=0.0)
    whole = MODEL in stages.seconds
    rows = [
        _stage(name, [s for s in spans if s.stage == name], wall_s, whole=whole) for name in _ordered(stages.seconds)
    ]
    lanes = _lanes(spans, wall_s)
    busy_s, any_s = sum(lane["busy_s"] for lane in lanes), _covered(spans)
    facts = {
        "summary": {k: v for k, v in summary.items() if k != "rows" or isinstance(v, int)},
        "wall_s": round(wall_s, 4),
        "users_per_s": round(int(summary.get("scored_users") or 0) / wall_s, 1) if wall_s else 0.0,
        "stages": rows,
        "lanes": lanes,
        "overlap": {
            "busy_s": round(busy_s, 6),
            "idle_s": round(max(0.0, wall_s - any_s), 6),
            "lanes_at_once": round(busy_s / any_s, 3) if any_s else 0.0,
        },
        "timeline": timeline(spans),
        "device_peak_mib": summary.get("device_peak_mib"),
    }
    facts["bounds"] = _bounds(
        facts, spans, summary, config=config, ceilings=ceilings, input_bytes=input_bytes, passes=(beams, top_k)
    )
    facts["verdict"] = _verdict(facts)
    return facts


def _ordered(names: Iterable[str]) -> list[str]:
    """Return the stages in the order they first ended, the parts of the model run right after it."""
    found = list(names)
    if MODEL not in found:
        return found
    parts = [name for name in PARTS if name in found]
    others = [name for name in found if name not in parts]
    place = others.index(MODEL) + 1
    return others[:place] + parts + others[place:]


def _stage(name: str, spans: list[Span], wall_s: float, *, whole: bool) -> dict[str, Any]:
    seconds = sum(s.stop_s - s.start_s for s in spans)
    covered, rows, moved = _covered(spans), sum(s.rows for s in spans), sum(s.bytes for s in spans)
    return {
        "stage": name,
        "within": MODEL if whole and name in PARTS else None,
        "seconds": round(seconds, 6),
        "share_of_wall": round(covered / wall_s, 4) if wall_s else 0.0,
        "spans": len(spans),
        "lanes": sorted({s.lane for s in spans}),
        "rows": rows,
        "bytes": moved,
        "rows_per_s": round(rows / seconds, 1) if seconds >= LEAST_S and rows else None,
        "mb_per_s": round(moved / seconds / 1e6, 1) if seconds >= LEAST_S and moved else None,
    }


def _lanes(spans: list[Span], wall_s: float) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(s.lane for s in sorted(spans, key=lambda s: s.start_s)))
    busy = {name: _covered([s for s in spans if s.lane == name]) for name in names}
    return [
        {"lane": name, "busy_s": round(s, 6), "busy_share": round(s / wall_s, 4) if wall_s else 0.0}
        for name, s in busy.items()
    ]


def _covered(spans: Iterable[Span]) -> float:
    """Return the seconds in which at least one of the spans ran."""
    total, until = 0.0, 0.0
    for span in sorted(spans, key=lambda s: s.start_s):
        total += max(0.0, span.stop_s - max(span.start_s, until))
        until = max(until, span.stop_s)
    return total


def timeline(spans: list[Span], most: int = MOST_BARS) -> list[dict[str, Any]]:
    """Return bars for a chart: neighbours of one stage on one lane are joined until there are at most `most`.

    A bar has the number of its spans and how long they ran in all.
    """
    if not spans:
        return []
    gap_s, longest = 0.0, max(s.stop_s for s in spans)
    while True:
        bars = _joined(spans, gap_s)
        if len(bars) <= most or gap_s > longest:
            return bars
        gap_s = max(2 * gap_s, longest / 4000)


def _joined(spans: list[Span], gap_s: float) -> list[dict[str, Any]]:
    bars: list[dict[str, Any]] = []
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for span in sorted(spans, key=lambda s: s.start_s):
        bar = last.get((span.lane, span.stage))
        if bar is not None and gap_s and span.start_s - bar["stop_s"] <= gap_s:
            bar["stop_s"] = round(max(bar["stop_s"], span.stop_s), 6)
            bar["spans"] += 1
            bar["busy_s"] = round(bar["busy_s"] + span.stop_s - span.start_s, 6)
            bar["rows"] += span.rows
            bar["bytes"] += span.bytes
            continue
        bar = {
            "lane": span.lane,
            "stage": span.stage,
            "start_s": round(span.start_s, 6),
            "stop_s": round(span.stop_s, 6),
            "busy_s": round(span.stop_s - span.start_s, 6),
            "spans": 1,
            "rows": span.rows,
            "bytes": span.bytes,
        }
        last[span.lane, span.stage] = bar
        bars.append(bar)
    return bars


def _bounds(
    facts: dict[str, Any],
    spans: list[Span],
    summary: Mapping[str, Any],
    *,
    config: ModelConfig | None,
    ceilings: Mapping[str, Any] | None,
    input_bytes: int | None,
    passes: tuple[int, int],
) -> list[dict[str, Any]]:
    """Return the share of each of the machine's ceilings that the run used while the stage in question ran.

    `passes` are the rows of a user in a decode pass, and the number of passes.
    """
    if ceilings is None:
        return []
    stages = {row["stage"]: row for row in facts["stages"]}
    bounds = []
    ceiling = product_ceiling(
        dict(ceilings), device=str(summary.get("device", "")), precision=str(summary.get("precision", ""))
    )
    model_s = _covered(s for s in spans if s.stage in COMPUTE) or _covered(s for s in spans if s.stage == MODEL)
    scored = int(summary.get("scored_users") or 0)
    if config is not None and ceiling is not None and model_s and scored:
        events = int(summary.get("kept_events") or 0) / max(1, int(summary.get("users") or scored))
        each = model_facts.prefill_flops(config, events) + passes[0] * model_facts.decode_flops(
            config, events, passes[1]
        )
        rate = scored * each / model_s / 1e9
        what = f"matrix product, {ceiling['precision']} on {ceiling['device']} ({ceiling['library']})"
        bounds.append(_bound(what, "GFLOP/s", model_s, rate, float(ceiling["gflop_per_s"]), facts["wall_s"]))
    if "features" in stages and scored and config is not None:
        took = stages["features"]["seconds"]
        rate = scored * config.features * 4 / took / 1e9 if took else 0.0
        bounds.append(
            _bound(
                "memory copy: features written",
                "GB/s",
                took,
                rate,
                float(ceilings["memory_copy_gb_s"]),
                facts["wall_s"],
            )
        )
    reading = READ_STAGES if summary.get("partitioned") != "direct" else (*READ_STAGES, "load")
    for what, names, key, known in (
        ("disk: log read", reading, "disk_read_gb_s", input_bytes),
        ("disk: output written", WRITE_STAGES, "disk_write_gb_s", None),
    ):
        took = _covered(s for s in spans if s.stage in names)
        moved = int(known or sum(stages[name]["bytes"] for name in names if name in stages))
        if took >= LEAST_S and moved:
            bounds.append(_bound(what, "GB/s", took, moved / took / 1e9, float(ceilings[key]), facts["wall_s"]))
    return bounds


def _bound(what: str, unit: str, seconds: float, rate: float, ceiling: float, wall_s: float) -> dict[str, Any]:
    return {
        "resource": what,
        "unit": unit,
        "seconds": round(seconds, 6),
        "rate": float(f"{rate:.4g}"),
        "ceiling": ceiling,
        "share_of_ceiling": round(rate / ceiling, 4) if ceiling else 0.0,
        "share_of_wall": round(min(1.0, seconds / wall_s), 4) if wall_s else 0.0,
    }


def _verdict(facts: Mapping[str, Any]) -> str:
    """Return which stage and lane filled most of the run, as a sentence."""
    if not facts["stages"]:
        return "No stage was timed."
    stage = max((row for row in facts["stages"] if not row["within"]), key=lambda row: row["share_of_wall"])
    lane = max(facts["lanes"], key=lambda row: row["busy_share"])
    verdict = (
        f"'{stage['stage']}' ran during {stage['share_of_wall']:.0%} of the {facts['wall_s']:.1f} s; the busiest "
        f"thread, {lane['lane']}, worked {lane['busy_share']:.0%} of them"
    )
    products = [b for b in facts["bounds"] if b["resource"].startswith("matrix product")]
    if stage["stage"] != MODEL:
        return verdict + "."
    parts = ", ".join(
        f"{row['stage']} {row['share_of_wall']:.0%}"
        for row in facts["stages"]
        if row["within"] and row["share_of_wall"] >= LEAST_SHARE
    )
    verdict += f". Of the run, {parts}." if parts else "."
    if not products:
        return verdict
    return f"{verdict} The model computed at {products[0]['share_of_ceiling']:.0%} of this machine's matrix product."
