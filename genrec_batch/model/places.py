"""Checks of a path that should be, or become, a model directory, and where one for a store is made.

Owns: the errors for a path that is no model directory, or that has one already. Must not know: the content of its
files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genrec_batch.core.errors import GenrecError, ModelError
from genrec_batch.model.registry_files import failures
from genrec_batch.stores.bucket import is_uri, uri_of
from genrec_batch.stores.made import MadeFolder

LAST = "config.json"  # of a model directory: whoever finds it finds all of the model


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


@contextmanager
def placed(target: Path, flag: str, *, kept: bool = False) -> Iterator[Path]:
    """Yield the local directory to make a model in; one for a store goes up at the end of the block.

    Args:
        target: a path, or the URI of a folder in a store.
        flag: names it in errors.
        kept: whether what is beside the local directory is there again for a second try.

    Raises:
        ModelError: a model is there already, or the store refuses.
        RetryError: the store cannot be reached.
    """
    if not is_uri(target):
        yield target
        return
    where = f"{flag} {uri_of(target)}"
    with failures(where), _free(where):
        made = MadeFolder.begin(str(target), flag, LAST, kept=kept)
    done = False
    try:
        yield made.folder
        done = True
    finally:
        if not done:
            made.give_up()
    try:
        with failures(where), _free(where):
            made.upload()
    except GenrecError as error:
        raise type(error)(f"{error}; the model is whole in {made.folder}: copy it to the store") from error


@contextmanager
def _free(where: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise ModelError(f"{where} holds a model already ({error}); choose another place or remove it first") from error


def shown(target: Path) -> str:
    """Return a path as it is, and a URI with the slash that a `Path` has lost."""
    return uri_of(target) if is_uri(target) else str(target)
