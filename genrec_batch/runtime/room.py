"""Room: whether this process may have the threads and the address space that a command needs, before it needs them.

Owns: how much that is, and the limits that are read. Must not know: what needs it. Where the system refuses one of them
to a library, the library ends the process as it likes: Rust and C++ abort, OpenMP exits with 1. So both are asked for
here first.
"""

from __future__ import annotations

import os
import resource
import threading
from contextlib import suppress
from pathlib import Path

from genrec_batch.core.errors import RetryError
from genrec_batch.runtime.threads import cores

SPARE_THREADS = 16  # beside the pools of libraries and of our own, which have one a core each
POOLS = 4
TABLES_MIB, TORCH_MIB = 850, 1_700  # of address space, measured on two cores: Polars and Arrow with a run; PyTorch
KERNELS_MIB = 450  # of LLVM, of OpenBLAS, which never returns where it is refused, and of a large log that they sort
CORE_MIB = 64  # of stacks and of malloc's arenas, a core


def check() -> None:
    """Check that a command can begin.

    Raises:
        RetryError: there is no room for its threads, or for the libraries that read and write tables.
    """
    check_address_space(TABLES_MIB, "genrec-batch")
    check_threads(POOLS * cores() + SPARE_THREADS)


def check_address_space(wanted_mib: int, what: str) -> None:
    """Raise RetryError where `ulimit -v` leaves less than `wanted_mib` MiB, and some for each core."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = Path("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not pages.exists():
        return
    left_mib = (limit - int(pages.read_text().split()[0]) * os.sysconf("SC_PAGESIZE")) >> 20
    needed_mib = wanted_mib + CORE_MIB * cores()
    if left_mib < needed_mib:
        raise RetryError(
            f"out of address space: {what} needs {needed_mib:,} MiB more and the limit of {limit >> 20:,} MiB leaves "
            f"{left_mib:,}; raise it (ulimit -v unlimited)"
        )


def check_threads(wanted: int) -> None:
    """Raise RetryError where fewer than `wanted` threads can be started now; they all end before this returns."""
    end, started = threading.Event(), []
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=end.wait, name="room", daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError) as error:
        raise RetryError(
            f"only {len(started)} threads can be started, and a run on {cores()} cores has about {wanted}; raise the "
            "limit (ulimit -u, ulimit -v, a container's pids limit), or give the process fewer cores (taskset)"
        ) from error
    finally:
        end.set()
        for thread in started:
            with suppress(RuntimeError):
                thread.join()
