"""Resident memory over time of whole `score` runs, and time against users: `python tests/benchmarks/bench_memory.py`.

    --users 200000 2000000   logs of so many users, 50 events each on average, made by `genrec-batch sample`
    --command score          or features
    --json out.json --svg out.svg

Each run is a process of its own with the tiny model and default options (`--memory-limit 1GiB`); its resident memory
is read every 0.2 s. Prints the peak of each run, the ratio of the largest to the smallest, and the log-log slope of
seconds against users. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20
PROGRAM = [sys.executable, "-m", "genrec_batch"]


def resident_mib(process):
    """Return the memory that a process has in use now, 0 once it is gone; shared pages of files are left out."""
    try:
        fields = Path(f"/proc/{process.pid}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(fields[1]) * PAGE_MIB if fields else 0.0


def watch(command):
    """Run a command; return its samples of (seconds, MiB) and its summary."""
    began, samples = time.perf_counter(), []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while process.poll() is None:
        samples.append((round(time.perf_counter() - began, 2), round(resident_mib(process), 1)))
        time.sleep(0.2)
    assert process.returncode == 0, command
    return samples, json.loads(process.stdout.read().splitlines()[-1])


def svg(runs):
    """Return memory over time as one picture, time as a share of each run."""
    width, height, left, bottom = 760, 320, 56, 34
    most = 1.15 * max(mib for run in runs for _, mib in run["samples"])
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"']
    lines.append('font-size="12"><rect width="100%" height="100%" fill="#fff"/>')
    for mib in range(0, int(most), 250):
        y = height - bottom - mib / most * (height - bottom - 10)
        lines.append(f'<line x1="{left}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{mib}</text>')
    for color, run in zip(("#0072b2", "#d55e00", "#009e73", "#cc79a7"), runs, strict=False):
        whole = run["samples"][-1][0]
        points = " ".join(
            f"{left + second / whole * (width - left - 10):.1f},"
            f"{height - bottom - mib / most * (height - bottom - 10):.1f}"
            for second, mib in run["samples"]
        )
        lines.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        said = f"{run['rows'] / 1e6:.0f} M rows, {whole:.0f} s, peak {run['peak_mib']:.0f} MiB"
        place = 24 + 16 * runs.index(run)
        lines.append(f'<text x="{width - 20}" y="{place}" text-anchor="end" fill="{color}">{said}</text>')
    lines.append(f'<text x="{left}" y="{height - 10}">resident MiB over the course of each run</text></svg>')
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--command", choices=("score", "features"), default="score")
    parser.add_argument("--options", nargs="*", default=[], help="further options of the command, as name=value")
    parser.add_argument("--logs", type=Path, help="a folder in which logs are kept for the next time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    asked = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory(dir=asked.logs) as scratch:
        for users in asked.users:
            log = (asked.logs or Path(scratch)) / f"log-{users}"
            if not log.exists():
                made = [*PROGRAM, "sample", log, "--users", users, "--events-per-user", 50, "--seed", 7]
                subprocess.run([str(part) for part in made], check=True, stdout=subprocess.DEVNULL)
            model = Path(scratch) / f"model-{users}"
            init = [*PROGRAM, "model", "init", model, "--preset", "tiny", "--catalog-from", log]
            subprocess.run([str(part) for part in init], check=True, stdout=subprocess.DEVNULL)
            command = [*PROGRAM, asked.command, log, f"{scratch}/out-{users}", "--model", model, "--quiet"]
            command += [f"--{option}" for option in asked.options]
            samples, summary = watch([str(part) for part in command])
            run = {
                "users": users,
                "rows": summary["input_rows"],
                "seconds": summary["seconds"],
                "peak_mib": max(mib for _, mib in samples),
                "partitioned": summary["partitioned"],
                "spilled_mib": summary["spilled_mib"],
                "stages_s": summary["stages_s"],
                "samples": samples,
            }
            runs.append(run)
            print({name: value for name, value in run.items() if name != "samples"}, flush=True)
    last = {"bench": "memory", "command": asked.command, "runs": [{**r, "samples": r["samples"][::5]} for r in runs]}
    if len(runs) > 1:
        small, large = runs[0], runs[-1]
        last["peak_ratio"] = round(large["peak_mib"] / small["peak_mib"], 3)
        last["slope"] = round(
            math.log(large["seconds"] / small["seconds"]) / math.log(large["users"] / small["users"]), 3
        )
    if asked.json:
        asked.json.write_text(json.dumps(last, indent=1) + "\n")
    if asked.svg:
        asked.svg.write_text(svg(runs))
    print(json.dumps({name: value for name, value in last.items() if name != "runs"}))


if __name__ == "__main__":
    main()
