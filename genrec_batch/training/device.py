"""Where a training computes, in which type, and what a GPU computes in one go.

Owns: the meaning of `--device` and `--precision` for training, and which functions are compiled. Must not know: models,
data.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

from genrec_batch.core.errors import EngineError
from genrec_batch.engines.torch.device import resolve_device
from genrec_batch.runtime.console import LOG

F = TypeVar("F", bound=Callable[..., object])

FAST_BF16 = ("amx_bf16", "avx512_bf16")  # instructions with which a CPU is faster in bf16 than in fp32


@dataclass(frozen=True, kw_only=True)
class Place:
    """A device and the type of products on it."""

    device: torch.device
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """The type of products."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def wait(self) -> None:
        """Return once all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @staticmethod
    def of(device: str, precision: str) -> Place:
        """Return what the options name; auto is a GPU that is there, and bf16 where it is fast.

        Raises:
            EngineError: the device is not there.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        found = resolve_device(device)
        if precision == "auto":
            precision = "bf16" if found.type == "cuda" or _cpu_has(FAST_BF16) else "fp32"
        if found.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise EngineError(f"--precision bf16: {torch.cuda.get_device_name(found)} does not have it; take fp32")
        return Place(device=found, precision=precision)


@cache
def compiled(function: F) -> F:
    """Return a function compiled for a GPU, where its small steps become few kernels; as it is where nothing can."""
    made: F = torch.compile(function) if can_compile() else function  # type: ignore[assignment]
    return made


@cache
def can_compile() -> bool:
    """Return whether this machine can compile kernels for a GPU: Triton and a C compiler are there."""
    there = importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
    if not there:
        LOG.warning("no Triton or no C compiler: the GPU trains without compiled kernels, more slowly")
    return there


def _cpu_has(names: tuple[str, ...]) -> bool:
    flags = Path("/proc/cpuinfo")
    text = flags.read_text() if flags.exists() else ""
    return any(name in text for name in names)
