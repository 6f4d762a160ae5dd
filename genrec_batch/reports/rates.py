"""The rates of one measured run: what a user, an event and a byte cost on that machine.

Owns: which stages of a report are reading, the split, scoring and the rest, and what they cost. Must not know: what is
planned with them. In: a report (`report.schema.json`). Out: `Rates`.

Work on the host is counted in seconds of a core: the seconds of its threads. What grows with a user's events is kept
apart from what a user costs whatever his events are, such as decoding and the rows of the output.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec_batch.core.errors import InputError
from genrec_batch.io.durable import check_local
from genrec_batch.reports.report import SCHEMA, SCHEMA_VERSION

READING, SPLIT, MODEL = "scan", "partition", "model run"
OPENING = ("engine", "workers")  # which each process does
FINISH = ("finish", "drift")
HOST_EVENTS, HOST_USERS = ("load", "histories", "features", "batch"), ("rows", "shape", "compose", "write")
NOT_COMPUTED = ("wait", "graphs")  # of the model run
DEVICE_EVENTS, DEVICE_USERS = ("copy in", "prefill"), ("decode", "copy out")
SCORING = (*HOST_EVENTS, *HOST_USERS, MODEL)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a user costs: for each of his kept events, and besides."""

    event: float
    user: float

    def of(self, events: float) -> float:
        """Return what a user with so many kept events costs."""
        return self.event * events + self.user


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a run measured, of one machine."""

    about: Mapping[str, Any]  # what ran: engine, device, precision, processor, version
    gpu: bool
    processes: int
    cores: int
    memory_gib: float
    load: float  # mean number of runnable threads, at the end of the run
    users: int
    rows_each: float  # of the log, for each user
    kept_each: float  # events of a user that the model reads
    seconds: float
    start_s: float  # but for what each process opens
    opening_s: float
    finish_s: float
    log_s: float  # the shorter of reading and the split
    reading_core_s: float  # for each row
    split_core_s: float
    scoring_s: float
    overlap: float  # the time of scoring over that of its busiest resource, at least 1
    host: Cost  # seconds of a core
    device: Cost | None  # seconds of a GPU
    log_bytes: float  # for each row
    record_bytes: float
    output_bytes: float  # for each user
    disk_read_gb_s: float | None
    disk_write_gb_s: float | None

    @staticmethod
    def read(path: str) -> Rates:
        """Read the rates of a report.

        Raises:
            InputError: not there, no report, or of no run that can be planned with.
        """
        where = f"--rates {path}"
        check_local(path, "--rates", reads=True)
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{where}: cannot be read: {error}") from error
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise InputError(f"{where}: no report; `profile --json FILE` and `score --report FILE.json` write one")
        if found.get("schema_version") != SCHEMA_VERSION:
            raise InputError(f"{where}: a report of another version; make it anew with this one")
        if not found.get("run"):
            raise InputError(f"{where}: the report has no run; give `profile` a log, --data EVENTS")
        try:
            return _rates(found)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise InputError(f"{where}: the report's run cannot be planned with ({error!r})") from error


def _rates(report: Mapping[str, Any]) -> Rates:
    run, summary, cores = report["run"], report["run"]["summary"], int(report["machine"]["cores"])
    stages = {row["stage"]: row for row in run["stages"]}
    wall_s, users, rows = float(run["wall_s"]), int(summary["scored_users"]), int(summary["input_rows"])
    processes, gpu = _processes(summary), str(summary["device"]).startswith("cuda")
    kept_each = int(summary["kept_events"]) / max(1, int(summary["users"]))

    def took(names: Collection[str]) -> float:
        return sum(float(stages[name]["seconds"]) for name in names if name in stages)

    def on_the_clock(name: str) -> float:
        return float(stages[name]["share_of_wall"]) * wall_s if name in stages else 0.0

    reading_s, split_s, opening_s = on_the_clock(READING), on_the_clock(SPLIT), max(map(on_the_clock, OPENING))
    finish_s = sum(map(on_the_clock, FINISH))
    begins, ends = _scoring(run["timeline"])
    scoring_s = ends - begins
    start_s = max(0.0, wall_s - reading_s - split_s - scoring_s - finish_s - (0.0 if gpu else opening_s))
    grows, stays = took(HOST_EVENTS), took(HOST_USERS)
    device = None
    if gpu:
        computed_s = took((MODEL,)) - took(NOT_COMPUTED)  # its parts overlap on the device
        part = took(DEVICE_EVENTS) / took((*DEVICE_EVENTS, *DEVICE_USERS))
        device = _cost(computed_s * part, computed_s * (1 - part), users, kept_each)
        busy_s = max(computed_s / processes, (grows + stays) / cores)
        overlap = max(1.0, scoring_s / busy_s)
        host = _cost(grows, stays, users, kept_each)
    else:  # model and host share the cores
        grows, stays, overlap = grows + took(DEVICE_EVENTS), stays + took(DEVICE_USERS), 1.0
        part = grows / (grows + stays)
        host = _cost(scoring_s * cores * part, scoring_s * cores * (1 - part), users, kept_each)
    ceilings, divided = report.get("ceilings") or {}, stages.get(SPLIT, {})
    events = int(divided.get("rows") or rows)  # of the users that were scored
    return Rates(
        about={
            **{name: summary.get(name) for name in ("engine", "device", "precision", "version")},
            "processor": report["machine"]["processor"],
            "created": report["created"],
        },
        gpu=gpu,
        processes=processes,
        cores=cores,
        memory_gib=float(report["machine"]["memory_gib"]),
        load=float(report["machine"]["load_1min"]),
        users=users,
        rows_each=events / users,
        kept_each=kept_each,
        seconds=wall_s,
        start_s=start_s,
        opening_s=0.0 if gpu else opening_s,
        finish_s=finish_s,
        log_s=min(reading_s, split_s) if SPLIT in stages else reading_s,
        reading_core_s=reading_s * cores / rows,
        split_core_s=split_s * cores / events,
        scoring_s=scoring_s,
        overlap=overlap,
        host=host,
        device=device,
        log_bytes=float(stages.get(READING, {}).get("bytes") or 0) / rows,
        record_bytes=float(divided.get("bytes") or 0) / events,
        output_bytes=float(summary["bytes"]) / users,
        disk_read_gb_s=ceilings.get("disk_read_gb_s"),
        disk_write_gb_s=ceilings.get("disk_write_gb_s"),
    )


def _processes(summary: Mapping[str, Any]) -> int:
    """Return how many processes scored users: each is in the list of workers, but for one that had nothing to do."""
    return max((int(each["worker"]) + 1 for each in summary.get("workers", ())), default=1)


def _cost(grows_s: float, stays_s: float, users: int, kept_each: float) -> Cost:
    return Cost(event=grows_s / users / max(kept_each, 1.0), user=stays_s / users)


def _scoring(timeline: Collection[Mapping[str, Any]]) -> tuple[float, float]:
    """Return when users began and ceased to be scored, in seconds since the run began."""
    before = [bar["stop_s"] for bar in timeline if bar["stage"] in (READING, SPLIT)]
    begun = max(before, default=0.0)
    after = [bar for bar in timeline if bar["stage"] in SCORING and bar["start_s"] >= begun]
    if not after:
        raise ValueError("no user was scored")
    model = [bar for bar in after if bar["stage"] == MODEL]
    opened = [bar["stop_s"] for bar in timeline if bar["stage"] in OPENING and bar["stop_s"] <= model[0]["start_s"]]
    begins = max([min(bar["start_s"] for bar in after), *opened]) if opened else min(bar["start_s"] for bar in after)
    return float(begins), float(max(bar["stop_s"] for bar in after))
