"""Files out: parts that appear whole or not at all, and a run that can go on where it died.

Owns: the staging folder beside the output, one part file per shard, the final rename, `_manifest.json`, `_SUCCESS`, and
what `--if-exists` means. Must not know: what a row means, users, models. A part is written to a temporary name, synced
and renamed; the output itself appears by one rename at the very end, so an older output stays whole until then.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch import parquet
from genrec_batch.config import differences
from genrec_batch.durable import full_disk as _disk
from genrec_batch.durable import read_json as _read_json
from genrec_batch.durable import sync as _sync
from genrec_batch.durable import write_json as _write_json
from genrec_batch.errors import ConfigError, RetryError
from genrec_batch.joining import Joined

Counts = Mapping[str, int]
Identity = Mapping[str, Any]  # what decides the bytes of a run: JSON-able, no clock, no machine

RUN_FILE, MANIFEST, SUCCESS, LOCK = "_run.json", "_manifest.json", "_SUCCESS", ".lock"
FINGERPRINTS = "_fingerprints"  # in a directory of parts; beside a single file it is FILE.fingerprints
LONGEST_NAME = 200  # bytes, so that the names beside it fit too
ROWS = "genrec.rows"  # of the file that says it; of all parts in the manifest
COUNTS = "genrec.counts"  # of a part: what the run's summary adds up


def run_id(identity: Identity) -> str:
    """Return 16 hex digits of the sha256 of everything that decides the output's bytes."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(kw_only=True)
class Output:
    """An output being written; `parts_done` are the parts that an identical run left whole."""

    path: Path
    staging: Path
    single: bool  # one .parquet file, else a directory of parts
    metadata: dict[str, str]
    replaces: bool = False  # an output of that name may be replaced
    complete: bool = False  # an identical run finished it: there is nothing to do
    parts_done: set[int] = field(default_factory=set)
    _said: dict[Path, parquet.Said] = field(default_factory=dict)  # of each part that this run wrote
    _lock: int = -1
    _one: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _joined: Joined | None = None  # of a single file, from its first part on

    def part(self, number: int) -> Path:
        """Return the path of a part in the staging folder."""
        return self.staging / f"part-{number:05d}.parquet"

    def write(
        self, number: int, table: pa.Table, counts: Counts | None = None, fingerprints: pa.Table | None = None
    ) -> None:
        """Write one part, with its counts and its users' fingerprints: temporary name, sync, rename.

        Raises:
            RetryError: the disk is full (what was written stays and is resumed).
        """
        with _disk(self.path):
            target = self.part(number)
            if fingerprints is not None:
                parquet.write(target.with_suffix(".fingerprints"), fingerprints)
            about = {**self.metadata, ROWS: str(len(table)), COUNTS: json.dumps(counts or {}, sort_keys=True)}
            parquet.write(target, table.replace_schema_metadata(about), quick=self.single)
            self._said[target] = parquet.said(target, COUNTS, hashed=not self.single)
            if self.single:
                self._whole().offer(number, table)
        self.parts_done.add(number)

    def _whole(self) -> Joined:
        with self._one:
            if self._joined is None:
                self._joined = Joined(self.staging / "whole.tmp", self.part, self.metadata)
                for number in sorted(self.parts_done):
                    self._joined.offer(number)
            return self._joined

    def finish(self, scope: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Put the parts in place under the output's name, with the number of all rows and the counts in the metadata.

        `scope` is what the fingerprints were made for, None where there are none.

        Returns: files, rows, bytes and counts of the finished output.
        """
        with _disk(self.path):
            if not self.replaces and _present(self.path):
                raise ConfigError(
                    f"OUTPUT {self.path} appeared while the run was going on; its parts stay in {self.staging}"
                )
            parts = sorted(self.staging.glob("part-*.parquet"))
            said = [self._said.get(part) or parquet.said(part, COUNTS, hashed=not self.single) for part in parts]
            rows, counts = sum(part.rows for part in said), parquet.sums(said)
            metadata = {**self.metadata, ROWS: str(rows), COUNTS: json.dumps(counts, sort_keys=True)}
            if scope is not None:
                self._join_fingerprints(scope, len(parts))
            done = self._join(len(parts), metadata) if self.single else self._publish(said, metadata)
        self.close()
        return {**done, "rows": rows, **counts}

    def _join_fingerprints(self, scope: Mapping[str, Any], parts: int) -> None:
        pieces = sorted(self.staging.glob("part-*.fingerprints"), key=lambda piece: int(piece.stem[len("part-") :]))
        if len(pieces) < parts and (self.staging / FINGERPRINTS).exists():
            return  # an identical run joined them and was killed while it removed the pieces
        joined = pl.read_parquet(pieces, glob=False).to_arrow(compat_level=pl.CompatLevel.oldest())
        said = {"genrec.scope": json.dumps(scope, sort_keys=True), "genrec.run_id": self.metadata["genrec.run_id"]}
        parquet.write(self.staging / FINGERPRINTS, joined.replace_schema_metadata(said), quick=True)  # no order in them

    def _join(self, parts: int, metadata: dict[str, str]) -> dict[str, int]:
        self._whole().finish(parts, {key: value for key, value in metadata.items() if key not in self.metadata})
        kept, beside = self.staging / FINGERPRINTS, fingerprint_file(self.path)
        beside.unlink(missing_ok=True)  # never those of another output beside this one
        if kept.exists():
            kept.replace(beside)
        (self.staging / "whole.tmp").replace(self.path)
        _sync(self.path.parent)
        shutil.rmtree(self.staging)
        return {"files": 1, "bytes": self.path.stat().st_size}

    def _publish(self, parts: list[parquet.Said], metadata: dict[str, str]) -> dict[str, int]:
        files = [{"file": p.file.name, "rows": p.rows, "bytes": p.bytes, "sha256": p.sha256} for p in parts]
        _write_json(self.staging / MANIFEST, {"metadata": metadata, "files": files})
        (self.staging / SUCCESS).touch()
        for piece in self.staging.glob("part-*.fingerprints"):
            piece.unlink()
        _sync(self.staging)
        if self.path.exists():  # only with `overwrite`, or an empty directory
            old = _old(self.path)
            shutil.rmtree(old, ignore_errors=True)
            self.path.rename(old)
            self.staging.rename(self.path)
            shutil.rmtree(old)
        else:
            self.staging.rename(self.path)
        for name in (RUN_FILE, LOCK):  # only now: until the rename they let a killed run go on
            (self.path / name).unlink(missing_ok=True)
        _sync(self.path.parent)
        return {"files": len(files), "bytes": sum(part.bytes for part in parts)}

    def close(self) -> None:
        """Let go of the staging folder's lock; what is in it stays for a later run."""
        if self._joined is not None:
            self._joined.close()
            self._joined = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def fingerprint_file(path: Path) -> Path:
    """Return where the fingerprints of an output's users are kept."""
    return path.with_name(path.name + ".fingerprints") if path.suffix == ".parquet" else path / FINGERPRINTS


def finished_id(path: Path) -> str | None:
    """Return the run that finished the output there, None where there is none."""
    return _finished_id(path) if path.exists() else None


def check(path: Path, if_exists: str | None) -> None:
    """Raise ConfigError where an output cannot be written at all, before any work is done."""
    if path.name in ("", "..", ".parquet") or len(path.name.encode()) > LONGEST_NAME:
        raise ConfigError(f"OUTPUT {str(path)!r}: not a name that an output can have")
    parent = path.parent
    if not parent.is_dir():
        raise ConfigError(f"OUTPUT {path}: the folder {parent} does not exist; make it first (mkdir -p {parent})")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"OUTPUT {path}: the folder {parent} may not be written by this user")
    if path.suffix == ".parquet" and path.is_dir():
        raise ConfigError(f"OUTPUT {path} is a directory; a name ending in .parquet means one file")
    if path.suffix != ".parquet" and path.is_file():
        raise ConfigError(f"OUTPUT {path} is a file; a name that does not end in .parquet means a directory of parts")
    if not _present(path):
        return
    if if_exists == "overwrite" and not _ours(path):
        raise ConfigError(f"OUTPUT {path} was not written by genrec-batch, so it is not replaced; remove it yourself")
    if if_exists == "error" or (if_exists is None and not _staging(path).exists() and not (path / RUN_FILE).exists()):
        raise ConfigError(
            f"OUTPUT {path} exists; pass --if-exists overwrite to replace it once the new one is whole, or name another"
        )


def _staging(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def _ours(path: Path) -> bool:
    """Return whether everything there was written by a run: a file with its metadata, a folder with its manifest."""
    if path.is_file():
        return _finished_id(path) is not None
    manifest = _read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or "files" not in manifest:
        return False
    known = {entry["file"] for entry in manifest["files"]} | {MANIFEST, SUCCESS, RUN_FILE, LOCK, FINGERPRINTS}
    return {file.name for file in path.iterdir()} <= known


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _present(path: Path) -> bool:
    """Return whether an output is there; an empty directory is none. Brings back one that a killed run moved aside."""
    between_renames = not path.exists() and (_staging(path) / SUCCESS).exists()
    if between_renames and _old(path).exists():  # an overwrite died there
        _old(path).rename(path)
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def open_output(path: Path, identity: Identity, if_exists: str | None) -> Output:
    """Begin an output, or go on with what an identical run began.

    `if_exists`: "error" for whatever is there; "resume" goes on with an identical run and accepts a finished one;
    "overwrite" replaces a finished output once the new one is whole (and goes on with an identical unfinished run);
    None resumes an identical unfinished run, else is an error.

    Raises:
        ConfigError: the output exists, or an unfinished run of other settings is there.
        RetryError: it is being written now.
    """
    check(path, if_exists)
    identifier = run_id(identity)
    staging = _staging(path)
    output = Output(
        path=path,
        staging=staging,
        single=path.suffix == ".parquet",
        metadata={"genrec.run_id": identifier},
        replaces=if_exists == "overwrite",
    )
    if _present(path) and if_exists != "overwrite":
        if _finished_id(path) != identifier:
            raise ConfigError(
                f"OUTPUT {path} is of another run, so it cannot be resumed; --if-exists overwrite will replace it once "
                "the new one is whole, or name another"
            )
        _check_whole(path)
        shutil.rmtree(staging, ignore_errors=True)  # what a run left that was killed after its last rename
        for name in (RUN_FILE, LOCK) if path.is_dir() else ():
            (path / name).unlink(missing_ok=True)
        output.complete = True
        return output
    with _disk(path):
        _claim(output, identity, if_exists)
    return output


def _claim(output: Output, begins: Identity, if_exists: str | None) -> None:
    staging = output.staging
    fresh = not staging.exists()
    staging.mkdir(exist_ok=True)
    output._lock = os.open(staging / LOCK, os.O_CREAT | os.O_RDWR, 0o600)  # noqa: SLF001 (its own module)
    try:
        fcntl.flock(output._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # noqa: SLF001
    except BlockingIOError:
        output.close()
        raise RetryError(
            f"OUTPUT {output.path} is being written by another run now; wait for it, or name another"
        ) from None
    began = _read_json(staging / RUN_FILE)
    other = began is not None and run_id(began) != run_id(begins)
    if (if_exists == "overwrite" and other) or (not fresh and began is None):
        for file in staging.iterdir():
            if file.name != LOCK:
                file.unlink()
        began = None
    if began is not None and if_exists == "error":
        output.close()
        raise ConfigError(
            f"OUTPUT {output.path}: an unfinished run is in {staging}; --if-exists resume goes on with it"
        )
    if began is not None and other:
        output.close()
        raise ConfigError(
            f"OUTPUT {output.path}: an unfinished run is in {staging}, and this one differs from it in "
            f"{', '.join(differences(began, begins))}; run with its settings to resume "
            "it, or pass --if-exists overwrite"
        )
    if began is None:
        _write_json(staging / RUN_FILE, begins)
    for stale in staging.glob("*.tmp"):
        stale.unlink()
    for part in staging.glob("part-*.parquet"):
        prints = part.with_suffix(".fingerprints")
        if parquet.is_whole(part) and (not prints.exists() or parquet.is_whole(prints)):
            output.parts_done.add(int(part.stem.removeprefix("part-")))
        else:
            part.unlink()  # it is computed again


def _check_whole(path: Path) -> None:
    """Raise ConfigError where a finished output has lost, gained or changed anything since it was written."""
    if path.is_file():
        if not parquet.is_whole(path):
            raise ConfigError(f"OUTPUT {path} is damaged; --if-exists overwrite makes it anew")
        if ROWS.encode() not in (pq.read_metadata(path).metadata or {}):
            raise ConfigError(
                f"OUTPUT {path} was written again by another program; --if-exists overwrite makes it anew"
            )
        return
    if not _ours(path):
        raise ConfigError(f"OUTPUT {path} holds files that its manifest does not name; remove them, or name another")
    for entry in _read_json(path / MANIFEST)["files"]:
        part = path / entry["file"]
        if not part.is_file() or hashlib.sha256(part.read_bytes()).hexdigest() != entry["sha256"]:
            raise ConfigError(
                f"OUTPUT {path}: {entry['file']} is missing or not what the manifest says; --if-exists overwrite makes "
                "the output anew"
            )


def _finished_id(path: Path) -> str | None:
    try:
        if path.is_file():
            metadata = pq.read_metadata(path).metadata or {}
            return metadata.get(b"genrec.run_id", b"").decode() or None
        manifest = _read_json(path / MANIFEST) if (path / SUCCESS).exists() else None
        return manifest["metadata"]["genrec.run_id"] if manifest else None
    except (pa.ArrowInvalid, KeyError):
        return None
    except OSError as error:
        raise ConfigError(f"OUTPUT {path}: what is there cannot be read ({error.strerror or error})") from error


def finished_facts(path: Path) -> dict[str, Any]:
    """Return files, rows, bytes and counts of a finished output."""
    files = [path] if path.is_file() else sorted(path.glob("part-*.parquet"))
    if path.is_file():
        metadata = {key.decode(): value.decode() for key, value in (pq.read_metadata(path).metadata or {}).items()}
    else:
        metadata = _read_json(path / MANIFEST)["metadata"]
    counts = json.loads(metadata.get(COUNTS, "{}"))
    return {"files": len(files), "rows": int(metadata[ROWS]), "bytes": sum(f.stat().st_size for f in files), **counts}
