"""Signs that work goes on, wherever it is: steps that are done, files that grow, processor time; and a watch over them.

Owns: one count for the process, the titles of what is going on, and the watch over a whole command. Must not know: what
the work is. Work that builds something for an hour, as TensorRT does, has no steps but takes processor time; what waits
for a store, a driver or another thread takes none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from genrec_batch.runtime import threads

BUSY = 0.05  # of one core, from which on a process works; one that waits and draws a spinner takes less

_steps = 0
_titles: list[str] = []
_growing: dict[Path, None] = {}


def step() -> None:
    """Say that something was done: a file was opened, some rows were read."""
    global _steps  # noqa: PLW0603 (a lost update is still a change)
    _steps += 1


@contextmanager
def titled(title: str) -> Iterator[None]:
    """Name what is done in the block, for the message of a watch; its begin and its end are steps."""
    step()
    _titles.append(title)
    try:
        yield
    finally:
        _titles.remove(title)
        step()


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


def watched(limit_s: float) -> AbstractContextManager[None]:
    """End the block, a whole command, with `StalledError` once there was no sign and no work for `limit_s` seconds.

    A tighter watch, such as that of `Stages`, may be inside: there, processor time is no sign.
    """

    def worked() -> int:
        return signs() + int(sum(os.times()[:4]) / (BUSY * limit_s))  # of children, too, once they have ended

    return threads.watched(worked, limit_s=limit_s, doing=lambda: ", ".join(_titles) or "a step without a name")
