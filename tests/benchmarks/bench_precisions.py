"""What each precision of an engine loses of a trained model's lists, on one device and the same users.

    python tests/benchmarks/bench_precisions.py EVENTS --model MODEL [--users U] [--videos V] [--schema kuairand]
        [--as-of T] [--test-from T] [--engine torch] [--device cuda:0] [--precisions fp32,fp16,fp8] [--out result.json]

Prints, beside the first precision: NDCG@10 and HR@10 of the next video, the share of NDCG that is lost with a 95%
interval (paired bootstrap over users), the share of its top 10 and of its first videos. The last line is JSON.
"""

import argparse
import datetime as dt
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from genrec_batch.engines.parity import top_overlap
from genrec_batch.evaluation import metrics, model_lists, opening
from genrec_batch.evaluation.options import EvaluateConfig
from genrec_batch.runtime.clock import Stages

K = 10
DRAWS = 1000


def lists_of(config, opened):
    """The top K tokens of each row, and the metrics of each row."""
    selection = opening.choose_engine(config, opened)
    feed = opening.feed(config, opened, selection, config.modes()[0], Stages())
    lists = model_lists.recommend(feed, opened.inputs, config.as_score().blend())
    return lists.best(K), metrics.accuracy(lists.best(K), opened.rows.targets(1), (K,)), selection.engine


def lost(expected, measured):
    """The share of the mean that is lost, and the middle 95% of it over bootstrap draws of the same users."""
    random = np.random.default_rng(0)
    draws = random.integers(0, len(expected), (DRAWS, len(expected)))
    shares = 1 - measured[draws].mean(1) / expected[draws].mean(1)
    return [round(float(x), 5) for x in (1 - measured.mean() / expected.mean(), *np.quantile(shares, (0.025, 0.975)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("events")
    for name in ("model", "users", "videos", "schema", "as-of", "test-from"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precisions", default="fp32,fp16,fp8")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    names = ("model", "users", "videos", "schema", "as_of", "test_from", "engine", "device")
    given = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    config = EvaluateConfig(**given, ks=str(K), decode="slate")
    opened = opening.open_test(config, asked.events, Stages())
    config = config.for_model(opened.model)
    table, first = {}, None
    for precision in asked.precisions.split(","):
        best_MK, values, engine = lists_of(replace(config, precision=precision), opened)
        first = first or (best_MK, values)
        table[precision] = {
            "ndcg": round(float(values[f"ndcg@{K}"].mean()), 5),
            "hr": round(float(values[f"hr@{K}"].mean()), 5),
            "ndcg_lost_low_high": lost(first[1][f"ndcg@{K}"], values[f"ndcg@{K}"]),
            "top_10_shared": round(float(top_overlap(best_MK, first[0])), 4),
            "first_shared": round(float((best_MK[:, 0] == first[0][:, 0]).mean()), 4),
        }
        print(f"{engine.name} in {precision} on {engine.device}: {table[precision]}", flush=True)
    result = {
        "command": " ".join(sys.argv),
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "users": len(opened.rows),
        "mean_length": round(float(opened.rows.histories.lengths_N.mean()), 2),
        "precisions": table,
    }
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
