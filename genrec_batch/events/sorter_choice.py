"""Which version of the sorter a log gets.

Owns: loading the compiled version, and the size of a log from which that pays. Must not know: what a sorter does.
"""

from __future__ import annotations

import importlib.util
from functools import cache

from genrec_batch.events.sorter import NUMPY, Sorter
from genrec_batch.runtime.console import LOG

COMPILED_FROM = 4_000_000  # rows of a log from which loading compiled code pays


def for_log(rows: int) -> Sorter:
    """Return the sorter for a log of that many rows."""
    return fastest() if rows >= COMPILED_FROM else NUMPY


@cache
def fastest() -> Sorter:
    """Return the compiled sorter, or the NumPy one where numba is not installed or does not load."""
    if importlib.util.find_spec("numba") is None:
        return NUMPY
    try:
        from genrec_batch.events.sorter_numba import NumbaSorter
        from genrec_batch.runtime import jit
    except ImportError as error:
        LOG.warning("numba is installed but does not load (%s); NumPy sorts the events, more slowly", error)
        return NUMPY
    jit.warn_if_not_cached()
    return NumbaSorter()
