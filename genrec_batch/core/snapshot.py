"""The state of files at first sight, which must not change while a run reads them.

Owns: what tells two states of a file apart, and the error where they differ. Must not know: what is in the files. In:
names of files. Out: a `Snapshot`, which is checked after each reading.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from genrec_batch.core.errors import GenrecError, RetryError


def state_of(file: str) -> Hashable:
    """Return what differs between two states of a local file: device, inode, size in bytes, time of change in ns.

    Raises:
        OSError: it is not there, or cannot be reached.
    """
    found = os.stat(file)  # noqa: PTH116 (a log may have thousands of files)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def in_turn(look: Callable[[str], Hashable], files: Sequence[str]) -> Sequence[Hashable]:
    """Look at files, one after the other."""
    return [look(file) for file in files]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The states of some files when a run first looked at them."""

    states: Mapping[str, Hashable]
    where: str  # names the input in errors
    look: Callable[[str], Hashable] = state_of
    each: Callable[[Callable[[str], Hashable], Sequence[str]], Sequence[Hashable]] = in_turn

    @staticmethod
    def of(
        files: Iterable[str],
        where: str,
        look: Callable[[str], Hashable] = state_of,
        each: Callable[[Callable[[str], Hashable], Sequence[str]], Sequence[Hashable]] = in_turn,
    ) -> Snapshot:
        """Look at files; `each` looks at all of them, in turn or several at once.

        Raises:
            OSError: one is not there, or cannot be reached.
        """
        named = list(files)
        return Snapshot(states=dict(zip(named, each(look, named), strict=True)), where=where, look=look, each=each)

    def check(self, files: Iterable[str] | None = None) -> None:
        """Look at all or some of the files again.

        Raises:
            RetryError: one is another file now, has other content, or is gone.
        """
        asked = list(self.states if files is None else files)
        for file, now in zip(asked, self.each(self._now, asked), strict=True):
            if now is None:
                raise self._changed(file, "was removed")
            if now != self.states[file]:
                raise self._changed(file, "changed")

    def _now(self, file: str) -> Hashable:
        try:
            return self.look(file)
        except FileNotFoundError:
            return None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Check all files at the end of a block that reads them, also where it fails on what it read.

        Raises:
            RetryError: see `check`.
        """
        try:
            yield
        except GenrecError:
            self.check()
            raise
        self.check()

    def _changed(self, file: str, what: str) -> RetryError:
        return RetryError(
            f"{self.where}: {file} {what} while it was read; nothing of it was used: run the same command again once "
            "nobody writes to it"
        )
