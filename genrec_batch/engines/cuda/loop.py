"""The fast path of the hand-fused engine: all K steps of a batch without the host, copies during the computation.

Owns: the buffers that are reused by every batch, the captured graphs, and the two batches in flight. Must not know: how
a pass works, or the engine's interface. On a CPU (in tests, with a plain twin of the kernels) the same code runs
without streams and graphs.

A batch is two graphs, prefill and decode, so that a mark fits between them: the next batch would overwrite a mark
inside a graph before this batch's was read. The second launch costs a few microseconds of a batch's milliseconds.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec_batch.core.arrays import HEADS, Batch, Ranked
from genrec_batch.core.errors import DeviceMemoryError
from genrec_batch.engines.cuda.buffers import Inputs, Rows, make_history, make_rows, make_scratch, make_suffix
from genrec_batch.engines.cuda.packing import MASK, MASKS, Packed, grid, pack
from genrec_batch.engines.cuda.passes import Kernels, choose, heads_only, prefill, read
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


class Arena:
    """Named buffers that grow when more is needed and otherwise keep their addresses."""

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self._device, self._pinned = device, pinned
        self._held: dict[str, Tensor] = {}
        self.grown = 0  # how often a buffer moved; a captured graph is valid only while this does not change

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the buffer `name` as a contiguous tensor of this shape: zeros when new, else its former content."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size or held.dtype != dtype:
            self._held.pop(name, None)
            held = self._held[name] = torch.zeros(size, dtype=dtype, device=self._device, pin_memory=self._pinned)
            self.grown += 1
        return held[:size].view(shape)


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """The sizes that a graph is captured for."""

    users: int
    rows: int
    width: int
    steps: int
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Loop:
    """One shape's views of the shared buffers, and the calls that run prefill and then all steps on them."""

    packed: dict[str, Tensor]
    banned_BW: Tensor
    out: tuple[Tensor, Tensor, Tensor]  # tokens [K, B], log-probabilities [K, B], heads [K, B, H]
    prefill: Callable[[], None]
    decode: Callable[[], None]


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
    """Greedy decoding of whole batches, `steps` items per user."""

    def __init__(self, fused: Fused, kernels: Kernels) -> None:
        self._fused, self._kernels = fused, kernels
        self._device = fused.tables.token_VD.device
        self._arena = Arena(self._device)
        self._loops: OrderedDict[_Shape, tuple[int, _Loop]] = OrderedDict()
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
        flights: deque[Callable[[], Ranked]] = deque()
        clock = None if record is None else DeviceClock(record, self._mark())
        for number, batch in enumerate(batches):
            with memory_for(f"a batch of {len(batch)} users"):
                flights.append(self._launch(batch, steps, self._slots[number % 2], clock))
            if len(flights) == 2:
                yield flights.popleft()()
        while flights:
            yield flights.popleft()()

    @torch.inference_mode()
    def _launch(self, batch: Batch, steps: int, slot: _Slot, clock: DeviceClock | None) -> Callable[[], Ranked]:
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
        loop = self._loop(packed, steps, None if clock is None else clock.record)
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
                items=len(batch) * steps,
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

    def _loop(self, packed: Packed, steps: int, record: Recorder | None) -> _Loop:
        shape = _Shape(
            users=packed.users,
            rows=grid(packed.rows),
            width=-(-max(1, packed.arrays["tokens"].shape[1]) // 8) * 8,
            steps=steps,
            inputs=tuple(n for n in ("profile", "video") if n in packed.arrays),
        )
        stamp, loop = self._loops.pop(shape, (-1, None))
        if loop is None or stamp != self._arena.grown:
            if self._outgrows(shape):
                self._loops.clear()  # free their buffers before larger ones are allocated
            began = time.perf_counter()
            loop = self._captured(self._prepare(shape))
            if record is not None and self._cuda:
                record(GRAPHS, began, time.perf_counter(), rows=shape.users)
        self._loops[shape] = (self._arena.grown, loop)
        while len(self._loops) > KEPT:
            self._loops.popitem(last=False)
        return loop

    def _outgrows(self, shape: _Shape) -> bool:
        sizes = [(s.users, s.rows, s.users * s.width, s.users * s.steps) for s in (shape, *self._loops)]
        return any(size > max(others) for size, *others in zip(*sizes, strict=True) if others)

    def _prepare(self, shape: _Shape) -> _Loop:
        fused, kernels, arena, users = self._fused, self._kernels, self._arena, shape.users
        lengths_B, first_B = (arena(name, (users,), torch.int32) for name in ("lengths", "first"))
        sizes = {"profile": fused.config.profile, "video": fused.config.video}
        given = {
            n: (arena(n, (users, sizes[n]), fused.dtype), arena(f"has {n}", (users, 1), fused.dtype))
            for n in shape.inputs
        }
        inputs = Inputs(
            tokens_BS=arena("tokens", (users, shape.width), torch.int32),
            features_BF=arena("features", (users, fused.config.features), fused.dtype),
            profile=given.get("profile"),
            video=given.get("video"),
        )
        lengths_B.zero_()  # old lengths may exceed these rows, and a capture begins with a real run
        first_B.copy_(torch.arange(users))
        history = make_history(fused, arena, lengths_B, first_B, shape.rows, shape.width)
        scratch, rows = make_scratch(fused, arena, "packed", shape.rows), make_rows(fused, arena, users)
        suffix = make_suffix(fused, arena, users, shape.steps)
        banned_BW = arena("banned", (users, fused.words), torch.int32)
        tokens_KB = arena("out tokens", (shape.steps, users), torch.int32)
        log_prob_KB = arena("out log_prob", (shape.steps, users), torch.float32)
        heads_KBH = arena("out heads", (shape.steps, users, len(HEADS)), torch.float32)
        by_step = [replace(rows, next_R=tokens_KB[k], log_prob_R=log_prob_KB[k]) for k in range(shape.steps)]

        def first() -> None:
            prefill(fused, kernels, inputs, history, scratch, rows)
            choose(fused, kernels, by_step[0], banned_BW)

        def following() -> None:
            for k, row in enumerate(by_step):
                read(fused, kernels, row.next_R, history, rows, step=k, suffix=suffix, banned_RW=banned_BW)
                raw_RH = self._next(by_step[k + 1 :], rows, banned_BW)
                kernels.heads(raw_RH, row.next_R, heads_KBH[k])

        packed = {"tokens": inputs.tokens_BS, "lengths": lengths_B, "first": first_B, "features": inputs.features_BF}
        packed |= {n: values for n, (values, _) in given.items()} | {f"has {n}": has for n, (_, has) in given.items()}
        out = (tokens_KB, log_prob_KB, heads_KBH)
        return _Loop(packed=packed, banned_BW=banned_BW, out=out, prefill=first, decode=following)

    def _next(self, following: list[Rows], rows: Rows, banned_BW: Tensor) -> Tensor:
        """Choose the next item, if one follows, and return the heads of the item just read, before their sigmoid."""
        if not following:
            return heads_only(self._fused, rows.scratch.x_MD)
        choose(self._fused, self._kernels, following[0], banned_BW)
        return rows.raw_RN[:, self._fused.config.vocabulary :]

    def _captured(self, loop: _Loop) -> _Loop:
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
    tokens_BK, log_prob_BK, heads_BKH = (t.numpy().swapaxes(0, 1)[:users].copy(order="C") for t in landed)
    return Ranked(tokens_BK=tokens_BK, log_prob_BK=log_prob_BK, heads_BKH=heads_BKH)
