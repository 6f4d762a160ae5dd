"""The versions of one model in a Triton repository: each appears whole or not at all, is withdrawn, is removed.

Owns: numbers, the lock between those who write, the order in which files appear, and what Triton sees meanwhile. Must
not know: what is in a version, servers. In: a folder that was written here as `scratch`. Out: the next version.

    REPO/.NAME.lock       held while somebody writes; Triton looks at folders only
    REPO/.NAME.json       the last number that was given, and the last version that stays
    REPO/NAME/00/         a version that is being written, or removed; the next writer removes what a killed one left
    REPO/NAME/N/          a version, by one rename

Triton takes no folder whose number begins with 0 for a version. One with any other name than a number would make a
server that polls load the live version again whenever a file in it changes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from genrec_batch.core.errors import ModelError, RetryError, refused
from genrec_batch.io import durable

SCRATCH, CONFIG, WARM_UP = "00", "config.pbtxt", "warmup/request"
EACH_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of the versions of a model beyond their folders."""

    last: int = 0  # number that was given; none is given again
    stays: int = 0  # newest version that was exported by hand, or that a server has answered with


@contextmanager
def changing(home: Path, wait_s: float) -> Iterator[None]:
    """Hold the lock of a model, whose folder is made where it is missing; errors of the disk become a user's.

    Raises:
        RetryError: the disk is full, or somebody else holds the lock for `wait_s` seconds.
        ModelError: the repository cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = os.open(_beside(home, "lock"), os.O_CREAT | os.O_RDWR, 0o666)
        try:
            _wait(handle, home, wait_s)
            yield
        finally:
            os.close(handle)
    except OSError as error:
        raise refused(error, f"{home}: the repository", ModelError) from error


def numbers(home: Path) -> list[int]:
    """Return the numbers of the versions, rising."""
    names = [each.name for each in home.iterdir()] if home.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and not name.startswith("0"))


def known(home: Path) -> Known:
    """Return what is known of the versions; of a repository that an earlier release wrote, that all of them stay."""
    stored = durable.read_json(_beside(home, "json"))
    if isinstance(stored, dict) and all(isinstance(stored.get(name), int) for name in ("last", "stays")):
        return Known(last=stored["last"], stays=stored["stays"])
    newest = max(numbers(home), default=0)
    return Known(last=newest, stays=newest)


@contextmanager
def scratch(home: Path) -> Iterator[Path]:
    """Yield an empty folder for a new version, under the lock; what is not put in place of it is removed."""
    folder = home / SCRATCH
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def place(home: Path, config: str, warm_up: bytes) -> int:
    """Make the scratch folder the next version, after the files that all versions share; return its number."""
    folder = home / SCRATCH
    for path in sorted(folder.rglob("*"), reverse=True):
        durable.sync(path)
    durable.sync(folder)
    held = known(home)
    number = 1 + max([held.last, *numbers(home)])
    _keep(home, Known(last=number, stays=held.stays))
    (home / WARM_UP).parent.mkdir(exist_ok=True)
    replace(home / WARM_UP, warm_up)
    replace(home / CONFIG, config.encode())
    folder.rename(home / str(number))
    durable.sync(home)
    return number


def stay(home: Path, number: int) -> None:
    """Say that a version stays: only newer ones are withdrawn, and none that is newer is removed as an old one."""
    _keep(home, Known(last=max(number, known(home).last), stays=number))


def withdraw(home: Path, number: int) -> None:
    """Take a version out of the repository at once, then remove its files."""
    shutil.rmtree(home / SCRATCH, ignore_errors=True)
    (home / str(number)).rename(home / SCRATCH)
    durable.sync(home)
    shutil.rmtree(home / SCRATCH)


def prune(home: Path, keep: int) -> list[int]:
    """Remove the oldest versions, so that `keep` stay up to the newest that does; return their numbers."""
    stays = known(home).stays
    old = [number for number in numbers(home) if number <= stays][:-keep]
    for number in old:
        withdraw(home, number)
    return old


def replace(path: Path, content: bytes) -> None:
    """Replace a file that differs: a server that polls looks at the times of files, not at their content."""
    if path.is_file() and path.read_bytes() == content:
        return
    written = path.with_name(f".{path.name}.tmp")
    written.write_bytes(content)
    durable.sync(written)
    written.replace(path)


def _beside(home: Path, ending: str) -> Path:
    return home.parent / f".{home.name}.{ending}"


def _keep(home: Path, what: Known) -> None:
    durable.write_json(_beside(home, "json"), asdict(what))


def _wait(handle: int, home: Path, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise RetryError(
                    f"{home}: another process writes to the repository; nothing was changed: run the same command again"
                ) from None
            time.sleep(EACH_S)
        else:
            return
