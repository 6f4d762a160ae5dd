"""Users per second of `features.compute`, on one core: `python tests/benchmarks/bench_features.py [--users N]`.

Both kernels take turns. Two kinds of users: 50 kept events each, and lengths
like KuaiRand's (mean 4.5, at most 50). Three kinds of logs: `plain` (duration, percentage, five flags, one category),
`full` (every column that a score depends on, 5% nulls, session ids), and that with tables (a profile per user; an
embedding, a creator and a category per video). The ceiling is moving once the bytes that a call has to read and write,
table rows aside, at the speed of a plain copy in the same process. Times are of the processor (`time.process_time`):
the best of all runs after a warm-up gives the rate, medians give how much faster one kernel is than the other. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read once, when NumPy is imported
    os.environ.setdefault(_name, "1")

import numpy as np

from genrec_batch import features
from genrec_batch.core import layout
from genrec_batch.core.arrays import I64, Histories, Ragged, SideTable
from genrec_batch.runtime.malloc import keep_freed_memory

START_US = 1_774_828_800_000_000
PLAIN_FLAGS = ("watch_complete", "is_liked", "is_shared", "is_commented", "is_followed_creator")
FULL_FLAGS = (*PLAIN_FLAGS, "is_favorited", "is_blocked_creator", "is_reported", "is_weekend", "is_holiday")
PLAIN_CATEGORIES = {"recommendation_source": 7}
FULL_CATEGORIES = {**PLAIN_CATEGORIES, "device_type": 5, "network_type": 5}
VIDEOS = 7_500


def lengths_of(kind: str, users: int, random: np.random.Generator) -> I64:
    if kind == "50":
        return np.full(users, 50)
    return np.minimum(random.geometric(1 / 4.5, users), 50).astype(np.int64)


def made(lengths_N: I64, *, full: bool, random: np.random.Generator) -> Histories:
    offsets_N1 = np.concatenate([[0], np.cumsum(lengths_N)])
    events, users = int(offsets_N1[-1]), len(lengths_N)
    gap_us = random.integers(1_000_000, 3_600_000_000, events)
    first_us = np.repeat(np.cumsum(gap_us)[offsets_N1[:-1]], lengths_N)
    numbers = {
        "watch_duration": random.gamma(2, 10, events),
        "watch_percentage": random.gamma(2, 0.4, events),
    }
    flags = {name: (random.random(events) < 0.1).astype(np.int8) for name in (FULL_FLAGS if full else PLAIN_FLAGS)}
    if full:
        numbers |= {
            "rewatch_count": random.poisson(0.2, events) * 1.0,
            "skip_duration": random.poisson(0.5, events) * 1.0,
            "time_of_day": random.integers(0, 24, events) * 1.0,
            "day_of_week": random.integers(0, 7, events) * 1.0,
            "recommendation_position": random.integers(0, 100, events) * 1.0,
        }
        for values_E in numbers.values():
            values_E[random.random(events) < 0.05] = np.nan
        for flags_E in flags.values():
            flags_E[random.random(events) < 0.05] = -1
    sizes = FULL_CATEGORIES if full else PLAIN_CATEGORIES
    codes_E = np.minimum(random.zipf(1.3, events), VIDEOS).astype(np.int32) - 1
    return Histories(
        offsets_N1=offsets_N1,
        time_us_E=START_US + np.cumsum(gap_us) - first_us,
        tokens_E=codes_E + 1,
        video_code_E=codes_E,
        video_row_E=np.where(codes_E % 10, codes_E, -1).astype(np.int32) if full else np.full(events, -1, np.int32),
        session_E=np.cumsum(random.random(events) < 0.2) if full else None,
        numbers=numbers,
        flags=flags,
        categories={name: random.integers(-1, size, events).astype(np.int8) for name, size in sizes.items()},
        total_events_N=lengths_N * 3,
        user_row_N=np.arange(users, dtype=np.int32) if full else np.full(users, -1, np.int32),
        seen=Ragged(offsets_N1=np.zeros(users + 1, np.int64), values=np.zeros(0, np.int32)),
        as_of_us_N=np.full(users, START_US + 10**13),
    )


def side_table(rows: int, random: np.random.Generator) -> SideTable:
    return SideTable(
        hashed_R200=random.standard_normal((rows, 200), np.float32),
        has_hashed_R=np.ones(rows, np.bool_),
        dense_RD=None,
        has_dense_R=None,
        creator_R=random.integers(0, 2_000, rows).astype(np.int32),
        category_R=random.integers(-1, 40, rows).astype(np.int32),
    )


def taken_s(calls: list[Callable[[], object]], runs: int) -> list[list[float]]:
    """Return the processor time of each run of each call, the calls taking turns, after one round to warm up."""
    taken_s: list[list[float]] = [[] for _ in calls]
    for number in range(runs + 1):
        for call, taken in zip(calls, taken_s, strict=True):
            start_s = time.process_time()
            call()
            if number:
                taken.append(time.process_time() - start_s)
    return taken_s


def must_move_bytes(histories: Histories) -> int:
    """Bytes that a call reads once or writes once; rows of the side tables are not in it."""
    flat = [histories.time_us_E, histories.tokens_E, histories.video_code_E, histories.video_row_E]
    flat += [*histories.numbers.values(), *histories.flags.values(), *histories.categories.values()]
    flat += [] if histories.session_E is None else [histories.session_E]
    return sum(array.nbytes for array in flat) + len(histories) * layout.FEATURES * 4


def copy_bytes_per_s() -> float:
    source = np.ones(1 << 24)  # 128 MiB
    target = np.empty_like(source)
    return 2 * source.nbytes / min(*taken_s([lambda: np.copyto(target, source)], 9)[0])


def first_call_s(environment: dict[str, str]) -> float:
    """Return what a new process needs to load numba and have all kernels ready: compiled, or kept from before."""
    code = (
        "import sys, time; sys.argv = ['']; import bench_features as b, numpy as np; r = np.random.default_rng(7)\n"
        "h = b.made(np.full(9, 5), full=True, random=r); u, v = b.side_table(9, r), b.side_table(b.VIDEOS, r)\n"
        "s = time.process_time(); b.features.compute(h, u, v, max_events=50, kernel='numba')\n"
        "print(time.process_time() - s)"
    )
    folder = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **environment, "PYTHONPATH": folder}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def starts() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {"NUMBA_CACHE_DIR": folder, "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
        cold, warm = first_call_s(environment), first_call_s(environment)
    print(f"start of the kernel numba: {cold:.1f} s where it has to be compiled, {warm:.1f} s where it was kept")
    return {"cold_start_s": round(cold, 2), "warm_start_s": round(warm, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    keep_freed_memory()  # as the command line does
    ceiling = copy_bytes_per_s()
    print(f"ceiling: {ceiling / 1e9:.1f} GB/s read and written, copying 128 MiB on one core")
    kernels: list[features.Kernel] = ["numpy", "numba"] if find_spec("numba") else ["numpy"]
    results: dict[str, float] = starts() if "numba" in kernels else {}
    for kind in ("50", "kuairand"):
        for log in ("plain", "full", "full, tables"):
            random = np.random.default_rng(7)
            lengths_N = lengths_of(kind, options.users, random)
            histories = made(lengths_N, full=log != "plain", random=random)
            users = side_table(options.users, random) if "tables" in log else None
            videos = side_table(VIDEOS, random) if "tables" in log else None
            calls = [
                lambda k=kernel, h=histories, u=users, v=videos: features.compute(h, u, v, max_events=50, kernel=k)
                for kernel in kernels
            ]
            taken = dict(zip(kernels, taken_s(calls, options.runs), strict=True))
            floor_s = must_move_bytes(histories) / ceiling
            print(f"lengths {kind:8} (mean {lengths_N.mean():4.1f}), log {log:12}: ", end="")
            for kernel in kernels:
                best_s = min(taken[kernel])
                rate = options.users / best_s
                results[f"{kind}_{log.replace(', ', '_')}_fp32_{kernel}_users_per_s"] = round(rate)
                print(f"{kernel} {rate:9,.0f} users/s ({floor_s / best_s:5.1%} of the ceiling)  ", end="")
            slow, fast = (statistics.median(taken[kernel]) for kernel in (kernels[0], kernels[-1]))
            print(f"{slow / fast:4.1f}x")
    machine = {"cpu": platform.processor() or platform.machine(), "numpy": np.__version__}
    print(json.dumps({"bench": "features", "users": options.users, **machine, **results}))


if __name__ == "__main__":
    main()
