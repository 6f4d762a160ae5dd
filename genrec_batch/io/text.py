"""Tables as text: CSV, TSV and JSON lines, converted once to Parquet files that are removed after the run.

Owns: the conversion, streamed, and the types of columns, found over all values of all files. Must not know: which files
there are, the contract. In: files and how they are read. Out: Parquet files in a temporary folder.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from genrec_batch.io.formats import Text
from genrec_batch.io.spill import SpillFolder, remove_abandoned
from genrec_batch.runtime import progress

GROUP_ROWS = 1 << 18  # rows of a row group
NULLS = ["", "\\N", "NULL", "null"]
WHOLE = r"^-?(?:0|[1-9]\d{0,17})$"  # 007 is a text, as is a number of 19 digits and more
NUMBER = r"^-?(?:(?:0|[1-9]\d{0,14})(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?$|^(?i:nan|-?inf)$"  # 20 digits are an id
BOOLEAN = r"^(?i:true|false)$"
LADDER: dict[pl.DataType, str] = {pl.Boolean(): BOOLEAN, pl.Int64(): WHOLE, pl.Float64(): NUMBER}  # narrow first
WITH_COMMA = LADDER | {pl.Float64(): NUMBER.replace(r"\.", "[.,]")}  # 1,5 is a number unless , is between values


def folder(spill_to: Path | None) -> SpillFolder:
    """Return a folder below `spill_to`, by default the system's temporary one, that is removed once nobody needs it.

    Raises:
        OSError: the disk refuses it.
    """
    place = spill_to or Path(tempfile.gettempdir())
    remove_abandoned(place)
    made = SpillFolder.make(place)
    weakref.finalize(made, SpillFolder(path=made.path, lock=made.lock).close)
    return made


def place_in(folder: SpillFolder, name: str) -> Path:
    """Return where the copy of a file of this name is: in folders of the same names, which may be partitions."""
    return folder.path / f"{name}.parquet"


def convert(file: str, text: Text, target: Path) -> str:
    """Write a text as Parquet, a part at a time, and return the name of the new file.

    Raises:
        PolarsError, OSError: a line does not fit, a text is not UTF-8, the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if text.separator is None:
        rows = pl.scan_ndjson(file, infer_schema_length=None)
    else:
        rows = pl.scan_csv(file, separator=text.separator, infer_schema=False, null_values=NULLS, glob=False)
    with progress.growing(target):
        rows.sink_parquet(target, compression="lz4", row_group_size=GROUP_ROWS)
    return str(target)


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
