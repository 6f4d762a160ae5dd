"""Finished outputs in stores, as those who read them need them: as copies on the local disk, of one moment.

Owns: fetching what a manifest names, once in a process, and removing it when the process ends. Must not know: what an
output is read for, whether it is whole (`published`). In: the path or URI of an output. Out: a local path.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genrec_batch.core.errors import GenrecError, InputError, RetryError
from genrec_batch.io.attempt import reading
from genrec_batch.io.published import MANIFEST, SUCCESS
from genrec_batch.io.spill import SpillFolder, remove_abandoned
from genrec_batch.io.stored import Stored
from genrec_batch.runtime import leftovers
from genrec_batch.stores.bucket import is_uri, uri_of

TRIES = 3  # of outputs that are replaced while they are fetched

_fetched: dict[tuple[str, str], Path] = {}  # by URI and version
_lock = threading.Lock()


def local(path: str | Path, flag: str) -> Path:
    """Return where an output can be read: the path itself, or a copy of one in a store, until the process ends.

    The copy of a folder has the files that its manifest names, and no others.

    Raises:
        InputError: there is none, or it may not be read.
        RetryError: the store cannot be reached, the disk is full, or the output is replaced again and again.
    """
    if not is_uri(path):
        return Path(path)
    where = f"{flag} {uri_of(path)}"
    place = reading(lambda: Stored.of(path, flag), where)
    for _ in range(TRIES):
        with _lock:
            copy = _copy(place, where)
        if copy is not None:
            return copy
    raise RetryError(f"{where}: objects that its manifest names are missing; run the same command again")


@contextmanager
def named(path: str, place: Path) -> Iterator[None]:
    """Name an output by the URI that it was asked for by, in the errors of a block that reads its copy."""
    try:
        yield
    except GenrecError as error:
        if not is_uri(path):
            raise
        raise type(error)(str(error).replace(str(place), uri_of(path))) from error


def _copy(place: Stored, where: str) -> Path | None:
    """Fetch an output; return None where an object is missing, as of a run that was replaced meanwhile."""
    found = reading(place.finished, where)
    if found is None:
        what = "no such object" if place.single else f"not a finished output of genrec-batch: no {MANIFEST} in it"
        raise InputError(f"{where}: {what}")
    known = place.target, str(sorted(found.version.items()))
    if known in _fetched:
        return _fetched[known]
    folder = _new_folder() / place.name
    prints = place.fingerprints(str(found.run_id))
    has_prints = reading(lambda: place.store.entry(prints), where) is not None
    if place.single:
        pairs = [(place.key, folder)] + ([(prints, folder.with_name(f"{place.name}.fingerprints"))] * has_prints)
    else:
        names = [str(entry["file"]) for entry in found.files] + [prints.rpartition("/")[2]] * has_prints
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        (folder / MANIFEST).write_bytes(found.content)
        pairs = [(f"{place.key}/{name}", folder / name) for name in names]
    if not reading(lambda: _are_fetched(place, pairs), where):
        return None
    if not place.single:
        (folder / SUCCESS).touch()  # whoever wrote the manifest had all in place
    _fetched[known] = folder
    return folder


def _are_fetched(place: Stored, pairs: list[tuple[str, Path]]) -> bool:
    try:
        place.store.fetch(pairs)
    except FileNotFoundError:
        return False
    return True


def _new_folder() -> Path:
    place = Path(tempfile.gettempdir())
    remove_abandoned(place)
    made = SpillFolder.make(place)
    leftovers.at_end(made.close)
    return made.path
