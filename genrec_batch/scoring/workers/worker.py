"""A worker: a process that scores the parts it is given with an engine of its own, and writes them.

Owns: what a worker does from its start to its end. Must not know: which parts there are, other workers, who handed it
what (`crew`). In: a data set of another process, options, numbers of parts. Out: parts on the disk.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from genrec_batch.core.errors import GenrecError
from genrec_batch.engines.choose import Opening
from genrec_batch.events.dataset import Dataset
from genrec_batch.events.user_histories import Group
from genrec_batch.io.part_writer import PartWriter
from genrec_batch.runtime import aborts, console, malloc, progress, threads
from genrec_batch.runtime.clock import Stages, peak_rss_mib
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring.experiment import Experiment
from genrec_batch.scoring.previous import Previous
from genrec_batch.scoring.ranker import Ranker, about, ranker_of
from genrec_batch.scoring.results import OutputPart
from genrec_batch.scoring.workers.messages import (
    Advanced,
    Ended,
    Failed,
    Know,
    Opened,
    Said,
    Sign,
    Start,
    Take,
    Want,
    Wrote,
)
from genrec_batch.scoring.workers.processes import Link

SIGN_S = 2.0  # between two looks at whether work goes on
Tell = Callable[[Any], None]


def main(link: Link) -> None:
    """Be a worker process until there are no more parts, an error, or the end of the parent."""
    aborts.end_with_a_code()
    malloc.keep_freed_memory()
    threads.take_short_turns()
    serve(link)


def serve(link: Link) -> None:
    """Score parts for whoever is at the other end."""
    start, _ = link.receive()
    tell_log(link.send, verbose=start.verbose)
    opened = threading.Event()
    threading.Thread(target=_signs, args=(link.send, opened), name="signs", daemon=True).start()
    try:
        _work(link, start, opened)
    except GenrecError as error:
        link.send(Failed.of(error))
    except EOFError:
        os._exit(0)  # the parent has ended


def _work(link: Link, start: Start, opened: threading.Event) -> None:
    arms, stages = start.config.arms(), Stages() if start.began is None else Stages(began=start.began)
    ahead = Opening(start.config.of_arm(arms[0]) if arms else start.config)
    ahead.start()
    load, files = link.receive()
    if isinstance(load, Know):
        ahead.know(load.model.unpacked(files, stages))
        load, files = link.receive()
    worker = Worker.of(start, load.data.unpacked(files, stages), stages, ahead)
    ahead.close()
    opened.set()
    link.send(Opened(about=about(worker.ranker)))
    begin, files = link.receive()
    previous = None if begin.previous is None else begin.previous.unpacked(files, stages)

    def ask() -> Group | None:
        link.send(Want())
        answer, _ = link.receive()
        return answer.group if isinstance(answer, Take) else ()

    while first := ask():
        worker.score(chain([first], iter(ask, None)), begin.writer, previous, link.send)
    link.send(worker.ended())


class Worker:
    """An engine that is open for a data set."""

    def __init__(self, dataset: Dataset, ranker: Ranker, stages: Stages) -> None:
        self.dataset, self.ranker, self.stages = dataset, ranker, stages

    @staticmethod
    def of(start: Start, dataset: Dataset, stages: Stages, ahead: Opening) -> Worker:
        """Open the engine.

        Raises:
            GenrecError: see `ranker_of`.
        """
        return Worker(dataset, ranker_of(start.config, dataset, start.target, stages, ahead), stages)

    def score(self, groups: Iterator[Group], writer: PartWriter, previous: Previous | None, tell: Tell) -> None:
        """Score groups of parts and write each part as soon as it is done.

        Raises:
            GenrecError: a part cannot be scored or written.
        """
        count = max(1, threads.cores() // 4)

        def advance(units: int) -> None:
            progress.step()
            tell(Advanced(users=units))

        with threads.behind(workers=count, ahead=count + 1, name="write") as behind:
            for work in self.ranker.parts(groups, previous, advance, sampled=True):
                behind.submit(partial(self._write, work, writer, tell))
            behind.wait()

    def _write(self, work: Callable[[], OutputPart], writer: PartWriter, tell: Tell) -> None:
        part = work()
        with self.stages.time("write", rows=len(part.table), bytes=part.table.nbytes):
            written = writer.write(part.number, part.table, part.counts, part.fingerprints)
        tell(Wrote(part=written, items=part.items))
        if threads.cores() < malloc.MANY_CORES:
            malloc.give_back_freed_memory()

    def ended(self) -> Ended:
        """Return what this worker has done."""
        users = self.dataset.users
        return Ended(
            report=self.ranker.report(),
            seconds=self.stages.seconds,
            spans=self.stages.spans,
            peak_rss_mib=round(peak_rss_mib(), 1),
            looks=users.store.reader.looks if users.store.way == "direct" else [],
            dropped={} if users.duplicates is None else users.duplicates.dropped,
            covered=self.ranker.covered if isinstance(self.ranker, Experiment) else {},
        )


class _Teller(logging.Handler):
    """Hands lines for the log to another process."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell
        self.setFormatter(console.JsonFormatter())  # whereupon no progress is shown

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(Said(level=record.levelno, text=record.getMessage(), advice=hasattr(record, "advice")))


def tell_log(tell: Tell, *, verbose: bool) -> None:
    """Hand the lines of this process for the log to another one."""
    LOG.handlers, LOG.propagate = [_Teller(tell)], False
    LOG.setLevel(logging.DEBUG if verbose else logging.INFO)


def _signs(tell: Tell, opened: threading.Event) -> None:
    """Tell from time to time that work goes on: steps are done, or while an engine is built, the processor is busy."""
    wake, last = threading.Event(), (-1, -1)
    while not wake.wait(SIGN_S):
        busy = 0 if opened.is_set() else int(sum(os.times()[:4]) / (progress.BUSY * SIGN_S))
        now = (progress.signs(), busy)
        if now != last:
            last = now
            try:
                tell(Sign())
            except OSError:
                return
