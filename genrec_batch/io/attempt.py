"""Attempts to read: every failure of a library as one error that names the input, and a file that changed meanwhile.

Owns: which failures are the input's and which may be gone the next time. Must not know: what is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import polars as pl
import pyarrow as pa

from genrec_batch.core.errors import InputError, RetryError, is_full
from genrec_batch.core.snapshot import Snapshot
from genrec_batch.runtime import progress

T = TypeVar("T")

LOST = re.compile(
    r"error sending request|dns error|timed? ?out|connection (reset|refused|closed)|status code: (5\d\d|429)"
    r"|server returned non-2xx status code: (5\d\d|429)|SlowDown|after \d+ retries",
    re.IGNORECASE,
)


def reading(read: Callable[[], T], source: str) -> T:
    """Call `read`, and map failures of a file to one error that names it.

    Raises:
        InputError: a page is damaged, or a type does not fit.
        RetryError: a connection was lost, or the disk is full.
    """
    try:
        result = read()
    except (ConnectionError, TimeoutError) as error:
        raise RetryError(f"{source}: connection lost while reading ({error}); run the same command again") from error
    except (
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
        OSError,
        pa.ArrowInvalid,
        pa.ArrowNotImplementedError,
        UnicodeDecodeError,
    ) as error:
        if "://" in source and LOST.search(str(error)):
            raise RetryError(f"{source}: connection lost ({error}); run the same command again") from error
        if is_disk_full(error):
            raise RetryError(f"{source}: the disk is full; free space and run the same command again") from error
        raise InputError(f"{source}: cannot be read: {error}") from error
    progress.step()
    return result


def is_disk_full(error: BaseException) -> bool:
    """Return whether a library could not write because the disk is full."""
    return "No space left" in str(error) or (isinstance(error, OSError) and is_full(error))


def unchanged(read: Callable[[], T], snapshot: Snapshot | None, files: Sequence[str], where: str) -> T:
    """Call `read`, as `reading` does, and check that the files are still those that were first seen.

    Raises:
        InputError: see `reading`.
        RetryError: see `reading`; or a file was replaced, written to or removed.
    """

    def check() -> None:
        if snapshot is not None:
            reading(lambda: snapshot.check(files), where)  # in a store, that is asked

    try:
        result = reading(read, where)
    except InputError:
        check()
        raise
    check()
    return result
