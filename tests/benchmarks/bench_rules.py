"""What composing a list costs: microseconds of one core for each user, with each rule and with all of them.

    python tests/benchmarks/bench_rules.py [--users 4096] [--write]

Lists of 10 from 100 candidates of 10,000 videos with embeddings of 200 numbers. The ceiling is reading the embeddings
of a user's candidates, 80 kB, from memory once. The last line is JSON; `--write` keeps it in `results/rules.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import polars as pl

from genrec_batch.core.arrays import HEADS, Ranked
from genrec_batch.rules import columns, draws
from genrec_batch.rules.compose import Composer
from genrec_batch.rules.lists import DPP, MMR, PLAIN, Rules

VIDEOS, POOL, TOP_K, NUMBERS = 10_000, 100, 10, 200
ROUNDS = 9  # of which the median counts
RESULTS = Path(__file__).parent / "results" / "rules.json"


def rules_of(random, *, caps=False, method=PLAIN, explore=0.0):
    rows = VIDEOS + 2
    whole, one_over, groups = np.zeros((rows, 0), np.float32), np.zeros(rows), np.zeros((rows, 0), np.int32)
    if method != PLAIN:
        vectors = random.normal(size=(VIDEOS, NUMBERS)).astype(np.float32)
        whole, one_over, groups = columns.likeness(pl.DataFrame({"embedding": vectors}), ())
    codes = np.stack([random.integers(0, most, rows) for most in (800, 20)], axis=1).astype(np.int32)
    return Rules(
        caps_D=np.array([2, 4] if caps else [], np.int32),
        codes_VD=codes if caps else codes[:, :0],
        vectors_VE=whole,
        one_over_V=one_over,
        groups_VG=groups,
        method=method,
        weight=0.3 if method != PLAIN else 0.0,
        explore=explore,
    )


def measured(composer, ranked, score, promoted, keys):
    """Return the median microseconds of processor time for a user."""
    found = []
    for _ in range(ROUNDS + 1):  # the first one loads the kernel
        begin = time.thread_time()
        composer.compose(ranked, score, promoted, keys)
        found.append(time.thread_time() - begin)
    return round(float(np.median(found[1:])) / len(score) * 1e6, 2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=4096)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    random = np.random.default_rng(1)
    tokens = np.stack([2 + random.permutation(VIDEOS)[:POOL] for _ in range(options.users)]).astype(np.int32)
    score = -np.sort(random.gamma(2, 2, tokens.shape), axis=1).astype(np.float32)
    heads = np.zeros((*tokens.shape, len(HEADS)), np.float32)
    keys = draws.keys(pl.Series(range(options.users)), 7)
    promoted = np.zeros((options.users, TOP_K), np.int32)
    promoted[:, [2, 7]] = (17, 4711)
    boost = random.normal(size=VIDEOS + 2) / 10
    cases = {
        "caps": ({"caps": True}, None, np.zeros(0)),
        "mmr": ({"method": MMR}, None, np.zeros(0)),
        "dpp": ({"method": DPP}, None, np.zeros(0)),
        "explore": ({"explore": 0.05}, None, np.zeros(0)),
        "all with mmr": ({"caps": True, "method": MMR, "explore": 0.05}, promoted, boost),
        "all with dpp": ({"caps": True, "method": DPP, "explore": 0.05}, promoted, boost),
    }
    user_us = {"numba": {}, "numpy": {}}
    for name, (rules, places, added) in cases.items():
        made = rules_of(random, **rules)
        for kernel, found in user_us.items():
            composer = Composer(top_k=TOP_K, rules=made, boost_V=added, kernel=kernel)
            some = slice(0, options.users if kernel == "numba" else 512)
            part = Ranked(tokens_BK=tokens[some], log_prob_BK=score[some], heads_BKH=heads[some])
            chosen = None if places is None else places[some]
            found[name] = measured(composer, part, score[some], chosen, keys[some])
        print(f"{name:14} {user_us['numba'][name]:8.1f} us a user compiled, {user_us['numpy'][name]:8.1f} in NumPy")
    result = {
        "users": options.users,
        "candidates": POOL,
        "top_k": TOP_K,
        "user_us": user_us,
        "cpu": platform.processor(),
    }
    if options.write:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
