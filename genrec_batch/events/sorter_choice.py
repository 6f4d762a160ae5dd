"""Which version of the sorter a log gets.

Owns: loading the compiled version, and the size of a log from which that pays. Must not know: what a sorter does.
"""

from __future__ import annotations

from functools import cache

from genrec_batch.events.sorter import NUMPY, Sorter
from genrec_batch.runtime import compiled, room

COMPILED_FROM = 4_000_000  # rows of a log from which loading compiled code pays


def for_log(rows: int) -> Sorter:
    """Return the sorter for a log of that many rows."""
    return fastest() if rows >= COMPILED_FROM else NUMPY


@cache
def fastest() -> Sorter:
    """Return the compiled sorter, or the NumPy one where numba is not installed or does not load.

    Raises:
        RetryError: there is no room for it.
    """

    def load() -> None:
        room.check_address_space(room.KERNELS_MIB, f"a log of {COMPILED_FROM:,} rows and more")
        from genrec_batch.events import sorter_numba  # noqa: F401 - does it load?

    if not compiled.loads(load, "NumPy sorts the events"):
        return NUMPY
    from genrec_batch.events.sorter_numba import NumbaSorter

    return NumbaSorter()
