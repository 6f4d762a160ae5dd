"""From marks in a device's streams to pieces of work on the host's clock.

Owns: how the device's clock is laid beside the host's. Must not know: torch, CUDA, what a stage does. In: marks, as
CUDA events are. Out: calls of a recorder.

A device's marks only tell the time between two of them, so one of them, the anchor, gets a moment of the host's clock.
The host sees a mark reached after it was, never before: what the host sees is a bound, and the least bound is the best
one. So a new anchor lies where the anchor before it says, at most DRIFT later, and never in the future.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from genrec_batch.engines.protocol import Recorder
from genrec_batch.engines.timing import COPY_IN, COPY_OUT, DECODE, PREFILL

LANES = {COPY_IN: "device in", PREFILL: "device", DECODE: "device", COPY_OUT: "device out"}  # a lane for each stream
GRAPHS = "graphs"  # the stage in which the host builds, loads or captures what the device runs
DRIFT = 50e-6  # by which share a device's clock may run faster or slower than the host's: that of a cheap crystal


class Mark(Protocol):
    """A place in a stream of work, as `torch.cuda.Event` is one."""

    def synchronize(self) -> None:
        """Wait until it is."""
        ...

    def elapsed_time(self, later: Any) -> float:
        """Return the milliseconds between two marks that were reached."""
        ...


class HostMark:
    """A mark in work that the host does itself: reached when it is made."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once."""

    def elapsed_time(self, later: HostMark) -> float:
        """Return the milliseconds up to another mark."""
        return 1e3 * (later._at - self._at)


class DeviceClock:
    """The device's marks beside the host's clock, for batches that are in flight two at a time."""

    def __init__(self, record: Recorder, first: Mark) -> None:
        """Set the clock by a mark that was just made in an idle stream: it is waited for."""
        first.synchronize()
        self.record = record
        self._until: dict[str, float] = {}  # by lane, where its last piece ended
        self.anchor, self.anchor_s = first, time.perf_counter()

    def batch(self) -> Laps:
        """Return a batch's laps; call it before its first mark is made."""
        return Laps(self)

    def tell(self, stage: str, start_s: float, stop_s: float, *, rows: int, bytes: int) -> None:  # noqa: A002 (the unit)
        """Tell of a piece; one of a lane never begins before the last one ended, though the clock was moved."""
        lane = LANES[stage]
        start_s = max(start_s, self._until.get(lane, start_s))
        self._until[lane] = stop_s = max(start_s, stop_s)
        self.record(stage, start_s, stop_s, rows=rows, bytes=bytes, lane=lane)

    def set_by(self, mark: Mark, expected_s: float, since_s: float) -> None:
        """Take a reached mark as anchor; by one that is `since_s` seconds older it lies at `expected_s`."""
        self.anchor, self.anchor_s = mark, min(time.perf_counter(), expected_s + DRIFT * since_s)


class Laps:
    """One batch's pieces of work, each between two marks."""

    def __init__(self, clock: DeviceClock) -> None:
        self._clock = clock
        self._anchor, self._anchor_s = clock.anchor, clock.anchor_s  # reached by now, so before every mark to come
        self._laps: list[tuple[str, Mark, Mark, int, int]] = []

    def of_batch(self, marks: Sequence[Mark], *, users: int, items: int, bytes_in: int, bytes_out: int) -> None:
        """Note a batch by its seven marks: around the copy in, around prefill, after decode, around the copy out."""
        arriving, arrived, began, chosen, decoded, leaving, left = marks
        self.add(COPY_IN, arriving, arrived, rows=users, bytes=bytes_in)
        self.add(PREFILL, began, chosen, rows=users, bytes=bytes_in)
        self.add(DECODE, chosen, decoded, rows=items, bytes=bytes_out)
        self.add(COPY_OUT, leaving, left, rows=users, bytes=bytes_out)

    def add(self, stage: str, start: Mark, stop: Mark, *, rows: int, bytes: int) -> None:  # noqa: A002 (the unit)
        """Note a piece of work between two marks."""
        self._laps.append((stage, start, stop, rows, bytes))

    def tell(self) -> None:
        """Wait for the last piece and tell of all."""
        last = self._laps[-1][2]
        last.synchronize()
        expected_s = self._at(last)
        self._clock.set_by(last, expected_s, expected_s - self._anchor_s)
        shift_s = self._clock.anchor_s - expected_s
        for stage, start, stop, rows, count in self._laps:
            self._clock.tell(stage, self._at(start) + shift_s, self._at(stop) + shift_s, rows=rows, bytes=count)

    def _at(self, mark: Mark) -> float:
        return self._anchor_s + self._anchor.elapsed_time(mark) / 1e3
