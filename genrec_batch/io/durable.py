"""Durable files: written whole and synced to the disk, or refused with a reason.

Owns: syncing, small JSON files, user errors for refused writes. Must not know: what is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genrec_batch.core.errors import ConfigError, refused

URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def read_json(path: Path) -> Any:
    """Return a JSON file's value, None where it is missing, incomplete, not JSON or, as a pipe, no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def check_local(path: str | Path, flag: str, *, reads: bool = False) -> None:
    """Raise ConfigError where what is only written locally, or only read there, is a URI.

    A URI has one slash less in a `Path`.
    """
    if URI.match(str(path)):
        out = "an output is written to a local path; name one, and copy it to the store once the run is done"
        into = "is read from a local path; copy it from the store, and name the copy"
        raise ConfigError(f"{flag} {re.sub(':/+', '://', str(path), count=1)}: {into if reads else out}")


def missing_folder(folder: Path) -> str:
    """Return why a folder does not exist, and the way out, for an error."""
    for place in folder.parents:
        if place.is_dir():
            break
        if place.exists():
            return f"{place} is a file, so no folder can be in it; name another place"
    if folder.exists():
        return f"{folder} is a file, not a folder; name another place"
    return f"the folder {folder} does not exist; make it first (mkdir -p {folder})"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file: temporary name, sync, rename."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    sync(scratch)
    scratch.replace(path)


def sync(path: Path) -> None:
    """Wait until a file or folder is synced to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits, reading 4 MiB at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def disk_errors(path: Path, what: str = "OUTPUT") -> Iterator[None]:
    """Map refused writes to user errors that name the place: RetryError where the disk is full, else ConfigError."""
    try:
        yield
    except OSError as error:
        raise refused(error, f"{what} {path}", ConfigError) from error
