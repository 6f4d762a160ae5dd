"""GPU kernels of the TensorRT plugin: their Triton source, and what it compiles to, shipped as cubins.

Owns: reading the shipped cubins and saying for which GPUs and model sizes there are any. Must not know: TensorRT, the
engine, files outside this folder. Triton is needed to compile them (`compile.py`), never to run them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
WIDTH, HEADS = 512, 16  # the model sizes the cubins are compiled for
DEPTH = 64  # of a product's inputs that are read at a time: their number is a multiple of it
LONGEST = 128  # positions of the longest prefill whose attention fits one block


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


def read(architecture: str) -> list[Cubin]:
    """Return all kernels of one architecture, by name.

    Raises:
        FileNotFoundError: no cubins were compiled for it (see `architectures`).
    """
    folder = FOLDER / architecture
    entries: dict[str, dict[str, Any]] = json.loads((folder / "kernels.json").read_text())
    return [
        Cubin(
            name=name,
            function=entry["function"],
            warps=entry["warps"],
            shared_bytes=entry["shared_bytes"],
            scratch_bytes=entry["scratch_bytes"],
            code=(folder / f"{name}.cubin").read_bytes(),
        )
        for name, entry in sorted(entries.items())
    ]
