"""The contents of files as Parquet: as they are, or copies that are made of texts.

Owns: telling Parquet from text, the advice about texts. Must not know: which files there are, row groups, what a
column means. In: files of one place. Out: `Contents`: Parquet files with their rows and forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.core.errors import InputError, RetryError
from genrec_batch.io import formats, forms, places, text
from genrec_batch.io.attempt import is_disk_full, reading
from genrec_batch.io.formats import Text
from genrec_batch.io.forms import Form
from genrec_batch.io.odd_lines import OddLines
from genrec_batch.io.places import Place
from genrec_batch.runtime.console import ADVICE, LOG


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Parquet files, in the order of the input's files."""

    files: list[str]
    rows: list[list[int]]  # of each row group of each file
    forms: list[Form]
    copies: bool  # they were made of texts
    odd: pl.DataFrame | None = None  # lines of the texts that are no rows: file, row, reason, values


def opened(files: Sequence[str], names: Sequence[str], flag: str, place: Place, spill_to: Path | None) -> Contents:
    """Open files that are all Parquet or all texts; `names` are theirs below the input's folder.

    Raises:
        InputError: one is neither, or they are of both kinds; the message says what to do.
        RetryError: a connection was lost, or the disk is full.
    """
    heads = place.each(lambda file: _head(file, flag, place), files)
    texts = [head for head in heads if isinstance(head, Text)]
    if not texts:
        found = [
            _parquet(file, f"{flag} {file}", head, place)
            for file, head in zip(files, heads, strict=True)
            if not isinstance(head, Text)
        ]
        return Contents(files=list(files), rows=[rows for rows, _ in found], forms=[f for _, f in found], copies=False)
    first = next(file for file, head in zip(files, heads, strict=True) if isinstance(head, Text))
    if len(texts) < len(files):
        raise InputError(f"{flag} {first}: {texts[0].name} among Parquet files; keep files of one format")
    made = _of_texts(files, names, texts, flag, place, spill_to)
    words = [
        name for name, kind in made.forms[0].columns.items() if kind == pl.String and name not in made.forms[0].typed
    ]
    advice = texts[0].way_to_parquet(first, words)
    said = "%s %s: %s, which every run reads anew; faster is Parquet: %s"
    LOG.warning(said, flag, first, texts[0].name, advice, extra=ADVICE)
    return made


def _parquet(file: str, where: str, metadata: pq.FileMetaData | None, place: Place) -> tuple[list[int], Form]:
    """Return the rows of each row group of a file, and its columns."""
    return reading(lambda: (forms.group_rows(file, metadata), forms.form_of(file, metadata, place)), where)


def _of_texts(
    files: Sequence[str], names: Sequence[str], texts: Sequence[Text], flag: str, place: Place, spill_to: Path | None
) -> Contents:
    folder = text.folder(spill_to)
    made, lines_of = [], []
    for file, name, how in zip(files, names, texts, strict=True):
        target = text.place_in(folder, name)
        odd, said = _converted(file, how, target, place, flag)
        if said is not None:
            LOG.warning("%s %s: %s", flag, file, said)
            lines_of.append(odd.frame(file))
        made.append(str(target))
    found = [_parquet(file, flag, pq.read_metadata(file), places.LOCAL) for file in made]
    lines = [at for at, how in enumerate(texts) if how.separator is not None]  # JSON has types of its own
    typed = text.types([made[at] for at in lines], [found[at][1].columns for at in lines], [texts[at] for at in lines])
    return Contents(
        files=made,
        rows=[rows for rows, _ in found],
        forms=[
            replace(form, text=True, keeps=folder, typed={n: kind for n, kind in typed.items() if n in form.columns})
            for _, form in found
        ],
        copies=True,
        odd=pl.concat(lines_of) if lines_of else None,
    )


def _converted(file: str, how: Text, target: Path, place: Place, flag: str) -> tuple[OddLines, str | None]:
    """Write the copy of a text; see `text.convert`.

    Raises:
        InputError, RetryError: see `reading`; where the disk is full, the message names its folder.
    """
    try:
        return reading(lambda: text.convert(file, how, target, place.open), f"{flag} {file}")
    except RetryError as error:
        if error.__cause__ is None or not is_disk_full(error.__cause__):
            raise
        raise RetryError(
            f"{flag} {file}: a text is read from a copy as Parquet, and the disk of {target.parent} is full: free "
            "space, name a folder on another disk with --spill-dir (TMPDIR, for commands without it), or give the "
            "table as Parquet"
        ) from error


def _head(file: str, flag: str, place: Place) -> pq.FileMetaData | Text | None:
    """Return the metadata of a Parquet file, or what text it is; None where Arrow does not know a column's type."""
    where = f"{flag} {file}"
    try:
        if place is places.LOCAL:
            return pq.read_metadata(file)
        with place.open(file) as content:
            return pq.read_metadata(content)
    except pa.ArrowNotImplementedError:
        return None
    except PermissionError as error:
        raise InputError(f"{where}: may not be read by this user ({error.strerror})") from error
    except (pa.ArrowInvalid, OSError):
        return reading(lambda: formats.text_of(file, where, place.open), where)
