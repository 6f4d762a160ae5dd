"""Where files are: the local file system or an object store, with the same three things to do with a file of either.

Owns: opening a file, its state and its size; listing a store (package obstore, extra `store`). Must not know: what is
in the files, which of them are data (`find`). In: a path or URI. Out: a `Place`, and what a store lists.
"""

from __future__ import annotations

import fnmatch
import io
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import unquote, urlsplit

from genrec_batch.core.errors import EngineError
from genrec_batch.core.snapshot import state_of

T = TypeVar("T")

INSTALL = "pip install 'genrec-batch[store]'"
READ_AHEAD = 1 << 16  # bytes that one request to a store brings at least: most footers are smaller


@dataclass(frozen=True, kw_only=True)
class Place:
    """What can be done with the files of an input, each by its path or URI."""

    open: Callable[[str], IO[bytes]]
    state: Callable[[str], Hashable]  # see `core.snapshot`
    size: Callable[[str], int]  # bytes


def _open(file: str) -> IO[bytes]:
    return Path(file).open("rb")


LOCAL = Place(open=_open, state=state_of, size=lambda file: Path(file).stat().st_size)


def local_path(path: str) -> str:
    """Return the path of a `file://` URI; every other path or URI as it is."""
    if not path.startswith("file://"):
        return path
    raw = path.removeprefix("file://").removeprefix("localhost")
    return raw if Path(raw).exists() or "%" not in raw else unquote(raw)


class _Object(io.RawIOBase):
    """An object as a file: each read is a request for a range of it."""

    def __init__(self, store: Store, key: str, size: int) -> None:
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


class Store:
    """The bucket, container or server of a URI; its objects have URIs, and keys inside of it."""

    def __init__(self, uri: str, flag: str) -> None:
        """Open the store of a URI, without a request yet.

        Raises:
            EngineError: the package obstore is not installed.
            OSError: the URI names no store that obstore knows.
        """
        try:
            self._obstore: Any = import_module("obstore")
            stores = import_module("obstore.store")
        except ImportError as error:
            raise EngineError(f"{flag} {uri}: reading from a store needs the package obstore: {INSTALL}") from error
        parts = urlsplit(uri)
        self.root = f"{parts.scheme}://{parts.netloc}"
        self.key = uri.removeprefix(self.root).lstrip("/")  # of the URI
        options = {"allow_http": True} if parts.scheme in ("http", "s3", "s3a") else {}
        self._at = self._asked(lambda: stores.from_url(self.root, client_options=options))
        self.place = Place(open=self._open, state=self._state, size=lambda file: int(self._head(file)["size"]))

    def _asked(self, ask: Callable[[], T]) -> T:
        """Map what obstore raises to the errors of files."""
        known = self._obstore.exceptions
        try:
            return ask()
        except (known.NotFoundError, FileNotFoundError) as error:
            raise FileNotFoundError(str(error)) from error
        except (known.BaseError, ValueError) as error:
            raise OSError(str(error).split("\n\nDebug source")[0]) from error

    def uri(self, key: str) -> str:
        """Return the URI of an object."""
        return f"{self.root}/{key}"

    def exists(self) -> bool:
        """Return whether the URI names an object."""
        try:
            self._head(self.uri(self.key))
        except FileNotFoundError:
            return False
        return True

    def below(self, prefix: str) -> list[str]:
        """Return the keys of all objects in a folder."""
        listed = self._asked(lambda: [each for many in self._obstore.list(self._at, prefix or None) for each in many])
        return sorted(str(each["path"]) for each in listed if not (each["size"] == 0 and each["path"].endswith("/")))

    def _head(self, file: str) -> dict[str, Any]:
        found: dict[str, Any] = self._asked(lambda: self._obstore.head(self._at, self._key(file)))
        return found

    def _key(self, file: str) -> str:
        return file.removeprefix(self.root + "/")

    def _state(self, file: str) -> Hashable:
        found = self._head(file)
        return found["size"], found["e_tag"] or found["last_modified"]

    def _open(self, file: str) -> IO[bytes]:
        raw = _Object(self, self._key(file), int(self._head(file)["size"]))
        return io.BufferedReader(raw, READ_AHEAD)

    def range(self, key: str, start: int, length: int) -> bytes:
        """Return some bytes of an object; OSError where it cannot be read."""
        return self._asked(lambda: bytes(self._obstore.get_range(self._at, key, start=start, length=length)))


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
