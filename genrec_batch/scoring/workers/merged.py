"""What several workers say of their work as one: a clock and a report, as one process would have them.

Owns: how each figure of a report is joined. Must not know: workers' processes, what a figure means beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from genrec_batch.core.arrays import FIRST_ITEM
from genrec_batch.runtime.clock import Stages
from genrec_batch.scoring.about import About
from genrec_batch.scoring.fingerprints import ARMS
from genrec_batch.scoring.workers.messages import Ended

MODEL_RUN = "model run"


def clock(stages: Stages, ended: Mapping[int, Ended]) -> None:
    """Add what workers did to the clock of the run, in lanes of their own."""
    for number, each in sorted(ended.items()):
        stages.spans.extend(replace(span, lane=f"worker {number} {span.lane}") for span in each.spans)
        for stage, seconds in each.seconds.items():
            stages.seconds[stage] = stages.seconds.get(stage, 0.0) + seconds


def report(ended: Mapping[int, Ended], devices: Mapping[int, str], about: About | None, *, lost: int) -> dict[str, Any]:
    """Return the report of all workers.

    Args:
        ended: what each worker said at its end; those that were lost said nothing.
        devices: of each worker.
        about: what the first worker opened.
        lost: how often a worker was lost.
    """
    of_workers = [_of(number, each, devices[number]) for number, each in sorted(ended.items())]
    workers = {"workers": of_workers, "workers_lost": lost}
    reports = [each.report for _, each in sorted(ended.items())]
    if not reports:  # nothing was left to do
        facts = {} if about is None else asdict(about.engine)
        return {**{name: facts.get(name) for name in ("device", "precision")}, "engine": facts.get("name"),
                "scored_users": 0, **workers}  # fmt: skip
    together = {**reports[0], **_joined(reports), "users_per_s": _rate(of_workers)}
    if ARMS in together:
        arms = {name: [each[ARMS][name] for each in reports] for name in reports[0][ARMS]}
        whole = lost == 0
        together[ARMS] = {name: {**of_arm[0], **_joined(of_arm)} for name, of_arm in arms.items()}
        together[ARMS] = {
            name: facts
            | _coverage([each.covered[name] for each in ended.values() if name in each.covered], whole=whole)
            for name, facts in together[ARMS].items()
        }
    return {**together, **workers}


def _of(number: int, ended: Ended, device: str) -> dict[str, Any]:
    scored, seconds = ended.report["scored_users"], ended.seconds.get(MODEL_RUN, 0.0)
    return {
        "worker": number,
        "device": device,
        "scored_users": scored,
        "users_per_s": round(scored / seconds, 1) if seconds else None,
        "peak_rss_mib": ended.peak_rss_mib,
        "stages_s": {name: round(each, 3) for name, each in ended.seconds.items()},
    }


def _rate(workers: Sequence[Mapping[str, Any]]) -> float | None:
    rates = [each["users_per_s"] for each in workers if each["users_per_s"]]
    return round(sum(rates), 1) if rates else None


def _joined(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures that differ between workers: users added up, the largest peak, the mean padding."""
    scored = [each["scored_users"] for each in reports]
    found: dict[str, Any] = {"scored_users": sum(scored)}
    if any("device_peak_mib" in each for each in reports):
        found["device_peak_mib"] = max(each.get("device_peak_mib", 0.0) for each in reports)
    if "batch_users" in reports[0]:
        found["batch_users"] = min(each["batch_users"] for each in reports)
    if "servers" in reports[0]:
        found["servers"] = _servers([each["servers"] for each in reports])
    if "padding_share" in reports[0]:
        padding = sum(each["padding_share"] * users for each, users in zip(reports, scored, strict=True))
        found["padding_share"] = round(padding / sum(scored), 4) if sum(scored) else 0.0
    return found


def _servers(reports: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return what servers did for all workers: counts and speeds added up, since each worker saw its own part."""
    return {
        address: {name: round(sum(each[address][name] or 0 for each in reports), 1) for name in counts}
        for address, counts in reports[0].items()
    }


def _coverage(covered: Sequence[Any], *, whole: bool) -> dict[str, Any]:
    """Return how many videos an arm recommended, and their share of its catalog, where all parts are known."""
    if not covered or not whole:
        return {"videos": None, "coverage": None}
    together_2V = covered[0].copy()
    for each_2V in covered[1:]:
        together_2V |= each_2V
    videos, own = together_2V[:, FIRST_ITEM:].sum(axis=1).tolist()
    return {"videos": videos, "coverage": round(own / (together_2V.shape[1] - FIRST_ITEM), 4)}
