"""Files in: a file, a glob, a directory or a URI becomes row groups, with a snapshot of the input.

Owns: row groups, a fingerprint, tables with one row per id. Must not know: the events contract, what a row means, which
files there are (`find`), the types of columns (`forms`), output (`output`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from genrec_batch.core.errors import InputError, RetryError, nearest
from genrec_batch.core.snapshot import Snapshot
from genrec_batch.io import find, fingerprint, forms
from genrec_batch.io.attempt import reading, unchanged
from genrec_batch.io.forms import Form
from genrec_batch.io.row_groups import Columns, Piece, RowGroup, columns, cut, row_groups


@dataclass(frozen=True, kw_only=True)
class Source:
    """A log or table on disk: its rows, and a snapshot of its state when the run began."""

    path: str  # as the user gave it
    columns: tuple[Columns, ...]  # of its files: those that have the same ones together
    row_groups: tuple[RowGroup, ...]  # all rows, in order
    files: tuple[str, ...]  # sorted
    rows: int
    bytes: int | None  # None for a URI
    contents: Future[str] | None  # the fingerprint, computed on another thread
    first_look: Snapshot | None = None  # of the files

    @staticmethod
    def of(frame: pl.LazyFrame, rows: int, path: str = "the table") -> Source:
        """Return rows in memory as a source; they are no input of the lineage."""
        return Source(
            path=path,
            columns=(Columns(frame=frame),),
            row_groups=(RowGroup(pieces=(Piece(frame=frame),), rows=rows),),
            files=(),
            rows=rows,
            bytes=None,
            contents=None,
        )

    @property
    def fingerprint(self) -> str:
        """Return a sha256 over every file's name and content; a URI, whose content may change, gets a unique value."""
        assert self.contents is not None, "opened without `hashed`"
        return self.contents.result()

    def snapshot(self) -> dict[str, object]:
        """Return the record of this source in the lineage: files, rows, bytes, fingerprint."""
        return {
            "path": self.path,
            "files": len(self.files),
            "rows": self.rows,
            "bytes": self.bytes,
            "sha256": self.fingerprint,
        }

    def frame(self, rename: Callable[[pl.LazyFrame], pl.LazyFrame] = lambda frame: frame) -> pl.LazyFrame:
        """Return all rows, in order, after `rename`, with one type for each column.

        Raises:
            InputError: two files have types of one column that have no type in common.
        """
        renamed = [(columns.file, rename(columns.frame).collect_schema()) for columns in self.columns]
        types = forms.common_types(renamed, self.path)
        pieces = [piece for group in self.row_groups for piece in group.pieces]
        return pl.concat([forms.in_types(rename(piece.frame), types) for piece in pieces] or [self.columns[0].frame])


def scan(path: str, flag: str, *, hashed: bool = True) -> Source:
    """Open Parquet input; `flag` ("INPUT", "--users") names it in errors.

    A separate thread hashes the content, unless `hashed` is False because the fingerprint is not needed.

    Raises:
        InputError: nothing there, a file is not Parquet or is truncated, or a partition column is in the files too.
        RetryError: a file has changed meanwhile.
    """
    if "://" in path:
        return _scan_uri(path, flag)
    files = find.files(path, flag)
    base = find.base(path)
    where = f"{flag} {path}"
    snapshot = _look(files, where)
    names = [str(Path(file).relative_to(base)) for file in files]

    def opened() -> tuple[list[list[int]], list[Form]]:
        each = [_opened(file, flag) for file in files]
        return [rows for rows, _ in each], [form for _, form in each]

    counts, of_files = unchanged(opened, snapshot, files, where)
    contents = fingerprint.begin(lambda: fingerprint.of_files(files, names, snapshot)) if hashed else None
    of_files = _partitioned(of_files, names, where)
    kinds: dict[object, int] = {}
    numbers = [kinds.setdefault(form.key, len(kinds)) for form in of_files]
    return Source(
        path=path,
        columns=tuple(columns(files, of_files, numbers)),
        row_groups=tuple(row_groups(files, of_files, numbers, counts, snapshot)),
        files=tuple(files),
        rows=sum(map(sum, counts)),
        bytes=sum(Path(file).stat().st_size for file in files),
        contents=contents,
        first_look=snapshot,
    )


def _look(files: list[str], where: str) -> Snapshot:
    try:
        return Snapshot.of(files, where)
    except FileNotFoundError as error:
        raise RetryError(
            f"{where}: {error.filename} was removed while it was opened; run the same command again"
        ) from error
    except OSError as error:
        raise InputError(f"{where}: {error.filename} cannot be read by this user ({error.strerror})") from error


def _opened(file: str, flag: str) -> tuple[list[int], Form]:
    """Return the rows of each row group of a file, and its columns."""
    metadata = find.metadata(file, flag)
    return reading(lambda: (forms.group_rows(file, metadata), forms.form_of(file, metadata)), f"{flag} {file}")


def _partitioned(of_files: list[Form], names: list[str], where: str) -> list[Form]:
    """Add the hive partition columns, unless the files have them."""
    hive = forms.hive_types(names)
    both = sorted(hive.keys() & {name for form in of_files for name in form.columns})
    if both and len(both) < len(hive):
        raise InputError(f"{where}: {', '.join(both)} is in the files and in the names of folders; drop one of them")
    return of_files if both or not hive else [replace(form, hive=hive) for form in of_files]


def _scan_uri(path: str, flag: str) -> Source:
    frame = pl.scan_parquet(path)
    rows = reading(lambda: int(frame.select(pl.len()).collect().item()), f"{flag} {path}")
    unlike_any = f"unverified-{uuid.uuid4().hex}"  # an object store's content may change: never resume such a run
    pieces = [(Piece(frame=frame.slice(start, count)), count) for start, count in cut([rows])]
    contents: Future[str] = Future()
    contents.set_result(unlike_any)
    return Source(
        path=path,
        columns=(Columns(frame=frame),),
        row_groups=tuple(RowGroup(pieces=(piece,), rows=count) for piece, count in pieces),
        files=(path,),
        rows=rows,
        bytes=None,
        contents=contents,
    )


def table(
    path: str, flag: str, key: str, rename: Callable[[pl.LazyFrame], pl.LazyFrame]
) -> tuple[pl.DataFrame, Source]:
    """Read a table with one row per id, in memory, after `rename`.

    Raises:
        InputError: the key column is missing, null, neither integer nor string, or an id repeats.
    """
    source, where = scan(path, flag), f"{flag} {path}"
    frame = source.frame(rename)
    names = frame.collect_schema().names()
    if key not in names:
        raise InputError(
            f"{where}: column {key!r} is missing.{nearest(key, names)} Its columns: {', '.join(names[:40])}"
        )
    read = unchanged(frame.collect, source.first_look, source.files, where)
    read = read.with_columns(_ids(read[key], where))
    ids = read[key]
    if ids.null_count():
        row = ids.is_null().arg_true()[0]
        raise InputError(f"{flag} {path}: column {key!r} is null in row {row}; every row needs an id")
    if ids.n_unique() != len(ids):
        row = int(ids.is_first_distinct().not_().arg_true()[0])
        raise InputError(f"{flag} {path}: {key} {ids[row]!r} repeats in row {row}; one row per id")
    return read, source


def _ids(column: pl.Series, where: str) -> pl.Series:
    """Return ids as integers or as text; whole floats, which pandas makes of integers beside a null, are integers."""
    kind = column.dtype
    if kind.is_integer():
        return column
    if kind in (pl.String, pl.Categorical, pl.Enum, pl.Binary):
        return reading(lambda: column.cast(pl.String), f"{where}: column {column.name!r}")
    if kind.is_numeric():
        whole = column.cast(pl.Int64, strict=False)
        if (whole.cast(kind) == column).all():
            return whole
    raise InputError(f"{where}: column {column.name!r} is {kind}, expected an integer or a string")
