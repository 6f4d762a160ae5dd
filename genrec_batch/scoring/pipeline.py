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

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from genrec_batch.core.errors import GenrecError, RetryError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.choose import Opening
from genrec_batch.engines.devices import devices
from genrec_batch.events.dataset import Dataset
from genrec_batch.events.user_histories import Group
from genrec_batch.io import forked
from genrec_batch.io.output import Output
from genrec_batch.io.parquet import summed
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring import arm_counts, drift, shortfalls
from genrec_batch.scoring.about import About
from genrec_batch.scoring.arm_run import OF_THE_MODEL, of_arm
from genrec_batch.scoring.fingerprints import scope
from genrec_batch.scoring.lineage import Run
from genrec_batch.scoring.previous import DamagedError, Previous
from genrec_batch.scoring.ranker import Ranker, about, ranker_of
from genrec_batch.scoring.results import OutputPart
from genrec_batch.scoring.workers.crew import Crew
from genrec_batch.scoring.workers.processes import Processes
from genrec_batch.scoring.writing import check_target, here, opened, write

if TYPE_CHECKING:
    from genrec_batch.scoring.workers.cluster import Cluster

Make = Callable[[Previous | None, Output, console.Advance], int]
"""As `writing.Make`, given the earlier output whose rows may be kept."""


def score(config: ScoreConfig, source: str, target: str | None, stages: Stages | None = None) -> dict[str, Any]:
    """Score a log and write its recommendations; return the run's summary, and the rows themselves without a target.

    Raises:
        GenrecError: see its subclasses; each carries the exit code of its kind.
    """
    forked.check()
    config.check_target(target)
    if config.output_format == "parquet":  # a table keeps what its older versions name
        config.check_not_replaced(target)
    stages = stages or Stages()
    with ExitStack() as stack:
        previous = _previous(config, target, stages)
        arms = config.arms()
        first = config.of_arm(arms[0]) if arms else config
        cluster = None if config.ray is None else stack.enter_context(_cluster(config, source, target, stages))
        crew = _crew(config, target, stages, stack, cluster)
        ahead = Opening(first)
        stack.callback(ahead.close)
        with of_arm(arms[0], *OF_THE_MODEL) if arms else nullcontext():
            dataset = stack.enter_context(
                opened(
                    first,
                    source,
                    target,
                    stages,
                    crew or ahead,
                    arms=bool(arms),
                    processes=1 if crew is None else crew.processes,
                    elsewhere=None
                    if cluster is None or crew is None
                    else partial(cluster.dataset, first, stages, crew.know, arms=bool(arms)),
                )
            )
        if crew is not None:
            facts, report, make = crew.about(dataset), crew.report, partial(crew.write, dataset)
        else:
            ranker = ranker_of(config, dataset, target, stages, ahead)
            facts, report, make = about(ranker), ranker.report, partial(_here, ranker, dataset, stages)
        run_id = previous.run_id if previous else None
        run = Run.of("score", config, dataset, stages, facts.engine, run_id, facts.identity)
        if target is None:
            return arm_counts.by_arm(_in_memory(run, ranker))
        return arm_counts.by_arm(_written(run, config, target, facts, report, make, previous))


def _written(
    run: Run,
    config: ScoreConfig,
    target: str,
    facts: About,
    report: Callable[[], Mapping[str, Any]],
    make: Make,
    previous: Previous | None,
) -> dict[str, Any]:
    """Write the output of a run; return its summary."""
    arms, dataset = config.arms(), run.dataset
    shared = scope(run.identity, config) | facts.scope
    watch = _watch(config.of_arm(arms[0]) if arms else config, dataset, previous)
    if previous is not None:
        previous = previous.compared(shared, dataset.users.ids.dtype, dataset.video_type, facts.needs)
        if previous.why_not:
            said = f"--previous {config.previous}: all users are scored again, since it differs in"
            LOG.warning("%s %s", said, previous.why_not)
            previous = None
    return write(
        run,
        target,
        partial(make, previous),
        report=report,
        scope=shared,
        form=facts.form,
        compared=previous is not None,
        watch=watch,
    )


def _here(
    ranker: Ranker,
    dataset: Dataset,
    stages: Stages,
    previous: Previous | None,
    out: Output,
    advance: console.Advance,
) -> int:
    """Score the users in this process; see `Make`."""

    def parts(groups: list[Group], advance: console.Advance) -> Generator[Callable[[], OutputPart], None, None]:
        yield from ranker.parts(groups, previous, advance, sampled=True)

    return here(dataset.users, parts, stages)(out, advance)


@contextmanager
def _cluster(config: ScoreConfig, source: str, target: str | None, stages: Stages) -> Generator[Cluster, None, None]:
    """Join the cluster of `--ray`, which keeps the log until the run is over and need not go on."""
    from genrec_batch.scoring.workers.cluster import Cluster

    with stages.time("join"):
        found = Cluster.join(config, source, target)
    with found.joined() as cluster:
        try:
            yield cluster
            cluster.done = True
        except RetryError:
            raise
        except GenrecError:
            cluster.done = True
            raise


def _crew(
    config: ScoreConfig, target: str | None, stages: Stages, stack: ExitStack, cluster: Cluster | None
) -> Crew | None:
    """Return the workers of a run, None where this process scores all users."""
    if target is None:
        return None
    if cluster is not None:
        crew = Crew(config, target, cluster.devices, stages, cluster)
        stack.callback(crew.close)
        crew.start()
        return crew
    found = devices(config.device, config.engine, config.workers)
    if len(found) == 1:
        return None
    place = Processes(len(found))
    stack.callback(place.close)
    crew = Crew(config, target, found, stages, place)
    stack.callback(crew.close)
    return crew


def _previous(config: ScoreConfig, target: str | None, stages: Stages) -> Previous | None:
    if target is None or config.previous is None:
        return None
    check_target(config, target)  # before a long check of the earlier output
    with stages.time("previous"), console.busy(f"checking {config.previous}"):
        try:
            return Previous.open(config.previous)
        except DamagedError as error:
            LOG.warning("%s", error)
            return None


def _watch(config: ScoreConfig, dataset: Dataset, previous: Previous | None) -> drift.Watch:
    if previous is None:
        return drift.Watch.of(config, dataset.model, why_not="it is damaged")
    return drift.Watch.of(config, dataset.model, previous.distribution)


def _in_memory(run: Run, scoring: Ranker) -> dict[str, Any]:
    """Return the summary of a run that writes nothing, with its rows."""
    done = [work() for work in scoring.parts(run.dataset.users.groups(), None, console.nowhere)]
    counts = shortfalls.nested(summed(part.counts for part in done))
    return run.summary({**scoring.report(), **counts}) | {"rows": pa.concat_tables([part.table for part in done])}
