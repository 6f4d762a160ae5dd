"""Settings of glibc's allocator: freed memory is used again instead of returned to the kernel.

Owns: these settings. Must not know: who allocates. A run allocates and frees arrays of tens of megabytes all the time;
by default each of them is fresh memory from the kernel, which has to clear every page (measured: three quarters of the
host's time on a virtual machine with two cores). For the command line only: a library leaves its host's allocator
alone.
"""

from __future__ import annotations

import ctypes

from genrec_batch.runtime import threads

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8  # of malloc.h
NEVER, STEP = -1, 1 << 26  # bytes
LARGEST = 1 << 25  # bytes, the most that glibc takes: only features and events of a whole shard are above it
MANY_CORES = 8  # from which on a shard is so fast that its memory is better kept for the next one


def keep_freed_memory() -> bool:
    """Keep large arrays in one heap that is never returned; return whether the C library has such settings.

    On few cores the largest ones, a few each several seconds, are outside it and returned: a hole in the heap that lost
    some bytes to a small array has no room for the next of them, so the heap would grow.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    outside = (M_MMAP_THRESHOLD, LARGEST) if threads.cores() < MANY_CORES else (M_MMAP_MAX, 0)
    settings = ((M_ARENA_MAX, 1), outside, (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, STEP))
    return all(mallopt(name, value) == 1 for name, value in settings)


def give_back_freed_memory() -> None:
    """Return all pages of freed memory to the kernel, if the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
