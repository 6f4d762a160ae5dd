"""The torch engine on a CPU against the best-tuned eager PyTorch, the reference model, 50 events, K = 10.

    python tests/benchmarks/bench_cpu.py [--users 256] [--rounds 7] [--threads 2] [--clock wall] [--kinds bf16]
        [--model DIR --log EVENTS [--options users=USERS] [--least 50]] [--candidates 100]

Without `--model` the weights are random, and so are the histories. A trained model has users of its log, spread evenly
over those with `--least` events or more.

States the ceiling first (a product of this model's shape in fp32, bf16 and int8 on the same threads), tunes the peer of
`cpu_peer.py` in fp32 and in bf16 (batch size, kind of attention), then takes all in turn, round by round. Prints
medians, the fastest round of each (on a machine whose cores others use too, what they do while nobody does), ratios
round by round to the best peer at all and to the best one that shares 98% of the top 10 with fp32, and that share.
`--candidates` measures so many candidates, which the peer does not have, and the share of the floor: the arithmetic of
histories of 50 at the best ceiling. `--clock cpu` takes processor time, for a machine that others use too (with
`--threads 1`: threads that wait for each other burn time that they do not use). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from bench_engines import GFLOP_50, make_batch
from cpu_peer import tuned

from genrec_batch.core.arrays import I32, Batch
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.decode import Decoding, recommend
from genrec_batch.engines.parity import top_overlap
from genrec_batch.engines.precisions import runs_here
from genrec_batch.engines.registry import open_engine
from genrec_batch.engines.torch.device import fast_int8
from genrec_batch.engines.torch.linear import Int8Linear, Linear
from genrec_batch.events.dataset import Dataset
from genrec_batch.features.batches import Vectorizer
from genrec_batch.model import weights
from genrec_batch.runtime.malloc import keep_freed_memory

STEPS, PARITY = 10, 0.98
CANDIDATES_GFLOP = 1.311, 0.0259  # a history of 50, and each item that is scored after it
KINDS = ("fp32", "bf16", "bf16-fast", "int8", "int8-fast")
ROWS, WIDTH, OUTPUTS = 816, 512, 1536  # of the product that the ceiling is measured with


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def ceilings(threads: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return GFLOP/s of products alone with packed weights, one on each thread at once, by precision."""
    weight, bias = torch.randn(OUTPUTS, WIDTH), torch.randn(OUTPUTS)
    products = {"fp32": Linear(weight, bias, torch.float32), "bf16": Linear(weight, bias, torch.bfloat16)}
    if fast_int8():
        products["int8"] = Int8Linear(weight, bias)  # with the rounding of x that a product needs
    found = {}
    for name, product in products.items():
        x = torch.randn(ROWS, WIDTH).to(product.dtype)

        def alone(_: int, product: Linear | Int8Linear = product, x: torch.Tensor = x) -> float:
            torch.set_num_threads(1)
            taken = []
            with torch.inference_mode():
                for _ in range(60):
                    start = clock()
                    product(x)
                    taken.append(clock() - start)
            return 2 * ROWS * WIDTH * OUTPUTS / min(taken) / 1e9

        with ThreadPoolExecutor(threads) as pool:
            found[name] = round(sum(pool.map(alone, range(threads))))
    torch.set_num_threads(threads)
    return found


def of_log(asked: argparse.Namespace) -> tuple[weights.Model, Batch]:
    """Return a trained model and what it reads of users of a log, in the order of their history lengths."""
    texts = dict(option.split("=", 1) for option in asked.options)
    options = {name: int(text) if text.isdigit() else text for name, text in texts.items()}
    model = weights.load(Path(asked.model))
    dataset = Dataset.open(asked.log, ScoreConfig(model=asked.model, **options), model=model)
    shard = dataset.users.first_shard()
    order = np.argsort(shard.lengths_N, kind="stable")
    order = order[shard.lengths_N[order] >= asked.least]
    picked = order[np.linspace(0, len(order) - 1, min(asked.users, len(order))).astype(np.int64)]
    return dataset.model, Vectorizer.of(dataset).inputs(shard, 0, picked).batch(np.arange(len(picked)))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--users", type=int, default=256)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments.add_argument("--model")
    arguments.add_argument("--log")
    arguments.add_argument("--options", nargs="*", default=[], help="further options of `score`, as name=value")
    arguments.add_argument("--least", type=int, default=0, help="events of a user")
    arguments.add_argument("--candidates", type=int, default=0, help="score so many instead of slates")
    asked = arguments.parse_args()
    keep_freed_memory()  # as the command line does; for the peers too
    clock = CLOCKS[asked.clock]
    torch.set_num_threads(asked.threads)
    most = ceilings(asked.threads, time.thread_time if asked.clock == "cpu" else clock)
    print(f"ceiling on {asked.threads} threads: " + ", ".join(f"{k} {v} GFLOP/s" for k, v in most.items()), flush=True)
    if asked.model:
        model, batch = of_log(asked)
        users = len(batch)
        small = batch.take(np.linspace(0, users - 1, min(256, users)).astype(np.int64))
    else:
        model, users = weights.demo_model(weights.PRESETS["reference"]), asked.users
        batch, small = make_batch(users, 50, 50), make_batch(min(256, users), 50, 50)
    print(f"{users} users of {batch.lengths_B.mean():.1f} events on average", flush=True)
    runs: dict[str, Callable[[], I32]] = {}
    decoding = Decoding(mode="candidates", num_candidates=asked.candidates) if asked.candidates else Decoding()
    for kind in (kind for kind in ("fp32", "bf16") if kind in asked.kinds and not asked.candidates):
        peer = tuned(model, small, getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[kind]), STEPS, clock)
        print(f"peer in {kind}: {peer.settings}", flush=True)
        runs[f"peer {kind}"] = lambda peer=peer: peer.slate(batch, STEPS)
    exact = recommend(open_engine(model, name="torch", device="cpu", precision="fp32"), batch, decoding).tokens_BK
    for kind in (kind for kind in asked.kinds if runs_here(kind)):
        engine = open_engine(model, name="torch", device="cpu", precision=kind)
        recommend(engine, small, decoding)
        runs[f"torch {kind}"] = lambda engine=engine: recommend(engine, batch, decoding).tokens_BK
    taken: dict[str, list[float]] = {name: [] for name in runs}
    items = {}
    for _ in range(asked.rounds):
        for name, run in runs.items():
            start = clock()
            items[name] = run()
            taken[name].append(clock() - start)
    parity = {name: float(top_overlap(exact, items[name])) for name in runs}
    peers = [name for name in runs if name.startswith("peer")]
    fastest = min(peers, key=lambda name: statistics.median(taken[name])) if peers else None
    others = [peer for peer in peers if parity[peer] >= PARITY]
    faithful = min(others, key=lambda name: statistics.median(taken[name])) if others else None
    results = []
    for name in runs:
        rate = users / statistics.median(taken[name])
        row = {
            "run": name,
            "users_per_s": round(rate, 1),
            "in_its_fastest_round": round(users / min(taken[name]), 1),
        }
        row["top10_overlap"] = round(parity[name], 4)
        row |= {"holds_parity": parity[name] >= PARITY}
        row |= {} if asked.model or asked.candidates else {"gflops": round(rate * GFLOP_50)}
        if asked.candidates:
            floor = max(most.values()) / (CANDIDATES_GFLOP[0] + asked.candidates * CANDIDATES_GFLOP[1])
            row |= {"floor_users_per_s": round(floor), "floor_share": round(rate / floor, 3)}
        for label, other in (("to_best_peer", fastest), ("to_best_peer_holding_parity", faithful)):
            if other is None:
                continue
            ratios = [a / b for a, b in zip(taken[other], taken[name], strict=True)]
            row[label] = round(statistics.median(ratios), 2)
        results.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    run_of = {"clock": asked.clock, "threads": asked.threads, "users": users, "rounds": asked.rounds}
    run_of["mean_events"] = round(float(batch.lengths_B.mean()), 1)
    print(json.dumps(run_of | {"ceiling_gflops": most, "results": results}))


if __name__ == "__main__":
    main()
