"""The whole job: events in, histories, features, batches through an engine, ranked rows out, all at the same time.

Owns: the order of the steps, and on which threads they run. Must not know: how any step does its work. Users go through
in id order, a shard at a time:

    histories-N  loads a bucket of users and orders their events      (`UserHistories.shards`)
    features-N   computes what the model reads of a shard             (`Vectorizer.inputs`)
    main         feeds the engine, batch after batch                  (`Feed.recommend`)
    write-N      turns a shard's ranking into rows and a part on disk (`Results.part`, `Output.write`)

Short queues between them bound the memory; an error in any thread ends the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genrec_batch.core.arrays import I64, Batch
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.choose import Opening, Selection, decoding_of, prepare
from genrec_batch.engines.feed import Feed
from genrec_batch.engines.numbers import NotNumbersError
from genrec_batch.events.dataset import Dataset
from genrec_batch.events.user_histories import Shard
from genrec_batch.features.batches import Vectorizer, workers
from genrec_batch.io import forked, published
from genrec_batch.runtime import console, threads
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring.engine import open_engine
from genrec_batch.scoring.fingerprints import Prints, scope
from genrec_batch.scoring.lineage import Run
from genrec_batch.scoring.previous import DamagedError, Previous
from genrec_batch.scoring.results import OutputPart, Results
from genrec_batch.scoring.shard import ShardRun
from genrec_batch.scoring.writing import opened, write


def score(config: ScoreConfig, source: str, target: str | None, stages: Stages | None = None) -> dict[str, Any]:
    """Score a log and write its recommendations; return the run's summary, and the rows themselves without a target.

    Raises:
        GenrecError: see its subclasses; each carries the exit code of its kind.
    """
    forked.check()
    stages = stages or Stages()
    with ExitStack() as stack:
        previous = _previous(config, target, stages)
        ahead = Opening(config)
        stack.callback(ahead.close)
        dataset = stack.enter_context(opened(config, source, target, stages, ahead))
        scoring = Scoring.of(config, dataset, stages, ahead=ahead)
        run = Run.of("score", config, dataset, stages, scoring.feed.engine, previous.run_id if previous else None)
        if target is None:
            return _in_memory(run, scoring)
        shared = scope(run.identity, config)
        if previous is not None:
            previous = previous.compared(shared, dataset.users.ids.dtype, dataset.video_type)
            if previous.why_not:
                said = f"--previous {config.previous}: all users are scored again, since it differs in"
                LOG.warning("%s %s", said, previous.why_not)
                previous = None
        results = scoring.results(previous)

        def parts(skip: set[int], advance: console.Advance) -> Generator[Callable[[], OutputPart], None, None]:
            for shard in scoring.ranked(scoring.shards(skip, previous), advance):
                yield partial(results.part, shard)

        return write(run, Path(target), parts, report=scoring.report, scope=shared, compared=previous is not None)


def _previous(config: ScoreConfig, target: str | None, stages: Stages) -> Previous | None:
    if target is None or config.previous is None:
        return None
    published.check(Path(target), config.if_exists)  # before a long check of the earlier output
    with stages.time("previous"), console.busy(f"checking {config.previous}"):
        try:
            return Previous.open(config.previous)
        except DamagedError as error:
            LOG.warning("%s", error)
            return None


def _in_memory(run: Run, scoring: Scoring) -> dict[str, Any]:
    """Return the summary of a run that writes nothing, with its rows."""
    results = scoring.results()
    done = [results.part(shard) for shard in scoring.ranked(scoring.shards())]
    counts = {name: sum(part.counts[name] for part in done) for name in done[0].counts}
    return run.summary({**scoring.report(), **counts}) | {"rows": pa.concat_tables([part.table for part in done])}


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A data set, and the engine that its users go through."""

    config: ScoreConfig
    dataset: Dataset
    vectorizer: Vectorizer
    selection: Selection
    feed: Feed

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
            EngineError: the engine, device or precision of the options is not available.
            GateError: `--verify-sample` found that it does not agree with fp32.
        """
        decoding = decoding_of(config, dataset.model)
        vectorizer = Vectorizer.of(dataset, include_seen=config.include_seen)
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
        return Scoring(config=config, dataset=dataset, vectorizer=vectorizer, selection=selection, feed=feed)

    def shards(self, skip: Collection[int] = (), previous: Previous | None = None) -> Iterator[ShardRun]:
        """Yield each shard whose number is not in `skip`, cut into batches; threads make them ahead.

        Users whose input is the same in an earlier output are not in the batches.
        """
        users, stages = self.dataset.users, self.feed.stages

        def made(shard: Shard) -> ShardRun:
            with stages.time("features", rows=len(shard), bytes=4 * self.dataset.model.config.features * len(shard)):
                inputs = self.vectorizer.inputs(shard.histories, shard.start)
            with stages.time("batch", rows=len(shard)):
                ids, rows_S = users.ids.slice(shard.start, len(shard)), None
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
                )

        ahead = threads.background(users.shards(skip), ahead=1, name="shards")
        count = workers(threads.cores())
        made_ahead = threads.ordered(made, ahead, workers=count, name="features")
        few_cores = count == 1  # and little memory
        return made_ahead if few_cores else threads.background(made_ahead, ahead=1, name="prepare")

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
            f"the {engine.name} engine in {engine.precision} returned no finite scores for {len(ids)} users of a batch "
            f"(user_id {some}{', ...' if len(ids) > 3 else ''}); {error}"
        )
        return NotNumbersError(text, key=error.key, rows_R=error.rows_R)

    def results(self, previous: Previous | None = None) -> Results:
        """Return what turns ranked shards into rows."""
        dataset = self.dataset
        return Results(
            config=self.config,
            catalog=dataset.catalog,
            video_type=dataset.video_type,
            stages=self.feed.stages,
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
            "batch_users": feed.batch_users,
            "features_kernel": self.vectorizer.kernel,
            **({} if peak_bytes is None else {"device_peak_mib": round(peak_bytes / 2**20, 1)}),
            "scored_users": feed.fed_users,
            "padding_share": round(feed.padding_share, 4),
        }
