"""The state of files at first sight, which must not change while a run reads them.

Owns: what tells two states of a file apart, and the error where they differ. Must not know: what is in the files. In:
names of files. Out: a `Snapshot`, which is checked after each reading.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
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


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The states of some files when a run first looked at them."""

    states: Mapping[str, Hashable]
    where: str  # names the input in errors
    look: Callable[[str], Hashable] = state_of

    @staticmethod
    def of(files: Iterable[str], where: str, look: Callable[[str], Hashable] = state_of) -> Snapshot:
        """Look at files.

        Raises:
            OSError: one is not there, or cannot be reached.
        """
        return Snapshot(states={file: look(file) for file in files}, where=where, look=look)

    def check(self, files: Iterable[str] | None = None) -> None:
        """Look at all or some of the files again.

        Raises:
            RetryError: one is another file now, has other content, or is gone.
        """
        for file in self.states if files is None else files:
            try:
                same = self.look(file) == self.states[file]
            except FileNotFoundError:
                raise self._changed(file, "was removed") from None
            if not same:
                raise self._changed(file, "changed")

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
