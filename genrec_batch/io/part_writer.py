"""The files of one part of an output, written whole by this process or another one.

Owns: their names, temporary names, syncs and renames. Must not know: which parts there are, how an output is put in
place, what a row means. It holds no lock and no open file, so it can be sent to the process that computes a part.
In: the rows of a part. Out: what the manifest will say of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from genrec_batch.io import parquet, partitioned
from genrec_batch.io.durable import disk_errors
from genrec_batch.io.published import COUNTS, RECEIPTS, ROWS

Counts = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class WrittenPart:
    """A part that is on the disk."""

    number: int
    facts: parquet.PartFacts | None = None  # of its file
    receipt: dict[str, Any] | None = None  # of its files in folders
    apart: Path | None = None  # the folder where they are, until the output takes them over


@dataclass(frozen=True, kw_only=True)
class PartWriter:
    """Writes parts of an output into its staging folder."""

    path: Path  # of the output, for errors
    staging: Path
    metadata: Mapping[str, str]
    single: bool  # whether the parts become one file
    column: str | None = None  # by whose values the rows of a part are in folders
    keeps_column: bool = False  # whether their files have it, too
    apart: Path | None = None  # a folder of this writer's own for all that it writes; see `take_over`

    @property
    def _folder(self) -> Path:
        return self.apart or self.staging

    def part(self, number: int) -> Path:
        """Return the path of a part in the staging folder."""
        return self.staging / f"part-{number:05d}.parquet"

    def write(self, number: int, table: pa.Table, counts: Counts, fingerprints: pa.Table | None = None) -> WrittenPart:
        """Write a part, with its counts and its users' fingerprints: temporary name, sync, rename.

        Raises:
            ConfigError: no folder can be named by a value of the column.
            RetryError: the disk is full (what was written stays and is resumed).
        """
        with disk_errors(self.path):
            target = self._folder / self.part(number).name
            if fingerprints is not None:
                parquet.write(target.with_suffix(".fingerprints"), fingerprints)
            if self.column is not None:
                keeps = self.keeps_column
                receipt = partitioned.write(
                    self._folder, self.column, number, table, self.metadata, counts, keeps=keeps
                )
                return WrittenPart(number=number, receipt=receipt, apart=self.apart)
            about = {**self.metadata, ROWS: str(len(table)), COUNTS: json.dumps(dict(counts), sort_keys=True)}
            parquet.write(target, table.replace_schema_metadata(about), quick=self.single)
            facts = parquet.facts(target, COUNTS, hashed=not self.single)
            return WrittenPart(number=number, facts=facts, apart=self.apart)

    def take_over(self, part: WrittenPart) -> WrittenPart:
        """Move a part that was written apart into the staging folder, and return it.

        Who holds the lock of the output does this. So a writer of an earlier run, which may end after its run, changes
        nothing: its folder is gone.

        Raises:
            OSError: the files are not there, or cannot be moved.
        """
        if part.apart is None:
            return part
        prints = self.part(part.number).with_suffix(".fingerprints").name
        if (part.apart / prints).exists():
            (part.apart / prints).replace(self.staging / prints)
        if part.receipt is None:
            assert part.facts is not None, "a part has one or the other"
            target = self.part(part.number)
            part.facts.file.replace(target)
            return replace(part, facts=replace(part.facts, file=target), apart=None)
        receipt = f"{RECEIPTS}/{self.part(part.number).stem}.json"
        for name in (*(entry["file"] for entry in part.receipt["files"]), receipt):
            (self.staging / name).parent.mkdir(exist_ok=True)
            (part.apart / name).replace(self.staging / name)
        return replace(part, apart=None)
