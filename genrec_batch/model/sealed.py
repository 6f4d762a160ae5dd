"""The sha256 of a model's files, recorded in `config.json` when they are written and checked when they are read.

Owns: the entry `sha256` of `config.json`. Must not know: what is in the files. In: a model directory. Out: that entry,
or the error that a file is another one. A model of an earlier version has no such entry and is read as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genrec_batch.core.errors import ModelError

WEIGHTS, CATALOG = "model.safetensors", "catalog.parquet"
AT_ONCE = 1 << 22  # bytes that are read at once


def recorded(weights: Path, catalog: Path) -> dict[str, str]:
    """Return the entry for a new model: the sha256 of its weights file and, where it has one, of its catalog."""
    return {file.name: _sha256(file) for file in (weights, catalog) if file.is_file()}


@contextmanager
def checked(directory: Path, entry: Any) -> Iterator[None]:
    """Check the files of a model against its entry, on another thread while the block reads them.

    Raises:
        ModelError: a file is not the one that was recorded, or the entry is damaged.
    """
    if entry is None:
        yield
        return
    if not isinstance(entry, Mapping) or not all(isinstance(value, str) for value in entry.values()):
        raise ModelError(f"{directory / 'config.json'}: the entry `sha256` is damaged; copy the directory again")
    files = [directory / name for name in (WEIGHTS, CATALOG) if name in entry and (directory / name).is_file()]
    with ThreadPoolExecutor(1, thread_name_prefix="sha256") as pool:
        found = [(file, pool.submit(_sha256, file)) for file in files]
        yield
        for file, digest in found:
            if digest.result() != entry[file.name]:
                raise _other(file)


def _other(file: Path) -> ModelError:
    on_purpose = (
        f"`genrec-batch model import {file.parent / WEIGHTS} NEW_DIRECTORY --catalog {file.parent / CATALOG}` makes a "
        "model of files that were changed on purpose"
    )
    what = "the catalog that the weights were trained with" if file.name == CATALOG else "the weights of this model"
    return ModelError(
        f"{file}: not {what}, or damaged: its sha256 differs from that in config.json; copy the whole model directory "
        f"again. {on_purpose}"
    )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as opened:
        while chunk := opened.read(AT_ONCE):
            digest.update(chunk)
    return digest.hexdigest()
