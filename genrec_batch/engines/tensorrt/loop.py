"""The fast path of the TensorRT engine: batches run as captured graphs, and one is copied while another is computed.

Owns: the order of copies, launches and waits, and the batches in flight. Must not know: how engines are built, what a
graph computes, `engines.protocol`. A batch is two graphs, prefill and decode, so that a time mark fits between them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from genrec_batch.core.arrays import Batch, Ranked
from genrec_batch.engines.driver import Device, Event, Stream
from genrec_batch.engines.protocol import Recorder
from genrec_batch.engines.tensorrt.memory import Slot, SlotPool
from genrec_batch.engines.tensorrt.program import Program
from genrec_batch.engines.timing import GRAPHS, DeviceClock, Laps

IN_FLIGHT = 2  # batches: one computes while the other is copied
Flight = tuple[Slot, int, Laps | None]  # a batch's memory, its users, its stages by the device's clock


class TensorRtSlateLoop:
    """Greedy decoding of whole batches."""

    def __init__(
        self, device: Device, compute: Stream, pool: SlotPool, ready: Callable[[Batch, int], tuple[Program, Slot]]
    ) -> None:
        """Open two streams for the copies.

        Args:
            device: the GPU.
            compute: the stream of the engines.
            pool: of the memory of batches.
            ready: returns the engines and the memory for a batch and a number of steps.
        """
        self._device, self._compute, self._pool, self._ready = device, compute, pool, ready
        self._in, self._out = Stream(device), Stream(device)

    def slates(self, batches: Iterable[Batch], steps: int, record: Recorder | None) -> Iterator[Ranked]:
        """Yield the slates of each batch, in order.

        Raises:
            EngineError: an engine cannot be built or run.
            DeviceMemoryError: two batches at once do not fit the device.
        """
        clock = None if record is None else DeviceClock(record, self._mark(self._compute))
        flying: deque[Flight] = deque()
        try:
            for batch in batches:
                flying.append(self._send(batch, steps, clock))
                if len(flying) == IN_FLIGHT:
                    yield self._receive(flying[0], steps)
                    self._pool.release(flying.popleft()[0])
            while flying:
                yield self._receive(flying[0], steps)
                self._pool.release(flying.popleft()[0])
        finally:
            if flying:  # stopped early: the device must have finished with the memory before it is used again
                self._compute.synchronize()
                self._out.synchronize()
            for slot, _, _ in flying:
                self._pool.release(slot)

    def _send(self, batch: Batch, steps: int, clock: DeviceClock | None) -> Flight:
        began = time.perf_counter()
        program, slot = self._ready(batch, steps)
        fresh = steps not in slot.graphs
        first, following = program.graphs(slot, steps, self._compute)
        if clock is not None and fresh:
            clock.record(GRAPHS, began, time.perf_counter(), rows=slot.shape.rows)
        laps = None if clock is None else clock.batch()
        marks: list[Event] = []

        def mark(stream: Stream) -> None:
            if laps is not None:
                marks.append(self._mark(stream))

        mark(self._in)
        slot.fill(batch)
        self._in.wait(slot.computed)  # the batch before may still use this memory
        sent = slot.send(self._in)
        mark(self._in)
        self._in.record(slot.arrived)
        self._compute.wait(slot.arrived)
        mark(self._compute)
        first.launch(self._compute)
        mark(self._compute)
        following.launch(self._compute)
        mark(self._compute)
        self._compute.record(slot.computed)
        self._out.wait(slot.computed)
        mark(self._out)
        self._out.copy_out(slot.host_out, slot.device_out.address, slot.device_out.count)
        mark(self._out)
        self._out.record(slot.done)
        if laps is not None:
            laps.of_batch(
                marks,
                users=len(batch),
                items=len(batch) * steps,
                bytes_in=sent,
                bytes_out=slot.device_out.count,
            )
        return slot, len(batch), laps

    def _receive(self, flight: Flight, steps: int) -> Ranked:
        slot, rows, laps = flight
        if laps is not None:
            laps.report()
        slot.done.synchronize()
        return slot.ranked(rows, steps)

    def _mark(self, stream: Stream) -> Event:
        event = Event(self._device, timed=True)
        stream.record(event)
        return event
