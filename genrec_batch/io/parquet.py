"""Parquet files out: written whole and synced, and checked for damage.

Owns: compression, page checksums, the way from a table to a file on the disk. Must not know: what a row means, which
files belong together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.io import sealed_file
from genrec_batch.io.durable import sha256, sync

COMPRESSED: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "write_page_checksum": True}
QUICK: dict[str, Any] = {"compression": "lz4", "write_page_checksum": True}  # of parts that are joined into one file
UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError)  # raised for damaged files

AT_ONCE = 1 << 16  # rows that are read at once for a check


def write(target: Path, table: pa.Table, *, quick: bool = False) -> None:
    """Write a table as one row group, sealed: temporary name, sync, rename; `quick` for a file that is soon read again.

    Raises:
        OSError: the disk refuses the write.
    """
    scratch = target.with_suffix(".tmp" if target.suffix == ".parquet" else target.suffix + ".tmp")
    with pq.ParquetWriter(scratch, table.schema, **(QUICK if quick else COMPRESSED)) as writer:
        writer.write_table(table, row_group_size=max(1, len(table)))
        writer.add_key_value_metadata(sealed_file.OPEN)
    sealed_file.seal(scratch)
    sync(scratch)
    scratch.replace(target)


def is_whole(part: Path) -> bool:
    """Return whether every byte of a file of ours is what it was when it was written."""
    try:
        return sealed_file.is_sealed(part)
    except OSError:
        return False


def whole_groups(part: Path) -> list[bool]:
    """Return for each row group whether every page matches its checksum; an empty list if the footer is damaged."""
    whole = []
    try:
        with pq.ParquetFile(part, page_checksum_verification=True) as opened:
            for group in range(opened.num_row_groups):
                try:
                    for _ in opened.iter_batches(AT_ONCE, row_groups=[group]):
                        pass
                except UNREADABLE:
                    whole.append(False)
                else:
                    whole.append(True)
    except UNREADABLE:
        return []
    return whole


@dataclass(frozen=True, kw_only=True)
class PartFacts:
    """The facts of a part file: what the manifest records, and its counts."""

    file: Path
    rows: int
    bytes: int
    sha256: str  # "" where it is not needed
    counts: dict[str, int]


def facts(part: Path, key: str, *, hashed: bool) -> PartFacts:
    """Return the facts of a part; its counts are a JSON object of numbers in its metadata, under `key`."""
    metadata = pq.read_metadata(part)
    counts = (pq.read_schema(part).metadata or {}).get(key.encode(), b"{}")
    digest = sha256(part) if hashed else ""
    size = part.stat().st_size
    return PartFacts(file=part, rows=metadata.num_rows, bytes=size, sha256=digest, counts=json.loads(counts))


def sums(parts: Iterable[PartFacts]) -> dict[str, int]:
    """Return the counts of parts, added up."""
    return summed(part.counts for part in parts)


def summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return counts by name, added up."""
    total: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return total
