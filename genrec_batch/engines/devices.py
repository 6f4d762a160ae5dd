"""Devices: which of them a run uses, one process for each.

Owns: what `--device` and `--workers` mean, and how many GPUs there are. Must not know: engines, what the processes do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from genrec_batch.core.errors import ConfigError, EngineError
from genrec_batch.engines.choose import device_of


@cache
def gpus() -> int:
    """Return how many GPUs CUDA shows to this process (`CUDA_VISIBLE_DEVICES` hides some); 0 without its driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def devices(device: str, engine: str, workers: int, count: Callable[[], int] = gpus) -> list[str]:
    """Return the device of each process of a run: "cpu" as often as `--workers` says, or a GPU each.

    Args:
        device: `--device`: auto and cuda are all GPUs.
        engine: `--engine`.
        workers: `--workers`.
        count: returns the number of GPUs.

    Raises:
        ConfigError: `--workers` with GPUs.
        EngineError: a GPU that is named is not there.
    """
    place = device_of(device.partition(",")[0], engine)
    if place == "cpu":
        return ["cpu"] * workers
    if workers > 1:
        raise ConfigError(
            f"--workers {workers} is for engines on the CPU; a GPU has one process: --device cuda takes all GPUs, "
            "--device cuda:0,2 some"
        )
    there = count()
    if device in ("auto", "cuda"):
        return [f"cuda:{number}" for number in range(max(1, there))]
    named = [int(number) for number in device.removeprefix("cuda:").split(",")]
    missing = [f"cuda:{number}" for number in named if number >= there]
    if len(named) > 1 and missing:
        raise EngineError.of_device(f"--device {device}: no such GPU: {', '.join(missing)}; CUDA shows {there} GPUs")
    return [f"cuda:{number}" for number in named]
