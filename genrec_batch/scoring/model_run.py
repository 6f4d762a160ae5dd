"""The users of a run through the engine of one model: shards cut into batches, fed to it, and put together again.

Owns: the order of these steps, and on which threads they run. Must not know: how any step does its work, other models
of the run (`experiment`), where parts go. In: a data set and options. Out: ranked shards, and their parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from genrec_batch.core.arrays import I64, Batch
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.choose import Opening, Selection, decoding_of, prepare
from genrec_batch.engines.feed import Feed
from genrec_batch.engines.numbers import NotNumbersError
from genrec_batch.engines.protocol import Engine
from genrec_batch.events.dataset import Dataset
from genrec_batch.events.user_histories import Group, Shard, UserHistories
from genrec_batch.features.batches import ModelInputs, Vectorizer, workers
from genrec_batch.features.sampled import rows_of
from genrec_batch.runtime import console, threads
from genrec_batch.runtime.clock import Stages
from genrec_batch.scoring.composing import Composing
from genrec_batch.scoring.engine import open_engine
from genrec_batch.scoring.fingerprints import Prints
from genrec_batch.scoring.previous import Previous
from genrec_batch.scoring.results import OutputPart, Results
from genrec_batch.scoring.rules import Ruling
from genrec_batch.scoring.sampled import SampledUsers
from genrec_batch.scoring.shape import Shape, shape_of
from genrec_batch.scoring.shard import ShardRun

T = TypeVar("T")
Fed = Iterator[tuple[tuple[ShardRun, I64], Batch]]


def made_ahead(users: UserHistories, made: Callable[[Shard], T], groups: Iterable[Group] | None) -> Iterator[T]:
    """Yield what is made of each shard of some groups, in order, by default of all; threads make them ahead."""
    shards, count = users.shards(groups), workers(threads.cores())
    if count == 1:  # few cores, and little memory
        return threads.ordered(made, shards, workers=count, name="features")
    ahead = threads.background(shards, ahead=1, name="shards")
    return threads.background(threads.ordered(made, ahead, workers=count, name="features"), ahead=1, name="prepare")


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A data set, and the engine that its users go through."""

    config: ScoreConfig
    dataset: Dataset
    vectorizer: Vectorizer
    selection: Selection
    feed: Feed
    shape: Shape
    ruling: Ruling
    composing: Composing | None = None  # where rules compose lists

    @staticmethod
    def of(
        config: ScoreConfig,
        dataset: Dataset,
        stages: Stages,
        selection: Selection | None = None,
        ahead: Opening | None = None,
    ) -> Scoring:
        """Open the engine of a run, or continue with one that is open; `ahead` is a head start.

        Raises:
            ConfigError: a column that the options name is in no table.
            EngineError: the engine, device or precision of the options is not available.
            GateError: `--verify-sample` found that it does not agree with fp32.
        """
        decoding = decoding_of(config, dataset.model)
        with stages.time("rules"):
            composing = Composing.of(config, dataset)
            ruling = Ruling.of(config, dataset)
            shape = shape_of(config, dataset, ruling.catalog)
        vectorizer = ruling.vectorizer(config, dataset)
        if selection is None:
            selection = open_engine(config, dataset, vectorizer, stages, ahead)
        elif not config.candidates:
            prepare(selection.engine, decoding, longest=config.max_events, mean=dataset.users.mean_events)
        feed = Feed(
            engine=selection.engine,
            decoding=decoding,
            stages=stages,
            batch_users=selection.batch_users,
            tokens=dataset.model.tokens,
        )
        return Scoring(
            config=config,
            dataset=dataset,
            vectorizer=vectorizer,
            selection=selection,
            feed=feed,
            shape=shape,
            ruling=ruling,
            composing=composing,
        )

    @property
    def engine(self) -> Engine:
        """The engine that is used."""
        return self.selection.engine

    def identity(self) -> dict[str, Any]:
        """Return what decides the rows beside what every run has: nothing."""
        return {}

    def scope(self) -> dict[str, Any]:
        """Return what decides rows of all users and is neither in the identity nor in the options."""
        return {} if self.composing is None else self.composing.scope()

    def shards(
        self, groups: Iterable[Group] | None = None, previous: Previous | None = None, *, sampled: bool = False
    ) -> Iterator[ShardRun]:
        """Yield the shards of some groups, by default of all, cut into batches; threads make them ahead.

        Users whose input is the same in an earlier output are not in the batches. Some users are `sampled`: their drift
        is watched.
        """
        return made_ahead(self.dataset.users, lambda shard: self.shard_run(shard, previous, sampled=sampled), groups)

    def parts(
        self, groups: Iterable[Group], previous: Previous | None, advance: console.Advance, *, sampled: bool = False
    ) -> Iterator[Callable[[], OutputPart]]:
        """Yield the parts of some groups of shards, in order, as work that ends in a part; see `shards`."""
        results = self.results(previous)
        for shard in self.ranked(self.shards(groups, previous, sampled=sampled), advance):
            yield partial(results.part, shard)

    def shard_run(
        self, shard: Shard, previous: Previous | None = None, rows_N: I64 | None = None, *, sampled: bool = False
    ) -> ShardRun:
        """Return a shard's users, or those at `rows_N`, cut into batches; see `shards`."""
        users, stages, size = self.dataset.users, self.feed.stages, len(shard) if rows_N is None else len(rows_N)
        with stages.time("features", rows=size, bytes=4 * self.dataset.model.config.features * size):
            inputs = self.vectorizer.inputs(shard.histories, shard.start, rows_N)
        with stages.time("batch", rows=size):
            ids, rows_S = users.ids.slice(shard.start, len(shard)), None
            ids = ids if rows_N is None else ids.gather(rows_N)
            places_N = shard.start + (np.arange(len(shard)) if rows_N is None else rows_N)
            prints = Prints.of(inputs, users.as_of_us, users.store.reader.sorter)
            counts: Mapping[str, int] = {}
            if previous is not None:
                kept = previous.kept(ids, prints, self.config.carry_us())
                prints, counts = kept.prints, kept.counts
                rows_S = np.flatnonzero(~kept.unchanged_N) if kept.unchanged_N.any() else None
            return ShardRun.of(
                shard.number,
                ids,
                inputs,
                rows_S=rows_S,
                prints=prints,
                kept_counts=counts,
                batch_rows=self.feed.batch_rows,
                top_k=self.config.top_k,
                catalog_videos=len(self.dataset.catalog),
                places_N=places_N if self.ruling.filling is not None else None,
                sampled=self._sampled(shard, inputs, rows_N) if sampled else None,
                promoted=self.composing.promoted(places_N, inputs) if self.composing else None,
            )

    def _sampled(self, shard: Shard, inputs: ModelInputs, rows_N: I64 | None) -> SampledUsers:
        rows_C = rows_of(shard.start, len(shard), len(self.dataset.users))
        if rows_N is not None:  # of one arm
            rows_C = np.flatnonzero(np.isin(rows_N, rows_C))
        slates = self.feed.decoding.mode == "slate" and inputs.candidates is None
        return SampledUsers.of(inputs, rows_C, self.config.top_k, by_step=slates)

    def answer(self, batches: Fed, advance: console.Advance) -> None:
        """Put what the engine recommends to the users of some batches where it belongs."""
        try:
            for (run, rows_B), rows, ranked in self.feed.recommend(batches):
                run.put(rows_B[rows], ranked)
                advance(len(ranked))
        except NotNumbersError as error:
            raise self._named(error) from error

    def ranked(self, shards: Iterator[ShardRun], advance: console.Advance = console.nowhere) -> Iterator[ShardRun]:
        """Yield each shard once the engine has answered for all of its users; it never waits between two shards."""
        unscored: deque[ShardRun] = deque()  # shards without a user to score

        def batches() -> Iterator[tuple[tuple[ShardRun, I64], Batch]]:
            for shard in shards:
                if not len(shard):
                    unscored.append(shard)
                while shard.batches:
                    rows_B, batch = shard.batches.popleft()
                    yield (shard, rows_B), batch

        try:
            for (shard, rows_B), rows, ranked in self.feed.recommend(batches()):
                shard.put(rows_B[rows], ranked)
                advance(len(ranked))
                if not shard.left:
                    yield shard
                while unscored:
                    yield unscored.popleft()
        except NotNumbersError as error:
            raise self._named(error) from error
        yield from unscored

    def _named(self, error: NotNumbersError) -> NotNumbersError:
        """Return the error of an engine that did not return numbers, with the ids of the users."""
        shard, rows_B = error.key
        ids = shard.scored_ids.gather(rows_B[error.rows_R]).sort()
        engine, some = self.feed.engine, ", ".join(map(str, ids.head(3)))
        text = (
            f"{engine.title} returned no finite scores for {len(ids)} users of a batch "
            f"(user_id {some}{', ...' if len(ids) > 3 else ''}); {error}"
        )
        return NotNumbersError(text, key=error.key, rows_R=error.rows_R)

    def results(self, previous: Previous | None = None) -> Results:
        """Return what turns ranked shards into rows."""
        dataset = self.dataset
        return Results(
            config=self.config,
            catalog=self.ruling.catalog,
            filling=self.ruling.filling,
            video_type=dataset.video_type,
            stages=self.feed.stages,
            shape=self.shape,
            composing=self.composing,
            previous=previous,
        )

    def report(self) -> dict[str, Any]:
        """Return what the summary says of the engine and its work."""
        engine, feed = self.selection.engine, self.feed
        peak_bytes = engine.peak_bytes()
        return {
            "engine": engine.name,
            "device": engine.device,
            "precision": engine.precision,
            "engine_why": self.selection.why,
            **self.selection.facts(),
            "batch_users": feed.batch_users,
            **engine.report(),
            "features_kernel": self.vectorizer.kernel,
            **({} if peak_bytes is None else {"device_peak_mib": round(peak_bytes / 2**20, 1)}),
            "scored_users": feed.fed_users,
            "padding_share": round(feed.padding_share, 4),
            **(self.ruling.rules.facts() if self.ruling.rules is not None else {}),
        }
