"""Tables as text: CSV, TSV and JSON lines, converted once to Parquet files that are removed after the run.

Owns: the conversion, streamed, and the types of columns, found over all values of all files. Must not know: which files
there are, the contract. In: files and how they are read. Out: Parquet files in a temporary folder.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars import selectors

from genrec_batch.io import json_lines
from genrec_batch.io.csv_lines import CsvLines
from genrec_batch.io.durable import disk_errors
from genrec_batch.io.formats import Text
from genrec_batch.io.odd_lines import OddLines
from genrec_batch.io.places import LOCAL
from genrec_batch.io.spill import SpillFolder, remove_abandoned
from genrec_batch.runtime import progress

GROUP_ROWS = 1 << 18  # rows of a row group
WHOLE = r"^-?(?:0|[1-9]\d{0,17})$"  # 007 is a text, as is a number of 19 digits and more
NUMBER = r"^-?(?:(?:0|[1-9]\d{0,14})(?:\.\d*)?|\.\d+)(?:e[+-]?\d+|E-?\d+)?$|^(?i:nan|-?inf)$"
# In NUMBER, 20 digits are an id, and 1.2E+11 is one that Excel has cut.
BOOLEAN = r"^(?i:true|false)$"
LADDER: dict[pl.DataType, str] = {pl.Boolean(): BOOLEAN, pl.Int64(): WHOLE, pl.Float64(): NUMBER}  # narrow first
WITH_COMMA = LADDER | {pl.Float64(): NUMBER.replace(r"\.", "[.,]")}  # 1,5 is a number unless , is between values


def folder(spill_to: Path | None) -> SpillFolder:
    """Return a folder below `spill_to`, by default the system's temporary one, that is removed once nobody needs it.

    Raises:
        ConfigError, RetryError: the disk refuses it.
    """
    place = spill_to or Path(tempfile.gettempdir())
    remove_abandoned(place)
    with disk_errors(place, "--spill-dir"):
        made = SpillFolder.make(place)
    weakref.finalize(made, SpillFolder(path=made.path, lock=made.lock).close)
    return made


def place_in(folder: SpillFolder, name: str) -> Path:
    """Return where the copy of a file of this name is: in folders of the same names, which may be partitions."""
    return folder.path / f"{name}.parquet"


def convert(
    file: str, text: Text, target: Path, open_file: Callable[[str], IO[bytes]] = LOCAL.open
) -> tuple[OddLines, str | None]:
    """Write a text as Parquet, a part at a time; return its odd lines, and a sentence about them where there are any.

    A line with more or fewer values than the first one has names, or that is no JSON object, becomes a row of nulls in
    its place; empty lines are left out.

    Raises:
        PolarsError, ArrowInvalid, OSError: JSON does not fit, there is no line, the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if text.separator is None:
        with progress.growing(target):
            odd = _convert_json(file, target, open_file)
        return odd, odd.said("are no JSON object")
    lines = CsvLines(open_file=lambda: open_file(file), separator=text.separator)
    with lines.read({}) as reader:
        types = dict.fromkeys(reader.schema.names, pa.string())
    lines.clear()
    start = 0
    with (
        progress.growing(target),
        lines.read(types) as reader,
        pq.ParquetWriter(target, reader.schema, compression="lz4") as writer,
    ):
        for batch in chain(reader, [None]):
            read = reader.schema.empty_table() if batch is None else pa.Table.from_batches([batch])
            table = lines.with_odd_rows(read, start)
            start += len(table)
            writer.write_table(table, row_group_size=GROUP_ROWS)
    return lines.odd, lines.said()


def _convert_json(file: str, target: Path, open_file: Callable[[str], IO[bytes]]) -> OddLines:
    """Write JSON lines as Parquet; where Polars refuses some, or does not reach the file, from a copy without these."""
    try:
        if Path(file).is_file():
            _sink_json(file, target)
            return OddLines()
    except pl.exceptions.PolarsError:
        pass
    copy = target.with_suffix(".ndjson")
    odd = json_lines.mended(lambda: open_file(file), copy)
    _sink_json(str(copy), target)
    copy.unlink()
    return odd


def _sink_json(file: str, target: Path) -> None:
    rows = pl.scan_ndjson(file, infer_schema_length=None)
    rows = rows.with_columns(selectors.by_dtype(pl.Int128).cast(pl.String))  # ids beyond 64 bits
    rows.sink_parquet(target, compression="lz4", row_group_size=GROUP_ROWS)


def types(
    files: Sequence[str], schemas: Sequence[Mapping[str, pl.DataType]], texts: Sequence[Text]
) -> dict[str, pl.DataType]:
    """Return the columns of text in which every value of every file is a Boolean, an integer or a number."""
    fits: dict[str, set[pl.DataType]] = {}
    for file, schema, text in zip(files, schemas, texts, strict=True):
        ladder = LADDER if text.separator == "," else WITH_COMMA
        tests = [(name, kind, pattern) for name in schema for kind, pattern in ladder.items()]
        checks = (
            pl.col(name).str.contains(pattern).all().alias(str(at)) for at, (name, _, pattern) in enumerate(tests)
        )
        found = pl.scan_parquet(file, glob=False).select(checks).collect(engine="streaming").row(0)
        for (name, kind, _), fit in zip(tests, found, strict=True):
            kinds = fits.setdefault(name, set(LADDER))
            kinds -= set() if fit else {kind}
    known = {
        name: kinds for name, kinds in fits.items() if 0 < len(kinds) < len(LADDER)
    }  # all fit where there is no value
    return {name: next(kind for kind in LADDER if kind in kinds) for name, kinds in known.items()}
