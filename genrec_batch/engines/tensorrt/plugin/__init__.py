"""GPU kernels of the TensorRT plugin: their Triton source, and what it compiles to, shipped as cubins.

Owns: reading the shipped cubins, and for which GPUs and model sizes there are cubins. Must not know: TensorRT, the
engine, files outside this folder. Triton is needed to compile them (`compile`), never to run them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
WIDTH, ATTENTION_HEADS = 512, 16  # the model sizes that the cubins are compiled for
DEPTH = 64  # inputs of a product that are read at a time: their number is a multiple of it
LONGEST = 128  # positions of the longest prefill whose attention fits one tile


@dataclass(frozen=True, kw_only=True)
class Cubin:
    """One compiled kernel: machine code and what its launch needs."""

    name: str
    function: str
    warps: int
    shared_bytes: int
    scratch_bytes: int  # of global memory, for each program
    code: bytes


def architectures() -> list[str]:
    """Return the GPU architectures that have cubins, such as `sm_90`."""
    return sorted(path.parent.name for path in FOLDER.glob("sm_*/kernels.json"))


def task_heads(architecture: str) -> int:
    """Return the number of task heads that an architecture's cubins are compiled for."""
    return int(_index(architecture)["task_heads"])


def read(architecture: str) -> list[Cubin]:
    """Return all kernels of one architecture, by name.

    Raises:
        FileNotFoundError: there are no cubins for it (see `architectures`).
    """
    return [
        Cubin(name=name, code=(FOLDER / architecture / f"{name}.cubin").read_bytes(), **entry)
        for name, entry in sorted(_index(architecture)["kernels"].items())
    ]


def _index(architecture: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / architecture / "kernels.json").read_text())
    return found
