"""`plan` beside measured runs with 1, 2 and 4 worker processes on a CPU.

    python tests/benchmarks/bench_plan.py --users 30000 --workers 1 2 4 --rounds 3 --folder WORK [--json FILE]

The log is that of `bench_end_to_end.py` (5 to 50 events a user). The runs take turns, round by round; of each number of
workers the last one gives rates, and the median of the others is compared with a plan: of one process by the rates of
one, of several by those of the fewest, since several need less time on the same cores than one. The result keeps these
two reports without what no plan reads, so a test can plan again. The machine should have no other work: its load is in
the result. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_end_to_end import write_log
from plan_results import plan_of

KEPT = (
    "engine",
    "device",
    "precision",
    "version",
    "scored_users",
    "users",
    "input_rows",
    "kept_events",
    "bytes",
    "workers",
)


def scored(log, model, workers, number, folder):
    """Score the log in a process of its own; return the run's report."""
    report = folder / f"report-{workers}-{number}.json"
    command = [
        sys.executable,
        "-m",
        "genrec_batch",
        "score",
        log,
        folder / f"recs-{workers}-{number}",
        "--model",
        model,
    ]
    command += ["--engine", "torch", "--precision", "fp32", "--shard-users", "1000", "--workers", workers, "--quiet"]
    began = time.perf_counter()
    subprocess.run([str(each) for each in [*command, "--report", report]], check=True, stdout=subprocess.DEVNULL)
    return json.loads(report.read_text()) | {"process_s": round(time.perf_counter() - began, 3)}


def ends(bars):
    """Return the first and the last two bars of each stage."""
    of = {bar["stage"]: [each for each in bars if each["stage"] == bar["stage"]] for bar in bars}
    kept = {id(bar) for found in of.values() for bar in [*found[:2], *found[-2:]]}
    return [bar for bar in bars if id(bar) in kept]


def reduced(report):
    """Return a report without what no plan reads."""
    run = report["run"]
    bars = [{name: bar[name] for name in ("stage", "start_s", "stop_s")} for bar in ends(run["timeline"])]
    summary = {name: run["summary"][name] for name in KEPT if name in run["summary"]}
    stages = [
        {name: row[name] for name in ("stage", "seconds", "share_of_wall", "rows", "bytes")} for row in run["stages"]
    ]
    about = {name: report[name] for name in ("schema", "schema_version", "created", "machine")}
    return about | {
        "ceilings": None,
        "run": {"wall_s": run["wall_s"], "summary": summary, "stages": stages, "timeline": bars},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="lightweight")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    log, model = options.folder / "log", options.folder / "model"
    write_log(log, "5-50", options.users)
    init = [sys.executable, "-m", "genrec_batch", "model", "init", model, "--preset", options.preset]
    subprocess.run([str(each) for each in [*init, "--catalog-from", log]], check=True, stdout=subprocess.DEVNULL)
    load = os.getloadavg()[0]
    found = {workers: [] for workers in options.workers}
    for number in range(options.rounds):
        for workers in options.workers:
            found[workers].append(scored(log, model, workers, number, options.folder))
    measured = [1, min((workers for workers in options.workers if workers > 1), default=1)]
    rates = {workers: reduced(found[workers].pop()) for workers in measured}
    runs = []
    for workers, reports in found.items():
        measured_s, rates_of = statistics.median(report["run"]["wall_s"] for report in reports), measured[workers > 1]
        planned_s = plan_of(rates[rates_of], workers=workers)["seconds"]
        runs.append({"workers": workers, "measured_s": round(measured_s, 3), "planned_s": round(planned_s, 3)})
        runs[-1] |= {"rates_of": rates_of}
        runs[-1] |= {"all_s": [round(report["run"]["wall_s"], 3) for report in reports]}
        print(f"{workers} workers: {measured_s:.1f} s, planned {planned_s:.1f} s ({planned_s / measured_s:.2f})")
    result = {"bench": "plan", "users": options.users, "preset": options.preset, "load_before": round(load, 2)}
    command = f"bench_plan.py --users {options.users} --workers {' '.join(map(str, options.workers))}"
    result |= {"command": f"{command} --rounds {options.rounds}", "runs": runs, "rates": rates}
    if options.json:
        options.json.write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
