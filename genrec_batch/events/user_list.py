"""A list of ids, as a shell makes one: a text with an id on each line, perhaps below the name of the column.

Owns: which files are such a text, and their ids. Must not know: what the ids are for, tables. In: a path and the log's
type of user_id or video_id. Out: distinct ids.
"""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import IO

import polars as pl

from genrec_batch.core.errors import InputError
from genrec_batch.io.attempt import reading
from genrec_batch.io.places import Store, local_path
from genrec_batch.io.read import Source

ONE_A_LINE = re.compile(rb"(?:\xef\xbb\xbf)?[^\x00,;|\t{}\n]{1,999}(?:\r?\n|$)")  # the beginning of such a text
PARQUET = b"PAR1"


def is_one(path: str) -> bool:
    """Return whether a file, or an object in a store, begins with a line of one value."""
    try:
        with _opened(path) as opened:
            begin = opened.read(1000)
    except OSError:
        return False  # the reader of tables says why
    return not begin.startswith(PARQUET) and ONE_A_LINE.match(begin) is not None


def _opened(path: str) -> IO[bytes]:
    """Open a file or an object; OSError where it is neither."""
    local = local_path(path)
    if "://" not in local:
        if not Path(local).is_file():  # a pipe would wait
            raise FileNotFoundError(path)
        return Path(local).open("rb")
    store = Store(local, "list")
    return store.open_key(store.key)


def read(path: str, where: str, kind: pl.DataType, name: str = "user_id") -> tuple[pl.Series, Source]:
    """Return the distinct ids `name`, rising, and the file as a source; `where` names it in errors.

    Raises:
        InputError: not UTF-8, or a line is not an id of this type.
    """
    with reading(lambda: _opened(path), where) as opened:
        content = reading(opened.read, where)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error}); write one id on each line") from error
    texts = pl.Series(name, lines, pl.String).str.strip_chars()
    texts = texts[1:] if len(texts) and texts[0] == name else texts
    texts = texts.filter(texts != "")
    ids = texts.cast(kind, strict=False)
    odd = texts.filter(ids.is_null())
    if len(odd):
        raise InputError(f"{where}: {odd[0]!r} is on a line of its own and no {kind}, which the log's {name} is")
    contents: Future[str] = Future()
    contents.set_result(hashlib.sha256(content).hexdigest())
    source = Source.of(ids.to_frame().lazy(), len(ids), path)
    return ids.unique().sort(), replace(source, files=(path,), bytes=len(content), contents=contents)
