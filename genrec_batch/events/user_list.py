"""A list of users, as a shell makes one: a text with an id on each line, perhaps below the name of the column.

Owns: which files are such a text, and their ids. Must not know: what the users are for, tables. In: a path and the
log's type of user_id. Out: distinct ids.
"""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import polars as pl

from genrec_batch.core.errors import InputError
from genrec_batch.io.read import Source

ONE_A_LINE = re.compile(rb"(?:\xef\xbb\xbf)?[^\x00,;|\t{}\n]{1,999}(?:\r?\n|$)")  # the beginning of such a text
PARQUET = b"PAR1"


def is_one(path: str) -> bool:
    """Return whether a local file begins with a line of one value."""
    file = Path(path)
    if "://" in path or not file.is_file():
        return False
    try:
        with file.open("rb") as opened:
            begin = opened.read(1000)
    except OSError:
        return False  # the reader of tables says why
    return not begin.startswith(PARQUET) and ONE_A_LINE.match(begin) is not None


def read(path: str, where: str, kind: pl.DataType) -> tuple[pl.Series, Source]:
    """Return the distinct ids, rising, and the file as a source; `where` names it in errors.

    Raises:
        InputError: not UTF-8, or a line is not an id of this type.
    """
    content = Path(path).read_bytes()
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error}); write one id on each line") from error
    texts = pl.Series("user_id", lines, pl.String).str.strip_chars()
    texts = texts[1:] if len(texts) and texts[0] == "user_id" else texts
    texts = texts.filter(texts != "")
    ids = texts.cast(kind, strict=False)
    odd = texts.filter(ids.is_null())
    if len(odd):
        raise InputError(f"{where}: {odd[0]!r} is on a line of its own and no {kind}, which the log's user_id is")
    contents: Future[str] = Future()
    contents.set_result(hashlib.sha256(content).hexdigest())
    source = Source.of(ids.to_frame().lazy(), len(ids), path)
    return ids.unique().sort(), replace(source, files=(path,), bytes=len(content), contents=contents)
