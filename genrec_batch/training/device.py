"""Where a training computes, and in which type.

Owns: the meaning of `--device` and `--precision` for training. Must not know: models, data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from genrec_batch.core.errors import EngineError
from genrec_batch.engines.torch.device import resolve_device

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
            raise EngineError.of_device(
                f"--precision bf16: {torch.cuda.get_device_name(found)} does not have it; take fp32"
            )
        return Place(device=found, precision=precision)


def _cpu_has(names: tuple[str, ...]) -> bool:
    flags = Path("/proc/cpuinfo")
    text = flags.read_text() if flags.exists() else ""
    return any(name in text for name in names)
