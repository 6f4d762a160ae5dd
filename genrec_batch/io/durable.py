"""Durable files: written whole, on the disk, or refused with a reason.

Owns: syncing, small JSON files, and what a disk's refusal means. Must not know: what is written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genrec_batch.core.errors import ConfigError, RetryError, is_full


def read_json(path: Path) -> Any:
    """Return a JSON file's value, None where it is missing or not whole."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def no_folder(folder: Path) -> str:
    """Return what is wrong with a folder that is not there, and the way out."""
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
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits, a piece of it in memory at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into an error that names the output: RetryError where it is full, else ConfigError."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise RetryError(
                f"OUTPUT {path}: the disk is full; free space and run the same command to go on"
            ) from error
        raise ConfigError(f"OUTPUT {path}: cannot be written ({error.strerror or error})") from error
