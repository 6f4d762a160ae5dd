"""Parts of an output in folders: a part becomes a file for each value of a column, and a receipt that says so.

Owns: the files of a part and its receipt. Must not know: which parts there are, how an output is put in place. A part
is done once its receipt is on the disk, which comes after its files; files without a receipt are of a killed run.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from genrec_batch.io import hive, parquet
from genrec_batch.io.durable import read_json, sha256, sync, write_json
from genrec_batch.io.hive import Partition
from genrec_batch.io.published import COUNTS, RECEIPTS, ROWS


@dataclass(kw_only=True)
class Folders:
    """The folders of an output that is being written."""

    staging: Path
    column: str
    keeps: bool = False  # whether the files have the column, too
    receipts: dict[int, dict[str, Any]] = field(default_factory=dict)  # of the parts that are done
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @staticmethod
    def resumed(staging: Path, column: str, *, keeps: bool = False) -> Folders:
        """Begin, or continue: what has no whole receipt is removed."""
        folders = Folders(staging=staging, column=column, keeps=keeps)
        folder = staging / RECEIPTS
        folder.mkdir(exist_ok=True)
        for stale in staging.glob("*/*.tmp"):  # in the folder of receipts, too
            stale.unlink()
        for path in sorted(folder.glob("part-*.json")):
            receipt = read_json(path)
            prints = staging / f"{path.stem}.fingerprints"
            whole = receipt is not None and all(_is_whole(staging, entry) for entry in receipt["files"])
            if whole and (not prints.exists() or parquet.is_whole(prints)):
                folders.receipts[int(path.stem.removeprefix("part-"))] = receipt
            else:
                path.unlink()
        known = {entry["file"] for receipt in folders.receipts.values() for entry in receipt["files"]}
        for file in staging.glob("*/part-*.parquet"):
            if str(file.relative_to(staging)) not in known:
                file.unlink()
        return folders

    def accept(self, number: int, receipt: dict[str, Any]) -> None:
        """Count a part in that was written.

        Raises:
            ConfigError: the column has too many values.
        """
        with self._lock:
            self.receipts[number] = receipt
            there = {entry["file"].partition("/")[0] for each in self.receipts.values() for entry in each["files"]}
        hive.check_count(self.column, len(there))

    def files(self) -> list[Path]:
        """Return the files of the parts that are done."""
        parts = [receipt["files"] for _, receipt in sorted(self.receipts.items())]
        return [self.staging / entry["file"] for files in parts for entry in files]

    def facts(self) -> tuple[list[dict[str, Any]], dict[str, int], str]:
        """Return the entries of the manifest, the counts of all parts added up, and column and type as JSON."""
        entries = [entry for _, receipt in sorted(self.receipts.items()) for entry in receipt["files"]]
        for folder in {entry["file"].partition("/")[0] for entry in entries}:
            if (self.staging / folder).is_dir():  # of an output in a store there may be none on the disk
                sync(self.staging / folder)
        counts = parquet.summed(receipt["counts"] for receipt in self.receipts.values())
        (partition,) = {json.dumps(receipt["partition"], sort_keys=True) for receipt in self.receipts.values()}
        return entries, counts, partition


def write(
    staging: Path,
    column: str,
    number: int,
    table: pa.Table,
    metadata: Mapping[str, str],
    counts: Mapping[str, int],
    *,
    keeps: bool = False,
) -> dict[str, Any]:
    """Write the files of a part, a folder for each value of the column, then its receipt, which is returned.

    The files have the column, too, where it `keeps` them.

    Raises:
        ConfigError: the column has a type or a value that no folder can be named by, or too many values.
        OSError: the disk refuses the write.
    """
    frame = pl.DataFrame(pl.from_arrow(table.select([column])))
    hive.check_kind(column, frame.schema[column])
    partition = Partition(column=column, kind=frame.schema[column])
    rest = table if keeps else table.drop_columns([column])
    rows: dict[str, list[pl.Series]] = {}  # of each folder
    for value, at in frame.with_row_index("row").group_by(column, maintain_order=True).agg("row").iter_rows():
        rows.setdefault(partition.folder(value), []).append(at)
    hive.check_count(column, len(rows))
    files = []
    for folder, found in sorted(rows.items()):
        at = sorted(row for each in found for row in each)  # null and the empty text are one folder
        file = staging / folder / f"part-{number:05d}.parquet"
        file.parent.mkdir(exist_ok=True)
        about = {**metadata, ROWS: str(len(at)), COUNTS: "{}"}
        parquet.write(file, rest.take(pa.array(at)).replace_schema_metadata(about))
        entry = {"rows": len(at), "bytes": file.stat().st_size, "sha256": sha256(file)}
        files.append({"file": f"{folder}/{file.name}", **entry})
    receipt = {"files": files, "counts": dict(counts), "partition": partition.stored()}
    write_json(staging / RECEIPTS / f"part-{number:05d}.json", receipt)
    return receipt


def _is_whole(staging: Path, entry: Mapping[str, Any]) -> bool:
    file = staging / entry["file"]
    return file.is_file() and sha256(file) == str(entry["sha256"])
