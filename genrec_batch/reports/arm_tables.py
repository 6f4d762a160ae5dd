"""How the arms of an experiment look: a column for each arm, for the summary of a run, its page, and `inspect`.

Owns: order, words and units. Must not know: how the facts came about (`scoring/arm_counts`, `arm_facts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genrec_batch.core.arrays import HEADS
from genrec_batch.reports.sections import Table, figure, share

Facts = Mapping[str, Any]
MEANS = {"mean_log_prob": "mean log_prob", **{f"mean_{head}": f"mean {head}" for head in HEADS}}


def tables(arms: Mapping[str, Facts]) -> list[Table]:
    """Return the table of the published arms, and one of the shadows where there are some."""
    published = {name: each for name, each in arms.items() if not each["shadow"]}
    shadows = {name: each for name, each in arms.items() if each["shadow"]}
    made = [_table("Arms", published, "mix in common with the first arm")] if published else []
    if shadows:
        made.append(_table("Shadows", shadows, "in common with their users' lists"))
    return made


def _table(title: str, arms: Mapping[str, Facts], overlap: str) -> Table:
    rows = [
        ["buckets", *(_buckets(each) for each in arms.values())],
        ["model", *(_model(each) for each in arms.values())],
        ["users", *(figure(each.get("users")) for each in arms.values())],
        ["recommendations", *(figure(each.get("rows")) for each in arms.values())],
        ["users who get too few", *(figure(each.get("short_users")) for each in arms.values())],
        ["cold start", *(figure(each.get("cold_start_users")) for each in arms.values())],
        ["videos recommended", *(figure(each.get("videos")) for each in arms.values())],
        ["coverage of the catalog", *(share(each.get("coverage")) for each in arms.values())],
        *([said, *(_mean(each, name) for each in arms.values())] for name, said in MEANS.items()),
        [overlap, *(share(each.get("overlap")) for each in arms.values())],
        ["rows by source", *(_sources(each) for each in arms.values())],
        ["options of its own", *(_own(each) for each in arms.values())],
    ]
    kept = [row for row in rows if any(cell != "-" for cell in row[1:])]
    return Table(title=title, columns=["", *arms], rows=kept)


def _buckets(each: Facts) -> str:
    found = each.get("buckets")
    return "-" if not found else f"{found[0]}-{found[1]}"


def _model(each: Facts) -> str:
    version = each.get("registry")
    fingerprint = (each.get("model") or "-")[:12]
    return f"{version['name']}@{version['version']} ({fingerprint})" if version else fingerprint


def _mean(each: Facts, name: str) -> str:
    """Return a mean, with how far it is from the one that it is compared with."""
    mean, shift = each.get(name), each.get("shift", {}).get(name)
    if mean is None:
        return "-"
    return f"{mean:.4f}" if shift is None else f"{mean:.4f} ({shift:+.4f})"


def _sources(each: Facts) -> str:
    found = each.get("sources")
    return ", ".join(f"{name} {count:,}" for name, count in found.items()) if found else "-"


def _own(each: Facts) -> str:
    found = each.get("own")
    return ", ".join(f"{name.replace('_', '-')}={value}" for name, value in found.items()) if found else "-"
