"""What `--batch-size auto` takes on this GPU, and what finding out costs: a run that measures, and one that reads.

python tests/benchmarks/bench_sizing.py MODEL_DIR [--engine torch] [--precision fp16]
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from bench_tensorrt import inputs

from genrec_batch.engines.batch_size import choose
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.plan_cache import EngineCache
from genrec_batch.engines.registry import open_engine
from genrec_batch.model.weights import load


def main():
    """Measure, then read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--precision", default="fp16")
    arguments = parser.parse_args()
    model, found = load(arguments.model), []
    engine = open_engine(model, name=arguments.engine, device="cuda:0", precision=arguments.precision)
    for _ in range(2):
        began = time.perf_counter()
        size = choose(engine, model, inputs(512, (5, 50)), Decoding(), cache=EngineCache())
        found.append({"seconds": round(time.perf_counter() - began, 3), "users": size.users, "why": size.why})
        print(found[-1]["why"])
    print(json.dumps({"date": time.strftime("%Y-%m-%d"), "hardware": engine.hardware(), "runs": found}))


if __name__ == "__main__":
    main()
