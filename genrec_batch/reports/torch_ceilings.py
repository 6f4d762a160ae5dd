"""The matrix products that torch computes on this machine, in every number format that its engine has.

Owns: the measurement. Must not know: models, engines' states, logs. A file of its own because only `torch_*` files
import torch.
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
    """Return GFLOP/s of [rows, D] x [D, 3D] by device and precision: the best of 30, weights packed as the engine does.

    The GPU, where there is one, takes a product eight times as tall, ten of them between two looks at the clock: one of
    this size would not fill it, and the host's wait for one would count as work. int8 is with the rounding of x that
    such a product needs.
    """
    found = [_product("cpu", name, rows, width) for name in (*CPU, *(["int8"] if fast_int8() else []))]
    if torch.cuda.is_available():
        found += [_product("cuda:0", name, 8 * rows, width, times=10) for name in CUDA]
        torch.cuda.empty_cache()
    return found


def release() -> None:
    """Give the GPU memory that PyTorch holds and nobody uses back to whoever asks next, such as another library."""
    torch.cuda.empty_cache()  # does nothing where no GPU is in use


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
