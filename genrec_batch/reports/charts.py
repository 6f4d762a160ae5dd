"""The charts of a report as plain data: what is drawn, with labels and units.

Owns: which figures make a chart. Must not know: colours, and the library that draws them (`assets/charts.js` calls it).
In: parts of a report. Out: JSON-able dictionaries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Chart = dict[str, Any]
MOST_STAGES = 8  # with a colour each; the others share one


def timeline(run: Mapping[str, Any]) -> Chart:
    """Return when each stage ran on which thread."""
    stages = _apart(run)
    falling = sorted(stages, key=lambda row: -float(row["seconds"]))
    own = [row["stage"] for row in falling[:MOST_STAGES]]
    named = {row["stage"]: row["stage"] if row["stage"] in own else "other stages" for row in stages}
    series: dict[str, list[dict[str, Any]]] = {name: [] for name in dict.fromkeys([*own, *named.values()])}
    for bar in run["timeline"]:
        if bar["stage"] in named:
            series[named[bar["stage"]]].append(bar)
    return {
        "name": "timeline",
        "kind": "timeline",
        "title": "What ran when, by thread",
        "x": "seconds since the run began",
        "y": "thread",
        "lanes": [row["lane"] for row in run["lanes"]],
        "series": [{"name": name, "bars": bars} for name, bars in series.items()],
    }


def stage_seconds(run: Mapping[str, Any]) -> Chart:
    """Return how long each stage ran in all."""
    rows = sorted(_apart(run), key=lambda row: -float(row["seconds"]))
    return _bars("stages", "Time by stage, all threads", "seconds", "stage", rows, "stage", "seconds")


def _apart(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the stages without those that contain others: if its parts were timed, a stage is shown as its parts."""
    whole = {row["within"] for row in run["stages"]}
    return [row for row in run["stages"] if row["stage"] not in whole]


def history_lengths(data: Mapping[str, Any]) -> Chart:
    """Return the number of users by history length."""
    bins = data["lengths"]["histogram"]
    labels = [str(b["from"]) if b["from"] == b["to"] else f"{b['from']} to {b['to']}" for b in bins]
    return {
        "name": "lengths",
        "kind": "columns",
        "title": "Length of the kept histories",
        "x": "kept events",
        "y": "users",
        "labels": labels,
        "series": [{"name": "users", "values": [b["users"] for b in bins]}],
    }


def feature_coverage(data: Mapping[str, Any]) -> Chart:
    """Return the share of each block's slots that are ever non-zero, and how full they are for a user."""
    blocks = [b for b in data["blocks"] if b["block"] != "reserved"]
    return {
        "name": "features",
        "kind": "bars",
        "title": "Features by block",
        "x": "% of the block's slots",
        "y": "block",
        "labels": [b["block"] for b in blocks],
        "series": [
            {"name": "ever non-zero", "values": [round(100 * b["coverage"], 1) for b in blocks]},
            {"name": "non-zero for a user, mean", "values": [round(100 * b["filled"], 1) for b in blocks]},
        ],
    }


def throughput(engines: Mapping[str, Any]) -> Chart:
    """Return users per second over the batch size."""
    return _lines(engines, "throughput", "Throughput", "users per second", lambda p: p["users_per_s"])


def latency(engines: Mapping[str, Any]) -> Chart:
    """Return the median and 95th percentile of a batch's time over the batch size."""
    chart = _lines(
        engines, "latency", "Time of a batch: median, and 95th percentile dashed", "ms", lambda p: p["p50_ms"]
    )
    dashed = _lines(engines, "", "", "", lambda p: p["p95_ms"])["series"]
    chart["series"] += [
        {**line, "name": f"{line['name']} p95", "dashed": True, "colour": i} for i, line in enumerate(dashed)
    ]
    return chart


def parameter_groups(model: Mapping[str, Any]) -> Chart:
    """Return the parameters of each group."""
    rows = [{"group": name, "millions": round(count / 1e6, 4)} for name, count in model["groups"].items()]
    return _bars("parameters", "Parameters by group", "millions", "group", rows, "group", "millions")


def _lines(engines: Mapping[str, Any], name: str, title: str, y: str, value: Any) -> Chart:
    return {
        "name": name,
        "kind": "lines",
        "title": title,
        "x": "users in a batch",
        "y": y,
        "series": [
            {
                "name": f"{e['engine']} {e['precision']}",
                "points": [[p["batch_users"], value(p)] for p in e["points"]],
            }
            for e in engines["engines"]
        ],
    }


def _bars(name: str, title: str, x: str, y: str, rows: Sequence[Mapping[str, Any]], label: str, value: str) -> Chart:
    return {
        "name": name,
        "kind": "bars",
        "title": title,
        "x": x,
        "y": y,
        "labels": [row[label] for row in rows],
        "series": [{"name": x, "values": [row[value] for row in rows]}],
    }
