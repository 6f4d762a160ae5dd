"""Aborts: a library that ends the process by itself ends it with a message and an exit code that says what to do.

Owns: the handler of SIGABRT. Must not know: which library, or which file it read. A library in Rust or C aborts where
it is refused memory, so also where a damaged page of a file says that it is 2^60 bytes long. Nothing can go on from
there, but without the handler a scheduler would see 134, which says nothing.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal

DAMAGED, NO_MEMORY = 3, 75
SAID = {
    DAMAGED: "error: a library ended the process (SIGABRT), as it does where an input is damaged: a page says that it "
    "is larger than any memory; find the file with --verify-input pages and write it again (exit 3)\n",
    NO_MEMORY: "error: a library ended the process (SIGABRT), as it does without memory, and this process has a limit "
    "of address space (ulimit -v): raise it, or run on a larger machine (exit 75)\n",
}


def _aborted(number: int) -> None:
    del number
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    code = NO_MEMORY if limited else DAMAGED
    os.write(2, SAID[code].encode())
    os._exit(code)


_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_aborted)  # held: the C library keeps its address only


def end_with_a_code() -> None:
    """Let an abort end this process with exit code 3, or 75 where its address space is limited.

    Nothing changes where Python's fault handler is on: who debugs an abort wants its trace.
    """
    if not faulthandler.is_enabled():
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal(signal.SIGABRT, ctypes.cast(_handler, ctypes.c_void_p))
