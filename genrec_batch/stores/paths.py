"""A folder in a store with the few methods of a `Path` by which small files are read and written.

Owns: names below names, what a folder is in a store, conditional writes of a small file. Must not know: what is in the
files. Each question is a request.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from genrec_batch.stores.bucket import Bucket, uri_of


@dataclass(frozen=True, kw_only=True)
class StorePath:
    """An object or a folder of objects; `str` of it is its URI."""

    bucket: Bucket
    key: str

    @staticmethod
    def of(uri: str, flag: str) -> StorePath:
        """Return the place that a URI names; see `Bucket`."""
        bucket = Bucket(uri_of(uri), flag)
        return StorePath(bucket=bucket, key=bucket.key.strip("/"))

    def __str__(self) -> str:
        return self.bucket.uri(self.key)

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(bucket=self.bucket, key=f"{self.key}/{name}" if self.key else name)

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    def is_dir(self) -> bool:
        """Return whether an object is below it."""
        return bool(self.bucket.below(self.key))

    def is_file(self) -> bool:
        """Return whether it is an object."""
        return self.bucket.entry(self.key) is not None

    def exists(self) -> bool:
        """Return whether it is an object."""
        return self.is_file()

    def below(self) -> list[str]:
        """Return the names of all objects below it, such as `a/b`."""
        prefix = f"{self.key}/" if self.key else ""
        return [each.key.removeprefix(prefix) for each in self.bucket.below(self.key)]

    def iterdir(self) -> Iterator[StorePath]:
        """Yield what is directly in it."""
        yield from (self / name for name in sorted({name.partition("/")[0] for name in self.below()}))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the text of an object; FileNotFoundError where there is none."""
        return self.read_version()[0].decode(encoding)

    def read_version(self) -> tuple[bytes, Mapping[str, str]]:
        """Return the bytes of an object and their version; FileNotFoundError where there is none."""
        found = self.bucket.get(self.key)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return found

    def put_if(self, content: bytes, before: Mapping[str, str] | None) -> None:
        """Write the object if it is of the version `before`, or not there (None); else ConditionError."""
        self.bucket.put_if(self.key, content, before)

    def put(self, content: Path) -> None:
        """Write a file of the disk as the object."""
        self.bucket.put(self.key, content)
