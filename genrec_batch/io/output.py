"""Files out: parts that appear whole or not at all, and a run that continues where an earlier one was killed.

Owns: the staging folder beside the output, one part file per shard, the final rename, `_manifest.json`, `_SUCCESS`, and
the meaning of `--if-exists`. Must not know: what a row means, users, models. A part is written to a temporary name,
synced and renamed; the output itself appears by one rename at the end, so an older output stays whole until then.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from genrec_batch.core.declare import differences
from genrec_batch.core.errors import ConfigError, RetryError
from genrec_batch.io import apart as apart_folder
from genrec_batch.io import manifest, parquet, part_fingerprints, published, recommended
from genrec_batch.io.durable import disk_errors, read_json, sync, write_json
from genrec_batch.io.identity import Identity, run_id
from genrec_batch.io.part_writer import Counts, PartWriter, WrittenPart
from genrec_batch.io.partitioned import Folders
from genrec_batch.io.published import COUNTS, FINGERPRINTS, LOCK, MANIFEST, RECEIPTS, ROWS, RUN_FILE, SUCCESS
from genrec_batch.io.single_file import SingleFile
from genrec_batch.runtime import signals


@dataclass(kw_only=True)
class Output:
    """An output that is being written; `parts_done` are the parts that this or an identical run wrote."""

    path: Path
    staging: Path
    single: bool  # one .parquet file; else a directory of parts
    metadata: dict[str, str]
    notes: dict[str, str] = field(default_factory=dict)  # of the metadata, what is known once all parts are there
    replaces: bool = False  # whether an existing output may be replaced
    complete: bool = False  # whether an identical run has finished it
    parts_done: set[int] = field(default_factory=set)
    check: Callable[[WrittenPart], None] | None = None  # of each part, such as that a table can take its columns
    _facts: dict[Path, parquet.PartFacts] = field(default_factory=dict)  # of each part that this run wrote
    _apart: Path | None = None  # the folder of writers in other processes
    _lock: int = -1
    _first_part: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _file: SingleFile | None = None  # of a single file, from its first part on
    _folders: Folders | None = None  # of parts in folders

    @property
    def shown(self) -> tuple[str, str]:
        """The output and its unfinished run, for messages."""
        return str(self.path), str(self.staging)

    def part(self, number: int) -> Path:
        """Return the path of a part in the staging folder."""
        return self.writer().part(number)

    def staged(self, file: str) -> str:
        """Return the path or URI of a file of a part that is done, until the output is in place."""
        return str(self.staging / file)

    def files(self) -> list[Path]:
        """Return the files of the parts that are done, in the staging folder."""
        if self._folders is not None:
            return self._folders.files()
        return [self.part(number) for number in sorted(self.parts_done)]

    def write(
        self, number: int, table: pa.Table, counts: Counts | None = None, fingerprints: pa.Table | None = None
    ) -> None:
        """Write one part, with its counts and its users' fingerprints, and count it in.

        Raises:
            ConfigError: no folder can be named by a value, or there are too many.
            RetryError: the disk is full (what was written stays and is resumed).
        """
        self.accept(self.writer().write(number, table, counts or {}, fingerprints), table)

    def writer(self, *, apart: bool = False) -> PartWriter:
        """Return what writes parts of this output, here or, `apart`, in other processes; these are then accepted."""
        folders = self._folders
        if apart and self._apart is None:
            with disk_errors(self.path):
                self._apart = apart_folder.made(self.staging)
        return PartWriter(
            path=self.path,
            staging=self.staging,
            metadata=self.metadata,
            single=self.single,
            column=None if folders is None else folders.column,
            keeps_column=folders is not None and folders.keeps,
            apart=self._apart if apart else None,
        )

    def accept(self, part: WrittenPart, table: pa.Table | None = None) -> None:
        """Count a part in that was written; without its table it is read again where parts become one file.

        Raises:
            ConfigError: there would be too many folders, or what the output is for cannot take the columns.
            RetryError: the disk is full.
        """
        with disk_errors(self.path):
            part = self.writer().take_over(part)
        if self.check is not None:
            self.check(part)
        if self._folders is not None and part.receipt is not None:
            self._folders.accept(part.number, part.receipt)
        if part.facts is not None:
            self._facts[part.facts.file] = part.facts
        with disk_errors(self.path):
            if self.single:
                self._whole().offer(part.number, table)
        self.parts_done.add(part.number)

    def _whole(self) -> SingleFile:
        with self._first_part:
            if self._file is None:
                self._file = SingleFile(self.staging / "whole.tmp", self.part, self.metadata)
                for number in sorted(self.parts_done):
                    self._file.offer(number)
            return self._file

    def beside(self, name: str) -> list[str]:
        """Return an entry of the metadata that was kept beside each part, in order; parts without it are left out."""
        return part_fingerprints.entries(self.staging, name)

    def joined(self) -> dict[str, str]:
        """Return the metadata of the joined fingerprints where an identical run was killed after it joined them."""
        return part_fingerprints.joined(self.staging, len(self.parts_done))

    def finish(self, scope: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Put the parts in place under the output's name, with the number of rows and the counts in the metadata.

        `scope` is what all users' fingerprints share, None where there are none.

        Returns: files, rows, bytes and counts of the finished output.
        """
        with disk_errors(self.path):
            apart_folder.remove(self.staging)
            self.check_free()
            if self._folders is not None:
                done = self._publish_folders(self._folders, scope)
            else:
                done = self._finish_parts(scope)
        self.release()
        return done

    def check_free(self) -> None:
        """Raise ConfigError where an output has appeared that this run does not replace."""
        if not self.replaces and published.present(self.path):
            raise ConfigError(f"OUTPUT {self.path} appeared during the run; the run's parts stay in {self.staging}")

    def part_facts(self) -> list[parquet.PartFacts]:
        """Return the facts of all parts, in order."""
        parts = sorted(self.staging.glob("part-*.parquet"))
        return [self._facts.get(part) or parquet.facts(part, COUNTS, hashed=not self.single) for part in parts]

    def has_items(self) -> bool:
        """Return whether a part that is done has a recommendation, or what else its rows are."""
        files = self.files()  # of parts in folders, one without a row has none
        return bool(files) and recommended.has_items(pl.scan_parquet(files, glob=False, hive_partitioning=False))

    def finished(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return files, rows, bytes and counts of the output that an identical run finished, and its metadata."""
        return published.finished_facts(self.path), published.files_of(self.path)[1]

    def fingerprints(self) -> Path:
        """Return the file with the fingerprints of the users of the finished output."""
        return published.fingerprint_file(self.path)

    def _finish_parts(self, scope: Mapping[str, Any] | None) -> dict[str, Any]:
        facts = self.part_facts()
        rows, counts = sum(part.rows for part in facts), parquet.sums(facts)
        metadata = {**self.metadata, ROWS: str(rows), COUNTS: json.dumps(counts, sort_keys=True), **self.notes}
        if scope is not None:
            self._join_fingerprints(scope, len(facts))
        files = [{"file": p.file.name, "rows": p.rows, "bytes": p.bytes, "sha256": p.sha256} for p in facts]
        done = self._join(len(facts), metadata) if self.single else self.put_folder(files, metadata)
        return {**done, "rows": rows, **counts}

    def _publish_folders(self, folders: Folders, scope: Mapping[str, Any] | None) -> dict[str, Any]:
        files, counts, partition = folders.facts()
        rows = sum(file["rows"] for file in files)
        about = {ROWS: str(rows), COUNTS: json.dumps(counts, sort_keys=True), published.PARTITION: partition}
        if scope is not None:
            self._join_fingerprints(scope, len(self.parts_done))
        return {**self.put_folder(files, {**self.metadata, **about, **self.notes}), "rows": rows, **counts}

    def _join_fingerprints(self, scope: Mapping[str, Any], parts: int) -> None:
        about = {"genrec.run_id": self.metadata["genrec.run_id"], **self.notes}
        part_fingerprints.join(self.staging, parts, scope, about)

    def _join(self, parts: int, metadata: dict[str, str]) -> dict[str, int]:
        self._whole().finish(parts, {key: value for key, value in metadata.items() if key not in self.metadata})
        return self.put_file(self.staging / "whole.tmp")

    def put_file(self, whole: Path) -> dict[str, int]:
        """Put the one file of an output in its place, with the fingerprints; return files and bytes."""
        made, target = self.staging / FINGERPRINTS, published.fingerprint_file(self.path)
        with signals.placing():
            target.unlink(missing_ok=True)  # never leave those of an older output
            if made.exists():
                made.replace(target)
            whole.replace(self.path)
            sync(self.path.parent)
            shutil.rmtree(self.staging)
        return {"files": 1, "bytes": self.path.stat().st_size}

    def put_folder(self, files: list[dict[str, Any]], metadata: dict[str, str]) -> dict[str, int]:
        """Put the parts in place with a manifest and the fingerprints; return files and bytes.

        `files` are the entries of the manifest.
        """
        write_json(self.staging / MANIFEST, manifest.sealed({"metadata": metadata, "files": files}))
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
            _tidy(self.path)  # only now: until the rename, a killed run needs them to continue
            sync(self.path.parent)
        return {"files": len(files), "bytes": sum(file["bytes"] for file in files)}

    def close(self) -> None:
        """Release the lock of the staging folder; its files stay for a later run."""
        self.release()

    def release(self) -> None:
        """Let other runs write the output."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _tidy(path: Path) -> None:
    """Remove from a finished output what only an unfinished one needs."""
    for name in (RUN_FILE, LOCK):
        (path / name).unlink(missing_ok=True)
    shutil.rmtree(path / RECEIPTS, ignore_errors=True)


def open_output(
    path: Path,
    identity: Identity,
    if_exists: str | None,
    partition_by: str | None = None,
    *,
    keeps_column: bool = False,
) -> Output:
    """Begin an output, or continue one that an identical run began.

    `if_exists`: "error" refuses any existing output; "resume" continues an identical run and accepts a finished one;
    "overwrite" replaces a finished output once the new one is whole (and continues an identical unfinished run); None
    continues an identical unfinished run and refuses anything else. `partition_by` is the column by whose values the
    parts of a directory are in folders; `keeps_column` says that it is in their files, too.

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
                f"OUTPUT {path} cannot be resumed: {published.difference_from(path, identity)}; --if-exists "
                "overwrite replaces it once the new one is whole, or name another"
            )
        published.check_whole(path)
        shutil.rmtree(staging, ignore_errors=True)  # left by a run that was killed after its last rename
        if path.is_dir():
            _tidy(path)
        output.complete = True
        return output
    with disk_errors(path):
        _claim(output, identity, if_exists)
        if partition_by is not None:
            output._folders = Folders.resumed(staging, partition_by, keeps=keeps_column)  # noqa: SLF001 (its own module)
            output.parts_done |= output._folders.receipts.keys()  # noqa: SLF001
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
    apart_folder.remove(staging)
    began = read_json(staging / RUN_FILE)
    other = began is not None and run_id(began) != run_id(begins)
    if (if_exists == "overwrite" and other) or (not fresh and began is None):
        for file in staging.iterdir():
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name != LOCK:
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
