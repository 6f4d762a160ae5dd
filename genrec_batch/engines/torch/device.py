"""Where PyTorch computes and in which type, and what to do where the device is missing or full.

Owns: PyTorch's devices and types by our names, and its out-of-memory errors. Must not know: models, or which devices
and precisions the engine has (`engines.registry`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from genrec_batch.core.errors import DeviceMemoryError, EngineError

FAST = {"bf16-fast": torch.bfloat16, "int8-fast": torch.int8}  # where one position is read at a time, 8-bit numbers
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8, **FAST}


def resolve_device(name: str) -> torch.device:
    """Return a device by name, "cpu", "cuda" or "cuda:N".

    Raises:
        EngineError: PyTorch does not see it here.
    """
    device = torch.device(name)
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise EngineError.of_device(
            f"--device {name}: PyTorch {torch.__version__} sees no CUDA GPU here. With one and its driver in place, "
            "pip install --force-reinstall 'genrec-batch[torch]' takes a build with CUDA; --device cpu runs anywhere"
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise EngineError.of_device(f"--device {name}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return torch.device("cuda", index)


def wake(name: str) -> None:
    """Initialize a GPU, which takes a second or two."""
    torch.zeros(1, device=resolve_device(name))


def resolve_precision(name: str) -> torch.dtype:
    """Return the type of a precision, that of the context on a CPU.

    Raises:
        EngineError: it multiplies 8-bit integers, which this processor does not.
    """
    if (name == "int8" or name in FAST) and not fast_int8():
        raise EngineError.of_device(f"--precision {name}: this processor has no AVX-512 VNNI instructions; take fp32")
    return DTYPES[name]


def fast_int8() -> bool:
    """Return whether this processor multiplies 8-bit integers with 32-bit sums; others would truncate the sums."""
    supported: bool = torch.cpu._is_vnni_supported()  # noqa: SLF001 (no public name)
    return supported


@contextmanager
def retry_when_out_of_memory(device: torch.device) -> Iterator[None]:
    """Turn PyTorch's out-of-memory errors, a GPU's or the CPU allocator's, into DeviceMemoryError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise DeviceMemoryError(
            f"{device} is out of memory: lower --batch-size, or try again when it is less used"
        ) from error
