"""Where a model directory is, and whether one can be written there.

Owns: what is said of a path that is no model directory, or that holds one already. Must not know: what is in its files.
"""

from __future__ import annotations

from pathlib import Path

from genrec_batch.core.errors import ModelError


def directory_of(file: Path) -> str:
    """Return how to name, or make, the model directory that somebody meant who named a file."""
    if (file.parent / "config.json").is_file():
        return f"name the directory that it is in: {file.parent}"
    if file.suffix == ".safetensors":
        return f"`genrec-batch model import {file} DIR` makes one of weights"
    return "`genrec-batch model init DIR` makes one"


def check_reached(path: Path, named: str) -> None:
    """Raise ModelError where this user cannot find out whether a file is there."""
    try:
        path.exists()
    except OSError as error:
        raise ModelError(f"{named}: cannot be reached by this user ({error.strerror})") from error


def check_free(directory: Path) -> None:
    """Raise ModelError where a directory holds a model, or a file that a model would replace, or is none."""
    check_reached(directory / "config.json", str(directory))
    file = next((place for place in (directory, *directory.parents) if place.exists()), directory)
    if file.exists() and not file.is_dir():
        raise ModelError(f"{directory}: {file} is a file, and a model is a directory; choose another place")
    if (directory / "config.json").exists():
        raise ModelError(f"{directory} holds a model already; choose another directory or remove it first")
    there = [name for name in ("README.md", "catalog.parquet", "model.safetensors") if (directory / name).exists()]
    if there:
        raise ModelError(f"{directory} holds {', '.join(there)}, which a model would replace; choose another directory")
