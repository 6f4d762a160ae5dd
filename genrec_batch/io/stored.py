"""What a store has under an output's URI or beside it: `published` for stores.

Owns: the names of an output's objects, whether an output can be written there, which objects a killed run left. Must
not know: how an output is written. A manifest names the objects of one run, whose parts have the run's id in their
names, so the objects of two runs never share one; what no manifest names is not part of an output.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.core.errors import ConfigError, GenrecError, RetryError
from genrec_batch.io import manifest, published
from genrec_batch.io.manifest import RUN
from genrec_batch.io.places import Store
from genrec_batch.io.published import FINGERPRINTS, MANIFEST, OTHER_FORMATS, RUN_FILE, SUCCESS
from genrec_batch.stores.bucket import PROBE, ConditionError, Entry, uri_of
from genrec_batch.stores.lease import HeldError

LEASE = "lease.json"
LEFT = re.compile(rf"(?:[^/]+=[^/]*/)?part-\d{{5,9}}{RUN}\.parquet|{FINGERPRINTS}{RUN}|{SUCCESS}")
READ_ONLY = ("http", "https")


@contextmanager
def failures(where: str) -> Iterator[None]:
    """Map the failures of a store that an output is written to; `where` names it.

    Raises:
        RetryError: it cannot be reached, or another run writes the output.
        ConfigError: it refuses.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise  # of the local disk
        raise _mapped(error, where) from error


def _mapped(error: OSError, where: str) -> GenrecError:
    if isinstance(error, ConnectionError | TimeoutError):
        return RetryError(f"{where}: the store cannot be reached ({error}); run the same command again")
    if isinstance(error, HeldError):
        return RetryError(f"{where} is being written by another run now ({error}); wait for it, or name another")
    if isinstance(error, ConditionError):
        return RetryError(
            f"{where} was written by another run meanwhile; nothing of it was changed: run the same command again"
        )
    if isinstance(error, PermissionError):
        return ConfigError(f"{where}: may not be written with these credentials ({error})")
    return ConfigError(f"{where}: the store refuses ({error})")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A finished output in a store."""

    metadata: Mapping[str, str]
    files: tuple[Mapping[str, Any], ...]  # the entries of its manifest; none of a single file
    version: Mapping[str, str]  # of the object that makes it one: the manifest, or the file
    content: bytes = b""  # of the manifest

    def facts(self, size: int | None = None) -> dict[str, Any]:
        """Return files, rows, bytes and counts; `size` is the bytes of a single file."""
        counts = json.loads(self.metadata.get(published.COUNTS, "{}"))
        total = sum(entry["bytes"] for entry in self.files) if size is None else size
        return {"files": len(self.files) or 1, "rows": int(self.metadata[published.ROWS]), "bytes": total, **counts}

    @property
    def run_id(self) -> str | None:
        """The run that wrote it, None where no run of ours did."""
        return self.metadata.get("genrec.run_id")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The place of an output in a store."""

    target: str  # its URI
    store: Store
    key: str

    @staticmethod
    def of(target: str | Path, flag: str = "OUTPUT") -> Stored:
        """Return the place that a URI names.

        Raises:
            ConfigError: it names a server that is only read, or no object in a bucket.
            EngineError: obstore is not installed.
        """
        uri = uri_of(target)
        scheme = uri.partition(":")[0]
        if flag == "OUTPUT" and scheme in READ_ONLY:
            raise ConfigError(
                f"{flag} {uri}: a web server is only read; name a path, or a URI of s3://, gs:// or az://"
            )
        with failures(f"{flag} {uri}"):
            store = Store(uri, flag)
        key = store.key.strip("/")
        if not posixpath.basename(key).strip("."):
            raise ConfigError(f"{flag} {uri}: names no object; add a name, such as {store.root}/recs")
        return Stored(target=uri, store=store, key=key)

    @property
    def single(self) -> bool:
        """Whether the output is one file."""
        return self.key.endswith(".parquet")

    @property
    def name(self) -> str:
        """The last part of the key."""
        return posixpath.basename(self.key)

    @property
    def unfinished(self) -> str:
        """The folder of unfinished runs."""
        return posixpath.join(posixpath.dirname(self.key), f".{self.name}.unfinished")

    @property
    def lease(self) -> str:
        """The object by which a run says that it writes the output."""
        return f"{self.unfinished}/{LEASE}"

    def staging(self, run_id: str) -> str:
        """Return the folder of a run's parts until all are there."""
        return f"{self.unfinished}/{run_id}"

    def fingerprints(self, run_id: str) -> str:
        """Return where the fingerprints of an output's users are kept."""
        return f"{self.key}.fingerprints" if self.single else f"{self.key}/{FINGERPRINTS}-{run_id}"

    def finished(self) -> Found | None:
        """Return the finished output there, None where none is; OSError where the store cannot be reached.

        Raises:
            ConfigError: a manifest that no run wrote.
        """
        return self._file() if self.single else self._folder()

    def _file(self) -> Found | None:
        entry = self.store.entry(self.key)
        if entry is None:
            return None
        try:
            with self.store.open_key(self.key) as opened:
                stored = pq.read_metadata(opened).metadata or {}
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            stored = {}
        metadata = {name.decode(errors="replace"): text.decode(errors="replace") for name, text in stored.items()}
        return Found(metadata=metadata, files=(), version=entry.version)

    def _folder(self) -> Found | None:
        got = self.store.get(f"{self.key}/{MANIFEST}")
        if got is None:
            return None
        found = manifest.parsed(got[0])
        if found is None:
            return Found(metadata={}, files=(), version=got[1], content=got[0])
        return Found(metadata=found["metadata"], files=tuple(found["files"]), version=got[1], content=got[0])

    def begun(self) -> dict[str, Any]:
        """Return what unfinished runs began, by their ids; None for one that was killed while it began."""
        listed = self.store.below(self.unfinished)
        runs = {each.key.removeprefix(f"{self.unfinished}/").partition("/")[0] for each in listed} - {LEASE}
        found = {}
        for run_id in sorted(run for run in runs if not run.startswith(PROBE)):
            got = self.store.get(f"{self.staging(run_id)}/{RUN_FILE}")
            found[run_id] = _json(got[0]) if got else None
        return found

    def inside(self) -> list[Entry]:
        """Return the objects in the folder of an output, without those that only mark a folder."""
        return self.store.below(self.key)

    def strangers(self) -> list[str]:
        """Return the names in the folder of an output that no run writes."""
        if self.single:
            return []
        names = [each.key.removeprefix(f"{self.key}/") for each in self.inside()]
        return [name for name in names if not (LEFT.fullmatch(name) or name == MANIFEST)]

    def left(self, found: Found) -> list[str]:
        """Return the keys in the folder of a finished output that other runs left there."""
        known = {f"{self.key}/{entry['file']}" for entry in found.files}
        known |= {f"{self.key}/{MANIFEST}", f"{self.key}/{SUCCESS}", self.fingerprints(str(found.run_id))}
        inside = (each.key for each in self.inside() if each.key not in known)
        return [key for key in inside if LEFT.fullmatch(key.removeprefix(f"{self.key}/"))]

    def lacking(self, found: Found) -> Iterator[str]:
        """Yield what is not there of a finished output, or has another size than its manifest says."""
        there = {each.key: each.bytes for each in self.inside()}
        for entry in found.files:
            if there.get(f"{self.key}/{entry['file']}") != entry.get("bytes"):
                yield str(entry["file"])


def check(target: str | Path, if_exists: str | None) -> None:
    """Check that an output can be written, before any work is done.

    Raises:
        ConfigError: its name or an existing object does not allow it, or the store refuses.
        RetryError: the store cannot be reached.
    """
    place = Stored.of(target)
    where = f"OUTPUT {place.target}"
    suffix = Path(place.name).suffix.lower()
    if suffix in OTHER_FORMATS:
        raise ConfigError(f"{where}: outputs are Parquet; name one that ends in .parquet, or a folder")
    with failures(where):
        place.store.probe(f"{place.unfinished}/")
        found, begun = place.finished(), place.begun()
        if not place.single and place.store.entry(place.key) is not None:
            raise ConfigError(f"{where} is a file; a name that does not end in .parquet means a folder of parts")
        strangers = place.strangers()
    never = {"overwrite": ", so it is not replaced", "resume": ", so it is not resumed"}.get(if_exists or "", "")
    if strangers:
        more = f"holds files that were not written by genrec-batch ({', '.join(strangers[:3])})"
        raise ConfigError(f"{where} exists and {more}{never}; name another OUTPUT")
    if found is None:
        return
    if found.run_id is None:
        raise ConfigError(f"{where} exists and was not written by genrec-batch{never}; name another OUTPUT")
    if if_exists == "error" or (if_exists is None and not begun):
        raise ConfigError(
            f"{where} exists; --if-exists resume accepts it where the same run finished it, --if-exists overwrite "
            "replaces it once the new one is whole, or name another"
        )


def begun(target: str, arm: str | None) -> Mapping[str, str] | None:
    """Return the fingerprints of a model that the output there or its unfinished run records; see `published.begun`."""
    place = Stored.of(target)
    with failures(f"OUTPUT {target}"):
        found = place.finished()
        if found is not None:
            recorded: Any = {name.removeprefix("genrec."): text for name, text in found.metadata.items()}
        else:
            recorded = next(iter(place.begun().values()), None)
    return published.models_of(recorded, arm)


def of_run(file: str, run_id: str) -> str:
    """Return the name of a part in a store: with the run's id, so that it replaces no part of another run."""
    return f"{file.removesuffix('.parquet')}-{run_id}.parquet"


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
