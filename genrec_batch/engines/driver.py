"""The CUDA calls of engines without torch: memory, streams, events, copies and captured graphs.

Owns: checking every call, and freeing what was allocated. Must not know: TensorRT, models, the content of a buffer. An
error of the driver is raised as `EngineError`, a full device as `DeviceMemoryError`, so that a caller can try a smaller
batch.
"""

from __future__ import annotations

import ctypes
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.core.errors import DeviceMemoryError, EngineError

INSTALL = "pip install 'genrec-batch[gpu]'"
ALIGNMENT = 256  # bytes; TensorRT requires its tensors to start on such a boundary

Bytes = npt.NDArray[np.uint8]


def aligned(count: int) -> int:
    """Return a number of bytes rounded up to ALIGNMENT."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def load_runtime() -> Any:
    """Return the module `cuda.bindings.runtime`.

    Raises:
        EngineError: it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(f"running on an NVIDIA GPU needs cuda-python ({error}): {INSTALL}") from error
    return runtime


class Buffer:
    """Device memory; freed with the last reference to it, or by `free`."""

    def __init__(self, device: Device, count: int) -> None:
        self.count = count
        self.address = int(device.call("cudaMalloc", max(count, ALIGNMENT)))
        self._free = weakref.finalize(self, device.runtime.cudaFree, self.address)

    def free(self) -> None:
        """Free the memory now; nothing may be using it."""
        self._free()


class PinnedBuffer:
    """Page-locked host memory, which the GPU copies from and to while the host continues."""

    def __init__(self, device: Device, count: int) -> None:
        address = int(device.call("cudaHostAlloc", max(count, ALIGNMENT), device.runtime.cudaHostAllocDefault))
        self.address = address
        self.bytes: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))
        self.bytes[:] = 0
        self._free = weakref.finalize(self, device.runtime.cudaFreeHost, address)

    def view(self, start: int, shape: tuple[int, ...], kind: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return a range of the memory as an array."""
        dtype = np.dtype(kind)
        stop = start + int(np.prod(shape)) * dtype.itemsize
        return self.bytes[start:stop].view(dtype).reshape(shape)


class Stream:
    """A queue of work on the device; two streams overlap unless one waits for an event of the other."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.handle = device.call("cudaStreamCreateWithFlags", device.runtime.cudaStreamNonBlocking)
        self._free = weakref.finalize(self, device.runtime.cudaStreamDestroy, self.handle)

    def record(self, event: Event) -> None:
        """Mark the work queued so far."""
        self._device.call("cudaEventRecord", event.handle, self.handle)

    def wait(self, event: Event) -> None:
        """Let everything queued from now on wait for the event's latest mark."""
        self._device.call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def synchronize(self) -> None:
        """Block the host until everything queued is done."""
        self._device.call("cudaStreamSynchronize", self.handle)

    def copy_in(self, target: int, source: PinnedBuffer, count: int) -> None:
        """Queue a copy of `count` bytes from the start of pinned memory to a device address."""
        self._copy(target, source.address, count, "cudaMemcpyHostToDevice")

    def copy_out(self, target: PinnedBuffer, source: int, count: int) -> None:
        """Queue a copy of `count` bytes from a device address to the start of pinned memory."""
        self._copy(target.address, source, count, "cudaMemcpyDeviceToHost")

    def clear(self, target: Buffer) -> None:
        """Queue filling a buffer with zeros."""
        self._device.call("cudaMemsetAsync", target.address, 0, target.count, self.handle)

    def _copy(self, target: int, source: int, count: int, kind: str) -> None:
        direction = getattr(self._device.runtime.cudaMemcpyKind, kind)
        self._device.call("cudaMemcpyAsync", target, source, count, direction, self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Capture what `work` queues on this stream, without running it, as a graph that can be launched repeatedly."""
        mode = self._device.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self._device.call("cudaStreamBeginCapture", self.handle, mode)
        captured = None
        try:
            work()
        finally:
            result = self._device.runtime.cudaStreamEndCapture(self.handle)
            captured = result[1]
        self._device.check("cudaStreamEndCapture", result)
        return Graph(self._device, captured)


class Graph:
    """A captured sequence of device work, launched with one call."""

    def __init__(self, device: Device, captured: Any) -> None:
        self._device = device
        self._executable = device.call("cudaGraphInstantiate", captured, 0)
        self._free = weakref.finalize(self, device.runtime.cudaGraphExecDestroy, self._executable)
        device.call("cudaGraphDestroy", captured)

    def launch(self, stream: Stream) -> None:
        """Queue one run."""
        self._device.call("cudaGraphLaunch", self._executable, stream.handle)


class Event:
    """A mark in a stream; the time between two `timed` marks can be read."""

    def __init__(self, device: Device, *, timed: bool = False) -> None:
        self._device = device
        flags = device.runtime.cudaEventDefault if timed else device.runtime.cudaEventDisableTiming
        self.handle = device.call("cudaEventCreateWithFlags", flags)
        self._free = weakref.finalize(self, device.runtime.cudaEventDestroy, self.handle)

    def synchronize(self) -> None:
        """Block the host until the mark is reached."""
        self._device.call("cudaEventSynchronize", self.handle)

    def elapsed_time(self, later: Event) -> float:
        """Return the milliseconds between two timed marks that were both reached."""
        return float(self._device.call("cudaEventElapsedTime", self.handle, later.handle))


class Device:
    """One GPU of this process."""

    def __init__(self, name: str) -> None:
        """Take a device by name.

        Args:
            name: "cuda" or "cuda:<number>".

        Raises:
            EngineError: no such device, no driver, or no cuda-python.
        """
        match = re.fullmatch(r"cuda(?::(\d+))?", name)
        if not match:
            raise EngineError(f"--device {name}: the tensorrt engine runs on cuda or cuda:<number>")
        self.index = int(match[1] or 0)
        self.name = f"cuda:{self.index}"
        self.runtime = load_runtime()
        count = self.runtime.cudaGetDeviceCount()
        if count[0] != self.runtime.cudaError_t.cudaSuccess or int(count[1]) <= self.index:
            found = (
                f"{int(count[1])} found" if count[0] == self.runtime.cudaError_t.cudaSuccess else self._text(count[0])
            )
            raise EngineError.of_device(
                f"--device {name}: no such NVIDIA GPU ({found}); the tensorrt engine needs one with its driver, "
                f"then {INSTALL}. On a machine without a GPU use --engine onnxruntime or torch"
            )
        self.use()
        self._free_at_first = self._least_free = self.free_bytes()

    def use(self) -> None:
        """Make this the device of the calling thread; in CUDA each thread has its own current device."""
        self.call("cudaSetDevice", self.index)

    @property
    def architecture(self) -> str:
        """Return the GPU's architecture, such as `sm_90`."""
        kinds = self.runtime.cudaDeviceAttr
        major = self.call("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMajor, self.index)
        minor = self.call("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMinor, self.index)
        return f"sm_{int(major)}{int(minor)}"

    def free_bytes(self) -> int:
        """Return the device memory that is free now."""
        self.use()  # each thread has its own current device
        return int(self.call("cudaMemGetInfo")[0])

    def look(self) -> None:
        """Record the free memory, for `most_taken`; call it after an allocation."""
        self._least_free = min(self._least_free, self.free_bytes())

    def most_taken(self) -> int:
        """Return the most memory in use since the start, as recorded by `look`; other processes count too."""
        return self._free_at_first - self._least_free

    def total_bytes(self) -> int:
        """Return all of the device's memory."""
        self.use()
        return int(self.call("cudaMemGetInfo")[1])

    def call(self, name: str, *arguments: Any) -> Any:
        """Make one runtime call and return its result: None, one value, or a tuple.

        Raises:
            DeviceMemoryError: the device is full.
            EngineError: any other failure.
        """
        return self.check(name, getattr(self.runtime, name)(*arguments))

    def check(self, name: str, result: tuple[Any, ...]) -> Any:
        """Raise the error of a failed call, else return its values."""
        code = result[0]
        if code == self.runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise DeviceMemoryError(f"{self.name} is out of memory ({name}); try a smaller --batch-size")
        if code != self.runtime.cudaError_t.cudaSuccess:
            raise EngineError.of_device(f"{self.name}: {name} failed: {self._text(code)}")
        return None if len(result) == 1 else result[1] if len(result) == 2 else result[1:]

    def _text(self, code: Any) -> str:
        text = self.runtime.cudaGetErrorString(code)[1]
        return text.decode() if isinstance(text, bytes) else str(text)
