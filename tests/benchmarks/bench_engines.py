"""Users per second of every engine on this machine, the reference model, K = 10.

    python tests/benchmarks/bench_engines.py [--users 256] [--rounds 5]

States the ceiling first (a matrix product in fp32 and bf16 on the same threads), warms up, then measures all engines in
turn, round by round, so that a machine that slows down slows all of them. Prints medians, the ratio to torch in fp32
round by round, and the top-10 overlap with it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch

from genrec_batch.core.arrays import Batch
from genrec_batch.engines.decode import Decoding, recommend
from genrec_batch.engines.parity import top_overlap
from genrec_batch.engines.registry import open_engine
from genrec_batch.engines.torch.linear import Linear
from genrec_batch.model import weights

ENGINES = (("torch", "fp32"), ("torch", "bf16"), ("onnxruntime", "fp32"))
GFLOP_50 = 1.311 + 0.361  # prefill of 51 positions and 10 decode passes, per user


def make_batch(users: int, shortest: int, longest: int) -> Batch:
    random = np.random.default_rng(7)
    lengths = np.sort(random.integers(shortest, longest + 1, users))[::-1].astype(np.int32)
    tokens = random.integers(2, 10_000, (users, longest)).astype(np.int32)
    tokens[np.arange(longest)[None, :] >= lengths[:, None]] = 0
    dense = random.random((users, 1024), np.float32) * (random.random((users, 1024)) < 0.3)
    return Batch(dense_BF=dense.astype(np.float32), tokens_BS=tokens, lengths_B=lengths, seen_BX=tokens)


def ceiling_gflops(dtype: torch.dtype) -> float:
    """The best of many products of this model's shape with weights packed for them."""
    product = Linear(torch.randn(1536, 512), torch.randn(1536), dtype)
    x = torch.randn(4096, 512).to(dtype)
    taken = []
    with torch.inference_mode():
        for _ in range(100):
            start = time.perf_counter()
            product(x)
            taken.append(time.perf_counter() - start)
    return 2 * 4096 * 512 * 1536 / min(taken) / 1e9


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--users", type=int, default=256)
    arguments.add_argument("--rounds", type=int, default=5)
    asked = arguments.parse_args()
    ceilings = {name: ceiling_gflops(kind) for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    print(
        f"ceiling on {torch.get_num_threads()} threads: "
        + ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in ceilings.items())
    )
    reference = weights.demo_model(weights.PRESETS["reference"])
    engines = {key: open_engine(reference, name=key[0], device="cpu", precision=key[1]) for key in ENGINES}
    results = []
    for label, shortest, longest in (("50 events", 50, 50), ("2 to 8 events", 2, 8)):
        batch, warm = make_batch(asked.users, shortest, longest), make_batch(32, shortest, longest)
        items = {}
        for engine in engines.values():
            recommend(engine, warm, Decoding())
        taken: dict[tuple[str, str], list[float]] = {key: [] for key in ENGINES}
        for _ in range(asked.rounds):
            for key, engine in engines.items():
                start = time.perf_counter()
                items[key] = recommend(engine, batch, Decoding()).tokens_BK
                taken[key].append(time.perf_counter() - start)
        for key in ENGINES:
            rate = asked.users / statistics.median(taken[key])
            ratio = statistics.median(a / b for a, b in zip(taken[ENGINES[0]], taken[key], strict=True))
            overlap = top_overlap(items[ENGINES[0]], items[key])
            row = {"histories": label, "engine": key[0], "precision": key[1], "users_per_s": round(rate, 1)}
            row |= {"ratio_to_torch_fp32": round(ratio, 2), "top10_overlap": round(overlap, 4)}
            if longest == 50:
                row["share_of_ceiling"] = round(rate * GFLOP_50 / ceilings[key[1]], 3)
            results.append(row)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    print(json.dumps({"users": asked.users, "rounds": asked.rounds, "ceiling_gflops": ceilings, "results": results}))


if __name__ == "__main__":
    main()
