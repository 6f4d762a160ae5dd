"""What epochs on sets do to lists: a model before and after them, beside as many epochs in the log's own order.

    python tests/benchmarks/bench_sets.py LOG OUT --as-of 2022-04-29T15:59:59.999 --test-from 2022-04-29T16:00 \
        --schema kuairand --users users.parquet --videos videos.parquet --preset tiny --vocab-size 3002 --epochs 8

One search; then, from its best weights on, every arm BLOCK:EPOCHS:RATE of `--arms`: so many epochs in which the order
after the cut is shuffled in blocks of so many events (1: the log's order, a control), at most at that share of the
highest learning rate. An arm last:EPOCHS is the search anew, so many of whose own last epochs are on sets.

Each model is measured on the validation of `train`, which says whether `--set-epochs` would keep it, and on the test:
all users with events from `--test-from` on, the next video and the next ten. What is in OUT already is not trained
again. The last line is JSON; results are means of those of several seeds.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from genrec_batch.evaluation.options import EvaluateConfig
from genrec_batch.evaluation.run import measure
from genrec_batch.model import weights
from genrec_batch.runtime.clock import Stages
from genrec_batch.training import material, phase
from genrec_batch.training.checkpoint import STATE, Checkpoints
from genrec_batch.training.choice import choose, engine_of, exported
from genrec_batch.training.device import Place
from genrec_batch.training.job import Training, _state
from genrec_batch.training.options import TrainConfig
from genrec_batch.training.phase import SEARCH, SEARCH_SETS, SET_EVENTS, Phase, State
from genrec_batch.training.saving import save
from genrec_batch.training.validate import Validation, better_mode

TABLES, TEXTS, NUMBERS = (
    ("schema", "users", "videos"),
    ("as_of", "valid_from", "preset"),
    ("vocab_size", "epochs", "seed"),
)
MODES = ("candidates", "slate")


@dataclass(frozen=True, kw_only=True)
class LastOnSets(Phase):
    """A phase whose epochs from `sets_from` on are on sets."""

    sets_from: int

    def batches(self, epoch, start):
        return Phase.batches(replace(self, block=SET_EVENTS if epoch >= self.sets_from else 1), epoch, start)


class Bench:
    """A search that is done, and what is measured of weights that come of it."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.out = asked, asked.out
        given = {name: getattr(asked, name) for name in (*TABLES, *TEXTS, *NUMBERS)}
        options = TrainConfig(refit=False, **{name: value for name, value in given.items() if value is not None})
        learned = material.read(options, asked.log, Stages())
        self.training = Training(
            options=options,
            path=asked.log,
            out=asked.out,
            material=learned,
            place=Place.of("cpu", "auto"),
            checkpoints=self.checkpoints("checkpoint"),
            stages=Stages(),
        )
        self.held_out = Validation.of(learned.events(options, held_out=False), learned.cuts, options.seed)
        self.search = self.training.phase(SEARCH, self.held_out)
        found = self.training.checkpoints.load(STATE)
        self.state, tensors = (State(), None) if found is None else (_state(found[1]), found[0])
        self.best = self.training._search(self.search, self.state, tensors)
        self.before = None

    def checkpoints(self, name: str) -> Checkpoints:
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        return Checkpoints(folder=folder)

    def model(self, name: str, make) -> Path:
        """Return the directory of a model, made of the weights that `make` returns unless it is there."""
        place, training = self.out / f"model-{name}", self.training
        if not place.exists():
            made = make()
            choice = choose(self.search, training.material, made)
            arrays = exported(self.search, training.material, made, choice)
            trained = training._trained(self.search, arrays, choice, training._facts(self.state, choice))
            save(place, training.options, training.material, arrays, trained, [])
        return place

    def arm(self, block: int, epochs: int, rate: float) -> dict[str, object]:
        """Train on from the best weights and measure what comes of it."""

        def make():
            recipe = replace(self.search.recipe, lr=self.search.recipe.lr * rate)
            sets = replace(self.search.on_sets(SEARCH_SETS, self.state.best_epoch), block=block, recipe=recipe)
            state = replace(self.state, history=[])
            state.next_phase(SEARCH_SETS)
            initial = {name: tensor.clone() for name, tensor in self.best.items()}
            return phase.run(sets, epochs, initial, state, self.checkpoints("scratch"), None)

        place = self.model(f"{block}-{epochs}-{rate}", make)
        return {"block": block, "epochs": epochs, "rate": rate, **self.measured(place)}

    def last(self, epochs: int) -> dict[str, object]:
        """Search anew, the last epochs on sets."""

        def make():
            planned = self.state.planned
            same = {field.name: getattr(self.search, field.name) for field in fields(Phase)}
            run = LastOnSets(**{**same, "name": SEARCH_SETS}, sets_from=planned - epochs)
            initial, state = self.training.initial(self.search.standard), State(planned=planned, phase=SEARCH_SETS)
            return phase.run(run, planned, initial, state, self.checkpoints("scratch"), None)

        return {"last": epochs, **self.measured(self.model(f"last-{epochs}", make))}

    def measured(self, place: Path) -> dict[str, object]:
        """Return a model's figures of validation and test; the first one is what the others are compared with."""
        several = self.training.material.several
        lists = self.held_out.decoding(engine_of(self.search, weights.load(place).weights), self.search.items)
        decode = better_mode(lists, several=several)
        found = {"decode": decode, "validation": {mode: lists[mode].figures() for mode in MODES}}
        if self.before is not None:
            of_default, of_slates = self.before[0], self.before[1]["slate"]
            more_N = lists["slate"].more_than(of_slates, several=several)
            found["kept"] = lists[decode].better_than(of_default, several=several)
            found["slates_gain_in_errors"] = float(more_N.mean() / more_N.std() * len(more_N) ** 0.5)
        else:
            self.before = lists[decode], lists
        return {**found, "test": self.tested(place)}

    def tested(self, place: Path) -> dict[str, dict[str, float]]:
        """Return hit rate, gain and recall of each mode on the test."""
        given = {name: getattr(self.asked, name) for name in TABLES if getattr(self.asked, name) is not None}
        config = EvaluateConfig(model=str(place), test_from=self.asked.test_from, engine="torch", **given)
        found: dict[str, dict[str, float]] = {mode: {} for mode in MODES}
        for each in measure(config, self.asked.log, rules=False).report["rankings"]:
            name = "next" if each["next"] == 1 else "next10"
            for metric in ("hr@10", "ndcg@10", "recall@10"):
                found[each["list"]][f"{name}_{metric.replace('@', '_')}"] = each["metrics"][metric]["value"]
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log")
    parser.add_argument("out", type=Path)
    parser.add_argument("--test-from", required=True)
    parser.add_argument("--arms", default="1:1:0.3,10:1:0.3")
    for name in (*TABLES, *TEXTS):
        parser.add_argument(f"--{name.replace('_', '-')}")
    for name in NUMBERS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    asked = parser.parse_args()
    bench = Bench(asked)
    arms = [bench.measured(bench.model("search", lambda: bench.best))]
    for arm in asked.arms.split(","):
        kind, epochs, *rate = arm.split(":")
        arms.append(bench.last(int(epochs)) if kind == "last" else bench.arm(int(kind), int(epochs), float(rate[0])))
        print(json.dumps(arms[-1]), flush=True)
    rows = {"validation_rows": len(bench.held_out), "best_epoch": bench.state.best_epoch}
    print(json.dumps({"seed": asked.seed, **rows, "arms": arms}))


if __name__ == "__main__":
    main()
