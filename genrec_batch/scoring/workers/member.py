"""A worker as its coordinator sees it: its place, its process, and how far it is.

Owns: that state. Must not know: parts, what a message means.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from genrec_batch.runtime import progress
from genrec_batch.scoring.workers.processes import Started, Workplace

STARTS = 3  # in a row without a part that is done, after which a worker is not started again


@dataclass(kw_only=True)
class Member:
    """A worker: its place, and its process, None once it is given up."""

    number: int
    device: str
    child: Started | None = None
    opened: bool = False  # its engine is open
    begun: bool = False  # it was told where parts are written
    asked: bool = False  # it wants parts and waits
    working: bool = False  # it has parts, and asks for more while it works
    starts: int = 0  # in a row without a part
    heard: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"worker {self.number} ({self.device})"

    def start(self, place: Workplace) -> None:
        """Start its process, for the first time or again."""
        self.opened = self.begun = self.asked = self.working = False
        self.starts, self.heard = self.starts + 1, time.monotonic()
        self.child = place.start(self.number)

    def tell(self, message: Any, *files: int) -> None:
        """Send a message; one to a process that has just ended is lost, and its end is noticed later."""
        if self.child is not None:
            with suppress(OSError):
                self.child.link.send(message, *files)

    def hear(self) -> Any:
        """Return its next message, None where it has ended."""
        assert self.child is not None
        try:
            message, _ = self.child.link.receive()
        except (EOFError, OSError):
            return None
        self.heard = time.monotonic()
        progress.step()
        return message

    def silent(self, limit_s: float) -> bool:
        """Return whether it should work and has said nothing for some seconds; 0 means never."""
        return bool(limit_s) and self.child is not None and not self.asked and time.monotonic() - self.heard > limit_s

    def end(self) -> str:
        """End its process and return how that ended."""
        return "" if self.child is None else self.child.end()

    def give_up(self) -> None:
        """End its process for good."""
        self.end()
        self.child = None
