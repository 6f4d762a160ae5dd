"""Parquet files out: written whole and synced, and whether one that is there is whole.

Owns: compression, page checksums, the way from a table to a file on the disk. Must not know: what a row means, which
files belong together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.io.durable import sha256, sync

COMPRESSED: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "write_page_checksum": True}
UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError)  # what damage comes out as
QUICK: dict[str, Any] = {
    "compression": "lz4",
    "write_page_checksum": True,
}  # of parts that are written once more, into one file


def write(target: Path, table: pa.Table, *, quick: bool = False) -> None:
    """Write a table as one row group: temporary name, sync, rename; `quick` for what is read again soon.

    Raises:
        OSError: the disk refuses.
    """
    scratch = target.with_suffix(".tmp" if target.suffix == ".parquet" else target.suffix + ".tmp")
    with pq.ParquetWriter(scratch, table.schema, **(QUICK if quick else COMPRESSED)) as writer:
        writer.write_table(table, row_group_size=max(1, len(table)))
    sync(scratch)
    scratch.replace(target)


def is_whole(part: Path) -> bool:
    """Return whether a file can be read to its end and every page is what its checksum says."""
    try:
        with pq.ParquetFile(part, page_checksum_verification=True) as opened:
            for group in range(opened.num_row_groups):
                opened.read_row_group(group)
    except UNREADABLE:
        return False
    return True


def whole_groups(part: Path) -> list[bool]:
    """Return of each row group whether every page is what its checksum says; nothing if the file has no sound end."""
    whole = []
    try:
        with pq.ParquetFile(part, page_checksum_verification=True) as opened:
            for group in range(opened.num_row_groups):
                try:
                    opened.read_row_group(group)
                except UNREADABLE:
                    whole.append(False)
                else:
                    whole.append(True)
    except UNREADABLE:
        return []
    return whole


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a manifest says of a part, and its counts."""

    file: Path
    rows: int
    bytes: int
    sha256: str  # "" where nobody asks for it
    counts: dict[str, int]


def said(part: Path, key: str, *, hashed: bool) -> Said:
    """Return what there is to say of a part; its counts stand in its metadata under `key`, a JSON object of numbers."""
    metadata = pq.read_metadata(part)
    counts = (pq.read_schema(part).metadata or {}).get(key.encode(), b"{}")
    digest = sha256(part) if hashed else ""
    return Said(file=part, rows=metadata.num_rows, bytes=part.stat().st_size, sha256=digest, counts=json.loads(counts))


def sums(parts: Iterable[Said]) -> dict[str, int]:
    """Return the counts of parts, added up."""
    total: dict[str, int] = {}
    for part in parts:
        for name, count in part.counts.items():
            total[name] = total.get(name, 0) + count
    return total
