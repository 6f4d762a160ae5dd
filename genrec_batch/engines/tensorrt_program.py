"""Engines of one static shape, and the device memory one batch needs to go through them.

Owns: which address each tensor of an engine is bound to, and the order of launches. Must not know: how engines are
built or cached (`tensorrt_engine.py` hands them in), the protocol, users.

A `Slot` is the memory of one batch. The host fills one pinned block, which one copy brings to the device; the device
leaves one block of results, which one copy brings back. Between the two nothing leaves the device: step t reads the
item of row t of `read` and writes the next into row t + 1, and its keys and values into row t of `recent`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrec_batch.arrays import HEADS, Batch, Ranked
from genrec_batch.engines import tensorrt_build as building
from genrec_batch.engines import tensorrt_graphs as loop
from genrec_batch.engines.cuda import Buffer, Device, DeviceMemoryError, Event, Graph, PinnedBuffer, Stream, aligned
from genrec_batch.engines.tensorrt_graphs import Network, Shape
from genrec_batch.engines.tensorrt_nodes import bfloat16_bits
from genrec_batch.engines.tensorrt_side_graphs import state_tensors
from genrec_batch.errors import EngineError
from genrec_batch.model import BYTES

ROWS_MULTIPLE = 64  # rows of int32 then start on a 256-byte boundary, as TensorRT wants
NOTHING = np.float32(-1e29)  # a log-probability below this means that nothing was left


class Executable:
    """A deserialized engine and its context; every tensor is bound by name before each launch."""

    def __init__(self, library: building.Library, runtime: Any, plan: bytes) -> None:
        """Load an engine.

        Raises:
            DeviceMemoryError: there is no room for it on the device.
            EngineError: the library refuses it.
        """
        self._library = library
        self._engine = runtime.deserialize_cuda_engine(plan)
        self._context = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            text = library.log.last()
            kind = DeviceMemoryError if "memory" in text.lower() else EngineError
            raise kind(f"{library.label} cannot load an engine: {text}")
        self.tensors = building.tensors(library, self._engine)
        self._bound: dict[str, int] = {}

    def launch(self, addresses: Mapping[str, int], stream: Stream) -> None:
        """Queue one run; `addresses` names at least every tensor of the engine.

        Raises:
            EngineError: the library cannot queue it.
        """
        for name in self.tensors:
            address = addresses[name]
            if self._bound.get(name) != address:
                self._context.set_tensor_address(name, address)
                self._bound[name] = address
        if not self._context.execute_async_v3(int(stream.handle)):
            raise EngineError(f"{self._library.label} cannot run an engine: {self._library.log.last()}")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an array stands in a block of memory."""

    start: int
    shape: tuple[int, ...]
    kind: Any

    @property
    def count(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * int(np.dtype(self.kind).itemsize)


def pack_places(arrays: Mapping[str, tuple[tuple[int, ...], Any]]) -> tuple[dict[str, Place], int]:
    """Lay arrays one after the other, each aligned; return their places and the size of the block."""
    places, start = {}, 0
    for name, (shape, kind) in arrays.items():
        places[name] = Place(start=start, shape=shape, kind=kind)
        start += aligned(places[name].count)
    return places, start


class Slot:
    """The memory of one batch in flight."""

    def __init__(self, device: Device, network: Network, shape: Shape, setup: Stream) -> None:
        self.shape, self.network = shape, network
        rows, steps = shape.rows, shape.steps
        half: Any = np.float32 if network.precision == "fp32" else np.uint16 if network.precision == "bf16" else np.float16
        self.inputs, input_bytes = pack_places(
            {
                "features": ((rows, loop.feature_columns(network.config, shape)), half),
                "tokens": ((rows, shape.positions - 1), np.int32),
                "lengths": ((rows,), np.int32),
                "seen": ((rows, shape.seen), np.int32),
            }
        )
        self.results, result_bytes = pack_places(
            {
                "read": ((steps + 1, rows), np.int32),
                "log_prob": ((steps + 1, rows), np.float32),
                "heads": ((steps, rows, len(HEADS)), np.float32),
            }
        )
        self.host_in, self.host_out = PinnedBuffer(device, input_bytes), PinnedBuffer(device, result_bytes)
        self.device_in, self.device_out = Buffer(device, input_bytes), Buffer(device, result_bytes)
        self.host_steps = PinnedBuffer(device, (steps + 1) * 256)
        self.host_steps.view(0, (steps + 1, 64), np.int32)[:, 0] = np.arange(-1, steps)
        self.steps = Buffer(device, (steps + 1) * 256)
        self.memory = {
            name: Buffer(device, math.prod(sizes) * BYTES[network.precision])
            for name, (sizes, kind, _) in state_tensors(network, shape).items()
            if kind is None
        }
        self.arrived, self.computed, self.done = Event(device), Event(device), Event(device)
        self.graphs: dict[int, Graph] = {}
        setup.clear(self.memory["recent"])  # steps not yet written are masked, and must be numbers all the same
        setup.clear(self.device_out)
        setup.copy_in(self.steps.address, self.host_steps, self.host_steps.bytes.size)
        setup.synchronize()

    def address(self, name: str, row: int = 0) -> int:
        """Return the device address of a tensor, or of a row of one whose first axis counts steps."""
        for places, buffer in ((self.inputs, self.device_in), (self.results, self.device_out)):
            if name in places:
                place = places[name]
                return buffer.address + place.start + row * (place.count // place.shape[0])
        return self.memory[name].address

    def step_address(self, step: int) -> int:
        """Return the address of a step's number, -1 to T - 1."""
        return self.steps.address + (step + 1) * 256

    def state(self) -> dict[str, int]:
        """Return the addresses of everything in the state."""
        return {name: self.address(name) for name in state_tensors(self.network, self.shape)}

    def fill(self, batch: Batch) -> None:
        """Write a batch into pinned memory; rows beyond it read nothing.

        Raises:
            EngineError: a feature is beyond the range of fp16.
        """
        self.arrived.synchronize()  # the copy of the batch before may still read this memory
        rows, view = len(batch), {name: self._host(name) for name in self.inputs}
        width = min(batch.tokens_BS.shape[1], self.shape.positions - 1)
        for array in view.values():
            array[:] = 0
        view["tokens"][:rows, :width] = batch.tokens_BS[:, :width]
        view["lengths"][:rows] = batch.lengths_B
        view["seen"][:, 0] = 1  # unknown; padding, 0, fills the rest
        seen_BX = batch.seen_BX
        view["seen"][:rows, 2 : 2 + seen_BX.shape[1]] = np.where(seen_BX < self.network.tokens, seen_BX, 0)
        column = 0
        for values_BF in self._features(batch):
            self._write_features(view["features"][:rows, column : column + values_BF.shape[1]], values_BF)
            column += values_BF.shape[1]

    def _features(self, batch: Batch) -> list[Any]:
        parts: list[Any] = [batch.dense_BF]
        for values, has in ((batch.profile_BP, batch.has_profile_B), (batch.video_BV, batch.has_video_B)):
            if values is not None:
                real = np.ones(len(batch), np.float32) if has is None else has.astype(np.float32)
                parts += [values, real[:, None]]
        return parts

    def _write_features(self, target: Any, values: Any) -> None:
        if self.network.precision == "bf16":
            target[:] = bfloat16_bits(values)
            return
        try:
            with np.errstate(over="raise"):
                target[:] = values
        except FloatingPointError as error:
            raise EngineError("a feature is beyond 65504, the largest number of fp16; use --precision fp32") from error

    def _host(self, name: str) -> Any:
        place = self.inputs[name]
        return self.host_in.view(place.start, place.shape, place.kind)

    def ranked(self, rows: int, steps: int) -> Ranked:
        """Return the results that were copied out, for the first `rows` rows and `steps` steps."""
        read, log_prob, heads = (
            self.host_out.view(place.start, place.shape, place.kind)[:steps, :rows] for place in self.results.values()
        )
        tokens_BK = read.T.copy()  # never a view: the memory is used again
        gone = tokens_BK == 0
        log_prob_BK = np.where(gone | (log_prob.T < NOTHING), np.float32(-np.inf), log_prob.T)
        heads_BKH = np.where(gone[:, :, None], np.float32(0), heads.transpose(1, 0, 2))
        return Ranked(tokens_BK=tokens_BK, log_prob_BK=log_prob_BK, heads_BKH=heads_BKH)


class Program:
    """Prefill and decode of one shape, and whatever else was asked for."""

    def __init__(self, network: Network, shape: Shape, load: Callable[[str, Shape, bytes], Executable]) -> None:
        self.network, self.shape, self._load = network, shape, load
        self._executables: dict[str, Executable] = {}
        self.warm = False

    def executable(self, name: str, make: Callable[[], bytes]) -> Executable:
        """Return an engine of this shape by name, loading (and if need be building) it at first use."""
        if name not in self._executables:
            self._executables[name] = self._load(name, self.shape, make())
        return self._executables[name]

    def prepare(self) -> tuple[Executable, Executable]:
        """Load, or build, and return the engines of prefill and decode."""
        return (
            self.executable("prefill", lambda: loop.prefill(self.network, self.shape)),
            self.executable("decode", lambda: loop.decode(self.network, self.shape)),
        )

    def prefill(self, slot: Slot, stream: Stream) -> None:
        """Queue the prefill of what is in the slot's device memory."""
        engine = self.executable("prefill", lambda: loop.prefill(self.network, self.shape))
        addresses = slot.state() | {"features": slot.address("features"), "tokens": slot.address("tokens")}
        addresses |= {"hidden": slot.address("first_hidden"), "next_token": slot.address("read")}
        engine.launch(addresses | {"next_log_prob": slot.address("log_prob")}, stream)

    def decode(self, slot: Slot, step: int, stream: Stream) -> None:
        """Queue reading the item in row `step` of the slot's `read`, and choosing the one of the row after it."""
        engine = self.executable("decode", lambda: loop.decode(self.network, self.shape))
        config = self.network.config
        layer_bytes = self.shape.rows * 3 * config.width * BYTES[self.network.precision]
        fresh = slot.address("recent") + step * config.layers * layer_bytes
        addresses = slot.state() | {f"fresh_{index}": fresh + index * layer_bytes for index in range(config.layers)}
        addresses |= {"token": slot.address("read", step), "step": slot.step_address(step)}
        addresses |= {"heads": slot.address("heads", step), "next_token": slot.address("read", step + 1)}
        engine.launch(addresses | {"next_log_prob": slot.address("log_prob", step + 1)}, stream)

    def slate(self, slot: Slot, steps: int, stream: Stream) -> None:
        """Queue prefill and `steps` decode steps."""
        self.prefill(slot, stream)
        for step in range(steps):
            self.decode(slot, step, stream)

    def graph(self, slot: Slot, steps: int, stream: Stream) -> Graph:
        """Return the whole slate as one captured graph; the engines run once before the first capture."""
        if not self.warm:
            self.slate(slot, steps, stream)
            stream.synchronize()
            self.warm = True
        if steps not in slot.graphs:
            slot.graphs[steps] = stream.capture(lambda: self.slate(slot, steps, stream))
        return slot.graphs[steps]
