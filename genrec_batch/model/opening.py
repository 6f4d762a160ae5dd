"""A model by what an option names: a directory, or a version of a registry, which is checked and then read.

Owns: which of the two it is, and where the files of one in a store are on the disk. Must not know: what is in either.
In: the text of `--model` or the like. Out: a `Model`, which knows the version that it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from genrec_batch.core.errors import GenrecError
from genrec_batch.model import registry, weights
from genrec_batch.model.registry import Begun, Version
from genrec_batch.model.registry_files import failures
from genrec_batch.model.weights import Model
from genrec_batch.stores import copies
from genrec_batch.stores.bucket import is_uri


def open_model(text: str, root: str | None, named: str = "--model", *, begun: Begun | None = None) -> Model:
    """Read the model that an option names.

    Args:
        text: a directory or its URI in a store, or `registry:NAME`, `registry:NAME@ALIAS`, `registry:NAME@3`.
        root: the value of `--registry`.
        named: the option, for errors.
        begun: what a run that is continued was made by; see `registry.taken`.

    Raises:
        ConfigError: not a reference, or no registry is given.
        ModelError, RetryError: see `registry.resolve`, `registry.check` and `weights.load`.
    """
    if not registry.is_reference(text):
        place = directory(text, named)
        with named_by(text, place):
            return weights.load(place, named)
    return read(version_of(text, root, named, begun=begun), named)


def version_of(text: str, root: str | None, named: str, *, begun: Begun | None = None) -> Version:
    """Return the version that a reference asks for; see `open_model`."""
    return registry.taken(registry.root_of(root, f"{named} {text}"), registry.parse(text, named), begun)


def read(version: Version, named: str) -> Model:
    """Check and read a version; see `open_model`."""
    found = registry.on_disk(version)
    registry.check(found)
    assert isinstance(found.path, Path), "it is on the disk"
    return replace(weights.load(found.path, named), version=version)


def directory(text: str, named: str) -> Path:
    """Return the directory of a model: that of a path, or a copy of one in a store.

    Raises:
        ModelError: the store has none, or refuses.
        RetryError: the store cannot be reached.
    """
    if not is_uri(text):
        return Path(text)
    with failures(f"{named} {text}"):
        return copies.folder(text, named)


@contextmanager
def named_by(text: str, place: Path) -> Iterator[None]:
    """Name a model by the URI that it was asked for by, in the errors of a block that reads its copy."""
    try:
        yield
    except GenrecError as error:
        if not is_uri(text):
            raise
        raise type(error)(str(error).replace(str(place), text)) from error
