"""The share of time in which no kernel runs on a GPU, from the driver's own record of every kernel (CUPTI).

    with watched() as found: ...        then  idle_share(found)

Kernels inside a captured graph are recorded one by one. Needs libcupti (it comes with the CUDA toolkit, and with torch
as the package nvidia-cuda-cupti); works beside any library that uses the GPU in this process.
"""

import contextlib
import ctypes
import sys
from pathlib import Path

KERNEL, COPY = 10, 1  # CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY
BUFFER = 8 << 20
START, END = 16, 24  # bytes into CUpti_ActivityKernel4 and all later versions: nanoseconds


def load(paths=()):
    """Return libcupti, from the given files or the usual places."""
    places = [(folder, "nvidia/*/lib/libcupti.so.*") for folder in sys.path]
    places += [("/usr/local", "cuda*/extras/CUPTI/lib64/libcupti.so.*"), ("/usr/local", "cuda*/lib64/libcupti.so.*")]
    found = [*paths, *(str(path) for folder, name in places for path in sorted(Path(folder).glob(name)))]
    for path in found:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(path)
    raise OSError(f"no libcupti among {found or places}")


@contextlib.contextmanager
def watched(paths=()):
    """Record (start, end) of every kernel that runs inside the block, in nanoseconds."""
    cupti, found, kept = load(paths), [], {}

    @ctypes.CFUNCTYPE(
        None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)
    )
    def wanted(buffer, size, most):
        memory = ctypes.create_string_buffer(BUFFER + 8)
        address = (ctypes.addressof(memory) + 7) & ~7
        kept[address] = memory
        buffer[0], size[0], most[0] = address, BUFFER, 0

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    def completed(_context, _stream, buffer, _size, valid):
        record = ctypes.c_void_p()
        while not cupti.cuptiActivityGetNextRecord(
            ctypes.c_void_p(buffer), ctypes.c_size_t(valid), ctypes.byref(record)
        ):
            kind = ctypes.c_uint32.from_address(record.value).value
            if kind == KERNEL:
                span = [ctypes.c_uint64.from_address(record.value + place).value for place in (START, END)]
                found.append(tuple(span))
        kept.pop(buffer, None)

    check(cupti.cuptiActivityRegisterCallbacks(wanted, completed))
    check(cupti.cuptiActivityEnable(KERNEL))
    try:
        yield found
    finally:
        check(cupti.cuptiActivityFlushAll(1))
        check(cupti.cuptiActivityDisable(KERNEL))


def check(code):
    """Raise where CUPTI refuses."""
    if code:
        raise OSError(f"CUPTI error {code}")


def idle_share(spans):
    """Return the share of the time from the first kernel's start to the last one's end in which none ran."""
    busy, reached = 0, None
    for start, end in sorted(spans):
        if reached is None or start > reached:
            busy += end - start
            reached = end
        elif end > reached:
            busy += end - reached
            reached = end
    whole = max(end for _, end in spans) - min(start for start, _ in spans)
    return 1 - busy / whole
