"""The servers of a run: which of them can be asked, how fast each is, and which is the next to get a batch.

Owns: the state of each server: in use, or away and when it is asked again; that all of them compute the same with the
same model. Must not know: gRPC, batches and their order (`flight`). All of it runs on the thread that waits for
answers; outcomes arrive through one queue.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from genrec_batch.core.arrays import Batch
from genrec_batch.core.errors import ConfigError, EngineError, ModelError, RetryError
from genrec_batch.core.servers import GRPC_PORT, Servers
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.remote import wire
from genrec_batch.engines.remote.connection import (
    AWAY,
    REFUSED,
    Answer,
    Connection,
    Failure,
    Outcome,
    speaks_http,
)
from genrec_batch.engines.remote.wire import Facts
from genrec_batch.model.weights import Model
from genrec_batch.runtime.console import ADVICE, LOG

AHEAD = 2  # batches with each copy of a server's model: one that is computed, and the next
NEWEST = 0.3  # weight of the newest batch in a server's speed
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0  # before a server that is away is asked again
PROBE_S = 10.0  # for the answer to a probe
MOST_WAIT_S = 1.0  # in one go, so that what is due is looked at


@dataclass(eq=False, kw_only=True)
class Server:
    """One server, and what is known of it."""

    address: str
    connection: Connection
    facts: Facts | None = None  # None: it has not answered yet
    up: bool = False
    why: str = ""  # it is away
    other_model: bool = False  # it is away because it has another model
    probing: bool = False
    again_at: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    calls: list[Call] = field(default_factory=list)  # batches that it has not answered
    done_at: float = 0.0
    speed: float | None = None  # users a second
    users: int = 0  # whose answers were taken
    batches: int = 0
    failed: int = 0  # batches that were sent again, to whomever

    @property
    def outstanding(self) -> int:
        """Users whom it has not answered."""
        return sum(call.users for call in self.calls)

    @property
    def free(self) -> bool:
        """Whether it can get another batch."""
        return self.up and self.facts is not None and len(self.calls) < AHEAD * self.facts.instances

    def counts(self) -> dict[str, Any]:
        """Return what it did."""
        speed = None if self.speed is None else round(self.speed, 1)
        return {"users": self.users, "batches": self.batches, "failed": self.failed, "users_per_s": speed}


@dataclass(eq=False, kw_only=True)
class Call:
    """A batch that was sent to a server."""

    server: Server
    users: int
    sent: float
    done: Callable[[Call, Outcome], None]
    cancel: Callable[[], Any] = lambda: None
    dropped: bool = False  # nobody waits for it


class Fleet:
    """The servers of a run."""

    def __init__(self, servers: Servers, model: Model, connect: Callable[..., Connection] = Connection) -> None:
        self._asked, self._model = servers, model
        self.servers = [
            Server(address=each, connection=connect(each, model=servers.model, tls=servers.tls))
            for each in servers.addresses
        ]
        self.facts: Facts | None = None  # of all servers
        self._events: SimpleQueue[tuple[Server | Call, float, Outcome]] = SimpleQueue()
        self._alone_since: float | None = time.monotonic()  # since when no server is up
        self._probe = wire.tensors_of(_one_user(model))
        self._parameters = wire.parameters_of(Decoding(top_k=1), model.fingerprint)

    def join(self) -> Facts:
        """Ask every server once, wait for one that answers, and return what they compute with.

        Raises:
            ConfigError: an address is that of another port.
            EngineError: a server refuses to be asked, or computes otherwise than another one.
            ModelError: a server has another model.
            RetryError: none answers.
        """
        while self.facts is None or any(not each.up and not each.why for each in self.servers):
            self.take(MOST_WAIT_S)
        return self.facts

    def close(self) -> None:
        """End all connections."""
        for each in self.servers:
            each.connection.close()

    def pick(self, users: int, not_to: Server | None = None) -> Server | None:
        """Return the server that would be done first with so many users more, None where all have enough."""
        free = [each for each in self.servers if each.free]
        others = [each for each in free if each is not not_to]
        fastest = max((each.speed or 0.0 for each in free), default=0.0) or 1.0
        return min(others or free, key=lambda each: (each.outstanding + users) / (each.speed or fastest), default=None)

    def send(
        self,
        server: Server,
        inputs: list[Any],
        parameters: Mapping[str, Any],
        users: int,
        done: Callable[[Call, Outcome], None],
    ) -> Call:
        """Send a batch to a server; `done` is called by `take` once it is answered, or is not."""
        call = Call(server=server, users=users, sent=time.monotonic(), done=done)
        server.calls.append(call)
        call.cancel = server.connection.ask(
            inputs, parameters, lambda outcome: self._events.put((call, time.monotonic(), outcome))
        )
        return call

    def drop(self, call: Call) -> None:
        """Forget a batch that nobody waits for; its server is slower than it would have had to be."""
        server = call.server
        if call in server.calls:
            server.calls.remove(call)
            call.dropped = True
            call.cancel()
            speed = call.users / max(time.monotonic() - max(call.sent, server.done_at), 1e-6)
            server.speed = speed if server.speed is None else min(speed, server.speed)

    def take(self, most_s: float) -> None:
        """Wait at most so long for outcomes, and hand them to whoever waits; ask servers that are away again.

        Raises:
            RetryError: no server has answered for as long as the run waits, or all have another model.
        """
        self._ask_again()
        self._check_alone()
        until_s = min([most_s, MOST_WAIT_S, *(each.again_at - time.monotonic() for each in self._away())])
        try:
            event = self._events.get(timeout=max(0.0, until_s)) if most_s else self._events.get_nowait()
            while True:
                self._serve(*event)
                event = self._events.get_nowait()
        except Empty:
            return

    def leave(self, server: Server, why: str, *, other_model: bool = False) -> None:
        """Take a server out of use until it has answered again."""
        now = time.monotonic()
        if server.up or not server.why:
            LOG.warning("server %s is left out for now: %s", server.address, why, extra=ADVICE)
        server.up, server.why, server.other_model = False, why, other_model
        server.again_at, server.pause_s = now + server.pause_s, min(2 * server.pause_s, LONGEST_PAUSE_S)
        if self._alone_since is None and not any(each.up for each in self.servers):
            self._alone_since = now

    def accept(self, server: Server, answer: Answer) -> bool:
        """Return whether an answer comes from the model of the run; a server with another one is left out.

        Raises:
            EngineError: the answer does not say what computed it.
        """
        facts = _facts(server, answer)
        if (facts.model, facts.tokens) != (self._model.fingerprint, self._model.tokens):
            self._other_model(server, facts)
            return False
        if self.facts is None:
            self.facts = facts
        if facts.computes() != self.facts.computes():
            self._other_engine(server, facts)
            return False
        server.facts = facts
        return True

    def _serve(self, whom: Server | Call, at: float, outcome: Outcome) -> None:
        if isinstance(whom, Server):
            self._probed(whom, outcome)
        elif not whom.dropped:
            server = whom.server
            server.calls.remove(whom)
            if isinstance(outcome, Answer):
                took_s = max(at - max(whom.sent, server.done_at), 1e-6)
                rate = whom.users / took_s
                server.speed = rate if server.speed is None else (1 - NEWEST) * server.speed + NEWEST * rate
                server.done_at = at
            whom.done(whom, outcome)

    def _probed(self, server: Server, outcome: Outcome) -> None:
        server.probing = False
        if isinstance(outcome, Answer):
            if self.accept(server, outcome):
                if server.why:
                    LOG.info("server %s is used again", server.address)
                server.up, server.why, server.other_model, server.pause_s = True, "", False, FIRST_PAUSE_S
                self._alone_since = None
            return
        if not server.why:  # it was never asked before
            self._check_first(server, outcome)
        self.leave(server, outcome.text)

    def _check_first(self, server: Server, outcome: Failure) -> None:
        """Raise an error where waiting would not help a server that fails at the first time."""
        if outcome.kind == REFUSED:
            raise EngineError.of_server(
                f"server {server.address} refuses batches for its model {self._asked.model!r}: {outcome.text}; "
                "write its repository with `model export --format triton` of this version, and name the model after "
                "the servers, triton://HOST:PORT/MODEL"
            )
        if outcome.kind == AWAY and speaks_http(server.address):
            raise ConfigError(
                f"--engine: {server.address} is an HTTP port; name the port of gRPC, by default {GRPC_PORT}"
            )

    def _other_model(self, server: Server, facts: Facts) -> None:
        model = self._model
        why = f"it has the model {facts.model[:16]} with {facts.tokens:,} tokens"
        if facts.model != model.fingerprint or server.facts is not None:
            why = f"it has the model {facts.model[:16]}"
        mine = f"{model.fingerprint[:16]} with {model.tokens:,} tokens" if "tokens" in why else model.fingerprint[:16]
        if server.facts is None and not server.why:
            raise ModelError(
                f"server {server.address}: {why}, and the run has {mine}; score with the model of the servers, or "
                "export this one for them"
            )
        self.leave(server, f"{why}, and the run has {mine}", other_model=True)

    def _other_engine(self, server: Server, facts: Facts) -> None:
        assert self.facts is not None
        if server.facts is None and not server.why:
            raise EngineError.of_server(
                f"server {server.address} computes with {facts}, others with {self.facts}: rows would depend on who "
                "computes them; export one repository for all servers, and run them on machines of one kind"
            )
        self.leave(server, f"it computes with {facts} now, others with {self.facts}")

    def _away(self) -> list[Server]:
        return [each for each in self.servers if not each.up and not each.probing]

    def _ask_again(self) -> None:
        for each in self._away():
            if each.again_at <= time.monotonic():
                each.probing = True
                inputs = each.connection.request(self._probe)
                each.connection.ask(inputs, self._parameters, self._told(each), PROBE_S)

    def _told(self, server: Server) -> Callable[[Outcome], None]:
        return lambda outcome: self._events.put((server, time.monotonic(), outcome))

    def _check_alone(self) -> None:
        """Raise RetryError where no server has been up for too long, or none can become it."""
        if self._alone_since is None:
            return
        why = "; ".join(f"{each.address}: {each.why}" for each in self.servers if each.why)
        if all(each.other_model for each in self.servers):
            raise RetryError(f"no server has the model of the run any more ({why}); written parts stay")
        waited_s = time.monotonic() - self._alone_since
        if waited_s > self._asked.wait_s and all(each.why for each in self.servers):
            raise RetryError(
                f"no server answered for {math.floor(waited_s)} s ({why}); written parts stay: start a server and run "
                "the same command again, or wait longer with triton://...?wait=SECONDS"
            )


def _facts(server: Server, answer: Answer) -> Facts:
    try:
        return Facts.of(answer.tensors[wire.ENGINE].flat[0].decode())
    except (LookupError, AttributeError, ValueError, TypeError) as error:
        raise EngineError.of_server(
            f"server {server.address}: its answer does not say what computed it ({error!r})"
        ) from error


def _one_user(model: Model) -> Batch:
    """Return the batch of a probe: a user without history."""
    return Batch(
        dense_BF=np.zeros((1, model.config.features), np.float32),
        tokens_BS=np.zeros((1, 1), np.int32),
        lengths_B=np.zeros(1, np.int32),
        seen_BX=np.zeros((1, 1), np.int32),
    )
