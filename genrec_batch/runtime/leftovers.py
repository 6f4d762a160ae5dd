"""What a process has made for itself and removes at its end, also where it ends without Python's own end.

Owns: the list of what is to be removed. Must not know: what it is.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable

_removals: list[Callable[[], None]] = []


def at_end(remove: Callable[[], None]) -> None:
    """Call `remove` once at the end of this process, unless it is killed."""
    _removals.append(remove)


@atexit.register
def remove() -> None:
    """Remove everything now; a process that ends by `os._exit` calls this before."""
    while _removals:
        _removals.pop()()
