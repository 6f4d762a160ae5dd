"""Signs that work goes on where nothing is timed yet: steps that are done, and files that grow.

Owns: one count for the process, which `threads.watched` looks at. Must not know: what the work is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_steps = 0
_growing: dict[Path, None] = {}


def step() -> None:
    """Say that something was done: a file was opened, some rows were read."""
    global _steps  # noqa: PLW0603 (a lost update is still a change)
    _steps += 1


@contextmanager
def growing(file: Path) -> Iterator[None]:
    """Take a file that becomes larger during the block for a sign that work goes on."""
    _growing[file] = None
    try:
        yield
    finally:
        _growing.pop(file, None)
        step()


def signs() -> int:
    """Return a number that differs from an earlier one if anything was done in between."""
    size = 0
    for file in tuple(_growing):
        with suppress(OSError):  # not there yet
            size += os.stat(file).st_size  # noqa: PTH116
    return _steps + size
