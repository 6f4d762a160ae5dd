"""Fingerprints of inputs: a sha256 over the names and contents of files, computed beside other work.

Owns: the hash and its threads. Must not know: what is in the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from genrec_batch.core.snapshot import Snapshot
from genrec_batch.io.attempt import unchanged
from genrec_batch.io.find import some
from genrec_batch.runtime import progress, signals
from genrec_batch.runtime.console import LOG

T = TypeVar("T")

SMALLEST_COPY = 1 << 13  # bytes; files with few rows, or none, may well be the same
HASHED_AT_ONCE = 1 << 18  # bytes: they stay in a core's own cache


def begin(work: Callable[[], T]) -> Future[T]:
    """Begin work on a separate thread."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="fingerprint")
    begun = pool.submit(work)
    pool.shutdown(wait=False)
    return begun


def of_files(files: Sequence[str], names: Sequence[str], snapshot: Snapshot) -> str:
    """Return the sha256 over the names and contents of files.

    Raises:
        InputError, RetryError: one cannot be read, or has changed since the snapshot.
    """

    def one(file: str) -> str:
        return unchanged(lambda: sha256(file), snapshot, [file], snapshot.where)

    with ThreadPoolExecutor() as pool:
        contents = list(pool.map(one, files))
    _tell_copies(names, contents, snapshot)
    return hashlib.sha256(repr(list(zip(names, contents, strict=True))).encode()).hexdigest()


def _tell_copies(names: Sequence[str], contents: Sequence[str], snapshot: Snapshot) -> None:
    """Warn of files with the same content, as a second delivery has: each of their events counts twice."""
    first: dict[str, str] = {}
    sizes = [state[2] if isinstance(state, tuple) else 0 for state in snapshot.states.values()]
    copies = [
        f"{name} is {known}"
        for name, content, size in zip(names, contents, sizes, strict=True)
        if (known := first.setdefault(content, name)) != name and size > SMALLEST_COPY
    ]
    if copies:
        LOG.warning(
            "%s: %d files have the content of others, so their rows count twice: %s; remove them, or drop equal "
            "events with --dedupe",
            snapshot.where,
            len(copies),
            some(copies),
        )


def of_states(names: Sequence[str], states: Sequence[Hashable]) -> str:
    """Return the sha256 over the names and states of objects, whose ETags follow their content."""
    return hashlib.sha256(repr(list(zip(names, states, strict=True))).encode()).hexdigest()


def sha256(file: str) -> str:
    """Return the sha256 of a file's content; OSError where it cannot be read."""
    digest, room = hashlib.sha256(), memoryview(bytearray(HASHED_AT_ONCE))
    with Path(file).open("rb", buffering=0) as opened:
        while count := opened.readinto(room):
            if signals.is_over():
                raise InterruptedError(f"{file}: its fingerprint is no longer needed")
            digest.update(room[:count])
            progress.step()
    return digest.hexdigest()
