"""The log on disk: one Parquet file or a directory of part files, whole or not at all.

Owns: row groups, part files, the temporary name, sync and rename, and the counts of the rows written. Must not know:
how rows are made. In: a `SampleConfig` and a path. Out: the files and their counts.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.core.errors import ConfigError
from genrec_batch.demo.synthetic.log import SCHEMA, Log
from genrec_batch.demo.synthetic.views import FAULTS, Views, arranged, exactly
from genrec_batch.demo.synthetic.world import SampleConfig, World
from genrec_batch.io.durable import check_local, disk_errors, missing_folder, sync

CHUNK_ROWS = 1 << 18  # rows made at a time
GROUP_ROWS = 1 << 18  # rows of a row group
PART_ROWS = 40 * GROUP_ROWS  # rows of a part file: about 10 million


@dataclass(kw_only=True)
class _Counts:
    """The counts of the rows so far."""

    seen_V: np.ndarray[Any, np.dtype[np.bool_]]
    rows: int = 0
    first_ms: int = np.iinfo(np.int64).max
    last_ms: int = 0
    faults: np.ndarray[Any, np.dtype[np.int64]] = field(default_factory=lambda: np.zeros(len(FAULTS) + 1, np.int64))
    advance: Callable[[int], None] | None = None

    def add(self, views: Views) -> None:
        self.rows += len(views)
        self.seen_V[views.videos_E] = True
        self.first_ms = min(self.first_ms, int(views.time_ms_E.min()))
        self.last_ms = max(self.last_ms, int(views.time_ms_E.max()))
        self.faults += np.bincount(views.faults_E, minlength=len(self.faults))
        if self.advance is not None:
            self.advance(len(views))


def write(
    config: SampleConfig,
    output: Path,
    *,
    overwrite: bool = False,
    chunk_rows: int = CHUNK_ROWS,
    group_rows: int = GROUP_ROWS,
    part_rows: int = PART_ROWS,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write the log of `config` and return its counts.

    `output` ending in `.parquet` is one file, else a directory of `part-*.parquet`. Either gets its name by one rename,
    when all of it is on the disk. Memory holds `chunk_rows` rows and one row group, plus 16 bytes per user;
    `chunk_rows` changes no byte of the output.

    Args:
        config: the log to make.
        output: its path.
        overwrite: replace an earlier log of that name.
        chunk_rows: about how many rows are made at a time.
        group_rows: rows of a row group.
        part_rows: rows of a part file, rounded up to whole row groups.
        advance: called with the number of rows made since the last call, for progress.

    Returns:
        Counts: output, files, bytes, rows, users, videos (those seen), first and last timestamp (ISO 8601, UTC) and
        `faults`: rows by kind. A duplicated event counts as one duplicate.

    Raises:
        ConfigError: the output exists or its folder is missing or cannot be written.
        RetryError: the disk is full.
    """
    _check(output, overwrite=overwrite)
    world = World(config)
    counts = _Counts(seen_V=np.zeros(config.videos, np.bool_), advance=advance)
    chunks = exactly(arranged(world, chunk_rows), group_rows)
    single = output.suffix == ".parquet"
    with disk_errors(output), _scratch(output) as scratch:
        folder = scratch / "log"
        folder.mkdir()
        parts = _Parts(folder, None if single else -(-part_rows // group_rows))
        files = _write_all(parts, Log(world), chunks, counts)
        size = sum(file.stat().st_size for file in files)
        _publish(files[0] if single else folder, output)
    return _summary(config, counts) | {"output": str(output), "files": len(files), "bytes": size}


def _check(output: Path, *, overwrite: bool) -> None:
    check_local(output, "OUT")
    if not output.parent.is_dir():
        raise ConfigError(f"{output}: {missing_folder(output.parent)}")
    if not output.exists():
        return
    if not overwrite:
        raise ConfigError(f"{output} exists; choose another name, remove it, or use --if-exists overwrite")
    if output.is_dir() and (others := [p.name for p in output.iterdir() if not p.match("part-*.parquet")]):
        raise ConfigError(f"{output} is not overwritten: it has files that are not a log's ({', '.join(others[:5])})")
    if output.is_dir() == (output.suffix == ".parquet"):
        raise ConfigError(f"{output} is not overwritten: it is a {'directory' if output.is_dir() else 'file'}")
    for file in sorted(output.iterdir()) if output.is_dir() else [output]:
        if not _is_a_log(file):
            raise ConfigError(f"{file} is not overwritten: it is not a log of `genrec-batch sample`; name another path")


def _is_a_log(file: Path) -> bool:
    try:
        return file.is_file() and pq.read_schema(file).names == SCHEMA.names
    except (pa.ArrowInvalid, OSError):
        return False


class _Parts:
    """Writes part files one after the other."""

    def __init__(self, folder: Path, groups_per_part: int | None) -> None:
        self.files: list[Path] = []
        self.folder = folder
        self._limit = groups_per_part
        self._writer: Any = None
        self._groups = 0

    def write(self, group: pa.Table) -> None:
        """Write one row group, into a new part file if the last one is full."""
        if self._writer is None or self._groups == self._limit:
            self.close()
            self.files.append(self.folder / f"part-{len(self.files):05d}.parquet")
            self._writer, self._groups = _writer(self.files[-1]), 0
        self._writer.write_table(group, row_group_size=len(group))
        self._groups += 1

    def close(self) -> None:
        """Finish the current part file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _writer(file: Path) -> Any:
    by_dictionary = [name for name in SCHEMA.names if pa.types.is_dictionary(SCHEMA.field(name).type)]
    return pq.ParquetWriter(
        file,
        SCHEMA,
        compression="zstd",
        compression_level=1,
        use_dictionary=by_dictionary,
        store_schema=False,  # a reader gets strings, not Arrow dictionaries
    )


def _write_all(parts: _Parts, log: Log, groups: Iterator[Views], counts: _Counts) -> list[Path]:
    """Write and sync all row groups; the next one is made while the one before is written."""
    pending: Future[None] | None = None
    try:
        with ThreadPoolExecutor(1) as pool:
            for views in groups:
                counts.add(views)
                group = log.table(views)
                if pending is not None:
                    pending.result()
                pending = pool.submit(parts.write, group)
            if pending is not None:
                pending.result()
    finally:
        parts.close()
    for path in (*parts.files, parts.folder):
        sync(path)
    return parts.files


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """Yield a hidden folder beside the output, and remove it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(made: Path, output: Path) -> None:
    """Rename a finished file or folder to its name; an older folder is moved away, and back if that fails."""
    if made.is_dir() and output.exists():
        with _scratch(output) as aside:
            output.rename(aside / "old")
            try:
                made.rename(output)
            finally:
                if not output.exists():
                    (aside / "old").rename(output)
    else:
        made.replace(output)
    sync(output.parent)


def _summary(config: SampleConfig, counts: _Counts) -> dict[str, Any]:
    first, last = (datetime.fromtimestamp(ms / 1000, timezone.utc) for ms in (counts.first_ms, counts.last_ms))
    faults = dict(zip(FAULTS, counts.faults[1:].tolist(), strict=True))
    faults["duplicates"] //= 2  # the event and its copy both have the code
    return {
        "rows": counts.rows,
        "users": config.users,
        "videos": int(counts.seen_V.sum()),
        "first": first.isoformat(timespec="milliseconds"),
        "last": last.isoformat(timespec="milliseconds"),
        "faults": faults,
    }
