"""When an engine did what, as stages on the host's clock: calls that the host makes, and marks in a device's streams.

Owns: which call is which stage, and how a device's clock is laid beside the host's. Must not know: torch, CUDA, how an
engine computes, who listens. In: an engine and a recorder, or marks, as CUDA events are. Out: calls of the recorder.

What the host drives step by step is timed by the host (`timed`). A GPU works on after a call returns, so each call is
waited for; its result is read on the host after nearly every call anyway.

A slate loop that stays on the device is timed by marks in its streams (`DeviceClock`). Marks only give the time between
two of them, so one of them, the anchor, gets a moment of the host's clock. The host sees a mark reached after it was,
never before: what the host sees is a bound, and the least bound is the best one. So a new anchor lies where the anchor
before it says, at most DRIFT later, and never in the future.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from genrec_batch.core.arrays import F32, HEADS, I32, I64, Batch, Ranked
from genrec_batch.engines.protocol import Recorder, State, SteppedEngine, nothing

ITEM_BYTES = 4 + 4 + 4 * len(HEADS)  # token, log-probability, heads
COPY_IN, PREFILL, DECODE, COPY_OUT = "copy in", "prefill", "decode", "copy out"
LANES = {COPY_IN: "device in", PREFILL: "device", DECODE: "device", COPY_OUT: "device out"}  # a lane for each stream
GRAPHS = "graphs"  # the stage in which the host builds, loads or captures what the device runs
DRIFT = 50e-6  # by which share a device's clock may run faster or slower than the host's: that of a cheap crystal


class Timed(SteppedEngine):
    """An engine around another one, which records its calls for one batch; `finish` records the last stage."""

    def __init__(self, engine: SteppedEngine, record: Recorder) -> None:
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self._engine, self._record = engine, record
        self._stage, self._start, self._stop = "", 0.0, 0.0  # of the stage at hand
        self._rows = self._bytes = 0
        self._users = 0  # rows of the latest state

    def prefill(self, batch: Batch, *, steps: int, choices: int = 1) -> State:
        """Record `copy in` until the engine holds the batch, then `prefill`."""
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
        """Return the best next items; part of the stage `decode`."""
        with self._during(DECODE):
            return self._engine.choose(state)

    def log_probs(self, state: State, tokens_BC: I32) -> F32:
        """Return given items' log-probabilities."""
        with self._during(DECODE):
            return self._engine.log_probs(state, tokens_BC)

    def score(self, state: State, tokens_BC: I32) -> F32:
        """Return the heads of candidates: one decode pass that includes the copy of its result."""
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

    def finish(self) -> None:
        """Record the stage at hand."""
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
            self.finish()
            self._stage, self._start = stage, start
        self._stop = stop
        self._rows += rows
        self._bytes += bytes


@contextmanager
def timed(engine: SteppedEngine, record: Recorder) -> Iterator[Timed]:
    """Return the engine as one that records its calls while the block runs, which is one batch."""
    watched = Timed(engine, record)
    try:
        yield watched
    finally:
        watched.finish()


def batch_bytes(batch: Batch) -> int:
    """Return the bytes of what an engine reads of a batch."""
    names = ("dense_BF", "tokens_BS", "lengths_B", "seen_BX", "profile_BP", "has_profile_B", "video_BV", "has_video_B")
    arrays = [array for name in names if (array := getattr(batch, name)) is not None]
    arrays += [] if batch.masks is None else [batch.masks.banned_MW, batch.masks.mask_B]
    return sum(array.nbytes for array in arrays)


class Mark(Protocol):
    """A place in a stream of work, such as a `torch.cuda.Event`."""

    def synchronize(self) -> None:
        """Wait until it is reached."""
        ...

    def elapsed_time(self, later: Any) -> float:
        """Return the milliseconds between two marks that were reached."""
        ...


class HostMark:
    """A mark in work that the host does itself, reached as soon as it is made."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once."""

    def elapsed_time(self, later: HostMark) -> float:
        """Return the milliseconds up to another mark."""
        return 1e3 * (later._at - self._at)


class DeviceClock:
    """The device's marks on the host's clock, for batches of which two are in flight at a time."""

    def __init__(self, record: Recorder, first: Mark) -> None:
        """Set the clock by a mark that was just made in an idle stream, and wait for it."""
        first.synchronize()
        self.record = record
        self._until: dict[str, float] = {}  # by lane, when its last stage ended
        self.anchor, self.anchor_s = first, time.perf_counter()

    def batch(self) -> Laps:
        """Return the laps of a new batch; call it before the batch's first mark is made."""
        return Laps(self)

    def report(self, stage: str, start_s: float, stop_s: float, *, rows: int, bytes: int) -> None:  # noqa: A002
        """Record a stage; in its lane it never begins before the last one ended, even where the anchor was moved."""
        lane = LANES[stage]
        start_s = max(start_s, self._until.get(lane, start_s))
        self._until[lane] = stop_s = max(start_s, stop_s)
        self.record(stage, start_s, stop_s, rows=rows, bytes=bytes, lane=lane)

    def set_by(self, mark: Mark, expected_s: float, since_s: float) -> None:
        """Take a reached mark as anchor, which an anchor `since_s` seconds older places at `expected_s`."""
        self.anchor, self.anchor_s = mark, min(time.perf_counter(), expected_s + DRIFT * since_s)


class Laps:
    """The stages of one batch, each between two marks."""

    def __init__(self, clock: DeviceClock) -> None:
        self._clock = clock
        self._anchor, self._anchor_s = clock.anchor, clock.anchor_s  # reached by now, so before every mark to come
        self._laps: list[tuple[str, Mark, Mark, int, int]] = []

    def of_batch(self, marks: Sequence[Mark], *, users: int, items: int, bytes_in: int, bytes_out: int) -> None:
        """Add a batch by its seven marks: around the copy in, around prefill, after decode, around the copy out."""
        arriving, arrived, began, chosen, decoded, leaving, left = marks
        self.add(COPY_IN, arriving, arrived, rows=users, bytes=bytes_in)
        self.add(PREFILL, began, chosen, rows=users, bytes=bytes_in)
        self.add(DECODE, chosen, decoded, rows=items, bytes=bytes_out)
        self.add(COPY_OUT, leaving, left, rows=users, bytes=bytes_out)

    def add(self, stage: str, start: Mark, stop: Mark, *, rows: int, bytes: int) -> None:  # noqa: A002 (the unit)
        """Add a stage between two marks."""
        self._laps.append((stage, start, stop, rows, bytes))

    def report(self) -> None:
        """Wait for the last stage and record all of them."""
        last = self._laps[-1][2]
        last.synchronize()
        expected_s = self._at(last)
        self._clock.set_by(last, expected_s, expected_s - self._anchor_s)
        shift_s = self._clock.anchor_s - expected_s
        for stage, start, stop, rows, count in self._laps:
            self._clock.report(stage, self._at(start) + shift_s, self._at(stop) + shift_s, rows=rows, bytes=count)

    def _at(self, mark: Mark) -> float:
        return self._anchor_s + self._anchor.elapsed_time(mark) / 1e3
