"""A CUDA runtime in NumPy, as lazy and as strict as the real one may be.

Work queued on a stream runs only when the host waits for it, and then only the work that the wait needs. So a missing
event, a pinned buffer written too early or memory freed too soon always gives wrong numbers here. New memory holds NaN.
Every address is checked against the live allocations. `fakes.tensorrt` runs on it.
"""
# ruff: noqa: ARG002 (the signatures are CUDA's)

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


class Code(enum.Enum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35


class Direction(enum.Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class Attribute(enum.Enum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class CaptureMode(enum.Enum):
    cudaStreamCaptureModeRelaxed = 2


@dataclass
class FakeStream:
    queue: list[Callable[[], None]] = field(default_factory=list)
    finished: int = 0
    captured: list[Callable[[], None]] | None = None

    def push(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def run(self, until: int | None = None) -> None:
        stop = len(self.queue) if until is None else until
        while self.finished < stop:
            work = self.queue[self.finished]
            self.finished += 1
            work()


@dataclass
class FakeEvent:
    stream: FakeStream | None = None
    place: int = 0
    timed: bool = False
    at_s: float = 0.0

    def reach(self) -> None:
        if self.stream is not None:
            self.stream.run(self.place)


class FakeRuntime:
    """The part of `cuda.bindings.runtime` that the package calls."""

    cudaError_t, cudaMemcpyKind, cudaDeviceAttr, cudaStreamCaptureMode = Code, Direction, Attribute, CaptureMode
    cudaHostAllocDefault = cudaEventDefault = 0
    cudaStreamNonBlocking, cudaEventDisableTiming = 1, 2

    def __init__(self, *, devices: int = 1, capability: tuple[int, int] = (9, 0), memory: int = 1 << 30) -> None:
        self.devices, self.capability, self.memory = devices, capability, memory
        self.device: dict[int, np.ndarray] = {}
        self.host: dict[int, np.ndarray] = {}
        self.streams: dict[int, FakeStream] = {}
        self.launches: list[str] = []
        self.copies: list[tuple[str, int]] = []
        self.graph_launches = 0
        self.tick = 1.0  # of the device's clock, in seconds of the host's

    def memory_at(self, address: int, count: int, kinds: str = "device") -> np.ndarray:
        """Return memory as bytes; it must be inside one live allocation."""
        for start, memory in (self.device if kinds == "device" else self.host).items():
            if start <= address and address + count <= start + memory.size:
                return memory[address - start : address - start + count]
        raise AssertionError(f"{count} bytes at {address:#x} are not inside live {kinds} memory")

    def _allocate(self, table: dict[int, np.ndarray], count: int) -> int:
        raw = np.full(count + 512, 0xFF, np.uint8)
        skip = -raw.ctypes.data % 256
        memory = raw[skip : skip + count]
        table[memory.ctypes.data] = memory
        return memory.ctypes.data

    def _in_use(self) -> int:
        return sum(memory.size for memory in self.device.values())

    def cudaGetDeviceCount(self):
        return (Code.cudaSuccess, self.devices) if self.devices else (Code.cudaErrorInsufficientDriver, 0)

    def cudaGetErrorString(self, code):
        return Code.cudaSuccess, code.name.encode()

    def cudaSetDevice(self, index):
        return (Code.cudaSuccess if index < self.devices else Code.cudaErrorInvalidValue,)

    def cudaDeviceGetAttribute(self, attribute, index):
        return Code.cudaSuccess, self.capability[attribute is Attribute.cudaDevAttrComputeCapabilityMinor]

    def cudaMemGetInfo(self):
        return Code.cudaSuccess, self.memory - self._in_use(), self.memory

    def cudaMalloc(self, count):
        if self._in_use() + count > self.memory:
            return Code.cudaErrorMemoryAllocation, 0
        return Code.cudaSuccess, self._allocate(self.device, count)

    def cudaFree(self, address):
        for stream in list(self.streams.values()):
            stream.run()
        del self.device[address]
        return (Code.cudaSuccess,)

    def cudaHostAlloc(self, count, flags):
        return Code.cudaSuccess, self._allocate(self.host, count)

    def cudaFreeHost(self, address):
        for stream in list(self.streams.values()):
            stream.run()
        self.host[address][:] = 0xFF
        del self.host[address]
        return (Code.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags):
        stream = FakeStream()
        self.streams[id(stream)] = stream
        return Code.cudaSuccess, id(stream)

    def cudaStreamDestroy(self, handle):
        del self.streams[handle]
        return (Code.cudaSuccess,)

    def cudaStreamSynchronize(self, handle):
        assert self.streams[handle].captured is None, "no waiting while a stream is captured"
        self.streams[handle].run()
        return (Code.cudaSuccess,)

    def cudaEventCreateWithFlags(self, flags):
        return Code.cudaSuccess, FakeEvent(timed=not flags)

    def cudaEventDestroy(self, event):
        return (Code.cudaSuccess,)

    def cudaEventRecord(self, event, handle):
        if event.timed:
            assert self.streams[handle].captured is None, "a mark in a graph is written again by the next launch"
            self.streams[handle].push(lambda: setattr(event, "at_s", time.perf_counter()))
        event.stream, event.place = self.streams[handle], len(self.streams[handle].queue)
        return (Code.cudaSuccess,)

    def cudaEventSynchronize(self, event):
        event.reach()
        return (Code.cudaSuccess,)

    def cudaEventElapsedTime(self, start, stop):
        assert all(event.timed and event.at_s for event in (start, stop)), "both marks are timed, and reached"
        return Code.cudaSuccess, 1e3 * (stop.at_s - start.at_s) * self.tick

    def cudaStreamWaitEvent(self, handle, event, flags):
        mark = FakeEvent(event.stream, event.place)
        self.streams[handle].push(mark.reach)
        return (Code.cudaSuccess,)

    def cudaMemsetAsync(self, address, value, count, handle):
        self.memory_at(address, count)
        self.streams[handle].push(lambda: self.memory_at(address, count).fill(value))
        return (Code.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, count, kind, handle):
        into, out_of = ("device", "host") if kind is Direction.cudaMemcpyHostToDevice else ("host", "device")
        self.memory_at(target, count, into), self.memory_at(source, count, out_of)
        self.copies.append((into, count))

        def copy() -> None:
            self.memory_at(target, count, into)[:] = self.memory_at(source, count, out_of)

        self.streams[handle].push(copy)
        return (Code.cudaSuccess,)

    def cudaStreamBeginCapture(self, handle, mode):
        self.streams[handle].captured = []
        return (Code.cudaSuccess,)

    def cudaStreamEndCapture(self, handle):
        stream = self.streams[handle]
        work, stream.captured = stream.captured, None
        return Code.cudaSuccess, work

    def cudaGraphInstantiate(self, graph, flags):
        return Code.cudaSuccess, tuple(graph)

    def cudaGraphDestroy(self, graph):
        return (Code.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph):
        return (Code.cudaSuccess,)

    def cudaGraphLaunch(self, graph, handle):
        self.graph_launches += 1
        for work in graph:
            self.streams[handle].push(work)
        return (Code.cudaSuccess,)
