"""The matrix products that torch computes on this machine, in every number format that its engine has.

Owns: the measurement. Must not know: models, engines' states, logs. A module of its own, because most of the package
runs without torch.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from genrec_batch.engines.torch.device import fast_int8
from genrec_batch.engines.torch.linear import Int8Linear, Linear

TRIES = 30
CPU = {"fp32": torch.float32, "bf16": torch.bfloat16}
CUDA = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def products(rows: int, width: int) -> list[dict[str, Any]]:
    """Return GFLOP/s of [rows, D] x [D, 3D] by device and precision: the best of 30, with packed weights.

    On a GPU the left matrix has eight times the rows, and ten products are timed together: one of this size would not
    fill the GPU, and the host's wait for each would count as work. int8 includes the rounding of x that it needs.
    """
    found = [_product("cpu", name, rows, width) for name in (*CPU, *(["int8"] if fast_int8() else []))]
    if torch.cuda.is_available():
        found += [_product("cuda:0", name, 8 * rows, width, times=10) for name in CUDA]
        torch.cuda.empty_cache()
    return found


def release() -> None:
    """Release the GPU memory that PyTorch caches and does not use, for other libraries."""
    torch.cuda.empty_cache()  # does nothing without a GPU


def _product(device: str, precision: str, rows: int, width: int, times: int = 1) -> dict[str, Any]:
    weight, bias = torch.ones(3 * width, width, device=device), torch.zeros(3 * width, device=device)
    multiply = Int8Linear(weight, bias) if precision == "int8" else Linear(weight, bias, (CPU | CUDA)[precision])
    x = torch.ones(rows, width, device=device, dtype=multiply.dtype)
    taken = []
    with torch.inference_mode():
        for _ in range(TRIES):
            if device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(times):
                multiply(x)
            if device != "cpu":
                torch.cuda.synchronize()
            taken.append((time.perf_counter() - start) / times)
    flops = 6 * rows * width * width
    return {
        "device": device,
        "precision": precision,
        "library": "torch",
        "gflop_per_s": round(flops / min(taken) / 1e9, 1),
    }
