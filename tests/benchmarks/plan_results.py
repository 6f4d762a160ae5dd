"""Committed results as reports that `plan` takes: what runs of `bench_end_to_end.py` on an H200 say of their stages.

    python tests/benchmarks/plan_results.py    # writes results/rates_h200.json and results/plan_h200.json

These results have the seconds of each stage, and no timeline: stages before and after scoring ran one after the other,
so scoring is what is left of the run. Bytes of a row are those of the same kind of log, made anew by `write_log` for
50,000 users and scored on a CPU (`BYTES`); they do not depend on the machine.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from genrec_batch.reports.plan import planned
from genrec_batch.reports.plan_options import PlanConfig

RESULTS = Path(__file__).parent / "results"
BEFORE, AFTER = ("open", "model", "scan", "catalog", "tables", "partition"), ("finish",)
BYTES = {"scan": 15.2, "partition": 40.0, "output": 348.4}  # of a row of the log, of a split one, of a user's rows
CORES, MEMORY_GIB = 16, 128.0
LEAST = 5_000_000  # users of a run that is compared


def runs():
    """Return the runs of logs with 5 to 50 events a user whose model run is divided into phases, and their users."""
    found = json.loads((RESULTS / "end_to_end.json").read_text())["runs"]
    return [(run, run["logs"]["5-50"]) for run in found if "5-50" in run["logs"]]


def report_of(run, log):
    """Return one of them as a report."""
    stages, wall_s, users = log["summary"]["stages_s"], log["summary"]["seconds"], run["users"]
    begins = sum(stages[name] for name in BEFORE)
    ends = wall_s - sum(stages[name] for name in AFTER)
    bars = [{"stage": "model run", "start_s": begins, "stop_s": ends}]
    engine = run["options"][run["options"].index("--engine") + 1]
    return {
        "schema": "genrec-batch/report",
        "schema_version": 2,
        "created": run.get("date", "2026-11-25"),
        "machine": {"cores": CORES, "processor": run["device"], "memory_gib": MEMORY_GIB, "load_1min": 0.0},
        "ceilings": None,
        "run": {
            "wall_s": wall_s,
            "summary": {
                "engine": engine,
                "device": "cuda:0",
                "precision": "fp16",
                "version": run.get("commit"),
                "scored_users": users,
                "users": users,
                "input_rows": log["rows"],
                "kept_events": log["rows"],  # nobody has more than 50
                "bytes": int(users * BYTES["output"]),
            },
            "stages": [
                {
                    "stage": name,
                    "seconds": seconds,
                    "share_of_wall": seconds / wall_s if name in (*BEFORE, *AFTER) else 0.0,
                    "rows": log["rows"],
                    "bytes": int(log["rows"] * BYTES.get(name, 0)),
                }
                for name, seconds in stages.items()
            ],
            "timeline": bars,
        },
    }


def rated():
    """Return the runs whose rates can be taken: those of 5 M users and more that tell prefill from decode."""
    return [(run, log) for run, log in runs() if "prefill" in log["summary"]["stages_s"] and run["users"] >= LEAST]


def alike(engine):
    """Return the runs of an engine that are compared; since the first of them little of a row's way has changed."""
    return [(run, log) for run, log in runs() if engine in run["options"] and run["users"] >= LEAST]


def best():
    """Return the report whose rates plans are made from: that of the fastest run."""
    return report_of(*min(rated(), key=lambda pair: pair[1]["seconds"]))


def plan_of(report, **options):
    """Return a plan by the rates of a report."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(report, file)
        file.flush()
        found = planned(PlanConfig(rates=file.name, **options))
    found["measured"].pop("report")
    return found


def checks():
    """Return the seconds of each run beside those that are planned by the rates of each other one of its engine."""
    return [
        {
            "engine": engine,
            "rates": run["commit"],
            "run": other["commit"],
            "users": other["users"],
            "measured_s": log["summary"]["seconds"],
            "planned_s": round(plan_of(report_of(run, rates), users=other["users"], gpus=1)["seconds"], 2),
        }
        for engine in ("torch", "tensorrt")
        for run, rates in rated()
        if engine in run["options"]
        for other, log in alike(engine)
        if other["commit"] != run["commit"]
    ]


def result():
    """Return what is committed as `plan_h200.json`."""
    report = best()
    plans = [
        plan_of(report, users=1e9, events_per_user=50.0, gpus=gpus, network_gb_s=network)
        for gpus, network in ((8, 1.25), (64, 1.25), (64, 12.5))
    ]
    for plan in plans:
        for phase in plan["phases"]:
            plan[phase["phase"]] = phase
    return {"command": "python tests/benchmarks/plan_results.py", "checks": checks(), "plans": plans}


if __name__ == "__main__":
    (RESULTS / "rates_h200.json").write_text(json.dumps(best(), indent=1) + "\n")
    (RESULTS / "plan_h200.json").write_text(json.dumps(result(), indent=1) + "\n")
