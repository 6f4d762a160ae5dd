"""The workers of one machine: how they are started, found to have said something, and given what all share.

Owns: their cores, and the files in memory that all map. Must not know: parts, messages, when a worker is started.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing import connection
from typing import Any, Protocol

from genrec_batch.events import packed
from genrec_batch.runtime.children import Child
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.shares import shares

MODULE = "genrec_batch.scoring.workers.worker"


class Link(Protocol):
    """Messages to and from a worker."""

    def send(self, message: Any, *files: int) -> None:
        """Send a message; OSError where the worker has ended."""

    def receive(self) -> tuple[Any, list[int]]:
        """Return the next message; EOFError or OSError where the worker has ended."""


class Started(Protocol):
    """A worker that was started."""

    @property
    def link(self) -> Link:
        """The messages to and from it."""

    def end(self) -> str:
        """End it at once, and return in words how it has ended, which it may have done by itself."""

    def wait(self, seconds: float) -> None:
        """Let it end by itself for some seconds, then end it."""


class Sent(Protocol):
    """Something that a worker gets, with the files that go with the message."""

    def unpacked(self, files: Sequence[int], stages: Stages) -> Any:
        """Return it in the worker, whose clock is `stages`."""


class Workplace(Protocol):
    """Where workers are."""

    same_clock: bool  # whether they have the clock of this process

    def start(self, number: int) -> Started:
        """Start a worker, for the first time or again."""

    def ready(self, workers: Sequence[Started], seconds: float) -> list[Started]:
        """Return the workers that have said something or have ended; wait some seconds for the first one."""

    def share(self, what: Any) -> tuple[Sent, tuple[int, ...]]:
        """Return what all workers get of something, and the open files that go with it."""


class Processes:
    """The workers of this machine: processes on disjoint cores."""

    same_clock = True

    def __init__(self, count: int) -> None:
        self._cores = shares(count)
        self._files: list[int] = []

    def start(self, number: int) -> Started:
        """Start a worker on its cores."""
        return Child.start(MODULE, self._cores[number])

    def ready(self, workers: Sequence[Any], seconds: float) -> list[Started]:
        """Return the workers that have said something or have ended."""
        there = {worker.link.connection: worker for worker in workers}
        return [there[found] for found in connection.wait(list(there), seconds)]

    def share(self, what: Any) -> tuple[Sent, tuple[int, ...]]:
        """Return something as a file in memory, which all map."""
        file = packed.file_in_memory()
        self._files.append(file)
        return packed.pack(what, file), (file,)

    def close(self) -> None:
        """Close the files in memory."""
        while self._files:
            os.close(self._files.pop())
