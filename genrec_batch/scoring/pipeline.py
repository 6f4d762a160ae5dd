"""The whole job: events in, histories, features, batches through an engine, ranked rows out, all at the same time.

Owns: the order of the steps, and which threads they run on. Must not know: how any step does its work, or who
called. Users go through in id order, a part of the output (a shard) at a time:

    histories-N  loads a bucket of users and orders their events      (`UserHistories.shards`)
    features-N   computes what the model reads of a shard             (`Vectorizer.inputs`)
    main         feeds the engine, batch after batch                  (`Scoring.rank`)
    write-N      turns a shard's ranking into rows and a part on disk (`Scoring.table`, `Output.write`)

Between them stand short queues, so memory stays bounded; what any thread raises ends the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from genrec_batch.core import layout
from genrec_batch.core.arrays import I64
from genrec_batch.core.declare import recorded
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import HistoryConfig, ScoreConfig
from genrec_batch.engines.choose import Opening
from genrec_batch.events import by_user
from genrec_batch.events.dataset import Dataset
from genrec_batch.events.user_histories import Shard
from genrec_batch.features.batches import Vectorizer
from genrec_batch.io import output, published
from genrec_batch.runtime import console, malloc, threads
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring import fingerprints, lineage
from genrec_batch.scoring.previous import Previous, merged
from genrec_batch.scoring.shard import Scored, Scoring, ShardBatches

MANY_CORES = 8  # from which a shard takes so short that its memory is better kept for the next one
SEEN = "given candidates were left out, as their users have seen them; --include-seen keeps them"
SHORT = "users have fewer than --top-k videos left to recommend and get fewer rows"


@dataclass(frozen=True, kw_only=True)
class Threads:
    """Threads of each step, for the cores there are: the engine has most of them where it runs on the CPU."""

    features: int
    write: int

    @staticmethod
    def of(cores: int) -> Threads:
        """Divide `cores`."""
        return Threads(features=max(1, cores // 3), write=max(1, cores // 4))


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A part of the output, ready to be written."""

    number: int
    users: int
    table: pa.Table
    counts: dict[str, int]
    fingerprints: pa.Table | None = None


def score(config: ScoreConfig, source: str, target: str | None, stages: Stages | None = None) -> dict[str, Any]:
    """Score a log and write its recommendations; return the run's summary, and the rows themselves without a target.

    Raises:
        GenrecError: see its subclasses; each carries the exit code of its kind.
    """
    stages = stages or Stages()
    with ExitStack() as stack:
        previous = None
        if target is not None and config.previous is not None:
            published.check(Path(target), config.if_exists)
            with stages.time("previous"), console.busy(f"checking {config.previous}"):
                previous = Previous.open(config.previous)
        ahead = Opening(config)
        dataset = open_dataset(config, source, target, stages, stack, ahead)
        scoring = Scoring.of(config, dataset, stages, ahead=ahead)
        identity = lineage.of(config, dataset, engine=scoring.selection.engine)
        if target is None:
            done = [finished(scoring, scored, None) for scored in scoring.rank(shards(scoring, set(), None))]
            counts = _sums([part.counts for part in done])
            facts = lineage.summary("score", dataset, stages, identity, {**scoring.report(), **counts})
            return facts | {"rows": pa.concat_tables([part.table for part in done])}
        shared = fingerprints.scope(identity, config)
        if previous is not None:
            previous = previous.compared(shared, dataset.users.ids.dtype, dataset.video_type)
            if previous.why_not:
                said = f"--previous {config.previous}: everybody is scored again, since it differs in"
                LOG.warning("%s %s", said, previous.why_not)

        def parts(skip: set[int], advance: console.Advance) -> Generator[Callable[[], Finished], None, None]:
            for scored in scoring.rank(shards(scoring, skip, previous), advance):
                yield lambda scored=scored: finished(scoring, scored, previous)  # type: ignore[misc]

        return run("score", config, dataset, parts, identity, Path(target), stages, scoring.report, shared)


def open_dataset(
    config: HistoryConfig,
    source: str,
    target: str | None,
    stages: Stages,
    stack: ExitStack,
    ahead: Opening | None = None,
) -> Dataset:
    """Check the output and open the data set; its spilled files go when `stack` closes. `ahead` opens the engine.

    Raises:
        GenrecError: see `Dataset.open`.
    """
    if target is not None:
        published.check(Path(target), config.if_exists)
    if ahead is not None:
        stack.callback(ahead.close)
    dataset = Dataset.open(source, config, stages, spill_beside=target, ahead=ahead)
    stack.callback(dataset.users.close)
    _not_an_input(target, dataset)
    return dataset


def write_features(config: HistoryConfig, source: str, target: str) -> dict[str, Any]:
    """Write what the model would read of each user: user_id, features, tokens (newest last), history_length."""
    stages = Stages()
    with ExitStack() as stack:
        dataset = open_dataset(config, source, target, stages, stack)
        identity = lineage.of(config, dataset, engine=None)
        vectorizer = Vectorizer.of(dataset)

        def made(shard: Shard) -> Finished:
            part = shard.histories
            with stages.time("features", rows=len(part)):
                dense_NF = vectorizer.inputs(part, shard.start).dense_NF
            flat = pa.FixedSizeListArray.from_arrays(pa.array(dense_NF.reshape(-1)), layout.FEATURES)
            tokens = pa.ListArray.from_arrays(pa.array(part.offsets_N1.astype(np.int32)), pa.array(part.tokens_E))
            ids = dataset.users.ids.slice(shard.start, len(part)).to_arrow(compat_level=pl.CompatLevel.oldest())
            columns = [ids, flat.cast(pa.list_(pa.float32())), tokens, pa.array(part.lengths_N.astype(np.int32))]
            table = pa.table(columns, names=["user_id", "features", "tokens", "history_length"])
            cold = int(part.cold_start_N().sum())
            return Finished(number=shard.number, users=len(part), table=table, counts={"cold_start_users": cold})

        def parts(skip: set[int], advance: console.Advance) -> Generator[Callable[[], Finished], None, None]:
            workers = Threads.of(threads.cores()).features
            for part in threads.ordered(made, dataset.users.shards(skip), workers=workers, name="features"):
                advance(part.users)
                yield lambda part=part: part  # type: ignore[misc]

        return run("features", config, dataset, parts, identity, Path(target), stages, dict, None)


def shards(scoring: Scoring, skip: set[int], previous: Previous | None) -> Iterator[ShardBatches]:
    """Yield each shard that is not in `skip`, cut into batches, made ahead on other threads."""
    users, stages = scoring.dataset.users, scoring.stages

    def made(shard: Shard) -> ShardBatches:
        rows: I64 | None = None
        with stages.time("features", rows=len(shard), bytes=4 * layout.FEATURES * len(shard)):
            inputs = scoring.vectorizer.inputs(shard.histories, shard.start)
        with stages.time("batch", rows=len(shard)):
            prints = fingerprints.fingerprints(inputs, users.store.split.sorter)
            if previous is not None:
                kept = previous.unchanged(users.ids.slice(shard.start, len(shard)), prints)
                if kept.any():
                    rows = np.flatnonzero(~kept)
            return ShardBatches.of(
                inputs, shard.number, shard.start, shard.start + len(shard),
                rows=rows, prints=prints, size=scoring.batch_users, room=scoring.room, top_k=scoring.config.top_k,
            )  # fmt: skip

    ahead = threads.background(users.shards(skip), ahead=1, name="shards")
    workers = Threads.of(threads.cores()).features
    prepared = threads.ordered(made, ahead, workers=workers, name="features")
    return (
        prepared if workers == 1 else threads.background(prepared, ahead=1, name="prepare")
    )  # few cores, little memory


def finished(scoring: Scoring, scored: Scored, previous: Previous | None) -> Finished:
    """Return a shard's part of the output: the rows just ranked, and those that an earlier output still holds for."""
    shard, ids = scored.shard, scoring.dataset.users.ids
    table, counts = scoring.table(scored)
    all_ids = ids.slice(shard.start, shard.stop - shard.start)
    if previous is not None:
        counts |= {"carried_users": 0 if shard.rows is None else len(all_ids) - len(shard.rows)}
    if shard.rows is not None:
        assert previous is not None
        carried = np.setdiff1d(np.arange(len(all_ids)), shard.rows)
        rows, items_N = previous.rows_of(all_ids.gather(carried))
        table = merged(table, rows)
        counts["short_users"] += int((items_N < shard.wanted_N[carried]).sum())
    return Finished(
        number=shard.number,
        users=len(all_ids),
        table=table,
        counts=counts,
        fingerprints=fingerprints.as_table(all_ids, shard.prints),
    )


def _not_an_input(target: str | None, dataset: Dataset) -> None:
    """Raise ConfigError where the output would stand in place of an input, or inside a folder that is read."""
    if target is None:
        return
    place = Path(target).resolve()
    for source in dataset.inputs.values():
        files = [Path(file).resolve() for file in source.files]
        folder = Path(source.path).resolve()
        if any(place == file or place in file.parents for file in files) or (
            folder.is_dir() and folder in place.parents
        ):
            raise ConfigError(f"OUTPUT {target} stands in the place of input {source.path}; name another")


def run(
    command: str,
    config: HistoryConfig,
    dataset: Dataset,
    parts: Callable[[set[int], console.Advance], Generator[Callable[[], Finished], None, None]],
    identity: dict[str, Any],
    target: Path,
    stages: Stages,
    report: Callable[[], dict[str, Any]],
    scope: dict[str, Any] | None,
) -> dict[str, Any]:
    """Compute the parts that are not there yet, write each on other threads, put the output in place.

    `parts` is told which parts are there, and yields the others in order as work that ends in a `Finished`.
    """
    out = output.open_output(target, identity, config.if_exists)
    count = len(by_user.shards(len(dataset.users), config.shard_users))
    snapshots = {name: source.snapshot() for name, source in dataset.inputs.items()}
    told = {"config": recorded(config), "input": snapshots, "as_of": dataset.facts["as_of"]}
    plain = {key: value if isinstance(value, str) else _json(value) for key, value in {**identity, **told}.items()}
    out.metadata |= {f"genrec.{key}": value for key, value in plain.items()} | {"genrec.users": str(len(dataset.users))}
    if out.complete:
        LOG.info("%s was finished by an identical run; nothing to do", target)
        already = {"output": str(target), "already_complete": True, **published.finished_facts(target)}
        return lineage.summary(command, dataset, stages, identity, report()) | already
    resumed = len(out.parts_done)
    if resumed:
        LOG.info("going on after %d of %d parts that an identical run left", resumed, count)

    def write(work: Callable[[], Finished]) -> None:
        part = work()
        with stages.time("write", rows=len(part.table), bytes=part.table.nbytes):
            out.write(part.number, part.table, part.counts, part.fingerprints)
        if threads.cores() < MANY_CORES:  # what lies in pieces between the engine's buffers would pile up
            malloc.give_back_freed_memory()

    there = min(len(dataset.users), resumed * config.shard_users)
    with ExitStack() as stack:
        stack.callback(out.close)
        stack.enter_context(threads.watched(lambda: len(stages.spans), limit_s=config.stall_limit, doing=stages.doing))
        advance = stack.enter_context(console.progress(command, len(dataset.users), "users", done=there))
        writers = Threads.of(threads.cores()).write
        behind = stack.enter_context(threads.behind(workers=writers, ahead=writers + 1, name="write"))
        stream = parts(set(out.parts_done), advance)
        stack.callback(stream.close)
        for work in stream:
            behind.submit(lambda work=work: write(work))  # type: ignore[misc]
        behind.wait()
        console.doing("finishing")
        with stages.time("finish"):
            done = out.finish(scope)
    if done.get("short_users"):
        LOG.warning("%s %s", f"{done['short_users']:,}", SHORT)
    if done.get("seen_candidates"):
        LOG.warning("%s %s", f"{done['seen_candidates']:,}", SEEN)
    written = {"output": str(target), "resumed_parts": resumed, **done}
    return lineage.summary(command, dataset, stages, identity, report()) | written


def _sums(counts: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(each.get(name, 0) for each in counts) for name in counts[0]} if counts else {}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
