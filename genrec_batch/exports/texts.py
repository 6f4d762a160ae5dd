"""Exports to JSON lines and CSV, plain or compressed: a file that appears whole or not at all.

Owns: the file and its ending. Must not know: how a row becomes text. In: rows of a finished output. Out: a file.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from genrec_batch.core.errors import ConfigError, RetryError
from genrec_batch.exports import form
from genrec_batch.io.durable import check_local, disk_errors, missing_folder, sync
from genrec_batch.io.recommended import Recommended
from genrec_batch.runtime import progress

LINES = (".jsonl", ".ndjson")
PACKED = {".gz": "gzip", ".zst": "zstd"}
ENDINGS = ", ".join((*LINES, ".csv"))


def kind_of(target: Path) -> tuple[str, str | None]:
    """Return the ending of a target that says what it is, and how it is compressed, None where it is not.

    Raises:
        ConfigError: another ending.
    """
    packed = PACKED.get(target.suffix.lower())
    ending = (target.with_suffix("") if packed else target).suffix.lower()
    if ending not in (*LINES, ".csv"):
        raise ConfigError(
            f"TARGET {target}: neither redis://HOST:PORT/DB nor a file that ends in {ENDINGS}, or in these and .gz or "
            ".zst, compressed"
        )
    return ending, packed


def check(target: Path, if_exists: str) -> None:
    """Raise ConfigError where a target cannot be written."""
    kind_of(target)
    check_local(target, "TARGET")
    if not target.parent.is_dir():
        raise ConfigError(f"TARGET {target}: {missing_folder(target.parent)}")
    if target.exists() and (if_exists == "error" or not target.is_file()):
        raise ConfigError(f"TARGET {target} exists; --if-exists overwrite replaces it once the new one is whole")


def write(rows: Recommended, target: Path, columns: tuple[str, ...] | None, where: str) -> dict[str, Any]:
    """Write the rows as they are stored to JSON lines; to CSV a row for each recommendation, or a wide one as it is.

    `columns` are plain names, None for all. Memory is bounded by a shard of users.

    Raises:
        ConfigError: a column cannot be written as text.
        RetryError: the disk is full, or another export writes the same file.
    """
    ending, packed = kind_of(target)
    lines, count = ending in LINES, 0
    with disk_errors(target, "TARGET"), _opened(target) as scratch:
        sink = pa.CompressedOutputStream(scratch, packed) if packed else pa.OSFile(scratch, "wb")
        with sink:
            for number, frame in enumerate(_frames(rows, columns, as_stored=lines or rows.layout == "wide")):
                if not number:
                    form.check_types(frame.schema, where)
                sink.write(form.as_json_lines(frame) if lines else form.as_csv(frame, header=not number))
                count += len(frame)
                progress.step()
        sync(Path(scratch))
        Path(scratch).replace(target)
        sync(target.parent)
    return {"rows": count, "bytes": target.stat().st_size}


def _frames(rows: Recommended, columns: tuple[str, ...] | None, *, as_stored: bool) -> Iterator[pl.DataFrame]:
    if as_stored:
        yield from rows.shards(None if columns is None else rows.stored_names(columns))
        return
    needed = None if columns is None else rows.stored_names(["video_id", *(n for n in columns if n != "video_id")])
    for shard in rows.shards(needed):
        yield rows.rows(shard.lazy(), columns).collect()


@contextmanager
def _opened(target: Path) -> Iterator[str]:
    """Yield the name of a file beside the target that nobody else writes; it is gone where the block fails."""
    scratch = target.with_name(f".{target.name}.unfinished")
    handle = os.open(scratch, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise RetryError(f"TARGET {target} is being written by another export now; wait for it") from None
    try:
        yield str(scratch)
    finally:
        if scratch.exists() and os.path.samestat(scratch.stat(), os.fstat(handle)):  # not renamed
            scratch.unlink()
        os.close(handle)
