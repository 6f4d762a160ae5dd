"""Runs with 1, 2 and 4 worker processes beside runs with as many workers in a Ray cluster on the same cores.

    python tests/benchmarks/bench_workers.py --users 30000 --workers 1 2 4 --rounds 3 --folder WORK [--json FILE]

The log is that of `bench_end_to_end.py` (5 to 50 events a user). The cluster runs on this machine before the first run
and has all of its cores; its start is apart. Both kinds take turns, round by round, the other one first in every second
round; the ratio is the median of those of the rounds. The first round fills the caches and is not counted. Every output
must have the bytes of the first one. The last line is JSON, with the median seconds of each stage of the first process:
`join` (Ray), `keeper` (survey and split in the cluster) or `scan` and `partition`, `workers` (until an engine is open).
`processor_s` is the processor time of the command and its worker processes; in a cluster that of the command alone.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import ray
from bench_end_to_end import write_log

STAGES = ("join", "keeper", "open", "scan", "catalog", "partition", "share", "workers", "finish")
KINDS = ("local", "ray")
NUMBERS = ("process_s", "processor_s", "run_s")


def scored(log, model, workers, address, folder):
    """Score the log in a process of its own; return its seconds, its processor time, and the seconds of its stages."""
    out = folder / "recs"
    command = [sys.executable, "-m", "genrec_batch", "score", log, out, "--model", model, "--if-exists", "overwrite"]
    command += ["--engine", "torch", "--precision", "fp32", "--shard-users", "1000", "--workers", workers, "--quiet"]
    command += ["--ray", address] if address else []
    began, processor_s = time.perf_counter(), ended_processor_s()
    done = subprocess.run([str(each) for each in command], check=True, stdout=subprocess.PIPE, text=True)
    process_s, processor_s = time.perf_counter() - began, ended_processor_s() - processor_s
    summary = json.loads(done.stdout.splitlines()[-1])
    stages = {name: summary["stages_s"][name] for name in STAGES if name in summary["stages_s"]}
    check(out, folder / "first")
    return {"process_s": process_s, "processor_s": processor_s, "run_s": summary["seconds"], "stages_s": stages}


def ended_processor_s():
    """Return the seconds of processor time of all processes that were started here, or by these, and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check(out, first):
    """Check that an output has the files of the first one."""
    if not first.exists():
        shutil.copytree(out, first)
    parts = sorted(file.name for file in first.iterdir() if file.name != "_manifest.json")
    same, other, missing = filecmp.cmpfiles(first, out, parts, shallow=False)
    assert len(same) == len(parts), (other, missing)


def middle(runs):
    """Return the medians of some runs."""
    found = {name: round(statistics.median(run[name] for run in runs), 2) for name in NUMBERS}
    names = sorted({name for run in runs for name in run["stages_s"]}, key=STAGES.index)
    of_stages = {name: statistics.median(run["stages_s"].get(name, 0.0) for run in runs) for name in names}
    return found | {"stages_s": {name: round(seconds, 2) for name, seconds in of_stages.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=60_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="lightweight")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = options.folder.absolute()
    log, model = folder / "log", folder / "model"
    write_log(log, "5-50", options.users)
    init = [sys.executable, "-m", "genrec_batch", "model", "init", model, "--preset", options.preset]
    subprocess.run([str(each) for each in [*init, "--catalog-from", log]], check=True, stdout=subprocess.DEVNULL)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # of the cluster, too
    began = time.perf_counter()
    ray.init(address="local", num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, log_to_driver=False)
    started_s = time.perf_counter() - began
    addresses = {"local": None, "ray": ray.get_runtime_context().gcs_address}
    load, found = os.getloadavg()[0], {(workers, kind): [] for workers in options.workers for kind in KINDS}
    for number in range(options.rounds + 1):
        for workers in options.workers:
            for kind in KINDS[:: 1 if number % 2 else -1]:
                run = scored(log, model, workers, addresses[kind], folder)
                print(number, workers, kind, {name: round(run[name], 2) for name in NUMBERS}, flush=True)
                if number:
                    found[workers, kind].append(run)
    ray.shutdown()
    result = {"bench": "workers", "date": f"{datetime.now(timezone.utc):%Y-%m-%d}", "ray": version("ray")}
    result |= {"users": options.users, "preset": options.preset, "cores": len(os.sched_getaffinity(0))}
    result |= {"rounds": options.rounds, "load_before": round(load, 2), "cluster_start_s": round(started_s, 2)}
    command = f"bench_workers.py --users {options.users} --workers {' '.join(map(str, options.workers))}"
    result |= {"command": f"{command} --rounds {options.rounds}", "bytes_differ": 0, "runs": []}
    for workers in options.workers:
        local, in_ray = (found[workers, kind] for kind in KINDS)
        ratios = [after["process_s"] / before["process_s"] for before, after in zip(local, in_ray, strict=True)]
        more_s = statistics.median(b["process_s"] - a["process_s"] for a, b in zip(local, in_ray, strict=True))
        run = {"workers": workers, "local": middle(local), "ray": middle(in_ray), "more_s": round(more_s, 2)}
        run |= {"ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}
        result["runs"].append(run)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
