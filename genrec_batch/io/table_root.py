"""The folder of a table in which each run has one of its own: on a disk, or in a store.

Owns: where a run's folder is, what killed runs left there, and opening the files of finished runs. Must not know:
Delta, Iceberg, `--if-exists`, how a run's files are written. In: a path or URI. Out: a `TableRoot`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.core.errors import ConfigError
from genrec_batch.io import manifest, published
from genrec_batch.io.durable import disk_errors
from genrec_batch.io.places import LOCAL, Place, Store
from genrec_batch.io.stored import Stored, failures
from genrec_batch.runtime.console import LOG
from genrec_batch.stores.bucket import is_uri, uri_of
from genrec_batch.stores.lease import HeldError, Lease

SCHEMES = ("s3://", "s3a://")
RUN = "run-"  # a run's folder is RUN and its id
UNFINISHED = f".{RUN}*.unfinished"


def check_scheme(path: str, where: str) -> None:
    """Raise ConfigError where a table is in a store that tables are not written to."""
    if is_uri(path) and not uri_of(path).startswith(SCHEMES):
        raise ConfigError(
            f"{where}: tables are written to local or mounted folders and to s3://, and this one is in {path}; "
            "--output-format parquet writes files there"
        )


@dataclass(frozen=True, kw_only=True)
class TableRoot:
    """The folder of the runs' folders."""

    path: str  # or URI
    where: str  # names the table in errors
    store: Store | None = None

    @staticmethod
    def of(path: str | Path, where: str) -> TableRoot:
        """Return the folder of a path or URI.

        Raises:
            EngineError: obstore is not installed.
            ConfigError: the URI names no store.
        """
        if not is_uri(path):
            return TableRoot(path=str(path), where=where)
        with failures(where):
            uri = uri_of(path)
            return TableRoot(path=uri, where=where, store=Store(uri, where.partition(" ")[0]))

    @property
    def place(self) -> Place:
        """How its files are opened."""
        return LOCAL if self.store is None else self.store.place

    def run(self, run_id: str) -> str:
        """Return the folder of a run: a path, or a URI."""
        return f"{self.path}/{RUN}{run_id}"

    def unfinished(self) -> list[str]:
        """Return the ids of runs that were begun and not finished, the oldest first."""
        if self.store is None:
            found = sorted(Path(self.path).glob(UNFINISHED), key=lambda each: each.stat().st_mtime)
            names = [each.name for each in found]
        else:
            with failures(self.where):
                below = self.store.below(self.store.key)
            begun: dict[str, str] = {}
            for each in below:
                first = each.key.removeprefix(f"{self.store.key}/").partition("/")[0]
                if first.startswith(f".{RUN}"):
                    begun[first] = max(begun.get(first, ""), each.modified)
            names = sorted(begun, key=lambda name: begun[name])
        return [name.removeprefix(f".{RUN}").removesuffix(".unfinished") for name in names]

    def make(self) -> None:
        """Make the folder, which a store does not need."""
        if self.store is None:
            with disk_errors(Path(self.path)):
                Path(self.path).mkdir(parents=True, exist_ok=True)

    def manifest(self, run_id: str) -> dict[str, Any] | None:
        """Return the manifest of a finished run, None where it is missing or damaged."""
        if self.store is None:
            return published.manifest_of(Path(self.run(run_id)))
        with failures(self.where):
            found = self.store.get(f"{self.store.key}/{RUN}{run_id}/{published.MANIFEST}")
        return None if found is None else manifest.parsed(found[0])

    def open(self, file: str) -> IO[bytes]:
        """Open a file, by its path or URI."""
        return self.place.open(file)

    def footers(self, files: Sequence[str]) -> list[pq.FileMetaData]:
        """Return the metadata of Parquet files, each by its path or URI."""

        def one(file: str) -> pq.FileMetaData:
            with self.open(file) as opened:
                return pq.read_metadata(opened)

        with failures(self.where):
            return self.place.each(one, files)

    def schema(self, file: str) -> pa.Schema:
        """Return the columns of a Parquet file, by its path or URI."""
        return self.footers([file])[0].schema.to_arrow_schema()

    def tidy(self) -> None:
        """Remove what runs left unfinished, unless one works on it now."""
        for run_id in self.unfinished():
            if self.store is None:
                _tidy(Path(self.path, f".{RUN}{run_id}.unfinished"))
            else:
                self._tidy_stored(Stored.of(self.run(run_id)))

    def _tidy_stored(self, place: Stored) -> None:
        with failures(self.where):
            try:
                lease = Lease(place.store, place.lease)
            except HeldError:
                return
            place.store.remove([each.key for each in place.store.below(place.unfinished) if each.key != place.lease])
            lease.release()
        LOG.info("removed %s, which a run left unfinished", place.store.uri(place.unfinished))


def _tidy(staging: Path) -> None:
    lock = os.open(staging / published.LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(staging)
        LOG.info("removed %s, which a run left unfinished", staging)
    except BlockingIOError:
        return
    finally:
        os.close(lock)
