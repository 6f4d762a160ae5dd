"""An experiment in one pass over a log: users are divided among arms, each with a model and an engine of its own.

Owns: who goes through which engine, and the engines' turns. Must not know: how an arm scores its users, how rows of
arms become one part (`arm_results`), files. It offers what `Scoring` offers for one model: parts, and a report.

Every shard's users are divided by bucket; the features are computed of each arm's own users, with that arm's tokens.
The engines take turns over a few shards at a time, which bounds the memory; a shard is passed on when all arms have
answered. Shadows are scored for users of a range of buckets beside their own arm; their lists are compared with the
published ones of the same users and then dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from genrec_batch.core.arrays import FIRST_ITEM, I64, U8, Batch
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.choose import Opening
from genrec_batch.engines.protocol import Engine
from genrec_batch.events import arm_datasets
from genrec_batch.events.dataset import Dataset
from genrec_batch.events.user_histories import Group, Shard
from genrec_batch.model.registry import Begun
from genrec_batch.rules.assign import Assignment
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages
from genrec_batch.scoring.arm_results import ArmResults, ArmShard, SplitShard
from genrec_batch.scoring.arm_run import ArmRun, of_arm
from genrec_batch.scoring.fingerprints import ARMS
from genrec_batch.scoring.model_run import Fed, Scoring, made_ahead
from genrec_batch.scoring.previous import Previous
from genrec_batch.scoring.results import OutputPart
from genrec_batch.scoring.shape import Shape
from genrec_batch.scoring.shard import ShardRun

SHARDS_A_ROUND = 4  # that the engines go through before the next one's turn ends; a killed run loses them


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The arms of a run over one data set, the published ones first, in the order given."""

    config: ScoreConfig
    dataset: Dataset  # of the first arm, whose users all arms share
    arms: list[ArmRun]
    assignment: Assignment
    stages: Stages
    covered: dict[str, U8] = field(default_factory=dict)  # see `ArmResults`; empty where nothing was computed

    @staticmethod
    def of(
        config: ScoreConfig,
        dataset: Dataset,
        stages: Stages,
        ahead: Opening,
        begun: Callable[[str], Begun | None],
    ) -> Experiment:
        """Open the engines of all arms; `dataset` is that of the first one, and so is `ahead`.

        `begun` returns what an earlier try of this run recorded of an arm's model, which is then taken again.

        Raises:
            ConfigError, ModelError, EngineError, GateError: see `Scoring.of`; the message names the arm.
            RetryError: the device has no room for the engines of all arms.
        """
        arms = config.arms()
        first, *others = arms
        with of_arm(first):
            runs = [ArmRun(arm=first, scoring=Scoring.of(config.of_arm(first), dataset, stages, ahead=ahead))]
        for arm in others:
            with of_arm(arm):
                own = config.of_arm(arm)
                with stages.time("model"), console.busy(f"reading the model of {arm.name}"):
                    view = arm_datasets.of_arm(dataset, own, begun(arm.name))
                runs.append(ArmRun(arm=arm, scoring=Scoring.of(own, view, stages)))
        assignment = Assignment.of(arms, salt=config.salt or "", assign=config.assign)
        return Experiment(config=config, dataset=dataset, arms=runs, assignment=assignment, stages=stages)

    @property
    def published(self) -> int:
        """Number of arms whose lists are published; they come first."""
        return sum(not each.arm.shadow for each in self.arms)

    @property
    def engine(self) -> Engine:
        """The engine of the first arm."""
        return self.arms[0].scoring.engine

    @property
    def shape(self) -> Shape:
        """The shape of the output, the same for all arms."""
        return self.arms[0].scoring.shape

    def identity(self) -> dict[str, Any]:
        """Return what decides the rows of each arm, by name."""
        ranges = self.assignment.ranges()
        return {ARMS: {each.arm.name: each.identity(ranges[place]) for place, each in enumerate(self.arms)}}

    def scope(self) -> dict[str, Any]:
        """Return what decides rows of all users and is neither in the identity nor in the options."""
        scopes = {each.arm.name: each.scoring.scope() for each in self.arms}
        return {"scope_of_arms": scopes} if any(scopes.values()) else {}

    def shards(
        self, groups: Iterable[Group] | None = None, previous: Previous | None = None, *, sampled: bool = False
    ) -> Iterator[SplitShard]:
        """Yield the shards of some groups, by default of all, divided by arm; threads make them ahead.

        Some users of the first arm are `sampled`: their drift from that arm's model is watched.
        """

        def made(shard: Shard) -> SplitShard:
            ids = self.dataset.users.ids.slice(shard.start, len(shard))
            with self.stages.time("assign", rows=len(shard)):
                bucket_N = self.assignment.buckets(ids.cast(pl.String).cast(pl.Binary).to_list())
            arm_N = self.assignment.arms(bucket_N)
            return SplitShard(
                number=shard.number,
                ids=ids,
                bucket_N=bucket_N,
                arm_N=arm_N,
                own=self._runs(shard, previous, [arm_N == place for place in range(self.published)], sampled=sampled),
                shadows=self._runs(
                    shard,
                    None,
                    [self.assignment.shadowed(place, bucket_N) for place in range(len(self.arms) - self.published)],
                    first=self.published,
                ),
            )

        return made_ahead(self.dataset.users, made, groups)

    def _runs(
        self, shard: Shard, previous: Previous | None, chosen: Sequence[U8], first: int = 0, *, sampled: bool = False
    ) -> list[tuple[int, ArmShard]]:
        """Return the runs of the arms from place `first` on that are scored for users of a shard."""
        found = []
        for place, chosen_N in enumerate(chosen, start=first):
            rows = np.flatnonzero(chosen_N)
            if len(rows):
                run = self.arms[place].scoring.shard_run(shard, previous, rows, sampled=sampled and not place)
                found.append((place, ArmShard(rows=rows, run=run)))
        return found

    def ranked(self, shards: Iterator[SplitShard], advance: console.Advance = console.nowhere) -> Iterator[SplitShard]:
        """Yield each shard once all arms have answered; the engines take turns over SHARDS_A_ROUND of them."""
        while True:
            turn = _Round(shards, len(self.arms))
            for place, each in enumerate(self.arms):
                with of_arm(each.arm):
                    each.scoring.answer(turn.batches(place), console.nowhere if each.arm.shadow else advance)
            if not turn.begun:
                return
            yield from turn.begun

    def parts(
        self, groups: Iterable[Group], previous: Previous | None, advance: console.Advance, *, sampled: bool = False
    ) -> Iterator[Callable[[], OutputPart]]:
        """Yield the parts of some groups of shards, in order, as work that ends in a part; see `shards`."""
        results = self.results(previous)
        for shard in self.ranked(self.shards(groups, previous, sampled=sampled), advance):
            yield partial(results.part, shard)

    def results(self, previous: Previous | None = None) -> ArmResults:
        """Return what turns ranked shards into rows."""
        results = [each.scoring.results(None if each.arm.shadow else previous) for each in self.arms]
        for each, found in zip(self.arms, results, strict=True):
            self.covered.setdefault(each.arm.name, np.zeros((2, FIRST_ITEM + len(found.catalog)), np.bool_))
        return ArmResults(
            names=[each.arm.name for each in self.arms],
            results=results,
            covered=dict(self.covered),
        )

    def report(self) -> dict[str, Any]:
        """Return what the summary says of the engines and their work."""
        reports, ranges = [each.scoring.report() for each in self.arms], self.assignment.ranges()
        first = {name: fact for name, fact in reports[0].items() if name != "servers"}  # each arm has them
        return {
            **first,
            "scored_users": sum(each["scored_users"] for each in reports),
            "salt": self.config.salt,
            "assign": self.config.assign,
            ARMS: {
                each.arm.name: {**each.facts(ranges[place]), **self._coverage(each)}
                for place, each in enumerate(self.arms)
            },
        }

    def _coverage(self, each: ArmRun) -> dict[str, Any]:
        """Return how many videos an arm recommended in the parts of this process, and their share of its catalog."""
        covered_2V, catalog = self.covered.get(each.arm.name), len(each.scoring.dataset.catalog)
        if covered_2V is None:
            return {"videos": None, "coverage": None}
        videos, own = covered_2V[:, FIRST_ITEM:].sum(axis=1).tolist()
        return {"videos": videos, "coverage": round(own / catalog, 4)}


class _Round:
    """A few shards, and their batches that wait for the engine of each arm."""

    def __init__(self, shards: Iterator[SplitShard], arms: int) -> None:
        self.begun: list[SplitShard] = []
        self._shards = shards
        self._waiting: list[deque[tuple[tuple[ShardRun, I64], Batch]]] = [deque() for _ in range(arms)]

    def batches(self, place: int) -> Fed:
        """Yield the batches of one arm; the first arm to ask takes the shards, as it needs them."""
        waiting = self._waiting[place]
        while waiting or self._take():
            if waiting:
                yield waiting.popleft()

    def _take(self) -> bool:
        """Take the next shard, and return whether there was one to take."""
        shard = next(self._shards, None) if len(self.begun) < SHARDS_A_ROUND else None
        if shard is None:
            return False
        self.begun.append(shard)
        for place, each in (*shard.own, *shard.shadows):
            while each.run.batches:
                rows_B, batch = each.run.batches.popleft()
                self._waiting[place].append(((each.run, rows_B), batch))
        return True
