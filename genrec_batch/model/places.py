"""Checks of a path that should be, or become, a model directory.

Owns: the errors for a path that is no model directory, or that has one already. Must not know: the content of its
files.
"""

from __future__ import annotations

from pathlib import Path

from genrec_batch.core.errors import ModelError


def directory_of(file: Path) -> str:
    """Return a hint for a user who named a file: the model directory of that file, or how to make one."""
    if (file.parent / "config.json").is_file():
        return f"name the directory that it is in: {file.parent}"
    if file.suffix == ".safetensors":
        return f"`genrec-batch model import {file} DIR` makes one of weights"
    return "`genrec-batch model init DIR` makes one"


def check_reached(path: Path, named: str) -> None:
    """Raise ModelError where this user may not look for a file."""
    try:
        path.exists()
    except OSError as error:
        raise ModelError(f"{named}: cannot be reached by this user ({error.strerror})") from error


def check_free(directory: Path) -> None:
    """Raise ModelError unless a model can be written to a directory without replacing anything."""
    check_reached(directory / "config.json", str(directory))
    file = next((place for place in (directory, *directory.parents) if place.exists()), directory)
    if file.exists() and not file.is_dir():
        raise ModelError(f"{directory}: {file} is a file, and a model is a directory; choose another place")
    if (directory / "config.json").exists():
        raise ModelError(f"{directory} holds a model already; choose another directory or remove it first")
    there = [name for name in ("README.md", "catalog.parquet", "model.safetensors") if (directory / name).exists()]
    if there:
        raise ModelError(f"{directory} holds {', '.join(there)}, which a model would replace; choose another directory")
