"""The small files of a registry, in a directory or in a folder of a store: read, listed, and their failures.

Owns: that both are read in the same way. Must not know: what is in the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genrec_batch.core.errors import ModelError, RetryError
from genrec_batch.stores.bucket import ConditionError
from genrec_batch.stores.paths import StorePath

Root = Path | StorePath


@contextmanager
def failures(where: str) -> Iterator[None]:
    """Map the failures of a store, which have no number, to errors of the user's; `where` names the place.

    Raises:
        RetryError: it cannot be reached, or was changed meanwhile.
        ModelError: it refuses, or an object is not there.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        if isinstance(error, ConnectionError | TimeoutError | ConditionError):
            raise RetryError(f"{where}: {error}; nothing was changed: run the same command again") from error
        raise ModelError(f"{where}: the store refuses ({error})") from error


def is_folder(place: Root) -> bool:
    """Return whether there is a folder; see `failures`."""
    with failures(str(place)):
        return place.is_dir()


def stored_json(path: StorePath) -> tuple[Any, Mapping[str, str] | None]:
    """Return the value of a small JSON file in a store and its version, None and None where there is none."""
    with failures(str(path)):
        found = path.bucket.get(path.key)
    if found is None:
        return None, None
    try:
        return json.loads(found[0]), found[1]
    except (ValueError, RecursionError):
        return None, found[1]


def json_of(path: Root) -> Any:
    """Return the value of a small JSON file, None where it is missing or not JSON.

    Raises:
        ModelError: it cannot be read.
    """
    if isinstance(path, StorePath):
        return stored_json(path)[0]
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error


def listed(folder: Root) -> Sequence[Root]:
    """Return what is directly in a folder, nothing where it is not there.

    Raises:
        ModelError: it cannot be read; RetryError: see `failures`.
    """
    try:
        with failures(str(folder)):
            return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read ({error.strerror})") from error
