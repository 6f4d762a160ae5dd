"""Whole `score` runs, Parquet to Parquet, against what the device alone does with the same users.

    python tests/benchmarks/bench_end_to_end.py --users 2000000 --engine torch --device cuda --precision fp16

Three logs of so many users: all histories of 50 events, lengths uniform from 5 to 50, and lognormal lengths, each in
random order of its users' events. A run is a process of its own, started to finished, and writes a directory; the first
one of each log is the warm-up (compiled kernels, engine cache). `device` is the same engine in one process over batches
of the same lengths that were made before, host arrays in and results out, copies overlapping. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl

COMMAND = "from genrec_batch.__main__ import main\nmain()"
PROGRAM = {
    "numba": [sys.executable, "-c", COMMAND],
    "numpy": [sys.executable, "-c", f"from genrec_batch import features\nfeatures.COMPILED_FROM = 10**12\n{COMMAND}"],
}  # by the kernel that computes the features
BLOCK_USERS = 50_000


def lengths_of(kind, users, random):
    if kind == "50":
        return np.full(users, 50)
    if kind == "5-50":
        return random.integers(5, 51, users)
    return np.clip(random.lognormal(3.2, 0.9, users), 1, 500).astype(np.int64)


def write_log(folder, kind, users):
    """Write a log of some files, each a block of users with their events shuffled."""
    folder.mkdir(parents=True)
    starts = range(0, users, BLOCK_USERS)
    blocks = [(folder, kind, number, min(BLOCK_USERS, users - first)) for number, first in enumerate(starts)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(write_block, blocks))


def write_block(block):
    folder, kind, number, users = block
    first = number * BLOCK_USERS
    random = np.random.default_rng([7, number])
    lengths_N = lengths_of(kind, users, random)
    user_E = np.repeat(np.arange(first, first + len(lengths_N)), lengths_N)
    random.shuffle(user_E)
    events = len(user_E)
    moment_E = np.sort(random.integers(0, 28 * 86_400_000_000, events)) + 1_774_828_800_000_000
    percentage = random.gamma(2, 0.35, events).astype(np.float32)
    frame = pl.DataFrame(
        {
            "user_id": user_E + 1_000_000,
            "video_id": (random.zipf(1.2, events) % 9_000).astype(np.int64) + 500_000,
            "timestamp": pl.Series(moment_E),
            "watch_duration": percentage * 15,
            "watch_percentage": percentage,
            "watch_complete": percentage > 0.9,
            "is_liked": random.random(events) < 0.04,
            "is_shared": random.random(events) < 0.01,
            "is_commented": random.random(events) < 0.01,
            "is_followed_creator": random.random(events) < 0.005,
            "device_type": pl.Series(np.array(["mobile", "tablet", "tv"])[random.integers(0, 3, events)]),
            "recommendation_source": pl.Series(np.array(["home", "search"])[random.integers(0, 2, events)]),
            "recommendation_position": random.integers(0, 40, events).astype(np.int16),
        }
    ).cast({"timestamp": pl.Datetime("us", "UTC")})
    frame.write_parquet(folder / f"{number:05d}.parquet", row_group_size=262_144)


def run(log, output, options, kernel):
    """Run the command; return wall seconds of the whole process and its summary."""
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    done = subprocess.run(
        [*PROGRAM[kernel], "score", log, output, "--quiet", *options], stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - start, json.loads(done.stdout.splitlines()[-1])


def device_alone(kind, size, asked, rounds=3, batches=24):
    """Return users/s of the engine over batches of the same lengths that were made before."""
    from genrec_batch.core.arrays import Batch
    from genrec_batch.engines.decode import Decoding, recommend_all
    from genrec_batch.engines.feed import cuts, mixed
    from genrec_batch.engines.registry import open_engine
    from genrec_batch.model import weights

    loaded = weights.demo_model(weights.PRESETS["reference"]).with_catalog(9_000)
    device = "cuda:0" if asked.device == "cuda" else asked.device
    engine = open_engine(loaded, name=asked.engine, device=device, precision=asked.precision)
    random = np.random.default_rng(1)
    mean = 1 + float(np.minimum(lengths_of(kind, 16_384, random), 50).mean())
    engine.resize(size)
    engine.expect(longest=50, mean=mean, steps=10)
    room = engine.room(size)
    made = []
    while len(made) < batches:
        lengths = np.minimum(lengths_of(kind, 16_384, random), 50).astype(np.int32)
        lengths = lengths if room else np.sort(lengths)[::-1]
        wide = lengths.astype(np.int64)
        for start, stop in mixed(wide, size, room) if room else cuts(wide, size):
            rows = lengths[start:stop]
            tokens = random.integers(2, 9_002, (len(rows), int(rows.max()))).astype(np.int32)
            tokens[np.arange(tokens.shape[1])[None] >= rows[:, None]] = 0
            dense = random.random((len(rows), 1024), np.float32)
            made.append(Batch(dense_BF=dense, tokens_BS=tokens, lengths_B=rows, seen_BX=tokens))
    decoding = Decoding(mode="slate", top_k=10, num_candidates=10, beam_width=1)
    users, speeds = sum(map(len, made)), []
    for turn in range(rounds + 1):
        start = time.perf_counter()
        for _ in recommend_all(engine, made, decoding):
            pass
        if turn:  # the first one captures graphs
            speeds.append(users / (time.perf_counter() - start))
    return statistics.median(speeds)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=2_000_000)
    parser.add_argument("--kinds", nargs="+", default=["50", "5-50", "lognormal"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warm", action="store_true", help="caches are warm: every run counts")
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--features", choices=list(PROGRAM), default="numba", help="what computes the features")
    parser.add_argument("--options", nargs="*", default=["memory-limit=48GiB"])
    parser.add_argument("--folder", type=Path, required=True, help="for logs and outputs")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    options = ["--engine", asked.engine, "--device", asked.device, "--precision", asked.precision]
    options += [f"--{option}" for option in asked.options]
    last = {"bench": "end to end", "users": asked.users, "options": options, "machine": platform.machine(), "logs": {}}
    for kind in asked.kinds:
        log = asked.folder / f"log-{kind}"
        if not log.exists():
            write_log(log, kind, asked.users)
        count = asked.rounds if asked.warm else 1 + asked.rounds
        runs = [run(log, asked.folder / "out", options, asked.features) for _ in range(count)][-asked.rounds :]
        alone = device_alone(kind, runs[-1][1]["batch_users"], asked)
        seconds = statistics.median(s for s, _ in runs)
        summary = min(runs, key=lambda pair: abs(pair[0] - seconds))[1]
        found = {
            "rows": summary["input_rows"],
            "seconds": round(seconds, 2),
            "all_seconds": [round(s, 2) for s, _ in runs],
            "users_per_s": round(asked.users / seconds),
            "device_users_per_s": round(alone),
            "share": round(asked.users / seconds / alone, 3),
            "summary": {k: summary[k] for k in ("seconds", "stages_s", "peak_rss_mib", "batch_users", "padding_share")},
        }
        last["logs"][kind] = found
        print(kind, found, flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(last, indent=1) + "\n")
    print(json.dumps(last))


if __name__ == "__main__":
    main()
