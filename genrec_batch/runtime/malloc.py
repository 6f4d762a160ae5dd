"""Settings of glibc's allocator: freed memory is used again instead of returned to the kernel.

Owns: these settings. Must not know: who allocates. A run allocates and frees arrays of tens of megabytes all the time;
by default each of them is fresh memory from the kernel, which has to clear every page (measured: three quarters of the
host's time on a virtual machine with two cores). For the command line only: a library leaves its host's allocator
alone.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # of malloc.h
NEVER, STEP = -1, 1 << 26  # bytes


def keep_freed_memory() -> bool:
    """Keep large arrays in one heap that is never returned; return whether the C library has such settings."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, STEP))
    return all(mallopt(name, value) == 1 for name, value in settings)


def give_back_freed_memory() -> None:
    """Return all pages of freed memory to the kernel, if the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
