"""Folders of spill files: each has a lock of the run that it belongs to, so that those of killed runs can be told.

Owns: their names, their locks, and their removal. Must not know: what is spilled. The kernel releases a lock when its
process ends, however it ends; whoever then gets it may remove the folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from genrec_batch.runtime.console import LOG

PREFIX, UNNAMED, LOCK = ".genrec-spill-", ".genrec-unlocked-", ".lock"


@dataclass(kw_only=True)
class SpillFolder:
    """A folder of this run; `close` removes it."""

    path: Path
    lock: int

    @staticmethod
    def make(place: Path) -> SpillFolder:
        """Make a folder in `place`, locked before it has the name by which others look for it.

        Raises:
            OSError: the disk refuses it.
        """
        made = SpillFolder(path=Path(tempfile.mkdtemp(prefix=UNNAMED, dir=place)), lock=-1)
        with ExitStack() as stack:
            stack.callback(made.close)  # where it cannot be locked
            made.lock = os.open(made.path / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(made.lock, fcntl.LOCK_EX)
            os.write(made.lock, f"{os.getpid()}\n".encode())
            made.path = made.path.rename(place / (PREFIX + made.path.name.rpartition("-")[2]))
            stack.pop_all()
        return made

    def close(self) -> None:
        """Remove the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def remove_abandoned(place: Path) -> None:
    """Remove the folders in `place` whose run was killed, and say so; those of other runs that go on stay."""
    freed = []
    for lock in place.glob(f"{PREFIX}*/{LOCK}"):
        try:
            opened = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # gone by now, or of another user
            continue
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            freed.append(sum(file.stat().st_size for file in lock.parent.rglob("*")))
            shutil.rmtree(lock.parent)
        except OSError:  # its run goes on, or another run removes it
            continue
        finally:
            os.close(opened)
    if freed:
        LOG.warning(
            "%s: removed spill files that killed runs left: %d folders, %.1f MiB", place, len(freed), sum(freed) / 2**20
        )
