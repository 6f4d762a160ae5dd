"""The fast path of the hand-fused engine: a batch's slates or candidates without the host, copies during computation.

Owns: the captured graphs, and the two batches in flight. Must not know: what runs on a batch (`programs`), how a pass
works, or the engine's interface. On a CPU (in tests, with a plain twin of the kernels) the same code runs
without streams and graphs.

A batch is two graphs, prefill and decode, so that a mark fits between them: the next batch would overwrite a mark
inside a graph before this batch's was read. The second launch costs a few microseconds of a batch's milliseconds.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec_batch.core.arrays import Batch, Ranked
from genrec_batch.core.errors import DeviceMemoryError
from genrec_batch.engines.cuda.packing import MASK, MASKS, Packed, grid, pack
from genrec_batch.engines.cuda.passes import Kernels
from genrec_batch.engines.cuda.programs import Arena, Loop, Shape, prepare
from genrec_batch.engines.cuda.weights import Fused
from genrec_batch.engines.protocol import Recorder
from genrec_batch.engines.timing import GRAPHS, DeviceClock, HostMark, Laps, Mark

cuda: Any = torch.cuda  # its streams and events have no types

KEPT = 16  # captured shapes; the least recently used is dropped first


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Turn the device's out-of-memory error into a DeviceMemoryError that names what needed it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(f"the device ran out of memory for {what}; lower --batch-size") from error


class _Slot:
    """One of the two batches in flight: its pinned host memory, its device copies, its events."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.host = Arena(torch.device("cpu"), pinned=self.cuda)
        self.device = Arena(device)
        self.done = cuda.Event() if self.cuda else None

    def send(self, name: str, array: np.ndarray[Any, Any], rows: int) -> Tensor:
        """Copy an array to the device through pinned memory; rows beyond it are 0."""
        shape, kind = (rows, *array.shape[1:]), torch.from_numpy(np.empty(0, array.dtype)).dtype
        host = self.host(name, shape, kind)
        filled = host.numpy()  # torch would copy with threads of its own, which busy the cores that compute features
        filled[: len(array)] = array
        filled[len(array) :] = 0
        return self.device(name, shape, kind).copy_(host, non_blocking=True)


class CapturedLoop:
    """Greedy decoding of whole batches, `steps` items per user, and the scoring of their best candidates."""

    def __init__(self, fused: Fused, kernels: Kernels) -> None:
        self._fused, self._kernels = fused, kernels
        self._device = fused.tables.token_VD.device
        self._arena = Arena(self._device)
        self._loops: OrderedDict[Shape, tuple[int, Loop]] = OrderedDict()
        self._cuda = self._device.type == "cuda"
        self._slots = (_Slot(self._device), _Slot(self._device))
        self._in, self._out, self._side = (cuda.Stream(self._device) if self._cuda else None for _ in range(3))

    def slates(self, batches: Iterable[Batch], steps: int, record: Recorder | None = None) -> Iterator[Ranked]:
        """Yield one Ranked per batch, in order; while one is read, the next is computed and the one after it copied.

        `record` receives each batch's copies, prefill and decode on the device, and each capture on this thread.

        Raises:
            ConfigError: a history and `steps` do not fit the model's positions.
            DeviceMemoryError: the device ran out of memory.
        """
        return self._ranked(batches, record, steps=steps)

    def candidates(self, batches: Iterable[Batch], count: int, record: Recorder | None = None) -> Iterator[Ranked]:
        """Yield the best `count` candidates of each batch and their heads; else as `slates`."""
        return self._ranked(batches, record, steps=1, candidates=count)

    def _ranked(
        self, batches: Iterable[Batch], record: Recorder | None, *, steps: int, candidates: int = 0
    ) -> Iterator[Ranked]:
        flights: deque[Callable[[], Ranked]] = deque()
        clock = None if record is None else DeviceClock(record, self._mark())
        for number, batch in enumerate(batches):
            with memory_for(f"a batch of {len(batch)} users"):
                flights.append(self._launch(batch, steps, candidates, self._slots[number % 2], clock))
            if len(flights) == 2:
                yield flights.popleft()()
        while flights:
            yield flights.popleft()()

    @torch.inference_mode()
    def _launch(
        self, batch: Batch, steps: int, candidates: int, slot: _Slot, clock: DeviceClock | None
    ) -> Callable[[], Ranked]:
        packed = pack(batch, steps=steps, positions=self._fused.config.positions, users=grid(len(batch)))
        laps = None if clock is None else clock.batch()
        marks: list[Mark] = []

        def mark(stream: Any = None) -> None:
            if laps is not None:
                marks.append(self._mark(stream))

        with self._on(self._in):
            mark(self._in)
            sent = {
                name: slot.send(name, array, len(array) if name == MASKS else packed.users)
                for name, array in packed.arrays.items()
            }
            mark(self._in)
        self._wait(self._in)
        loop = self._loop(packed, steps, None if clock is None else clock.record, candidates)
        mark()
        for name, target in loop.packed.items():
            target[:, : sent[name].shape[1]].copy_(sent[name]) if target.dim() > 1 else target.copy_(sent[name])
        ban_all(self._fused, self._kernels, sent, loop.banned_BW)
        loop.prefill()
        mark()
        loop.decode()
        results = [slot.device(f"out {i}", tuple(o.shape), o.dtype).copy_(o) for i, o in enumerate(loop.out)]
        mark()
        self._wait(None, waiting=self._out)
        with self._on(self._out):
            mark(self._out)
            landed = [
                slot.host(f"out {i}", tuple(r.shape), r.dtype).copy_(r, non_blocking=True)
                for i, r in enumerate(results)
            ]
            mark(self._out)
            if slot.done is not None:
                slot.done.record(self._out)
        if laps is not None:
            laps.of_batch(
                marks,
                users=len(batch),
                items=len(batch) * (candidates or steps),
                bytes_in=sum(array.nbytes for array in packed.arrays.values()),
                bytes_out=sum(r.nbytes for r in results),
            )
        return lambda: _land(slot, landed, len(batch), laps)

    def _mark(self, stream: Any = None) -> Mark:
        """Mark the work queued so far on a stream, by default that of the computation."""
        if not self._cuda:
            return HostMark()
        event = cuda.Event(enable_timing=True)
        event.record(stream or cuda.current_stream(self._device))
        made: Mark = event
        return made

    def _on(self, stream: Any) -> Any:
        return nullcontext() if stream is None else cuda.stream(stream)

    def _wait(self, source: Any, waiting: Any = None) -> None:
        """Let stream `waiting` wait for all work queued so far on `source`; None is the compute stream."""
        if self._cuda:
            compute = cuda.current_stream(self._device)
            (waiting or compute).wait_stream(source or compute)

    def _loop(self, packed: Packed, steps: int, record: Recorder | None, candidates: int = 0) -> Loop:
        shape = Shape(
            users=packed.users,
            rows=grid(packed.rows),
            width=-(-max(1, packed.arrays["tokens"].shape[1]) // 8) * 8,
            steps=steps,
            candidates=candidates,
            inputs=tuple(n for n in ("profile", "video") if n in packed.arrays),
        )
        stamp, loop = self._loops.pop(shape, (-1, None))
        if loop is None or stamp != self._arena.grown:
            if self._outgrows(shape):
                self._loops.clear()  # free their buffers before larger ones are allocated
            began = time.perf_counter()
            loop = self._captured(prepare(self._fused, self._kernels, self._arena, shape))
            if record is not None and self._cuda:
                record(GRAPHS, began, time.perf_counter(), rows=shape.users)
        self._loops[shape] = (self._arena.grown, loop)
        while len(self._loops) > KEPT:
            self._loops.popitem(last=False)
        return loop

    def _outgrows(self, shape: Shape) -> bool:
        sizes = [
            (s.users, s.rows, s.users * s.width, s.users * s.steps, s.users * s.candidates)
            for s in (shape, *self._loops)
        ]
        return any(size > max(others) for size, *others in zip(*sizes, strict=True) if others)

    def _captured(self, loop: Loop) -> Loop:
        """Return a loop whose calls replay CUDA graphs; on a CPU the loop as it is."""
        if not self._cuda:
            return loop
        side: Any = self._side
        side.wait_stream(cuda.current_stream(self._device))
        with cuda.stream(side):
            loop.prefill()  # compiles kernels and creates the libraries' handles, which a capture must not do
            loop.decode()
        cuda.current_stream(self._device).wait_stream(side)
        first, following = cuda.CUDAGraph(), cuda.CUDAGraph()
        mode = "thread_local"  # other threads may allocate memory meanwhile
        with cuda.graph(first, stream=side, capture_error_mode=mode):
            loop.prefill()
        with cuda.stream(side):  # a second `cuda.graph` would empty the allocator's cache again
            following.capture_begin(pool=first.pool(), capture_error_mode=mode)  # one pool: they run in this order
            try:
                loop.decode()
            finally:
                following.capture_end()
        return replace(loop, prefill=first.replay, decode=following.replay)


def ban_all(fused: Fused, kernels: Kernels, sent: Mapping[str, Tensor], banned_BW: Tensor) -> None:
    """Reset the bit maps to each row's mask, the tokens without a video and the items seen.

    It runs before the captured graphs, which read the same `banned_BW` whether there are masks or not.
    """
    if MASKS in sent:
        torch.index_select(sent[MASKS], 0, sent[MASK], out=banned_BW)
        banned_BW |= fused.never_W
    else:
        banned_BW.copy_(fused.never_W.expand_as(banned_BW))
    if sent["seen"].shape[1]:
        kernels.ban(sent["seen"], banned_BW)


def _land(slot: _Slot, landed: list[Tensor], users: int, laps: Laps | None) -> Ranked:
    if laps is not None:
        laps.report()
    if slot.done is not None:
        slot.done.synchronize()
    tokens_BK, log_prob_BK, heads_BKH = (t.numpy()[:users].copy() for t in landed)
    return Ranked(tokens_BK=tokens_BK, log_prob_BK=log_prob_BK, heads_BKH=heads_BKH)
