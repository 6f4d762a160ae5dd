"""Users per second over batch sizes on a GPU, and what 8,192 users, the constant of `--batch-size auto`, cost of it.

    python tests/benchmarks/bench_batch_size.py [--precision fp16] [--rounds 5] [--free-gib 8]

The reference model with seeded weights, K = 10, histories of 50 events and of 5 to 50. Sizes take turns, round by
round, so that a GPU that slows down slows all of them; a speed is the median of its rounds. Every size scores the same
users. `--free-gib` first occupies all but so much of the GPU's memory, so that large sizes run out of it and `auto`
takes what fits. Peak memory is that of the process up to a size's first round, the occupied memory included. The last
line is JSON.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from genrec_batch.core.arrays import Batch
from genrec_batch.core.errors import DeviceMemoryError
from genrec_batch.engines.batch_size import GPU_USERS, choose_size
from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.engines.registry import open_engine
from genrec_batch.model import weights

SIZES = (512, 1024, 2048, 4096, 8192, 16_384)
USERS = 65_536  # that every size scores in a round
EVENTS = 50
LENGTHS = {"50": (50, 50), "5..50": (5, 50)}
DECODING = Decoding(top_k=10)
GIB = 1 << 30


def drawn(users, shortest, longest):
    """Random users; what they watched is not recommended."""
    random = np.random.default_rng(7)
    lengths_B = random.integers(shortest, longest + 1, users).astype(np.int32)
    tokens_BS = random.integers(2, 9_002, (users, EVENTS)).astype(np.int32)
    tokens_BS[np.arange(EVENTS)[None] >= lengths_B[:, None]] = 0
    return Batch(
        dense_BF=random.random((users, 1024), np.float32), tokens_BS=tokens_BS, lengths_B=lengths_B, seen_BX=tokens_BS
    )


def seconds(engine, batch, users):
    """Seconds to score all rows of a batch, `users` at a time."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    pieces = (batch.rows(first, first + users) for first in range(0, len(batch), users))
    for _ in recommend_all(engine, pieces, DECODING):
        pass
    return time.perf_counter() - start


def swept(engine, batch, sizes, rounds):
    """Users per second by size; a size that runs out of memory has none."""
    taken, peaks = {users: [] for users in sizes}, {}
    for turn in range(rounds + 1):
        for users in list(taken):
            try:
                found = seconds(engine, batch, users)
            except DeviceMemoryError as error:
                print(f"  {users:,} users: {error}")
                del taken[users]
                continue
            peaks.setdefault(users, torch.cuda.max_memory_reserved() / GIB)
            if turn:  # the first round captures graphs
                taken[users].append(found)
    return {users: len(batch) / statistics.median(times) for users, times in taken.items()}, peaks


def main():
    """Sweep both kinds of histories and print the ratio of auto's size to the best one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--free-gib", type=float)
    asked = parser.parse_args()
    model = weights.demo_model(weights.PRESETS["reference"]).with_catalog(9_000)
    engine = open_engine(model, name="torch", device="cuda:0", precision=asked.precision)
    occupied = None
    if asked.free_gib is not None:
        occupied = torch.empty(engine.free_bytes() - int(asked.free_gib * GIB), dtype=torch.uint8, device="cuda")
    runs = []
    for name, lengths in LENGTHS.items():
        batch = drawn(USERS, *lengths)
        auto = choose_size(engine, model, batch.rows(0, 512), DECODING)
        print(f"histories of {name} events; auto: {auto.why}")
        speeds, peaks = swept(engine, batch, sorted({*SIZES, auto.users}), asked.rounds)
        best = max(speeds.values())
        for users, speed in speeds.items():
            share, peak = speed / best, peaks[users]
            print(f"  {users:6,} users: {speed:9,.0f} users/s, {share:6.1%} of the best, peak {peak:.1f} GiB")
        runs.append(
            {
                "events": name,
                "auto_users": auto.users,
                "ratio_to_best": round(speeds[auto.users] / best, 4) if auto.users in speeds else None,
                "users_per_s": {str(users): round(speed) for users, speed in speeds.items()},
                "peak_gib": {str(users): round(peak, 2) for users, peak in peaks.items()},
            }
        )
    print(
        json.dumps(
            {
                "date": time.strftime("%Y-%m-%d"),
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "precision": asked.precision,
                "constant": GPU_USERS,
                "occupied_gib": 0 if occupied is None else round(occupied.numel() / GIB, 1),
                "rounds": asked.rounds,
                "runs": runs,
            }
        )
    )


if __name__ == "__main__":
    main()
