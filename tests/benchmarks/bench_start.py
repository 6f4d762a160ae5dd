"""From a fresh process to the first batch of `score`: `python tests/benchmarks/bench_start.py LOG MODEL`.

    --trees BEFORE AFTER      folders of checkouts that take turns in each round; by default this one
    --names before after      what they are called in the result
    --rounds 5                counted rounds, after one that fills the caches: a second night with the same model
    --options schema=kuairand users=users.parquet limit=4096
    --json out.json

Seconds and processor seconds are those of a whole process, the interpreter's start included, until its first batch goes
into the engine; processor seconds say more on a machine that others use too. Modules are compiled to bytecode in the
first round, as an installation has them. The last line is JSON, with the median and the least of each over the rounds
and the seconds of each stage before the first batch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


def used_s(process):
    """Return the processor seconds that a process has used so far, 0 once it is gone."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def run(tree, command, scratch, name):
    """Run `score` of a checkout once; return what was measured of it."""
    trace = Path(scratch) / f"{name}.json"
    paths = {"PYTHONPATH": str(tree), "GENREC_BATCH_CACHE": f"{scratch}/cache-{name}"}
    paths |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{scratch}/bytecode"}
    used = []
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, f"{scratch}/{name}.parquet", "--trace", str(trace)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | paths, cwd=scratch,
    )  # fmt: skip

    def watch():
        while process.returncode is None:
            used.append((time.perf_counter() - began, used_s(process)))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    lines = [(time.perf_counter() - began, line) for line in process.stdout]
    assert process.wait() == 0, command
    ended = time.perf_counter() - began
    watcher.join()
    told, summary = lines[-1][0], json.loads(lines[-1][1])
    clock = told - summary["seconds"]  # when the run's own clock began
    spans = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    first = min(event["ts"] for event in spans if event["name"] == "prefill") / 1e6
    before = [event for event in spans if event["ts"] / 1e6 < first and event["name"] not in ("model run", "wait")]
    stages = {"process, imports": clock}
    for event in sorted(before, key=lambda event: event["ts"]):
        stages[event["name"]] = stages.get(event["name"], 0.0) + event["dur"] / 1e6
    return {
        "first_batch_s": clock + first,
        "first_batch_cpu_s": max((cpu for at, cpu in used if at <= clock + first), default=0.0),
        "whole_s": ended,
        "after_last_line_s": ended - told,
        "stages_s": stages,
        "engine_why": summary["engine_why"],
        "run_id": summary["run_id"],
    }


def median(runs):
    """Return the median and the least of each figure over some runs, and the median of each stage."""
    names = [name for name, value in runs[0].items() if isinstance(value, float)]
    found = {name: round(statistics.median(each[name] for each in runs), 2) for name in names}
    found["least"] = {name: round(min(each[name] for each in runs), 2) for name in names}
    stages = {
        name: round(statistics.median(each["stages_s"].get(name, 0.0) for each in runs), 2)
        for name in runs[0]["stages_s"]
    }
    return found | {"stages_s": stages, "engine_why": runs[-1]["engine_why"], "run_id": runs[-1]["run_id"]}


def main():
    """Read the command line and let the trees take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log")
    parser.add_argument("model")
    parser.add_argument("--trees", nargs="+", type=Path, default=[HERE])
    parser.add_argument("--names", nargs="+", default=["after"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--options", nargs="*", default=[], help="further options of `score`, as name=value")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    command = [sys.executable, "-m", "genrec_batch", "score", str(Path(asked.log).absolute())]
    command += ["--model", str(Path(asked.model).absolute()), "--if-exists", "overwrite", "--quiet"]
    command += [f"--{option}" for option in asked.options]
    runs = {name: [] for name in asked.names}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(asked.rounds + 1):
            for name, tree in zip(asked.names, asked.trees, strict=True):
                found = run(tree.absolute(), command, scratch, name)
                print(turn, name, {key: round(x, 2) for key, x in found.items() if isinstance(x, float)}, flush=True)
                if turn:
                    runs[name].append(found)
    last = {"bench": "start", "rounds": asked.rounds, "options": asked.options, "load": os.getloadavg()[1]}
    last |= {name: median(each) for name, each in runs.items()}
    if asked.json:
        asked.json.write_text(json.dumps(last, indent=1) + "\n")
    print(json.dumps(last))


if __name__ == "__main__":
    main()
