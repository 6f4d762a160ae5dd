"""Files out: parts that appear whole or not at all, and a run that continues where an earlier one was killed.

Owns: the staging folder beside the output, one part file per shard, the final rename, `_manifest.json`, `_SUCCESS`, and
the meaning of `--if-exists`. Must not know: what a row means, users, models. A part is written to a temporary name,
synced and renamed; the output itself appears by one rename at the end, so an older output stays whole until then.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from genrec_batch.core.declare import differences
from genrec_batch.core.errors import ConfigError, RetryError
from genrec_batch.io import parquet, published
from genrec_batch.io.durable import disk_errors, read_json, sync, write_json
from genrec_batch.io.published import COUNTS, FINGERPRINTS, LOCK, MANIFEST, ROWS, RUN_FILE, SUCCESS
from genrec_batch.io.single_file import SingleFile
from genrec_batch.runtime import signals

Counts = Mapping[str, int]
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
Identity = Mapping[str, Any]  # what decides the bytes of a run: JSON-able, no clock, no machine


def run_id(identity: Identity) -> str:
    """Return 16 hex digits of the sha256 of everything that decides the output's bytes."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(kw_only=True)
class Output:
    """An output that is being written; `parts_done` are the parts that this or an identical run wrote."""

    path: Path
    staging: Path
    single: bool  # one .parquet file; else a directory of parts
    metadata: dict[str, str]
    replaces: bool = False  # whether an existing output may be replaced
    complete: bool = False  # whether an identical run has finished it
    parts_done: set[int] = field(default_factory=set)
    _facts: dict[Path, parquet.PartFacts] = field(default_factory=dict)  # of each part that this run wrote
    _lock: int = -1
    _first_part: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _file: SingleFile | None = None  # of a single file, from its first part on

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
        with disk_errors(self.path):
            target = self.part(number)
            if fingerprints is not None:
                parquet.write(target.with_suffix(".fingerprints"), fingerprints)
            about = {**self.metadata, ROWS: str(len(table)), COUNTS: json.dumps(counts or {}, sort_keys=True)}
            parquet.write(target, table.replace_schema_metadata(about), quick=self.single)
            self._facts[target] = parquet.facts(target, COUNTS, hashed=not self.single)
            if self.single:
                self._whole().offer(number, table)
        self.parts_done.add(number)

    def _whole(self) -> SingleFile:
        with self._first_part:
            if self._file is None:
                self._file = SingleFile(self.staging / "whole.tmp", self.part, self.metadata)
                for number in sorted(self.parts_done):
                    self._file.offer(number)
            return self._file

    def finish(self, scope: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Put the parts in place under the output's name, with the number of rows and the counts in the metadata.

        `scope` is what all users' fingerprints share, None where there are none.

        Returns: files, rows, bytes and counts of the finished output.
        """
        with disk_errors(self.path):
            if not self.replaces and published.present(self.path):
                raise ConfigError(f"OUTPUT {self.path} appeared during the run; the run's parts stay in {self.staging}")
            parts = sorted(self.staging.glob("part-*.parquet"))
            facts = [self._facts.get(part) or parquet.facts(part, COUNTS, hashed=not self.single) for part in parts]
            rows, counts = sum(part.rows for part in facts), parquet.sums(facts)
            metadata = {**self.metadata, ROWS: str(rows), COUNTS: json.dumps(counts, sort_keys=True)}
            if scope is not None:
                self._join_fingerprints(scope, len(parts))
            done = self._join(len(parts), metadata) if self.single else self._publish(facts, metadata)
        self.close()
        return {**done, "rows": rows, **counts}

    def _join_fingerprints(self, scope: Mapping[str, Any], parts: int) -> None:
        files = sorted(self.staging.glob("part-*.fingerprints"), key=lambda file: int(file.stem[len("part-") :]))
        if len(files) < parts and (self.staging / FINGERPRINTS).exists():
            return  # an identical run joined them and was killed while it removed the parts
        joined = pl.read_parquet(files, glob=False).to_arrow(compat_level=pl.CompatLevel.oldest())
        about = {"genrec.scope": json.dumps(scope, sort_keys=True), "genrec.run_id": self.metadata["genrec.run_id"]}
        parquet.write(self.staging / FINGERPRINTS, joined.replace_schema_metadata(about), quick=True)  # random bits

    def _join(self, parts: int, metadata: dict[str, str]) -> dict[str, int]:
        self._whole().finish(parts, {key: value for key, value in metadata.items() if key not in self.metadata})
        made, target = self.staging / FINGERPRINTS, published.fingerprint_file(self.path)
        with signals.placing():
            target.unlink(missing_ok=True)  # never leave those of an older output
            if made.exists():
                made.replace(target)
            (self.staging / "whole.tmp").replace(self.path)
            sync(self.path.parent)
            shutil.rmtree(self.staging)
        return {"files": 1, "bytes": self.path.stat().st_size}

    def _publish(self, parts: list[parquet.PartFacts], metadata: dict[str, str]) -> dict[str, int]:
        files = [{"file": p.file.name, "rows": p.rows, "bytes": p.bytes, "sha256": p.sha256} for p in parts]
        write_json(self.staging / MANIFEST, published.sealed({"metadata": metadata, "files": files}))
        (self.staging / SUCCESS).touch()
        for file in self.staging.glob("part-*.fingerprints"):
            file.unlink()
        sync(self.staging)
        with signals.placing():
            if self.path.exists():  # only with `overwrite`, or an empty directory
                old = published.old(self.path)
                shutil.rmtree(old, ignore_errors=True)
                self.path.rename(old)
                self.staging.rename(self.path)
                shutil.rmtree(old)
            else:
                self.staging.rename(self.path)
            for name in (RUN_FILE, LOCK):  # only now: until the rename, a killed run needs them to continue
                (self.path / name).unlink(missing_ok=True)
            sync(self.path.parent)
        return {"files": len(files), "bytes": sum(part.bytes for part in parts)}

    def close(self) -> None:
        """Release the lock of the staging folder; its files stay for a later run."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def open_output(path: Path, identity: Identity, if_exists: str | None) -> Output:
    """Begin an output, or continue one that an identical run began.

    `if_exists`: "error" refuses any existing output; "resume" continues an identical run and accepts a finished one;
    "overwrite" replaces a finished output once the new one is whole (and continues an identical unfinished run); None
    continues an identical unfinished run and refuses anything else.

    Raises:
        ConfigError: the output exists, or there is an unfinished run with other settings.
        RetryError: another run is writing it now.
    """
    published.check(path, if_exists)
    identifier = run_id(identity)
    staging = published.staging(path)
    output = Output(
        path=path,
        staging=staging,
        single=path.suffix == ".parquet",
        metadata={"genrec.run_id": identifier},
        replaces=if_exists == "overwrite",
    )
    if published.present(path) and if_exists != "overwrite":
        if published.finished_id(path) != identifier:
            raise ConfigError(
                f"OUTPUT {path} cannot be resumed: {_difference(path, identity)}; --if-exists overwrite replaces it "
                "once the new one is whole, or name another"
            )
        published.check_whole(path)
        shutil.rmtree(staging, ignore_errors=True)  # left by a run that was killed after its last rename
        for name in (RUN_FILE, LOCK) if path.is_dir() else ():
            (path / name).unlink(missing_ok=True)
        output.complete = True
        return output
    with disk_errors(path):
        _claim(output, identity, if_exists)
    return output


def _difference(path: Path, identity: Identity) -> str:
    """Return in words how a run differs from the one that wrote an output."""
    if path.is_dir() and (path / MANIFEST).exists() and published.manifest_of(path) is None:
        return f"its {MANIFEST} is damaged"
    if published.finished_id(path) is None:
        return "it has no _SUCCESS, so it may be incomplete"
    _, stored = published.files_of(path)
    began = {key: _value(stored[f"genrec.{key}"]) for key in identity if f"genrec.{key}" in stored}
    now = {key: json.loads(json.dumps(identity[key])) for key in began}
    if "config" in began:  # stored with paths, which decide nothing
        began["config"] = {name: value for name, value in began["config"].items() if name in now["config"]}
    if "input" in began:
        began["input"] = {name: {**source, "path": ""} for name, source in began["input"].items()}
    differ = ", ".join(differences(began, now)) or "something that its files do not record"
    return "it is of another run, which differs in " + DIGEST.sub(r"\1...", differ)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


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
    began = read_json(staging / RUN_FILE)
    other = began is not None and run_id(began) != run_id(begins)
    if (if_exists == "overwrite" and other) or (not fresh and began is None):
        for file in staging.iterdir():
            if file.name != LOCK:
                file.unlink()
        began = None
    if began is not None and if_exists == "error":
        output.close()
        raise ConfigError(f"OUTPUT {output.path}: an unfinished run is in {staging}; --if-exists resume continues it")
    if began is not None and other:
        output.close()
        raise ConfigError(
            f"OUTPUT {output.path}: an unfinished run is in {staging}, and this one differs from it in "
            f"{', '.join(differences(began, begins))}; run with its settings to resume "
            "it, or pass --if-exists overwrite"
        )
    if began is None:
        write_json(staging / RUN_FILE, begins)
    for stale in staging.glob("*.tmp"):
        stale.unlink()
    for part in staging.glob("part-*.parquet"):
        prints = part.with_suffix(".fingerprints")
        if parquet.is_whole(part) and (not prints.exists() or parquet.is_whole(prints)):
            output.parts_done.add(int(part.stem.removeprefix("part-")))
        else:
            part.unlink()  # to be computed again
