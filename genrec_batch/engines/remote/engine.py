"""The engine of `--engine triton://HOST:PORT`: batches go to Triton servers that have the same model.

Owns: the engine as a run sees it. Must not know: how a batch travels (`wire`, `connection`), which server gets it
(`fleet`, `flight`). Precision, device and the size of a batch are the servers'.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from genrec_batch.core.arrays import Batch, Ranked
from genrec_batch.core.errors import EngineError
from genrec_batch.core.servers import Servers
from genrec_batch.engines.decode import Decoding, WholeEngine
from genrec_batch.engines.parity import joined
from genrec_batch.engines.protocol import Recorder
from genrec_batch.engines.remote.fleet import Fleet, Server
from genrec_batch.engines.remote.flight import Flight
from genrec_batch.model.weights import Model


class RemoteEngine(WholeEngine):
    """Servers with one model."""

    name = "triton"

    def __init__(self, model: Model, servers: Servers, *, precision: str) -> None:
        """Connect to the servers; see `Fleet.join` for what is raised."""
        self._model = model
        self._fleet = Fleet(servers, model)
        with ExitStack() as unless_open:
            unless_open.callback(self._fleet.close)
            self._facts = facts = self._fleet.join()
            if precision not in ("auto", facts.precision):
                raise EngineError.of_server(
                    f"--precision {precision}: the servers compute in {facts.precision}; omit it, or export their "
                    f"repository with --precision {precision}"
                )
            unless_open.pop_all()
        weakref.finalize(self, self._fleet.close)  # at the latest before Python ends, where gRPC would wait for ever
        self._last: Server | None = None  # that computed what was returned last
        self.device, self.precision = facts.device, facts.precision
        self.arithmetic = f"{facts.engine} {facts.arithmetic}".rstrip()

    @property
    def title(self) -> str:
        """Who computed what was returned last; all servers where nothing was."""
        one = self._last is not None
        servers = [self._last] if self._last is not None else self._fleet.servers
        names = ", ".join(each.address for each in servers)
        return f"the server{'' if one else 's'} {names} ({self._facts})"

    @property
    def rows(self) -> int:
        """Users of a batch, at most."""
        return self._facts.max_batch

    def report(self) -> dict[str, Any]:
        """Return what each server did."""
        return {"servers": {each.address: each.counts() for each in self._fleet.servers}}

    def rankings(
        self, batches: Iterable[Batch], decoding: Decoding, record: Recorder | None = None
    ) -> Iterator[Ranked]:
        """Yield what the servers recommend; a batch of more users than they take goes out in several."""
        pieces: deque[int] = deque()

        def cut() -> Iterator[Batch]:
            for batch in batches:
                starts = range(0, max(1, len(batch)), self.rows)
                pieces.append(len(starts))
                yield from (batch.rows(start, start + self.rows) for start in starts)

        flight = Flight(self._fleet, self._model, decoding, record).rankings(cut())
        found: list[Ranked] = []
        try:
            for ranked, self._last in flight:
                found.append(ranked)
                if len(found) == pieces[0]:
                    pieces.popleft()
                    whole = found[0] if len(found) == 1 else joined(found)
                    found = []
                    yield whole
        finally:
            flight.close()  # type: ignore[attr-defined]
