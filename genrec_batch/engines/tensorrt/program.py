"""The engines of one static shape, and the order in which they are launched.

Owns: which address each tensor of an engine is bound to. Must not know: how engines are built or cached (`engine`
passes a function that does), the layout of a batch in memory (`memory`), `engines.protocol`, users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import F32, I32
from genrec_batch.core.errors import DeviceMemoryError, EngineError
from genrec_batch.engines.driver import Buffer, Device, Graph, PinnedBuffer, Stream
from genrec_batch.engines.tensorrt import builder, graphs
from genrec_batch.engines.tensorrt.memory import Slot
from genrec_batch.engines.tensorrt.network import Shape, TensorRtNetwork
from genrec_batch.model.weights import BYTES

Sizes = Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]  # of outputs by name; all numbers have four bytes


class Executable:
    """A deserialized engine and its context. Every tensor is bound by name before each launch."""

    def __init__(self, library: builder.Library, runtime: Any, plan: bytes) -> None:
        """Load an engine.

        Raises:
            DeviceMemoryError: the device has no room for it.
            EngineError: the library cannot load it.
        """
        self._library = library
        self._engine = runtime.deserialize_cuda_engine(plan)
        self.context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self.context is None:
            text = library.log.last()
            kind = DeviceMemoryError if "memory" in text.lower() else EngineError
            raise kind(f"{library.label} cannot load an engine: {text}")
        self._tensors = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._bound: dict[str, int] = {}

    def launch(self, addresses: Mapping[str, int], stream: Stream) -> None:
        """Queue one run; `addresses` has at least every tensor of the engine.

        Raises:
            EngineError: the library cannot queue it.
        """
        for name in self._tensors:
            address = addresses[name]
            if self._bound.get(name) != address:
                self.context.set_tensor_address(name, address)
                self._bound[name] = address
        if not self.context.execute_async_v3(int(stream.handle)):
            raise EngineError(f"{self._library.label} cannot run an engine: {self._library.log.last()}")


class Program:
    """The engines of prefill and decode of one shape, and of whatever else was needed."""

    def __init__(self, network: TensorRtNetwork, shape: Shape, load: Callable[[str, Shape, bytes], Executable]) -> None:
        self.network, self.shape, self._load = network, shape, load
        self._executables: dict[str, Executable] = {}
        self.warm = False

    def executable(self, name: str, make: Callable[[], bytes]) -> Executable:
        """Return an engine of this shape by name; the first call loads it, and builds it if the cache has none."""
        if name not in self._executables:
            self._executables[name] = self._load(name, self.shape, make())
        return self._executables[name]

    def load(self, *, decode: bool = True) -> None:
        """Load or build the engines of prefill and, if `decode`, those of decode."""
        self._segments("prefill", graphs.prefill)
        if decode:
            self._segments("decode", graphs.decode)

    def _segments(self, name: str, make: Callable[[TensorRtNetwork, Shape, int], bytes]) -> list[Executable]:
        return [
            self.executable(title, partial(make, self.network, self.shape, number))
            for number, title in enumerate(self.network.titles(name))
        ]

    def prefill(self, slot: Slot, stream: Stream) -> None:
        """Queue the prefill of the batch in the slot's device memory."""
        addresses = slot.addresses() | {"features": slot.address("features"), "tokens": slot.address("tokens")}
        addresses |= {"hidden": slot.address("first_hidden"), "next_token": slot.address("read")}
        addresses |= {"next_log_prob": slot.address("log_prob")}
        for engine in self._segments("prefill", graphs.prefill):
            engine.launch(addresses, stream)

    def decode(self, slot: Slot, step: int, stream: Stream) -> None:
        """Queue a decode step: read the item in row `step` of the slot's `read`, choose that of the next row."""
        config = self.network.config
        row = step * self.shape.rows * 3 * config.width * BYTES[self.network.precision]
        fresh = {f"fresh_{index}": slot.address(f"recent_{index}") + row for index in range(config.layers)}
        addresses = slot.addresses() | fresh
        addresses |= {"token": slot.address("read", step), "step": slot.step_address(step)}
        addresses |= {"heads": slot.address("heads", step), "next_token": slot.address("read", step + 1)}
        addresses |= {"next_log_prob": slot.address("log_prob", step + 1)}
        for engine in self._segments("decode", graphs.decode):
            engine.launch(addresses, stream)

    def decode_all(self, slot: Slot, steps: int, stream: Stream) -> None:
        """Queue `steps` decode steps."""
        for step in range(steps):
            self.decode(slot, step, stream)

    def graphs(self, slot: Slot, steps: int, stream: Stream) -> tuple[Graph, Graph]:
        """Return prefill and all decode steps as captured graphs. The engines run once before the first capture."""
        if not self.warm:
            self.prefill(slot, stream)
            self.decode_all(slot, steps, stream)
            stream.synchronize()
            self.warm = True
        if steps not in slot.graphs:
            slot.graphs[steps] = (
                stream.capture(lambda: self.prefill(slot, stream)),
                stream.capture(lambda: self.decode_all(slot, steps, stream)),
            )
        return slot.graphs[steps]


@dataclass(eq=False, kw_only=True)
class TensorRtState:
    """A batch between calls. Its memory returns to the pool when nothing refers to the state."""

    program: Program
    slot: Slot
    rows: int
    choices: int
    step: int = 0

    @property
    def hidden(self) -> str:
        """Name of the tensor that the next position's logits come from."""
        return "hidden" if self.step else "first_hidden"


class Exchange:
    """Small blocking copies between host and device, for work outside the captured graphs."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream

    def write(self, address: int, array: I32 | F32) -> None:
        """Copy an array to a device address, and wait."""
        host = PinnedBuffer(self._device, array.nbytes)
        host.view(0, array.shape, array.dtype)[:] = array
        self._stream.copy_in(address, host, array.nbytes)
        self._stream.synchronize()  # before the pinned memory is freed

    def upload(self, array: I32) -> Buffer:
        """Copy an array into device memory of its own."""
        buffer = Buffer(self._device, array.nbytes)
        self.write(buffer.address, array)
        return buffer

    def run(self, engine: Executable, addresses: Mapping[str, int], sizes: Sizes) -> dict[str, npt.NDArray[Any]]:
        """Run an engine and return the outputs in `sizes`."""
        counts = {name: math.prod(shape) * 4 for name, (shape, _) in sizes.items()}
        device = {name: Buffer(self._device, count) for name, count in counts.items()}
        engine.launch({**addresses, **{name: buffer.address for name, buffer in device.items()}}, self._stream)
        found = {}
        for name, (shape, kind) in sizes.items():
            host = PinnedBuffer(self._device, counts[name])
            self._stream.copy_out(host, device[name].address, counts[name])
            self._stream.synchronize()
            found[name] = host.view(0, shape, np.dtype(kind)).copy()
        return found


def padded(tokens_BC: I32, rows: int, count: int) -> I32:
    """Return tokens padded with 0 to [rows, count]."""
    spare_rows, spare_columns = rows - tokens_BC.shape[0], count - tokens_BC.shape[1]
    return np.pad(tokens_BC, ((0, spare_rows), (0, spare_columns))).astype(np.int32)
