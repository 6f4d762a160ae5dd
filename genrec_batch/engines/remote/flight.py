"""Batches on their way through several servers: out to whoever is free, back in order, again where an answer is lost.

Owns: which batches are sent when, how often one is sent again, and that answers come back in order. Must not know:
gRPC, the state of servers (`fleet`). In: batches. Out: their rankings, in order, and who computed each.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from genrec_batch.core.arrays import Batch, Ranked
from genrec_batch.core.errors import EngineError, RetryError
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.protocol import Recorder
from genrec_batch.engines.remote import wire
from genrec_batch.engines.remote.connection import FAULT, REFUSED, Answer, Failure, Outcome
from genrec_batch.engines.remote.fleet import AHEAD, MOST_WAIT_S, Call, Fleet, Server
from genrec_batch.model.weights import Model

REORDERED = 4  # batches that may be ahead of the one that is waited for, in times those that servers have
MOST_TRIES = 10  # of a batch whose servers go away
MOST_FAULTS = 3  # of a batch at which servers fail
LATE = 2.0  # times what an idle server would take, after which it gets a batch that another one has
GLANCE_S = 0.02  # between two looks for late batches

STAGE = "server"


@dataclass(eq=False, kw_only=True)
class Job:
    """A batch, until it is answered."""

    batch: Batch
    inputs: list[Any]
    calls: list[Call] = field(default_factory=list)
    tries: int = 0
    faults: int = 0
    failed_at: Server | None = None
    ranked: Ranked | None = None
    by: Server | None = None


class Flight:
    """Batches of one decoding on their way."""

    def __init__(self, fleet: Fleet, model: Model, decoding: Decoding, record: Recorder | None) -> None:
        self._fleet, self._decoding, self._record = fleet, decoding, record
        self._parameters: Mapping[str, Any] = wire.parameters_of(decoding, model.fingerprint)
        self._columns = decoding.top_k if decoding.mode == "slate" else decoding.num_candidates
        self._vocabulary = model.config.vocabulary
        self._unsent: deque[Job] = deque()
        self._order: deque[Job] = deque()  # all that are not handed back yet

    def rankings(self, batches: Iterable[Batch]) -> Iterator[tuple[Ranked, Server]]:
        """Yield the ranking of each batch, in order, with the server that computed it.

        Raises:
            EngineError: a server refused a batch, failed at it, or returned no ranking.
            RetryError: no server is left.
        """
        waiting, ended = iter(batches), False
        try:
            while True:
                self._fleet.take(0)
                self._send()
                if self._order and self._order[0].ranked is not None:
                    job = self._order.popleft()
                    assert job.ranked is not None
                    assert job.by is not None
                    yield job.ranked, job.by
                elif not ended and not self._unsent and len(self._order) < self._most():
                    batch = next(waiting, None)
                    ended = batch is None
                    if batch is not None:
                        self._add(batch)
                elif not self._order:
                    return
                else:
                    self._fleet.take(GLANCE_S if self._second_ones() else MOST_WAIT_S)
        finally:
            for job in self._order:
                self._forget(job)

    def _most(self) -> int:
        """Return how many batches may be on their way, whether they are answered or not."""
        instances = sum(each.facts.instances for each in self._fleet.servers if each.facts is not None)
        return REORDERED * AHEAD * instances

    def _add(self, batch: Batch) -> None:
        inputs = self._fleet.servers[0].connection.request(wire.tensors_of(batch))
        job = Job(batch=batch, inputs=inputs)
        self._order.append(job)
        self._unsent.append(job)

    def _send(self) -> None:
        while self._unsent:
            server = self._fleet.pick(len(self._unsent[0].batch), self._unsent[0].failed_at)
            if server is None:
                return
            self._send_to(server, self._unsent.popleft())

    def _send_to(self, server: Server, job: Job) -> None:
        def done(call: Call, outcome: Outcome) -> None:
            self._done(job, call, outcome)

        job.calls.append(self._fleet.send(server, job.inputs, self._parameters, len(job.batch), done))

    def _second_ones(self) -> bool:
        """Send the batch that has waited longest to an idle server, too, if that would be done long since.

        Both answers are the same. Return whether some server is idle, so that it is looked at again soon.
        """
        idle = [each for each in self._fleet.servers if each.free and not each.calls]
        for server in idle:
            late = next((job for job in self._order if self._is_late(job, server)), None)
            if late is not None:
                self._send_to(server, late)
        return bool(idle)

    def _is_late(self, job: Job, server: Server) -> bool:
        if job.ranked is not None or len(job.calls) != 1 or job.calls[0].server is server or server.speed is None:
            return False
        return time.monotonic() - job.calls[0].sent > LATE * len(job.batch) / server.speed

    def _done(self, job: Job, call: Call, outcome: Outcome) -> None:
        job.calls.remove(call)
        if isinstance(outcome, Failure):
            self._failed(job, call.server, outcome)
        elif not self._fleet.accept(call.server, outcome):
            self._again(job, call.server)
        else:
            job.ranked, job.by = self._ranked(job, call.server, outcome), call.server
            self._answered(job, call)

    def _answered(self, job: Job, call: Call) -> None:
        """Count an answer, and forget the same batch elsewhere."""
        self._forget(job)
        server = call.server
        server.users += call.users
        server.batches += 1
        if self._record is not None:
            stop = time.perf_counter()
            start = stop - min(time.monotonic() - call.sent, call.users / (server.speed or 1.0))
            self._record(STAGE, start, stop, rows=call.users, lane=server.address)

    def _forget(self, job: Job) -> None:
        for call in job.calls:
            self._fleet.drop(call)
        job.calls.clear()

    def _ranked(self, job: Job, server: Server, answer: Answer) -> Ranked:
        try:
            return wire.ranked_of(answer.tensors, job.batch, self._columns, self._vocabulary)
        except ValueError as error:
            raise EngineError.of_server(f"server {server.address} returned no ranking: {error}") from error

    def _failed(self, job: Job, server: Server, failure: Failure) -> None:
        if failure.kind == REFUSED and not _gone(failure):
            raise EngineError.of_server(
                f"server {server.address} refused a batch of {len(job.batch)} users: {failure.text}"
            )
        server.failed += 1
        self._fleet.leave(server, failure.text)
        job.faults += failure.kind == FAULT
        if job.faults >= MOST_FAULTS:
            raise EngineError.of_server(
                f"servers failed {job.faults} times at a batch of {len(job.batch)} users, the last one was "
                f"{server.address}: {failure.text}"
            )
        self._again(job, server, failure.text)

    def _again(self, job: Job, server: Server, why: str = "") -> None:
        """Send a batch again, unless another server has it, too."""
        job.tries += 1
        job.failed_at = server
        if job.tries >= MOST_TRIES:
            raise RetryError(
                f"a batch of {len(job.batch)} users was sent {job.tries} times, the last time to {server.address}: "
                f"{why or server.why}; written parts stay, run the same command again"
            )
        if not job.calls:
            self._unsent.appendleft(job)


def _gone(failure: Failure) -> bool:
    """Return whether a model that was there has gone, as while Triton loads another version."""
    return failure.text.startswith("NOT_FOUND")
