"""The report of `evaluate`: its sections, the line for a scheduler, and its files.

Owns: which figures are shown, in which order, with which words. Must not know: how a figure is measured. In: the report
of `evaluation.run`. Out: `Section`s, a short dictionary, a page or JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genrec_batch.evaluation.arms import too_few
from genrec_batch.reports import page
from genrec_batch.reports.charts import Chart
from genrec_batch.reports.sections import Section, Table, figure, share
from genrec_batch.reports.trace import whole_file

Report = Mapping[str, Any]
FIRST = ("ndcg", "hr", "mrr", "recall")
TITLES = {"hr": "HR", "ndcg": "NDCG", "mrr": "MRR", "recall": "recall"}
BRIEF = ("ndcg", "hr", "mrr", "recall", "coverage")


def sections(report: Report) -> list[Section]:
    """Return the sections of a report in reading order."""
    horizons = sorted({each["next"] for each in report["rankings"]})
    made = [_test(report)]
    made += [_ranking(report, horizon) for horizon in horizons]
    made += [_arms(report)] if "arms" in report else []
    made += [_groups(report)]
    made += [_heads(report)] if report["heads"] else []
    made += [_gates(report["gates"])] if report["gates"] else []
    return made


def write(report: Report, path: Path, flag: str) -> None:
    """Write a report as a page (.html) or as JSON (.json), whole or not at all.

    Raises:
        ConfigError: it cannot be written.
        RetryError: the disk is full.
    """
    if path.suffix == ".json":
        text = json.dumps(report, indent=1) + "\n"
    else:
        text = page.page("Evaluation", report["version"], report["created"], sections(report))
    whole_file(path, flag, text)


def brief(report: Report) -> dict[str, Any]:
    """Return what a scheduler wants in one line: the main figures of each list, heads, gates."""
    k = report["main_k"]

    def main(each: Report) -> dict[str, float | None]:
        return {f"{name}@{k}": each["metrics"][f"{name}@{k}"]["value"] for name in BRIEF}

    run = ("status", "command", "version", "model", "registry", "recs", "fingerprint", "trained")
    names = (*run, "engine", "precision", "log")
    inputs = ("matches", "rejected_rows", "rejected_because", "rejected_rows_of_tables", "odd_values", "absent_columns")
    return {
        **{name: report[name] for name in (*names, *inputs) if name in report},
        "rows": report["counts"]["rows"],
        "seen": report["seen"],
        **{
            "next" if horizon == 1 else f"next{horizon}": {
                each["list"]: main(each) for each in report["rankings"] if each["next"] == horizon
            }
            for horizon in sorted({each["next"] for each in report["rankings"]})
        },
        "heads": {
            head: {name: one["value"] for name, one in facts["metrics"].items()} if "metrics" in facts else None
            for head, facts in report["heads"].items()
        },
        **({"arms": _arms_in_brief(report, k)} if "arms" in report else {}),
        "gates": report["gates"],
        "seconds": report["seconds"],
        "peak_rss_mib": report["peak_rss_mib"],
        "warnings": report["warnings"],
    }


def _arms_in_brief(report: Report, k: int) -> dict[str, Any]:
    next_video = [each for each in report["arms"] if each["next"] == min(one["next"] for one in report["arms"])]
    return {
        each["arm"]: {
            "users": each["rows"],
            **{f"{name}@{k}": each["metrics"][f"{name}@{k}"] for name in FIRST[:2]},
            "difference": {
                f"{name}@{k}": each["difference"][f"{name}@{k}"] for name in FIRST[:2] if each["difference"]
            },
        }
        for each in next_video
    }


def quality_lost(found: Report) -> Section:
    """Return what each engine and precision loses (`verify --evaluate`)."""
    k, rows = found["k"], []
    for each in found["engines"]:
        lost = each["lost"]
        told = "the reference" if lost is None else share(lost["value"])
        interval = "-" if lost is None or lost["low"] is None else f"{lost['low']:.1%} to {lost['high']:.1%}"
        rows.append(
            [
                f"{each['engine']} in {each['precision']} on {each['device']}",
                _short(each["ndcg"]),
                _short(each["hr"]),
                told,
                interval,
            ]
        )
    lead = [f"The next video of {found['users']:,} users, by {found['decode']}."]
    lead += [f"{name} is left out: {why}" for name, why in found["skipped"].items()]
    columns = ["engine", f"NDCG@{k}", f"HR@{k}", "NDCG lost", "95% interval"]
    table = Table(title="Quality lost", columns=columns, rows=rows)
    return Section(name="quality", title="Quality by engine and precision", lead=lead, tables=[table])


def _test(report: Report) -> Section:
    split, counts = report["split"], report["counts"]
    if "recs" in report:
        judged = f"The output {report['recs']} (run {report['run_id']}), made for {report['as_of']}."
    else:
        judged = f"The model {report['model']}, by {report['engine']} in {report['precision']} on {report['device']}."
    if split["leave_out"] is None:
        how = f"Each user's events after {split['last_as_of']}."
    elif split["leave_out"] == 1:
        how = "The newest event of each user (leave one out)."
    else:
        how = f"The newest {split['leave_out']} events of each user."
    rows = [
        ["users tested", figure(counts["rows"])],
        ["events to find", figure(counts["events"])],
        ["next video beyond the catalog: never found", figure(counts["targets_beyond_the_catalog"])],
        ["next video seen before" + (": never found" if report["seen"] == "excluded" else ""), _seen_before(report)],
        ["events of the history", figure(counts["history_events"])],
        ["users of the history", figure(counts["history_users"])],
        ["videos of the catalog", figure(report["catalog_videos"])],
        ["list that `score` takes by default, and gates mean", report["main"]],
    ]
    lead = [judged, f"{how} Videos that a user has seen are {report['seen']}.", *report["warnings"]]
    return Section(
        name="test", title="Test", lead=lead, tables=[Table(title="Rows", columns=["what", "number"], rows=rows)]
    )


def _seen_before(report: Report) -> str:
    return figure(report["groups"]["seen before"])


def _ranking(report: Report, horizon: int) -> Section:
    """Return one horizon: the main metrics with intervals, all lengths of list, and what accuracy does not say."""
    k, ks = report["main_k"], report["ks"]
    made = [each for each in report["rankings"] if each["next"] == horizon]
    metrics = FIRST if horizon > 1 else FIRST[:3]  # of one target, recall is the hit rate
    tables = [
        Table(
            title=f"Lists of {k}, with 95% intervals",
            columns=["list", *(f"{TITLES[name]}@{k}" for name in metrics), "coverage", "novelty, bits", "diversity"],
            rows=[
                [
                    each["list"],
                    *(_interval(each["metrics"][f"{name}@{k}"]) for name in metrics),
                    share(each["metrics"][f"coverage@{k}"]["value"]),
                    _short(each["metrics"][f"novelty@{k}"]["value"]),
                    _short(each["metrics"][f"diversity@{k}"]["value"]),
                ]
                for each in made
            ],
        ),
        Table(
            title="By length of list",
            columns=["list", *(f"{TITLES[name]}@{each_k}" for name in ("ndcg", "hr") for each_k in ks)],
            rows=[
                [each["list"], *(_plain(each["metrics"][f"{n}@{each_k}"]) for n in ("ndcg", "hr") for each_k in ks)]
                for each in made
            ],
        ),
    ]
    title = "The next video" if horizon == 1 else f"The next {horizon} videos"
    lead = [
        "A list is right where it holds the video that the user watched next."
        if horizon == 1
        else f"A list is right where it holds any of the videos that the user watched in the next {horizon} events.",
        "Coverage is of the catalog, novelty the mean surprise of a list's videos, diversity how unlike they are.",
    ]
    return Section(
        name=f"next-{horizon}", title=title, lead=lead, tables=tables, charts=[_by_length(report, made, horizon)]
    )


def _by_length(report: Report, made: Sequence[Report], horizon: int) -> Chart:
    return {
        "name": f"ndcg-{horizon}",
        "kind": "lines",
        "title": "NDCG by length of list",
        "x": "videos in the list",
        "y": "NDCG",
        "series": [
            {"name": each["list"], "points": [[k, each["metrics"][f"ndcg@{k}"]["value"]] for k in report["ks"]]}
            for each in made
        ],
    }


def _arms(report: Report) -> Section:
    """Return the arms of an output, and how far each is from the first."""
    k, first = report["main_k"], report["arms"][0]["arm"]
    tables = []
    for horizon in sorted({each["next"] for each in report["arms"]}):
        metrics = FIRST if horizon > 1 else FIRST[:3]
        made = [each for each in report["arms"] if each["next"] == horizon]
        what = "The next video" if horizon == 1 else f"The next {horizon} videos"
        rows = [
            [each["arm"], figure(each["rows"]), *(_interval(each["metrics"][f"{name}@{k}"]) for name in metrics)]
            for each in made
        ]
        rows += [
            [f"{each['arm']} less {first}", "", *(_interval(each["difference"][f"{name}@{k}"]) for name in metrics)]
            for each in made
            if each["difference"]
        ]
        columns = ["arm", "users", *(f"{TITLES[name]}@{k}" for name in metrics)]
        tables.append(Table(title=f"{what}: lists of {k}, with 95% intervals", columns=columns, rows=rows))
    lead = [
        "Each arm on its own users. A difference whose interval holds 0 may be chance.",
        "Users were assigned to these arms; whether they were shown the lists, the output does not know.",
    ]
    few = too_few(report["arms"])
    lead += [f"{few[0].upper()}{few[1:]}."] if few else []
    return Section(name="arms", title="Arms", lead=lead, tables=tables)


def _groups(report: Report) -> Section:
    k = report["main_k"]
    groups = {name: rows for name, rows in report["groups"].items() if rows and name != "beyond the catalog"}
    made = [each for each in report["rankings"] if each["next"] == 1]
    tables = [
        Table(
            title=f"{metric}@{k} of some users",
            columns=["list", *(f"{name} ({rows:,})" for name, rows in groups.items())],
            rows=[[each["list"], *(_plain(each["groups"][name][f"{key}@{k}"]) for name in groups)] for each in made],
        )
        for key, metric in (("ndcg", "NDCG"), ("hr", "HR"))
    ]
    lead = [
        "Cold start: no known video in the history. Seen before: the user had watched the next video already.",
        "Tail video: the next video is among the least viewed, which have a fifth of all views together.",
    ]
    return Section(name="groups", title="Cold start and the tail", lead=lead, tables=tables if groups else [])


def _heads(report: Report) -> Section:
    rows, unknown = [], []
    for head, facts in report["heads"].items():
        if "why_not" in facts:
            unknown.append(f"{head}: {facts['why_not']}.")
        if "metrics" not in facts:
            continue
        if not facts["trained"]:
            unknown.append(f"{head}: it had no labels in training, so it means nothing.")
        found = facts["metrics"]
        rows.append(
            [
                head,
                _interval(found["auc"]),
                _interval(found["user_auc"]),
                _interval(found["log_loss"]),
                _short(facts["constant_log_loss"]),
                _short(found["ece"]["value"]),
                _short(facts["predicted"]),
                _short(facts["label"]),
                figure(facts["exposures"]),
            ]
        )
    columns = ["head", "AUC", "AUC within users", "log loss", "of a constant", "calibration error", "mean prediction"]
    table = Table(title="Heads", columns=[*columns, "mean label", "exposures"], rows=rows)
    lead = ["Predictions for the videos that the users watched in the test, made from the history alone.", *unknown]
    drawn = {head: facts["curve"] for head, facts in report["heads"].items() if facts.get("curve")}
    chart: Chart = {
        "name": "calibration",
        "kind": "lines",
        "title": "Calibration: labels by prediction, tenths of the exposures",
        "x": "mean prediction",
        "ticks": "round",
        "y": "mean label",
        "series": [{"name": head, "points": [[p, o] for p, o, _ in curve if p > 0]} for head, curve in drawn.items()],
    }
    return Section(
        name="heads", title="Heads", lead=lead, tables=[table] if rows else [], charts=[chart] if drawn else []
    )


def _gates(judged: Sequence[Report]) -> Section:
    rows = [[each["gate"], _short(each["measured"]), "passed" if each["passed"] else "failed"] for each in judged]
    table = Table(title="Gates", columns=["gate", "measured", "result"], rows=rows)
    return Section(name="gates", title="Gates", tables=[table])


def _plain(one: Report) -> str:
    return "-" if one["value"] is None else f"{one['value']:.4f}"


def _interval(one: Report) -> str:
    if one["value"] is None:
        return "-"
    if one["low"] is None:
        return _plain(one)
    return f"{one['value']:.4f} ({one['low']:.4f} to {one['high']:.4f})"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
