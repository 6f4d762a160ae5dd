"""From a fresh process to the first batch: imports, model, engine, first answer; then the steady state and its idle.

    python tests/benchmarks/bench_gpu_start.py MODEL_DIR --engine tensorrt [--users 2048] [--idle] [--json out.json]

Run it twice: the second start finds engines and kernels in the caches, and is what a nightly job sees. `--idle` also
records every kernel of the steady state with CUPTI. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from bench_tensorrt import WIDTH, agreement, inputs

from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.model.weights import load


def since_start():
    """Seconds since this process began, the interpreter's own start included."""
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def hardware():
    """The GPU and its driver, as nvidia-smi names them."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def main():
    """Read the command line and time each part once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", default="tensorrt")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--users", type=int, default=2048)
    parser.add_argument("--lengths", type=int, nargs=2, default=(50, 50))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--turns", type=int, default=8, help="how often four batches go through in the steady state")
    parser.add_argument("--reference", help="what `bench_tensorrt.py reference` wrote")
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--cupti", nargs="*", default=(), help="libcupti, where it is not in a usual place")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    marks = {"import_s": since_start()}

    def mark(name, since):
        marks[name] = time.perf_counter() - since

    now = time.perf_counter()
    model = load(arguments.model)
    mark("model_s", now)
    batch = inputs(arguments.users, arguments.lengths)
    now = time.perf_counter()
    from genrec_batch.engines.registry import open_engine

    engine = open_engine(model, name=arguments.engine, device=arguments.device, precision=arguments.precision)
    engine.resize(arguments.users)
    engine.expect(longest=WIDTH, mean=float(batch.lengths_B.mean()) + 1, steps=arguments.steps)
    mark("engine_s", now)
    decoding = Decoding(top_k=arguments.steps)
    now = time.perf_counter()
    first = next(recommend_all(engine, [batch], decoding))
    mark("first_batch_s", now)
    marks["start_s"] = sum(marks.values())
    batches = [inputs(arguments.users, arguments.lengths, seed) for seed in range(2, 6)]
    list(recommend_all(engine, batches, decoding))
    speeds = []
    for _ in range(3):
        now = time.perf_counter()
        count = sum(len(ranked) for ranked in recommend_all(engine, batches * arguments.turns, decoding))
        speeds.append(count / (time.perf_counter() - now))
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "engine": engine.name,
        "hardware": hardware(),
        "variant": getattr(engine, "variant", ""),
        "precision": engine.precision,
        "users": arguments.users,
        "lengths": list(arguments.lengths),
        **{name: round(seconds, 3) for name, seconds in marks.items()},
        "users_per_s": round(float(np.median(speeds))),
    }
    if arguments.reference:
        found["agreement"] = agreement(first, arguments.reference)
    if arguments.idle:
        import gpu_idle

        with gpu_idle.watched(arguments.cupti) as spans:
            list(recommend_all(engine, batches * 3, decoding))
        found |= {"kernels": len(spans), "idle_share": round(gpu_idle.idle_share(spans), 4) if spans else None}
    print(json.dumps(found))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
