"""Every engine once: what it needs, where it runs, in which precisions, and how it opens.

Owns: that list, and `open_engine`. Must not know: which engine a run takes (`choose`), or how one computes; the module
of an engine is imported when it opens. To add an engine, write a folder with a subclass of `protocol.SteppedEngine` and
enter it here. `core.options` lists the same names for `--help` without importing anything; a test compares the two.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from genrec_batch.core.errors import ConfigError, EngineError, nearest
from genrec_batch.core.servers import FORM, is_servers, servers_of
from genrec_batch.engines.protocol import Engine
from genrec_batch.model.weights import Model, ModelConfig
from genrec_batch.runtime import room
from genrec_batch.runtime.console import LOG, doing

HAND_FUSED = ("fp16-fast", "fp8")  # precisions of the torch engine that only its hand-fused kernels compute


class Opener(Protocol):
    """Opens an engine on a device that it runs on, in a precision that it has there."""

    def __call__(self, model: Model, *, device: str, precision: str) -> Engine:
        """Return the open engine."""
        ...


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One engine, not opened."""

    name: str
    modules: tuple[str, ...]  # any one of them must be installed
    extra: str  # of genrec-batch, which installs it
    precisions: Mapping[str, tuple[str, ...]]  # by kind of device, "cpu" or "cuda"; a kind left out is not supported
    open: Opener
    declines: Callable[[ModelConfig, str, str], str] = lambda _config, _device, _precision: ""  # why, of a precision
    address_mib: int = 0  # of its package beyond that of a run, where a limit is checked before it is imported
    wake: Callable[[str], None] = lambda _device: None  # initializes a GPU, while no model is known yet

    @property
    def install(self) -> str:
        """The command that installs what the engine needs."""
        return f"pip install 'genrec-batch[{self.extra}]'"

    def module(self) -> str | None:
        """Return the first of `modules` that is installed, None without any."""
        return next((module for module in self.modules if importlib.util.find_spec(module)), None)

    def check_room(self) -> None:
        """Raise RetryError where the address space is too small for the engine's package, if that is not there yet."""
        if self.address_mib and self.modules[0] not in sys.modules:
            room.check_address_space(self.address_mib, f"the {self.name} engine")

    def check(self, device: str, precision: str) -> None:
        """Raise EngineError unless the engine is installed and has this precision on this device."""
        if self.module() is None:
            raise EngineError(f"--engine {self.name}: the package {self.modules[0]} is not installed; {self.install}")
        kind = device.partition(":")[0]
        if kind not in self.precisions:
            raise EngineError(f"--device {device}: the {self.name} engine runs on {' and '.join(self.precisions)}")
        if precision not in self.precisions[kind]:
            have = ", ".join(self.precisions[kind])
            hint = nearest(precision, list(self.precisions[kind]))
            raise EngineError(f"--precision {precision}: the {self.name} engine has {have} on {kind}.{hint}")


def _open_torch(model: Model, *, device: str, precision: str) -> Engine:
    from genrec_batch.engines.cuda.engine import TorchCudaEngine, why_not
    from genrec_batch.engines.torch.engine import TorchEngine

    if reason := _torch_declines(model.config, device, precision):
        raise EngineError.of_device(reason)
    declined = why_not(model.config, device, precision)
    if device.startswith("cuda"):
        LOG.info("torch on %s: %s", device, f"the plain loop: {declined}" if declined else "hand-fused kernels")
    return (TorchEngine if declined else TorchCudaEngine)(model, device=device, precision=precision)


def _torch_declines(config: ModelConfig, device: str, precision: str) -> str:
    if precision not in HAND_FUSED:
        return ""
    from genrec_batch.engines.cuda.engine import why_not

    return why_not(config, device, precision)


def _wake_torch(device: str) -> None:
    from genrec_batch.engines.torch.device import wake

    wake(device)


def _open_tensorrt(model: Model, *, device: str, precision: str) -> Engine:
    from genrec_batch.engines.tensorrt.engine import TensorRtEngine

    engine = TensorRtEngine(model, device=device, precision=precision, progress=_building)
    LOG.info("tensorrt: %s", engine.variant)
    return engine


def _building(what: str, done: float) -> None:
    LOG.debug("tensorrt: %s, %d%%", what, 100 * done)
    doing(f"{what}, {done:.0%}" if done < 1 else "")


def _open_onnxruntime(model: Model, *, device: str, precision: str) -> Engine:
    from genrec_batch.engines.onnx.engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(model, device=device, precision=precision)


ENTRIES = (  # `--engine auto` takes the first that is installed: measured fastest first
    Entry(
        name="torch",
        modules=("torch",),
        extra="torch",
        precisions={
            "cpu": ("fp32", "bf16", "bf16-fast", "int8", "int8-fast"),
            "cuda": ("fp32", "bf16", "fp16", *HAND_FUSED),
        },
        open=_open_torch,
        declines=_torch_declines,
        address_mib=room.TORCH_MIB,
        wake=_wake_torch,
    ),
    Entry(
        name="tensorrt",
        modules=("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"),
        extra="gpu",
        precisions={"cuda": ("fp32", "bf16", "fp16")},
        open=_open_tensorrt,
    ),
    Entry(
        name="onnxruntime",
        modules=("onnxruntime",),
        extra="cpu",
        precisions={"cpu": ("fp32",), "cuda": ("fp32", "fp16")},
        open=_open_onnxruntime,
    ),
)


def _open_servers(model: Model, *, device: str, precision: str, name: str) -> Engine:
    from genrec_batch.engines.remote.engine import RemoteEngine

    del device  # the servers have theirs
    return RemoteEngine(model, servers_of(name), precision=precision)


def of_servers(name: str) -> Entry:
    """Return the entry of the servers that a name is the address of; `auto` never takes them."""
    precisions = ("auto", "fp32", "bf16", "fp16", "fp16-fast", "int8", "fp8")  # the servers know which
    return Entry(
        name="triton",
        modules=("tritonclient",),
        extra="triton",
        precisions={"cpu": precisions},
        open=partial(_open_servers, name=name),
    )


def entry(name: str, flag: str = "--engine") -> Entry:
    """Return the entry of an engine; `flag` named it.

    Raises:
        ConfigError: no engine has this name.
    """
    if is_servers(name):
        return of_servers(name)
    names = [known.name for known in ENTRIES]
    if name not in names:
        raise ConfigError(f"{flag} {name!r} is not one of {', '.join(names)}, {FORM}.{nearest(name, names)}")
    return ENTRIES[names.index(name)]


def open_engine(model: Model, *, name: str, device: str, precision: str) -> Engine:
    """Open an engine by name.

    Raises:
        EngineError: it, its device or its precision is not there; the message says how to install it.
    """
    found = entry(name)
    found.check(device, precision)
    found.check_room()
    doing(f"{name} in {precision} on {device}")
    return found.open(model, device=device, precision=precision)
