"""Files in: a file, a glob, a directory or a URI becomes row groups, with a snapshot of the input.

Owns: row groups, a fingerprint, tables with one row per id. Must not know: the events contract, what a row means, which
files there are (`find`), the types of columns (`forms`), output (`output`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from genrec_batch.core.errors import InputError, nearest
from genrec_batch.core.snapshot import Snapshot
from genrec_batch.io import catalogs, contents, find, fingerprint, forms, places, tables
from genrec_batch.io.attempt import reading, unchanged
from genrec_batch.io.common_types import common_types, in_types
from genrec_batch.io.find import Found
from genrec_batch.io.forms import Form
from genrec_batch.io.places import Place
from genrec_batch.io.row_groups import Columns, Piece, RowGroup, columns, cut, row_groups
from genrec_batch.io.tables import Table
from genrec_batch.runtime.console import LOG

ROW, PIECE = "row of the piece", "piece of the table"  # columns of numbered frames
GIVEN = "id as it was given"  # a column of ids that are none, as text
EXACT: dict[pl.DataType, int] = {
    pl.Float32(): 2**24,
    pl.Float64(): 2**53,
}  # from which on neighbouring integers are one float


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
    table: Mapping[str, object] | None = None  # of a table: see `tables.Table.about`

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
        """Return the record of this source in the lineage: files, rows, bytes, fingerprint, version of a table."""
        return {
            "path": self.path,
            "files": len(self.files),
            "rows": self.rows,
            "bytes": self.bytes,
            "sha256": self.fingerprint,
            **({} if self.table is None else {"table": dict(self.table)}),
        }

    def frame(
        self,
        rename: Callable[[pl.LazyFrame], pl.LazyFrame] = lambda frame: frame,
        *,
        numbered: bool = False,
        where: str = "",
    ) -> pl.LazyFrame:
        """Return all rows, in order, after `rename`, with one type for each column.

        With `numbered`, columns `ROW` and `PIECE` say where a row was before `rename`, which keeps the first. `where`
        names the source in errors.

        Raises:
            InputError: two files have types of one column that have no type in common.
        """

        def renamed(frame: pl.LazyFrame) -> pl.LazyFrame:
            return rename(frame.with_row_index(ROW) if numbered else frame)

        def placed(frame: pl.LazyFrame, number: int) -> pl.LazyFrame:
            return frame.with_columns(pl.lit(number, pl.UInt32).alias(PIECE)) if numbered else frame

        schemas = [(columns.file, renamed(columns.frame).collect_schema()) for columns in self.columns]
        types = common_types(schemas, where or self.path)
        pieces = [piece.frame for group in self.row_groups for piece in group.pieces]
        frames = [placed(in_types(renamed(frame), types), number) for number, frame in enumerate(pieces)]
        return pl.concat(frames or [placed(renamed(self.columns[0].frame), 0)])


def scan(path: str, flag: str, *, hashed: bool = True, spill_to: Path | None = None) -> Source:
    """Open an input: files of Parquet or text, or a table, by path or URI; `flag` ("INPUT", "--users") names it.

    A separate thread hashes the content, unless `hashed` is False because the fingerprint is not needed. Texts are
    converted to Parquet in a temporary folder below `spill_to`, by default the system's. The columns of a file without
    rows, beside files that have some, do not matter: writers that know no type there write any.

    Raises:
        InputError: nothing there, a file is neither Parquet nor a text or is truncated, or a partition column is in the
            files too.
        RetryError: a file has changed meanwhile, or a connection was lost.
        EngineError: the package for such a store or table is not installed.
    """
    where, (found, place, version) = f"{flag} {path}", _found(path, flag)
    if found.table is not None:
        return _of_table(path, tables.opened(found.files[0], found.table, where, version, spill_to))
    files, names = found.files, found.names
    if found.skipped:
        LOG.warning(
            "%s: %d files are left out for their names or formats: %s",
            where,
            len(found.skipped),
            find.some(found.skipped),
        )
    if found.links:
        LOG.warning(
            "%s: %d names are links to files of other names, which are read once: %s",
            where,
            len(found.links),
            find.some([f"{name} is {first}" for name, first in found.links]),
        )
    first_look = unchanged(lambda: Snapshot.of(files, where, place.state, place.each), None, files, where)
    read = unchanged(lambda: contents.opened(files, names, flag, place, spill_to), first_look, files, where)
    of_files = _partitioned(read.forms, names, where)
    kept = None if read.copies else first_look
    filled = [at for at, counts in enumerate(read.rows) if sum(counts)] or range(len(files))
    of_files, counts = [of_files[at] for at in filled], [read.rows[at] for at in filled]
    read_from, said = [read.files[at] for at in filled], [files[at] for at in filled]
    kinds: dict[object, int] = {}
    numbers = [kinds.setdefault(form.key, len(kinds)) for form in of_files]
    return Source(
        path=path,
        columns=tuple(columns(said, read_from, of_files, numbers)),
        row_groups=tuple(row_groups(said, read_from, of_files, numbers, counts, kept, read.odd)),
        files=files,
        rows=sum(map(sum, read.rows)),
        bytes=reading(lambda: sum(map(place.size, files)), where),
        contents=_fingerprint(files, names, first_look, place) if hashed else None,
        first_look=first_look,
    )


def _found(path: str, flag: str) -> tuple[Found, Place, str | None]:
    """Return what a path or URI is, and the version of a table that it names.

    Raises:
        InputError: nothing is there, or a version is named and what is there is no table.
    """
    where, local = f"{flag} {path}", places.local_path(path)
    base, version = tables.split(local)
    if catalogs.is_name(local):
        return Found(files=(base,), names=(base,), table="Iceberg"), places.LOCAL, version
    if "://" in local:
        store = reading(lambda: places.Store(local, flag), where)
        try:
            return reading(lambda: find.in_store(store, where), where), store.place, None
        except InputError:
            if version is None:
                raise
            store = reading(lambda: places.Store(base, flag), where)
            found, place = reading(lambda: find.in_store(store, where), where), store.place
    elif version is None or Path(local).exists() or not Path(base).exists():
        return find.found(local, flag), places.LOCAL, None
    else:
        found, place = find.found(base, flag), places.LOCAL
    if found.table is None:
        raise InputError(f"{where}: only a table has versions (TABLE@VERSION), and {base} is neither Delta nor Iceberg")
    return found, place, version


def _of_table(path: str, table: Table) -> Source:
    """Return a table as a source; one version of it never changes."""
    pieces = [(Piece(frame=table.frame.slice(start, count)), count) for start, count in cut([table.rows])]
    version: Future[str] = Future()
    version.set_result(hashlib.sha256(table.version.encode()).hexdigest())
    return Source(
        path=path,
        columns=(Columns(frame=table.frame),),
        row_groups=tuple(RowGroup(pieces=(piece,), rows=count) for piece, count in pieces),
        files=(path,),
        rows=table.rows,
        bytes=None,
        contents=version,
        table=table.about,
    )


def _fingerprint(files: Sequence[str], names: Sequence[str], first_look: Snapshot, place: Place) -> Future[str]:
    """Begin to hash local files; of objects, their states tell."""
    if place is places.LOCAL:
        return fingerprint.begin(lambda: fingerprint.of_files(files, names, first_look))
    return fingerprint.begin(lambda: fingerprint.of_states(names, [first_look.states[file] for file in files]))


def _partitioned(of_files: Sequence[Form], names: Sequence[str], where: str) -> list[Form]:
    """Add the hive partition columns, unless the files have them."""
    hive = forms.hive_types(names)
    both = sorted(hive.keys() & {name for form in of_files for name in form.columns})
    if both and len(both) < len(hive):
        raise InputError(f"{where}: {', '.join(both)} is in the files and in the names of folders; drop one of them")
    if both or not hive:
        return list(of_files)
    return [
        replace(form, hive={key: hive[key] for key in forms.hive_keys(name)})
        for form, name in zip(of_files, names, strict=True)
    ]


def table(
    path: str,
    flag: str,
    key: str,
    rename: Callable[[pl.LazyFrame], pl.LazyFrame],
    spill_to: Path | None = None,
) -> tuple[pl.DataFrame, Source]:
    """Read a table with a column of ids, in memory, after `rename`; `ROW` and `PIECE` say where each row was.

    Numbers that are no ids, such as 12.5, are null, and in a column `GIVEN` as text.

    Raises:
        InputError: the key column is missing, or holds neither integers nor strings.
    """
    source, where = scan(path, flag, spill_to=spill_to), f"{flag} {path}"
    frame = source.frame(rename, numbered=True, where=where)
    names = [name for name in frame.collect_schema().names() if name not in (ROW, PIECE)]
    if key not in names:
        raise InputError(
            f"{where}: column {key!r} is missing.{nearest(key, names)} Its columns: {', '.join(names[:40])}"
        )
    read = unchanged(frame.collect, source.first_look, source.files, where)
    return read.with_columns(*ids_of(read[key], where)), source


def ids_of(column: pl.Series, where: str) -> list[pl.Series]:
    """Return ids as integers or as text, and those that are neither.

    Whole floats, which pandas makes of integers beside a null, are integers.
    """
    kind = column.dtype
    if kind.is_integer():
        return [column]
    if kind in (pl.String, pl.Categorical, pl.Enum, pl.Binary):
        return [reading(lambda: column.cast(pl.String), f"{where}: column {column.name!r}")]
    if kind.is_numeric():
        ids = column.to_frame().select(whole(pl.col(column.name), kind)).to_series()
        given = column.fill_nan(None) if kind.is_float() else column
        odd = given.is_not_null() & ids.is_null()
        if ids.count() or not odd.any():
            return [ids, given.cast(pl.String).set(~odd, None).alias(GIVEN)] if odd.any() else [ids]
    raise InputError(f"{where}: column {column.name!r} is {kind}, expected an integer or a string")


def whole(value: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """Return floats or decimals as integers; a fraction, and a float that stands for several integers, is null."""
    number = value.cast(pl.Int64, strict=False)
    same = (number.cast(kind) == value) & (number.abs() < EXACT.get(kind, 2**63 - 1))
    return pl.when(same).then(number)
