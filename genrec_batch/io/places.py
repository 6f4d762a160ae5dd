"""Where files are: the local file system or an object store, with the same three things to do with a file of either.

Owns: opening a file, its state and its size, also of objects in a store. Must not know: what is in the files, which of
them are data (`find`), how a store is asked (`stores`). In: a path or URI. Out: a `Place`, and what a store lists.
"""

from __future__ import annotations

import fnmatch
import io
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import unquote

from genrec_batch.core.snapshot import state_of
from genrec_batch.stores.bucket import AT_ONCE, Bucket, Entry, in_threads

T = TypeVar("T")

READ_AHEAD = 1 << 16  # bytes that one request to a store brings at least: most footers are smaller


@dataclass(frozen=True, kw_only=True)
class Place:
    """What can be done with the files of an input, each by its path or URI."""

    open: Callable[[str], IO[bytes]]
    state: Callable[[str], Hashable]  # see `core.snapshot`
    size: Callable[[str], int]  # bytes
    at_once: int = 1  # files that are looked at together: each may be a request, which takes its time

    def each(self, look: Callable[[str], T], files: Sequence[str]) -> list[T]:
        """Look at files, several at once where that is faster; the first error ends it."""
        return in_threads(look, files, self.at_once)


def _open(file: str) -> IO[bytes]:
    return Path(file).open("rb")


def _size(file: str) -> int:
    return Path(file).stat().st_size


LOCAL = Place(open=_open, state=state_of, size=_size)


def local_path(path: str) -> str:
    """Return the path of a `file://` URI; every other path or URI as it is."""
    if not path.startswith("file://"):
        return path
    raw = path.removeprefix("file://").removeprefix("localhost")
    return raw if Path(raw).exists() or "%" not in raw else unquote(raw)


class _Object(io.RawIOBase):
    """An object as a file: each read is a request for a range of it."""

    def __init__(self, store: Bucket, key: str, size: int) -> None:
        self._store, self._key, self._size, self._at = store, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, room: Any) -> int:
        view = memoryview(room).cast("B")
        count = max(0, min(len(view), self._size - self._at))
        if count:
            view[:count] = self._store.range(self._key, self._at, count)
        self._at += count
        return count


class Store(Bucket):
    """The bucket, container or server of an input's URI."""

    def __init__(self, uri: str, flag: str) -> None:
        """Open the store of a URI; see `Bucket`."""
        super().__init__(uri, flag)
        self._flag = flag
        self._sizes: dict[str, int] = {}  # bytes by key, as last seen; whoever reads an object checks its state
        self.place = Place(open=self._open, state=self._state, size=self._size, at_once=AT_ONCE)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.uri(self.key), self._flag)  # another process has connections of its own

    def entry(self, key: str) -> Entry | None:
        """Return an object's size and version; see `Bucket.entry`."""
        found = super().entry(key)
        if found is not None:
            self._sizes[key] = found.bytes
        return found

    def below(self, prefix: str) -> list[Entry]:
        """Return all objects in a folder; see `Bucket.below`."""
        found = super().below(prefix)
        self._sizes |= {each.key: each.bytes for each in found}
        return found

    def exists(self) -> bool:
        """Return whether the URI names an object."""
        return self.entry(self.key) is not None

    def keys_below(self, prefix: str) -> list[str]:
        """Return the keys of all objects in a folder."""
        return [each.key for each in self.below(prefix)]

    def open_key(self, key: str) -> IO[bytes]:
        """Open an object as a file; FileNotFoundError where there is none."""
        return self._open(self.uri(key))

    def _there(self, file: str) -> Entry:
        found = self.entry(self._key(file))
        if found is None:
            raise FileNotFoundError(f"{file}: no such object")
        return found

    def _size(self, file: str) -> int:
        known = self._sizes.get(self._key(file))
        return self._there(file).bytes if known is None else known

    def _key(self, file: str) -> str:
        return file.removeprefix(self.root + "/")

    def _state(self, file: str) -> Hashable:
        found = self._there(file)
        return found.bytes, found.version.get("e_tag") or found.modified

    def _open(self, file: str) -> IO[bytes]:
        return io.BufferedReader(_Object(self, self._key(file), self._size(file)), READ_AHEAD)


def matching(keys: Sequence[str], pattern: str) -> Iterator[str]:
    """Yield the keys that match a pattern, or are in a folder that does; only `**` goes beyond one folder."""
    wanted = pattern.split("/")
    for key in keys:
        if _matches(key.split("/"), wanted, folder="**" not in wanted):
            yield key


def _matches(parts: Sequence[str], wanted: Sequence[str], *, folder: bool) -> bool:
    if not wanted:
        return folder or not parts
    if wanted[0] == "**":
        return any(_matches(parts[cut:], wanted[1:], folder=folder) for cut in range(len(parts) + 1)) or not wanted[1:]
    if not parts or not fnmatch.fnmatchcase(parts[0], wanted[0]):
        return False
    return _matches(parts[1:], wanted[1:], folder=folder)
