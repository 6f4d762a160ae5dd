"""What this machine can do at best: a matrix product of the model's shape, a copy of memory, a file written and read.

Owns: the measurements and the machine's description. Must not know: models' weights, logs, engines. Each ceiling is the
best of several tries, since whatever else runs only makes it lower. Needs no torch; with torch, its products are
measured too (`torch_ceilings.py`), as they are what its engine calls.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genrec_batch.model.weights import ModelConfig

ROWS = 4096  # of the left matrix: the positions of a batch
COPY_BYTES = DISK_BYTES = 128 << 20
TRIES = 5


def machine() -> dict[str, Any]:
    """Return the machine: processor, cores that this process may use, memory, Python."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(config: ModelConfig, folder: Path, advance: Callable[[int], None]) -> dict[str, Any]:
    """Return this machine's ceilings, measured now.

    Args:
        config: sizes of the model, whose QKV product [4096, D] x [D, 3D] is measured.
        folder: a folder on the disk that is measured.
        advance: called once after each of `STEPS` measurements.

    Returns: `products` (device, precision, library, GFLOP/s), `memory_copy_gb_s` (bytes read plus bytes written),
        `disk_write_gb_s` (with fsync), `disk_read_gb_s`, `disk_read_cached` (whether pages may have come from memory).
    """
    products = [_numpy_product(config)]
    advance(1)
    if importlib.util.find_spec("torch"):
        from genrec_batch.reports import torch_ceilings

        products += torch_ceilings.products(ROWS, config.width)
    advance(1)
    copied = _memory_copy()
    advance(1)
    found = {"products": products, "memory_copy_gb_s": copied, **_disk(folder)}
    advance(1)
    return found


STEPS = 4  # of `measure`


def _best(work: Callable[[], object], tries: int = TRIES) -> float:
    """Return the fewest seconds that `work` took, after one run to warm up."""
    work()
    taken = []
    for _ in range(tries):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _numpy_product(config: ModelConfig) -> dict[str, Any]:
    d = config.width
    x, w = np.ones((ROWS, d), np.float32), np.ones((d, 3 * d), np.float32)
    out = np.empty((ROWS, 3 * d), np.float32)
    taken = _best(lambda: np.matmul(x, w, out=out), 20)
    return {
        "device": "cpu",
        "precision": "fp32",
        "library": "NumPy",
        "gflop_per_s": round(6 * ROWS * d * d / taken / 1e9, 1),
    }


def _memory_copy() -> float:
    source, target = np.ones(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
    return round(2 * COPY_BYTES / _best(lambda: np.copyto(target, source)) / 1e9, 2)


def _disk(folder: Path) -> dict[str, Any]:
    """Write and read one file. The system is asked to drop it from the page cache in between, and may decline."""
    block = np.arange(DISK_BYTES // 4, dtype=np.uint32).tobytes()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".genrec-batch-ceiling-") as file:
        number = file.fileno()

        def write() -> None:
            os.lseek(number, 0, os.SEEK_SET)
            view = memoryview(block)
            while view:
                view = view[os.write(number, view) :]
            os.fsync(number)

        written_s = _best(write, 2)
        dropped = hasattr(os, "posix_fadvise")

        def read() -> None:
            if dropped:
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            os.lseek(number, 0, os.SEEK_SET)
            while os.read(number, 1 << 22):
                pass

        read_s = _best(read, 2)
    return {
        "disk_write_gb_s": round(DISK_BYTES / written_s / 1e9, 2),
        "disk_read_gb_s": round(DISK_BYTES / read_s / 1e9, 2),
        "disk_read_cached": not dropped,
    }


def product_ceiling(ceilings: dict[str, Any], *, device: str, precision: str) -> dict[str, Any] | None:
    """Return the best product measured for a kind of device in a precision, None if there is none."""
    precision = precision.removesuffix("-fast")
    kind = device.partition(":")[0]
    fits = [p for p in ceilings["products"] if p["device"].partition(":")[0] == kind and p["precision"] == precision]
    return max(fits, key=lambda p: float(p["gflop_per_s"]), default=None)
