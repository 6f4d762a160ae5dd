"""Folders that are made on the disk for a store: all files go up once they are there, the one that says so last.

Owns: where such a folder is until then, and the order in which its objects appear. Must not know: what is in the files.
In: a URI, and the name of the file that makes the folder whole. Out: a local folder, then objects.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from genrec_batch.stores import copies
from genrec_batch.stores.bucket import Bucket, ConditionError, uri_of


@dataclass(frozen=True, kw_only=True)
class MadeFolder:
    """A folder that is made here and goes to a store."""

    bucket: Bucket
    key: str
    last: str  # the file that makes it whole: written last, and never over another one
    work: Path  # holds `folder` and what else its maker puts beside it
    kept: bool  # whether the next try continues in `work`

    @staticmethod
    def begin(uri: str, flag: str, last: str, *, kept: bool = False) -> MadeFolder:
        """Check that the folder can be made in the store, and return where it is made before.

        Raises:
            FileExistsError: a whole folder is there already.
            OSError: the URI names no folder, the store cannot be reached, or it may not be written.
        """
        bucket = Bucket(uri_of(uri), flag)
        key = bucket.key.strip("/")
        if not key:
            raise OSError(f"a whole bucket; name a folder in it, such as {bucket.root}/model")
        if bucket.entry(f"{key}/{last}") is not None:
            raise FileExistsError(f"it has a {last} already")
        bucket.probe(f"{key}/.")
        if kept:
            of_uri = hashlib.sha256(bucket.uri(key).encode()).hexdigest()[:16]
            work = copies.default_directory().parent / "unfinished" / of_uri
            work.mkdir(parents=True, exist_ok=True, mode=0o700)
        else:
            work = Path(tempfile.mkdtemp(prefix="genrec-made-"))
        return MadeFolder(bucket=bucket, key=key, last=last, work=work, kept=kept)

    @property
    def folder(self) -> Path:
        """The folder on the disk."""
        return self.work / self.key.rpartition("/")[2]

    def upload(self) -> None:
        """Write all files to the store, and remove them here.

        Raises:
            FileExistsError: somebody else has made the folder meanwhile.
            OSError: the store cannot be reached, or refuses.
        """
        names = sorted(file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*") if file.is_file())
        for name in names:
            if name != self.last:
                self.bucket.put(f"{self.key}/{name}", self.folder / name)
        try:
            self.bucket.put_if(f"{self.key}/{self.last}", (self.folder / self.last).read_bytes(), None)
        except ConditionError:
            raise FileExistsError(f"another writer made a {self.last} meanwhile") from None
        shutil.rmtree(self.work, ignore_errors=True)

    def give_up(self) -> None:
        """Remove what is on the disk, unless the next try continues with it."""
        if not self.kept:
            shutil.rmtree(self.work, ignore_errors=True)
