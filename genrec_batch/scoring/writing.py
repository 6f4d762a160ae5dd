"""Writing a run's output: the parts that are not there yet, each on another thread, then the whole in its place.

Owns: resuming, the order of writing, and what a run reports in the end. Must not know: how parts are computed. In: a
run and a stream of work that ends in parts. Out: the output on disk, and the run's summary.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from genrec_batch.core.errors import ConfigError, GateError
from genrec_batch.core.options import HistoryConfig, ScoreConfig
from genrec_batch.events import by_user
from genrec_batch.events.dataset import Dataset, HeadStart, check_strict
from genrec_batch.io import output, published, verified
from genrec_batch.io.places import local_path
from genrec_batch.runtime import console, malloc, threads
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring.lineage import Run
from genrec_batch.scoring.previous import AS_OF_ONLY
from genrec_batch.scoring.results import OutputPart

MANY_CORES = 8  # from which on a shard is so fast that its memory is better kept for the next one
SEEN = "given candidates were left out, as their users have seen them; --include-seen keeps them"
MOVED = (
    "users without any change were scored again: as-of moved, and with it slot 1008, the time since the newest event; "
    "--carry-for 7d lets such users keep rows of up to that age, and the same --as-of in both runs all of them"
)
OLD = "users without any change were scored again: their rows are older than --carry-for, or of a later as-of"
SHORT = "users have fewer than --top-k videos left to recommend and get fewer rows"

Parts = Callable[[set[int], console.Advance], Generator[Callable[[], OutputPart], None, None]]
"""Yields the parts whose number is not in a set, in order, as work that ends in a part; reports finished users."""


@contextmanager
def opened(
    config: HistoryConfig, source: str, target: str | None, stages: Stages, ahead: HeadStart | None = None
) -> Generator[Dataset, None, None]:
    """Check the output and open the data set of a run; its spill files are removed at the end of the block.

    Raises:
        GenrecError: see `Dataset.open`; ConfigError where the output would replace an input.
    """
    if target is not None:
        published.check(Path(target), config.if_exists)
    with stages.watched(config.stall_limit):
        if config.verify_input == verified.PAGES:
            with stages.time("verify input"), console.busy("verifying the inputs"):
                _check_pages(config, source)
        dataset = Dataset.open(source, config, stages, spill_beside=target, ahead=ahead)
    try:
        if target is not None:
            _check_not_an_input(target, dataset)
        if config.verify_input not in (None, verified.PAGES):
            snapshots = {name: each.snapshot() for name, each in dataset.inputs.items()}
            verified.check_recorded(config.verify_input, snapshots)
        yield dataset
    finally:
        dataset.users.close()


def _check_pages(config: HistoryConfig, source: str) -> None:
    tables = {"--users": config.users, "--videos": config.videos, "--extra-features": config.extra_features}
    if isinstance(config, ScoreConfig):
        tables["--candidates"] = config.candidates
    for flag, path in {"INPUT": source, **tables}.items():
        if path is not None:
            verified.check_pages(path, flag)


def write(
    run: Run,
    target: Path,
    parts: Parts,
    *,
    report: Callable[[], Mapping[str, Any]],
    scope: Mapping[str, Any] | None,
    compared: bool = False,
) -> dict[str, Any]:
    """Write the parts that are not there yet, put the output in place, and return the run's summary.

    Args:
        run: what is run.
        target: the output.
        parts: computes the parts.
        report: returns what the summary says of the engine.
        scope: what the fingerprints were made for, None where there are none.
        compared: whether users can keep rows of an earlier output.

    Raises:
        GateError: no user gets a row.
        GenrecError: see its subclasses.
    """
    out = output.open_output(target, run.identity, run.config.if_exists)
    out.metadata |= run.metadata()
    if out.complete:
        LOG.info("%s was finished by an identical run; nothing to do", target)
        already = {"output": str(target), "already_complete": True, **published.finished_facts(target)}
        return run.summary(report()) | already
    resumed, users, size = len(out.parts_done), len(run.dataset.users), run.config.shard_users
    if resumed:
        LOG.info("resuming after %d of %d parts of an identical run", resumed, len(by_user.shards(users, size)))
    filled = threading.Event()  # a part has a recommendation in it
    if resumed and _has_items(out):
        filled.set()
    with ExitStack() as stack:
        stack.callback(out.close)
        stages = run.stages
        stack.enter_context(stages.watched(run.config.stall_limit))
        there = min(users, resumed * size)
        advance = stack.enter_context(console.progress(run.command, users, "users", done=there))
        workers = max(1, threads.cores() // 4)
        behind = stack.enter_context(threads.behind(workers=workers, ahead=workers + 1, name="write"))
        stream = parts(set(out.parts_done), advance)
        stack.callback(stream.close)
        for work in stream:
            behind.submit(partial(_write, out, work, stages, filled))
        behind.wait()
        if not filled.is_set():
            _refuse_empty(target, users)
        if run.dataset.users.store.way == "direct":  # it was read meanwhile
            run.dataset.warn_of_values(run.config)
        check_strict(run.config)
        console.doing("finishing")
        with stages.time("finish"):
            done = out.finish(scope)
    for name, what in (("short_users", SHORT), ("seen_candidates", SEEN)):
        if done.get(name):
            LOG.warning("%s %s", f"{done[name]:,}", what)
    if done.get(AS_OF_ONLY):
        carries = isinstance(run.config, ScoreConfig) and run.config.carry_for is not None
        level = logging.INFO if carries and done["carried_users"] else logging.WARNING  # some are too old every night
        LOG.log(level, "%s %s", f"{done[AS_OF_ONLY]:,}", OLD if carries else MOVED)
    if compared and not done["carried_users"] and not done.get(AS_OF_ONLY):
        LOG.info("--previous: nobody keeps rows, since what the model reads of every user has changed")
    written = {"output": str(target), "resumed_parts": resumed, **done}
    return run.summary(report()) | written


def _has_items(out: output.Output) -> bool:
    """Return whether parts of an earlier run have a recommendation, or what else their rows are."""
    parts = pl.scan_parquet([out.part(number) for number in sorted(out.parts_done)], glob=False)
    kind = parts.collect_schema().get("video_id", pl.Int64())
    items = pl.col("video_id").list.len().sum() if kind.is_nested() else pl.len()
    return bool(parts.select(items).collect(engine="streaming").item())


def _write(out: output.Output, work: Callable[[], OutputPart], stages: Stages, filled: threading.Event) -> None:
    part = work()
    if part.items:
        filled.set()
    with stages.time("write", rows=len(part.table), bytes=part.table.nbytes):
        out.write(part.number, part.table, part.counts, part.fingerprints)
    if threads.cores() < MANY_CORES:  # freed memory between the engine's buffers would pile up
        malloc.give_back_freed_memory()


def _refuse_empty(target: Path, users: int) -> NoReturn:
    """Raise GateError: nobody would get a recommendation, and such an output must not replace one with rows."""
    raise GateError(
        f"OUTPUT {target} is not published: none of the {users:,} users would get a row, since each has seen every "
        "video of the catalog, or every given candidate; use --include-seen, or a model with more videos"
    )


def _check_not_an_input(target: str, dataset: Dataset) -> None:
    """Raise ConfigError where the output would replace an input, or would be inside a folder that is read."""
    place = Path(target).resolve()
    for source in dataset.inputs.values():
        files = [Path(file).resolve() for file in source.files]
        folder = Path(local_path(source.path)).resolve()
        if any(place == file or place in file.parents for file in files) or (
            folder.is_dir() and folder in place.parents
        ):
            raise ConfigError(f"OUTPUT {target} would replace input {source.path} or lie in it; name another")
