"""How `inspect` and `score --explain` look: their facts as sections of sentences and tables.

Owns: order, words and units. Must not know: how the facts came about, or how a terminal shows a section.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genrec_batch.reports import arm_tables, drift_tables
from genrec_batch.reports.sections import Section, Table, figure, size

Facts = Mapping[str, Any]
NEWEST = 20  # events of a history, and seen videos, that are shown; the JSON has all of them


def inspection(facts: Facts) -> list[Section]:
    """Return the sections of a finished output."""
    counts, videos, catalog = facts["counts"], facts["videos"], facts["videos"]["catalog"]
    covered = (
        f"{catalog['coverage']:.1%} of {catalog['videos']:,}" if catalog["coverage"] is not None else catalog["why"]
    )
    rows = [
        ["form", facts["form"]],
        ["files, bytes", f"{facts['files']:,}, {size(facts['bytes'])}"],
        ["users", figure(counts["users"])],
        ["users with recommendations", figure(counts["users_with_rows"])],
        ["users with no known video (cold start)", figure(counts["cold_start_users"])],
        ["recommendations", figure(counts["rows"])],
        ["longest list", figure(counts["longest"])],
        ["kept events, mean", figure(counts["mean_history_length"])],
        ["videos recommended", figure(videos["distinct"])],
        ["coverage of the catalog", covered],
        ["share of the top 1% of these videos", f"{videos['top_1_percent_share']:.1%}"],
    ]
    lineage = [[name.replace("_", " "), str(value)] for name, value in facts["lineage"].items()]
    if facts["registry"]:
        lineage.append(["registry", "{name}@{version}, as {alias}".format(**facts["registry"])])
    for name, source in facts["input"].items():
        lineage.append(
            [name, f"{source['path']}: {source['files']} files, {source['rows']:,} rows, {size(source['bytes'])}"]
        )
        lineage.append([f"{name} sha256", source["sha256"]])
    chosen = {k: v for k, v in facts["config"].items() if v not in (None, False, [])}
    lineage.append(["options", ", ".join(f"{k}={v}" for k, v in chosen.items())])
    scores = [
        [str(r["rank"]), figure(r["users"]), *(f"{r[k]:.3f}" for k in ("min", "p05", "p50", "p95", "max", "mean"))]
        for r in facts["scores"]
    ]
    named = [[str(v["video_id"]), figure(v["rows"]), f"{v['share']:.2%}"] for v in videos["most_recommended"]]
    checks = [[c["check"], "yes" if c["ok"] else "NO", c["found"]] for c in facts["checks"]]
    return [
        Section(
            name="output",
            title=facts["output"],
            tables=[
                Table(title="Counts", columns=["", ""], rows=rows),
                *arm_tables.tables(facts.get("arms", {})),
                Table(title="Lineage", columns=["", ""], rows=lineage, left=2),
                Table(
                    title="Score by rank (quantiles to within 1/4096 of the range)",
                    columns=["rank", "users", "min", "5%", "50%", "95%", "max", "mean"],
                    rows=scores,
                    left=0,
                ),
                Table(title="Most recommended videos", columns=["video_id", "lists", "share of rows"], rows=named),
                *drift_tables.tables(facts["drift"]),
                Table(title="Checks", columns=["check", "holds", "found"], rows=checks, left=3),
            ],
        )
    ]


def explanation(facts: Facts) -> list[Section]:
    """Return the sections of one user's explanation; the recommended rows are shown as `score --user` shows them."""
    events, seen = facts["events"], facts["seen"]
    lead = [
        f"{events['in_all']:,} events up to {facts['as_of']}, of which the newest {events['kept']:,} are kept "
        f"(--max-events {events['max_events']}). "
        + ("No known video among them: a cold start. " if facts["cold_start"] else "")
        + f"Engine: {facts['engine']}."
    ]
    if "arm" in facts:
        lead.insert(0, f"In the arm {facts['arm']}, by bucket {facts['bucket']:,} of 0 to 9,999.")
    unknown = facts["unknown_videos"]
    lead.append(
        f"Not in the catalog, so read as unknown: {_some(unknown)}."
        if unknown
        else "Every kept video is in the catalog."
    )
    verb = "are never recommended to this user" if seen["removed"] else "may be recommended again (--include-seen)"
    count = f"{len(seen['videos']):,} seen videos of the catalog (--seen-limit {seen['seen_limit']})"
    lead.append(f"{count} {verb}: {_some(seen['videos'])}." if seen["videos"] else f"{count}.")
    if seen["not_in_catalog"]:
        lead.append(f"{seen['not_in_catalog']:,} other seen videos are not in the catalog.")
    lead += [
        f"{rule['rule']} removes {rule['videos']:,} videos of the catalog: {_some(rule['most_viewed'])}"
        f"{', ...' if rule['videos'] > len(rule['most_viewed']) else ''}."
        for rule in facts["rules"]
    ]
    return [
        Section(
            name="user",
            title=f"User {facts['user_id']}",
            lead=[*lead, *facts["warnings"]],
            tables=[
                _history(facts["history"]),
                _features(facts["features"]),
                *_steps(facts["steps"]),
                *_composed(facts),
            ],
        )
    ]


def _composed(facts: Facts) -> list[Table]:
    """Return which rule moved which video, where rules compose the list."""
    rows = [
        [str(row["video_id"]), _cell("rank", row["ranks"].get("score")), _cell("rank", row["rank"]),
         row["source"] or "-", "; ".join(row["moved_by"]) or "-"]
        for row in facts.get("composed", [])
    ]  # fmt: skip
    columns = ["video_id", "by score", "rank", "source", "moved by"]
    return [Table(title="How rules composed the list", columns=columns, rows=rows, left=5)] if rows else []


def _because(reasons: list[str]) -> str:
    return f" {', '.join(reasons)}" if reasons else ""


def _some(values: list[Any]) -> str:
    more = f" and {len(values) - NEWEST:,} more" if len(values) > NEWEST else ""
    return (", ".join(map(str, values[:NEWEST])) or "none") + more


def _history(history: list[Facts]) -> Table:
    columns = list(history[0]) if history else ["timestamp", "video_id"]
    rows = [[_cell(name, row[name]) for name in columns] for row in history[:NEWEST]]
    left = len(history) - len(rows)
    title = "Kept history, newest first" + (f" ({left:,} older ones are in the JSON)" if left else "")
    return Table(title=title, columns=columns, rows=rows, left=2)


def _cell(name: str, value: Any) -> str:
    if name == "timestamp":
        return str(value)[:19]  # to the second
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else figure(value) if isinstance(value, float) else str(value)


def _features(blocks: list[Facts]) -> Table:
    rows = [
        [
            block["block"],
            f"{block['non_zero']} of {block['slots']}",
            f"{block['norm']:.3f}",
            ", ".join(f"{slot['name']} {slot['value']:.3g}" for slot in block["largest"][:3]) or "-",
        ]
        for block in blocks
    ]
    return Table(title="Features by magnitude", columns=["block", "non-zero", "norm", "largest"], rows=rows, left=4)


def _steps(steps: list[Facts]) -> list[Table]:
    if not steps:
        return []
    rows = []
    for step in steps:
        best = ", ".join(
            f"{row['video_id']} {row['log_prob']:.2f}{_because(row['removed_by'])}" for row in step["best"]
        )
        removed = f"{'over ' if step['more_than_told'] else ''}{step['removed_before_it']}"
        rows.append([str(step["step"]), str(step["chosen"]), removed, best])
    return [
        Table(
            title="Candidates per step, best log_prob first; those with a reason are removed",
            columns=["step", "chosen", "removed before it", "best candidates"],
            rows=rows,
            left=4,
        )
    ]
