"""Writing a run's output: the parts that are not there yet, each on another thread, then the whole in its place.

Owns: resuming, the order of writing, and what a run reports in the end. Must not know: how parts are computed. In: a
run and a stream of work that ends in parts. Out: the output on disk, and the run's summary.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from genrec_batch.core.errors import ConfigError, GateError
from genrec_batch.core.options import HistoryConfig, ScoreConfig
from genrec_batch.events import by_user, user_list
from genrec_batch.events.dataset import Dataset, HeadStart, check_strict
from genrec_batch.events.rejects import in_words
from genrec_batch.events.user_histories import Group, UserHistories
from genrec_batch.io import output, published, stored, stored_output, table_output, verified
from genrec_batch.io.identity import run_id
from genrec_batch.io.places import local_path
from genrec_batch.io.recommended import FORM
from genrec_batch.io.stored import Stored
from genrec_batch.io.table_output import TableOutput
from genrec_batch.model.registry import Begun
from genrec_batch.runtime import console, malloc, threads
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring import arm_counts, shortfalls
from genrec_batch.scoring.drift import DISTRIBUTION, DRIFT, Watch, figures_of
from genrec_batch.scoring.lineage import Run
from genrec_batch.scoring.previous import AS_OF_ONLY
from genrec_batch.scoring.results import OutputPart
from genrec_batch.scoring.sampled import SAMPLE
from genrec_batch.stores.bucket import is_uri, uri_of

RULES = ("--exclude", "--only")  # whose tables may be texts with an id on each line
SEEN = "given candidates were left out, as their users have seen them; --include-seen keeps them"
EXCLUDED = "given candidates were left out by the rules, such as --exclude"
MOVED = (
    "users without any change were scored again: as-of moved, and with it slot 1008, the time since the newest event; "
    "--carry-for 7d lets such users keep rows of up to that age, and the same --as-of in both runs all of them"
)
OLD = "users without any change were scored again: their rows are older than --carry-for, or of a later as-of"
SHORT = "users have fewer than --top-k videos left to recommend and get fewer rows"

Parts = Callable[[list[Group], console.Advance], Generator[Callable[[], OutputPart], None, None]]
"""Yields the parts of some groups of shards, in order, as work that ends in a part; reports finished users."""

Make = Callable[[output.Output, console.Advance], int]
"""Writes the parts of an output that are not there yet; reports finished users, returns the recommendations in them."""


@contextmanager
def opened(
    config: HistoryConfig,
    source: str,
    target: str | None,
    stages: Stages,
    ahead: HeadStart | None = None,
    *,
    arms: bool = False,
    processes: int = 1,
    elsewhere: Callable[[], Dataset] | None = None,
) -> Generator[Dataset, None, None]:
    """Check the output and open the data set of a run; its spill files are removed at the end of the block.

    `elsewhere` returns one that another process has opened.

    Raises:
        GenrecError: see `Dataset.open`; ConfigError where the output would replace an input.
    """
    if target is not None:
        check_target(config, target)
    with stages.watched(config.stall_limit):
        if config.verify_input == verified.PAGES:
            with stages.time("verify input"), console.busy("verifying the inputs"):
                _check_pages(config, source)
        dataset = (
            elsewhere()
            if elsewhere is not None
            else Dataset.open(
                source,
                config,
                stages,
                begun=begun(config, target),
                arms=arms,
                spill_beside=None if target is None or is_uri(target) else target,
                ahead=ahead,
                processes=processes,
            )
        )
    try:
        if target is not None and not (isinstance(config, ScoreConfig) and config.output_format != "parquet"):
            _check_not_an_input(target, dataset)
        if config.verify_input not in (None, verified.PAGES):
            snapshots = {name: each.snapshot() for name, each in dataset.inputs.items()}
            verified.check_recorded(config.verify_input, snapshots)
        yield dataset
    finally:
        dataset.users.close()


def table_of(config: HistoryConfig, target: str) -> TableOutput | None:
    """Return the table that an output is, as it is now; None for files.

    Raises:
        GenrecError: see `table_output.opened`.
    """
    if not isinstance(config, ScoreConfig):
        return table_output.opened("parquet", target, config.if_exists, None)
    return table_output.opened(config.output_format, target, config.if_exists, config.partition_by)


def check_target(config: HistoryConfig, target: str) -> None:
    """Check that an output can be written, before any work is done.

    Raises:
        GenrecError: see `published.check`, `stored.check` and `table_output.opened`.
    """
    if table_of(config, target) is not None:
        return
    if is_uri(target):
        stored.check(target, config.if_exists)
    else:
        published.check(Path(target), config.if_exists)


def begun(config: HistoryConfig, target: str | None, arm: str | None = None) -> Begun | None:
    """Return what the run to be continued or accepted records of its model, or an arm's; None where none is."""
    if target is None or config.if_exists == "overwrite":
        return None
    table = table_of(config, target)
    place = target if table is None else table.begun()
    found = stored.begun(place, arm) if is_uri(place) else published.begun(Path(place), arm)
    return None if found is None else Begun(model=found["model"], catalog=found["catalog"])


def _check_pages(config: HistoryConfig, source: str) -> None:
    tables = [("--users", config.users), ("--videos", config.videos), ("--extra-features", config.extra_features)]
    if isinstance(config, ScoreConfig):
        tables += [("--candidates", config.candidates), *(("--exclude", path) for path in config.exclude)]
        tables += [("--only", path) for path in config.only]
    for flag, path in [("INPUT", source), *tables]:
        if path is not None and not (flag in RULES and user_list.is_one(path)):
            verified.check_pages(path, flag)


def write(
    run: Run,
    target: str,
    make: Make,
    *,
    report: Callable[[], Mapping[str, Any]],
    scope: Mapping[str, Any] | None,
    form: str | None = None,
    compared: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Write the parts that are not there yet, put the output in place, and return the run's summary.

    Args:
        run: what is run.
        target: the output.
        make: computes and writes the parts.
        report: returns what the summary says of the engine.
        scope: what the fingerprints were made for, None where there are none.
        form: what the metadata says of the columns, see `Shape.form`.
        compared: whether users can keep rows of an earlier output.
        watch: what the run's drift is measured against, None where it has no samples.

    Raises:
        GateError: no user gets a row, or `--max-drift` is exceeded.
        GenrecError: see its subclasses.
    """
    table, identifier = table_of(run.config, target), run_id(run.identity)
    if table is not None and table.has(identifier):
        LOG.info("%s has the rows of an identical run; nothing to do", target)
        facts = _facts(table.place(identifier))
        return run.summary(report()) | {"output": target, "already_complete": True} | facts
    out = _opened(run, target, table)
    out.metadata |= run.metadata() | ({} if form is None else {FORM: form})
    if out.complete:
        LOG.info("%s was finished by an identical run; nothing to do", out.shown[0])
        committed = {} if table is None else table.commit(identifier)
        already, metadata = out.finished()
        out.close()
        facts = shortfalls.nested(already) | figures_of(metadata) | committed
        return run.summary(report()) | {"output": target, "already_complete": True} | facts
    if table is not None:
        out.check = partial(table.check_part, staged=out.staged)
    resumed, users, size = len(out.parts_done), len(run.dataset.users), run.config.shard_users
    if resumed:
        LOG.info("resuming after %d of %d parts of an identical run", resumed, len(by_user.shards(users, size)))
    filled = resumed and out.has_items()
    with ExitStack() as stack:
        stack.callback(out.close)
        stages = run.stages
        stack.enter_context(stages.watched(run.config.stall_limit))
        there = min(users, resumed * size)
        advance = stack.enter_context(console.progress(run.command, users, "users", done=there))
        items = make(out, advance)
        if not filled and not items:
            _refuse_empty(target, users)
        if run.dataset.users.store.way == "direct":  # it was read meanwhile
            run.dataset.warn_of_values(run.config)
        out.notes |= {} if watch is None else _drift(out, watch, stages)
        check_strict(run.config)
        console.doing("finishing")
        with stages.time("finish"):
            done = out.finish(scope) | figures_of(out.notes)
            committed = {} if table is None else table.commit(identifier)
        if any(name.startswith(shortfalls.COUNT) for name in done):
            done["shortfall_users"] = shortfalls.some_users(out.fingerprints())
    done = shortfalls.nested(done)
    _tell(done, run.config, compared=compared)
    written = {"output": target, "resumed_parts": resumed, **done, **committed}
    said = report()
    return run.summary(arm_counts.partly(said) if resumed else said) | written


def _opened(run: Run, target: str, table: TableOutput | None) -> output.Output:
    """Begin or continue the files of a run: the output itself, or the folder of the run in a table."""
    config, place, if_exists, keeps = run.config, target, run.config.if_exists, False
    partition_by = config.partition_by if isinstance(config, ScoreConfig) else None
    if table is not None:
        place, if_exists, keeps = table.place(run_id(run.identity)), "resume", table.log.column_in_files
        table.log.root.make()
    if not is_uri(place):
        return output.open_output(Path(place), run.identity, if_exists, partition_by, keeps_column=keeps)
    work_in = by_user.spill_folder(config.spill_dir, None)
    return stored_output.open_output(place, run.identity, if_exists, partition_by, work_in, keeps_column=keeps)


def here(users: UserHistories, parts: Parts, stages: Stages) -> Make:
    """Return how a run makes the parts of its users in this process: each is written on another thread."""

    def make(out: output.Output, advance: console.Advance) -> int:
        workers, items = max(1, threads.cores() // 4), deque[int]()
        with (
            threads.behind(workers=workers, ahead=workers + 1, name="write") as behind,
            closing(parts(users.groups(out.parts_done), advance)) as stream,
        ):
            for work in stream:
                behind.submit(partial(_write, out, work, stages, items))
            behind.wait()
        return sum(items)

    return make


def _facts(place: str) -> dict[str, Any]:
    """Return the facts of the finished run of a table; none of a folder that the table's owner has removed since."""
    if is_uri(place):
        found = Stored.of(place).finished()
        return {} if found is None else shortfalls.nested(found.facts()) | figures_of(found.metadata)
    if Path(place).is_dir() and published.manifest_of(Path(place)) is None:
        return {}
    return shortfalls.nested(published.finished_facts(Path(place))) | figures_of(published.files_of(Path(place))[1])


def _tell(done: Mapping[str, Any], config: HistoryConfig, *, compared: bool) -> None:
    """Log who got too few rows, which candidates were left out, and who kept rows."""
    if done.get("short_users"):
        LOG.warning("%s %s: %s", f"{done['short_users']:,}", SHORT, in_words(done["shortfalls"]))
    if done.get("seen_candidates"):
        LOG.warning("%s %s", f"{done['seen_candidates']:,}", SEEN)
    if done.get("excluded_candidates"):
        LOG.info("%s %s", f"{done['excluded_candidates']:,}", EXCLUDED)
    if done.get(AS_OF_ONLY):
        carries = isinstance(config, ScoreConfig) and config.carry_for is not None
        level = logging.INFO if carries and done["carried_users"] else logging.WARNING  # some are too old every night
        LOG.log(level, "%s %s", f"{done[AS_OF_ONLY]:,}", OLD if carries else MOVED)
    if compared and not done["carried_users"] and not done.get(AS_OF_ONLY):
        LOG.info("--previous: nobody keeps rows, since what the model reads of every user has changed")


def _drift(out: output.Output, watch: Watch, stages: Stages) -> dict[str, str]:
    """Measure how far the run has moved; return what the output's metadata says of it.

    Raises:
        GateError: further than `--max-drift`.
    """
    with stages.time("drift"):
        already = {name: text for name, text in out.joined().items() if name in (DISTRIBUTION, DRIFT)}
        if already:  # an identical run did, and was killed while it put the output in place
            return already
        found = watch.found(out.beside(SAMPLE))
        watch.check(found, *out.shown)
        return found.metadata()


def _write(out: output.Output, work: Callable[[], OutputPart], stages: Stages, items: deque[int]) -> None:
    part = work()
    items.append(part.items)
    with stages.time("write", rows=len(part.table), bytes=part.table.nbytes):
        out.write(part.number, part.table, part.counts, part.fingerprints)
    if threads.cores() < malloc.MANY_CORES:  # freed memory between the engine's buffers would pile up
        malloc.give_back_freed_memory()


def _refuse_empty(target: str, users: int) -> NoReturn:
    """Raise GateError: nobody would get a recommendation, and such an output must not replace one with rows."""
    raise GateError(
        f"OUTPUT {target} is not published: none of the {users:,} users would get a row, since each has seen all "
        "videos of the catalog, or all given candidates, that rules let through; use --include-seen, fewer rules, or a "
        "model with more videos"
    )


def _check_not_an_input(target: str, dataset: Dataset) -> None:
    """Raise ConfigError where the output would replace an input, or would be inside a folder that is read."""
    if is_uri(target):
        _check_no_stored_input(target, dataset)
        return
    place = Path(target).resolve()
    for source in dataset.inputs.values():
        files = [Path(file).resolve() for file in source.files]
        folder = Path(local_path(source.path)).resolve()
        if any(place == file or place in file.parents for file in files) or (
            folder.is_dir() and folder in place.parents
        ):
            raise ConfigError(f"OUTPUT {target} would replace input {source.path} or lie in it; name another")


def _check_no_stored_input(target: str, dataset: Dataset) -> None:
    place = uri_of(target)
    for source in dataset.inputs.values():
        within = [file for file in source.files if f"{file}/".startswith(f"{place}/")]
        if within or f"{place}/".startswith(f"{source.path.rstrip('/')}/"):
            raise ConfigError(f"OUTPUT {target} would replace input {source.path} or be inside of it; name another")
