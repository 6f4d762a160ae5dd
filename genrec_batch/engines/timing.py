"""An engine's calls on the host's clock: what the host drives step by step, told as stages.

Owns: which call is which stage. Must not know: how an engine computes, who is told. In: an engine and a recorder. Out:
an engine that gives the same, and tells a piece for each run of calls of one stage.

A GPU works on after a call returns, so each call is waited for; what is asked of an engine this way is answered on the
host after nearly every call anyway. The fast loop that stays on the device has the device's own marks (`marks`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from genrec_batch.core.arrays import F32, HEADS, I32, I64, Batch, Ranked
from genrec_batch.engines.protocol import Engine, Recorder, State, nothing

ITEM_BYTES = 4 + 4 + 4 * len(HEADS)  # token, log-probability, heads
COPY_IN, PREFILL, DECODE, COPY_OUT = "copy in", "prefill", "decode", "copy out"


class Timed(Engine):
    """An engine around another one that records its calls, for one batch; `tell` ends it."""

    def __init__(self, engine: Engine, record: Recorder) -> None:
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self._engine, self._record = engine, record
        self._stage, self._start, self._stop = "", 0.0, 0.0  # of the run of calls at hand
        self._rows = self._bytes = 0
        self._users = 0  # rows of the latest state

    def prefill(self, batch: Batch, *, steps: int, choices: int = 1) -> State:
        """Make the state; up to where the engine holds the batch it is `copy in`, then `prefill`."""
        start, self._users, count = time.perf_counter(), len(batch), batch_bytes(batch)
        held: list[float] = []

        def arrived() -> None:
            self._engine.wait()
            held.append(time.perf_counter())

        self._engine.arrived = arrived
        try:
            state = self._engine.prefill(batch, steps=steps, choices=choices)
            self._engine.wait()
        finally:
            self._engine.arrived = nothing
        between = held[-1] if held else start
        if held:
            self._add(COPY_IN, start, between, rows=len(batch), bytes=count)
        self._add(PREFILL, between, time.perf_counter(), rows=len(batch), bytes=count)
        return state

    def decode(self, state: State, tokens_B: I32 | None = None) -> None:
        """Read one item per row."""
        with self._during(DECODE, rows=self._users, bytes=self._users * ITEM_BYTES):
            self._engine.decode(state, tokens_B)

    def choose(self, state: State) -> tuple[I32, F32]:
        """Return the best next items: part of `decode`, as it is the choice that decoding is for."""
        with self._during(DECODE):
            return self._engine.choose(state)

    def log_probs(self, state: State, tokens_BC: I32) -> F32:
        """Return given items' log-probabilities."""
        with self._during(DECODE):
            return self._engine.log_probs(state, tokens_BC)

    def score(self, state: State, tokens_BC: I32) -> F32:
        """Return the heads of candidates: one decode pass, whose result comes to the host with it."""
        with self._during(DECODE, rows=tokens_BC.size, bytes=tokens_BC.size * ITEM_BYTES):
            return self._engine.score(state, tokens_BC)

    def select(self, state: State, rows_R: I64) -> State:
        """Return a state of chosen rows."""
        self._users = len(rows_R)
        with self._during(DECODE):
            return self._engine.select(state, rows_R)

    def collect(self, state: State) -> Ranked:
        """Return what was read."""
        start = time.perf_counter()
        ranked = self._engine.collect(state)
        count = ranked.tokens_BK.nbytes + ranked.log_prob_BK.nbytes + ranked.heads_BKH.nbytes
        self._add(COPY_OUT, start, time.perf_counter(), rows=self._users, bytes=count)
        return ranked

    def tell(self) -> None:
        """Tell of the last run of calls."""
        if self._stage:
            self._record(self._stage, self._start, self._stop, rows=self._rows, bytes=self._bytes)
        self._stage, self._rows, self._bytes = "", 0, 0

    @contextmanager
    def _during(self, stage: str, *, rows: int = 0, bytes: int = 0) -> Iterator[None]:  # noqa: A002 (the unit)
        start = time.perf_counter()
        yield
        self._engine.wait()
        self._add(stage, start, time.perf_counter(), rows=rows, bytes=bytes)

    def _add(self, stage: str, start: float, stop: float, *, rows: int, bytes: int) -> None:  # noqa: A002
        if stage != self._stage:
            self.tell()
            self._stage, self._start = stage, start
        self._stop = stop
        self._rows += rows
        self._bytes += bytes


@contextmanager
def timed(engine: Engine, record: Recorder) -> Iterator[Timed]:
    """Return the engine as one that tells its calls while the block runs, which is one batch."""
    watched = Timed(engine, record)
    try:
        yield watched
    finally:
        watched.tell()


def batch_bytes(batch: Batch) -> int:
    """Return the bytes of what an engine reads of a batch."""
    names = ("dense_BF", "tokens_BS", "lengths_B", "seen_BX", "profile_BP", "has_profile_B", "video_BV", "has_video_B")
    return sum(array.nbytes for name in names if (array := getattr(batch, name)) is not None)
