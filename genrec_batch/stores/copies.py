"""Copies of folders of a store in a private cache on the disk, fetched once for each state of the folder.

Owns: the place of copies, what makes one stale, when old ones are removed. Must not know: what is in the files. In: the
URI of a folder. Out: a local folder with the same files, which this and other processes read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from genrec_batch.stores.bucket import Bucket, Entry, uri_of

VARIABLE = "GENREC_BATCH_CACHE"
UNUSED_S = 7 * 24 * 3600.0  # after which a copy of an older state is removed


def default_directory() -> Path:
    """Return the folder of copies: in GENREC_BATCH_CACHE, else in $XDG_CACHE_HOME or ~/.cache, in genrec-batch."""
    given, root = os.environ.get(VARIABLE), os.environ.get("XDG_CACHE_HOME")
    cache = Path(given) if given else (Path(root) if root else Path.home() / ".cache") / "genrec-batch"
    return cache / "models"


def folder(uri: str, flag: str) -> Path:
    """Return a copy of the folder that a URI names; files that begin with a dot or are in such folders are left out.

    Raises:
        FileNotFoundError: nothing is there.
        ConnectionError: the store cannot be reached, or the folder changed while it was fetched.
        OSError: the store or the disk refuses.
    """
    bucket = Bucket(uri_of(uri), flag)
    prefix = bucket.key.strip("/")
    entries = _files(bucket, prefix)
    if not entries:
        raise FileNotFoundError(f"{uri}: no such folder in the store")
    of_uri = hashlib.sha256(f"{bucket.root}/{prefix}".encode()).hexdigest()[:16]
    of_state = hashlib.sha256(repr([(each.key, each.bytes, sorted(each.version.items())) for each in entries]).encode())
    cache = default_directory()
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = cache / f"{of_uri}-{of_state.hexdigest()[:32]}"
    if not place.is_dir():
        _fetch(bucket, prefix, entries, place)
        _remove_old(cache, of_uri)
    os.utime(place)
    return place


def _files(bucket: Bucket, prefix: str) -> list[Entry]:
    names = ((each, each.key.removeprefix(f"{prefix}/")) for each in bucket.below(prefix))
    return [each for each, name in names if not any(part.startswith(".") for part in name.split("/"))]


def _fetch(bucket: Bucket, prefix: str, entries: Sequence[Entry], place: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=".incoming-", dir=place.parent))
    try:
        pairs = [(each.key, scratch / each.key.removeprefix(f"{prefix}/")) for each in entries]
        for _, file in pairs:
            file.parent.mkdir(parents=True, exist_ok=True)
        bucket.fetch(pairs)
        if _files(bucket, prefix) != list(entries):
            raise ConnectionError(f"{bucket.uri(prefix)} changed while it was fetched")
        with suppress(OSError):  # another process was faster
            scratch.rename(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_old(cache: Path, of_uri: str) -> None:
    """Remove copies of earlier states that nobody has asked for lately, and what killed runs left."""
    for place in [*cache.glob(f"{of_uri}-*"), *cache.glob(".incoming-*")]:
        with suppress(FileNotFoundError):
            if time.time() - place.stat().st_mtime > UNUSED_S:
                shutil.rmtree(place, ignore_errors=True)
