"""The crew of a run: a worker process for each device, which are given parts until all are written.

Owns: starting workers, what they are told when, what becomes of the parts of one that is lost, and starting it again.
Must not know: how a worker scores (`worker`), how many parts it should have (`handout`), rows. In: a data set, the
output that is being written. Out: all of its parts, or an error that names those that failed.

The data set is handed over as a file in memory that all map. Each worker chooses the engine by the same rules and the
same users, so that all have the same one. An error that would meet every worker, such as a damaged input, ends the run.
What may be the fault of one process or device (its death, no memory, a device that fails, no sign of it for
`--stall-limit`) costs the parts that it had, which others get; the worker is started again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from genrec_batch.core.errors import DeviceMemoryError, EngineError, GenrecError, RetryError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.events.dataset import Dataset
from genrec_batch.io.output import Output
from genrec_batch.model.weights import Model
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import ADVICE, LOG
from genrec_batch.scoring.about import About
from genrec_batch.scoring.previous import Previous
from genrec_batch.scoring.workers import merged
from genrec_batch.scoring.workers.handout import Handout
from genrec_batch.scoring.workers.member import STARTS, Member
from genrec_batch.scoring.workers.messages import (
    Advanced,
    Begin,
    Ended,
    Failed,
    Finish,
    Know,
    Load,
    Opened,
    Said,
    Start,
    Take,
    Want,
    Wrote,
)
from genrec_batch.scoring.workers.processes import Sent, Workplace

LOOK_S = 1.0  # between two looks at workers that say nothing
END_S = 30.0  # for a worker to end once all parts are written


@dataclass(kw_only=True)
class _Shift:
    """The parts of a run while they are written."""

    out: Output
    advance: console.Advance
    items: int = 0


class Crew:
    """The workers of a run."""

    def __init__(
        self, config: ScoreConfig, target: str, devices: Sequence[str], stages: Stages, place: Workplace
    ) -> None:
        self._config, self._target, self._stages, self._place = config, target, stages, place
        self._members = [Member(number=number, device=device) for number, device in enumerate(devices)]
        self._load: tuple[Load, tuple[int, ...]] | None = None
        self._begin: tuple[Begin, tuple[int, ...]] | None = None
        self._about: About | None = None
        self._verified = not config.verify_sample  # the first worker does it, before any part is handed out
        self._why_lost = "none was started"
        self._shift: _Shift | None = None
        self._handout = Handout([], len(devices))
        self._said: set[tuple[int, str]] = set()
        self._ended: dict[int, Ended] = {}
        self._lost = 0
        self._why: GenrecError | None = None  # the error that a worker ended with at last

    @property
    def processes(self) -> int:
        """Number of workers."""
        return len(self._members)

    def start(self) -> None:
        """Start the workers, which import what they need while the log is read."""
        for member in self._members:
            self._start(member)

    def know(self, model: Model | Sent) -> None:
        """Let the workers open the engine of a model while the log is split."""
        data, files = self._place.share(model)
        for member in self._members:
            member.tell(Know(model=data), *files)

    def _start(self, member: Member) -> None:
        member.start(self._place)
        config = replace(self._config, device=member.device, workers=1)
        if member.number or self._verified:
            config = replace(config, verify_sample=0)
        verbose = LOG.level <= logging.DEBUG
        member.tell(
            Start(
                config=config,
                target=self._target,
                began=self._stages.began if self._place.same_clock else None,
                verbose=verbose,
            )
        )
        if self._load is not None:
            member.tell(self._load[0], *self._load[1])

    def about(self, dataset: Dataset) -> About:
        """Hand the data set to the workers, and return what the first one that is ready has opened.

        With `--verify-sample` that is the one that verifies: no part is handed out before.

        Raises:
            GenrecError: no worker can open it.
        """
        with self._stages.time("share"):
            data, files = self._place.share(dataset)
            self._load = Load(data=data), files
            dataset.users.store.held.clear()  # it is shared
        for member in self._members:
            member.tell(self._load[0], *files)
        with self._stages.time("workers"):
            while self._about is None or not self._verified:
                self._listen()
        return self._about

    def write(self, dataset: Dataset, previous: Previous | None, out: Output, advance: console.Advance) -> int:
        """Let the workers write all parts that are not there yet; return the number of recommendations in these.

        Raises:
            GenrecError: an error of a worker that all would meet.
            RetryError: parts failed too often, or no worker is left; the others are written.
        """
        groups = dataset.users.groups(out.parts_done)
        self._handout = Handout(groups, self.processes)
        self._shift = shift = _Shift(out=out, advance=advance)
        earlier, files = (None, ()) if previous is None else self._place.share(previous)
        self._begin = Begin(writer=out.writer(apart=True), previous=earlier), files
        for member in self._members:
            if member.opened:
                self._let_begin(member)
        while self._handout.left:
            self._answer()
            self._listen()
        if self._handout.left_out:
            raise RetryError(self._handout.failures(str(out.staging)))
        self._finish(dataset)
        return shift.items

    def _listen(self) -> None:
        """Take the messages that are there, or wait a moment for one."""
        there = {id(member.child): member for member in self._members if member.child is not None}
        if not there:
            raise self._why or RetryError(f"no worker is left: each ended at once ({self._why_lost}); run it again")
        for ready in self._place.ready([member.child for member in there.values() if member.child], LOOK_S):
            member = there[id(ready)]
            message = member.hear()
            if message is None:
                self._lose(member, member.end())
            else:
                self._serve(member, message)
        for member in self._members:
            if member.silent(self._config.stall_limit):
                member.end()
                self._lose(member, f"it made no progress for {self._config.stall_limit:g} s (--stall-limit)")

    def _serve(self, member: Member, message: Any) -> None:
        if isinstance(message, Want):
            member.asked = True
        elif isinstance(message, Wrote):
            self._accept(member, message)
        elif isinstance(message, Advanced):
            if self._shift is not None:
                self._shift.advance(message.users)
        elif isinstance(message, Opened):
            self._join(member, message)
        elif isinstance(message, Failed):
            self._fail(member, message.error())
        elif isinstance(message, Ended):
            self._ended[member.number] = message
        elif isinstance(message, Said) and (message.level, message.text) not in self._said:
            self._said.add((message.level, message.text))
            LOG.log(message.level, "%s", message.text, extra=ADVICE if message.advice else None)

    def _accept(self, member: Member, message: Wrote) -> None:
        assert self._shift is not None
        self._shift.out.accept(message.part)
        self._shift.items += message.items
        self._handout.done(member.number, message.part.number)
        member.starts = 0

    def _join(self, member: Member, opened: Opened) -> None:
        """Let a worker begin whose engine is that of the others.

        Raises:
            EngineError: it is not.
        """
        member.opened = True
        self._verified |= not member.number
        self._about = self._about or opened.about
        if opened.about != self._about:
            ours, theirs = self._about.engine, opened.about.engine
            raise EngineError.of_device(
                f"{member} computes otherwise than other workers ({theirs}, not {ours}), so the output would depend "
                "on who scores whom; name devices of one kind with --device"
            )
        if self._begin is not None:
            self._let_begin(member)

    def _let_begin(self, member: Member) -> None:
        assert self._begin is not None
        member.begun = True
        member.tell(self._begin[0], *self._begin[1])

    def _fail(self, member: Member, error: GenrecError) -> None:
        """Take the parts of a worker back that ended with an error which others may not meet, else raise it."""
        of_device = isinstance(error, EngineError) and error.about != "installation"
        if not (of_device or isinstance(error, DeviceMemoryError)):
            raise error
        self._why = error
        member.end()
        self._lose(member, str(error))

    def _lose(self, member: Member, why: str) -> None:
        """Take the parts of a worker that has ended back, and start it again."""
        self._lost, self._why_lost = self._lost + 1, f"{member}: {why}"
        had = sorted(self._handout.held(member.number))
        self._handout.lost(member.number, self._why_lost)
        again = member.starts < STARTS
        parts = f"part {', '.join(map(str, had))} goes to whoever is free" if had else "it had no part"
        then = "it is started again" if again else f"it is not started again after {STARTS} times"
        LOG.warning("%s: %s; %s, and %s", member, why, parts, then, extra=ADVICE)
        if again:
            self._start(member)
        else:
            member.give_up()

    def _answer(self) -> None:
        """Give parts to those who want some; who has worked so far is told at once where there is none now."""
        for member in self._members:
            if member.child is None or not member.asked:
                continue
            group = self._handout.take(member.number)
            if group is None and not member.working:
                continue  # until a part fails, or all are done
            member.asked, member.working, member.heard = False, group is not None, time.monotonic()
            member.tell(Take(group=group))

    def _finish(self, dataset: Dataset) -> None:
        """Let the workers end, and take what they have to say of their work."""
        until = time.monotonic() + END_S
        for member in self._members:
            if member.begun and member.child is not None:
                self._close(member, until)
        for ended in self._ended.values():
            dataset.users.store.reader.looks.extend(ended.looks)
            if dataset.users.duplicates is not None:
                dataset.users.duplicates.dropped.update(ended.dropped)
        merged.clock(self._stages, self._ended)

    def _close(self, member: Member, until: float) -> None:
        assert member.child is not None
        while member.number not in self._ended:
            if member.asked:
                member.tell(Take(group=None) if member.working else Finish())
                member.asked = member.working = False
            if not self._place.ready([member.child], max(0.0, until - time.monotonic())):
                break
            message = member.hear()
            if message is None or isinstance(message, Failed):
                break
            self._serve(member, message)
        member.child.wait(max(0.0, until - time.monotonic()))

    def report(self) -> dict[str, Any]:
        """Return what the summary says of the engines and their work."""
        devices = {member.number: member.device for member in self._members}
        return merged.report(self._ended, devices, self._about, lost=self._lost)

    def close(self) -> None:
        """End all workers that have not ended."""
        for member in self._members:
            member.give_up()
