"""The writer of parts of an output in a store: a part is made on the local disk and goes up, its receipt last.

Owns: the objects of one part, until all are put in place. Must not know: which parts there are, how an output is put in
place (`stored_output`). As every `PartWriter` it can be sent to the process that computes a part, which asks the store
with credentials of its own environment.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pyarrow as pa

from genrec_batch.io import recommended
from genrec_batch.io.durable import disk_errors
from genrec_batch.io.part_writer import Counts, PartWriter, WrittenPart
from genrec_batch.io.published import RECEIPTS
from genrec_batch.io.stored import Stored, failures
from genrec_batch.runtime import progress


@dataclass(frozen=True, kw_only=True)
class StoredPartWriter(PartWriter):
    """Writes parts of an output to the folder of an unfinished run in a store."""

    target: str  # the URI of the output
    run: str

    def write(self, number: int, table: pa.Table, counts: Counts, fingerprints: pa.Table | None = None) -> WrittenPart:
        """Write a part; see `PartWriter.write`.

        Raises:
            RetryError: the disk is full, or the store cannot be reached.
            ConfigError: the store refuses, or no folder can be named by a value of the column.
        """
        if not self.staging.is_dir():  # another machine has a disk of its own, on which nothing stays
            with disk_errors(Path(tempfile.gettempdir()), "the temporary folder"), TemporaryDirectory() as folder:
                return replace(self, staging=Path(folder)).write(number, table, counts, fingerprints)
        (self.staging / RECEIPTS).mkdir(exist_ok=True)
        part = super().write(number, table, counts, fingerprints)
        receipt = {**receipt_of(part), "fingerprints": fingerprints is not None}
        receipt["items"] = recommended.has_items(pl.DataFrame(pl.from_arrow(table)).lazy())
        place = _place(self.target)
        base = place.staging(self.run)
        with failures(f"OUTPUT {self.target}"):
            for entry in receipt["files"]:
                place.store.put(f"{base}/{entry['file']}", self.staging / entry["file"])
                progress.step()
            if fingerprints is not None:
                place.store.put(f"{base}/{fingerprints_of(number)}", self.staging / fingerprints_of(number))
            place.store.put(f"{base}/{receipt_name(number)}", json.dumps(receipt, sort_keys=True).encode())
        if not self.single:  # one file is joined of them
            for entry in receipt["files"]:
                (self.staging / entry["file"]).unlink()
        return part if part.receipt is None else replace(part, receipt=receipt)


def receipt_of(part: WrittenPart) -> dict[str, Any]:
    """Return what is kept of a part beside it: the entries of its files, and its counts."""
    if part.receipt is not None:
        return dict(part.receipt)
    facts = part.facts
    assert facts is not None, "a part has one or the other"
    entry = {"file": facts.file.name, "rows": facts.rows, "bytes": facts.bytes, "sha256": facts.sha256}
    return {"files": [entry], "counts": facts.counts}


def receipt_name(number: int) -> str:
    """Return the name of a part's receipt."""
    return f"part-{number:05d}.json"


def fingerprints_of(number: int) -> str:
    """Return the name of the fingerprints of a part's users."""
    return Path(receipt_name(number)).with_suffix(".fingerprints").name


@cache
def _place(target: str) -> Stored:
    return Stored.of(target)  # once in a process: its connections are kept
