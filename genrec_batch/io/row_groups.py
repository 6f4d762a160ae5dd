"""Row groups: the rows of a log that are read together, over files of several kinds of columns.

Owns: how files are joined and cut, and the reading of a group while its files stay as they are. Must not know: what a
column means, which files there are. In: files with their forms and rows. Out: `Columns` and `RowGroup`s, in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, groupby

import polars as pl

from genrec_batch.core.snapshot import Snapshot
from genrec_batch.io.attempt import unchanged
from genrec_batch.io.forms import Form

GROUP_ROWS = 1 << 20  # of a log that are read at once

NOT_UTF8 = re.compile(r"utf-?8", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that some files of a source have in common, with their rows."""

    frame: pl.LazyFrame
    file: str = ""  # the first of the files, which names them in errors
    files: int = 1  # how many
    text: bool = False  # they were made of a text, so that its values may have any form
    unreadable: Mapping[str, str] = field(default_factory=dict)  # columns that no library knows, with their type


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Neighbouring rows of files that have the same columns."""

    frame: pl.LazyFrame
    columns: int = 0  # which of the source's columns
    by_arrow: Callable[[], pl.LazyFrame] | None = None  # the same rows, where a text that is no UTF-8 is null
    files: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()  # the place of each file's first row in its rows; below 0 where a file is cut
    odd: pl.DataFrame | None = None  # rows of its files that stand for odd lines of a text: file, row, reason, values


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Neighbouring rows of a log that are read together: whole row groups of its files where small, else some rows."""

    pieces: tuple[Piece, ...]
    rows: int
    snapshot: Snapshot | None = None  # of the files

    def collect(self, rows_of: Callable[[pl.LazyFrame, int], pl.LazyFrame], where: str) -> pl.DataFrame:
        """Read what `rows_of` makes of each piece's frame and number of columns; `where` names the log in errors.

        Raises:
            InputError, RetryError: see `reading`; RetryError also where a file has changed since it was first seen.
        """
        files = [file for piece in self.pieces for file in piece.files]
        return unchanged(
            lambda: pl.concat([_piece(piece, rows_of) for piece in self.pieces]), self.snapshot, files, where
        )


def _piece(piece: Piece, rows_of: Callable[[pl.LazyFrame, int], pl.LazyFrame]) -> pl.DataFrame:
    try:
        return rows_of(piece.frame, piece.columns).collect()
    except pl.exceptions.ComputeError as error:
        if piece.by_arrow is None or not NOT_UTF8.search(str(error)):
            raise
        return rows_of(piece.by_arrow(), piece.columns).collect()


def columns(
    names: Sequence[str], files: Sequence[str], of_files: Sequence[Form], numbers: Sequence[int]
) -> Iterator[Columns]:
    """Yield the kinds of columns of files, of which `numbers` says which file has which; `names` are for errors."""
    for number in range(max(numbers, default=-1) + 1):
        alike = [file for file, of_file in zip(files, numbers, strict=True) if of_file == number]
        form = of_files[numbers.index(number)]
        name = names[numbers.index(number)]
        yield Columns(frame=form.scan(alike), file=name, files=len(alike), text=form.text, unreadable=form.unreadable)


def row_groups(
    names: Sequence[str],
    files: Sequence[str],
    of_files: Sequence[Form],
    numbers: Sequence[int],
    counts: Sequence[Sequence[int]],
    snapshot: Snapshot | None,
    odd: pl.DataFrame | None = None,
) -> Iterator[RowGroup]:
    """Yield the row groups of a log: neighbouring small files together, a large file by its own row groups.

    `names` are those of the input's files, of which `files` may be copies; then there is no snapshot. `odd` are rows of
    them that stand for odd lines of a text.
    """
    small: list[int] = []
    held = 0

    def piece_of(at: Sequence[int], number: int, starts: tuple[int, ...], rows: int | None = None) -> Piece:
        form, read = of_files[at[0]], [files[i] for i in at]
        return Piece(
            frame=form.scan(read, -starts[0], rows),
            columns=number,
            by_arrow=partial(form.scan_by_arrow, read, -starts[0], rows),
            files=tuple(names[i] for i in at),
            starts=starts,
            odd=odd,
        )

    def together() -> RowGroup:
        pieces = []
        for number, alike in groupby(small, key=numbers.__getitem__):
            at = list(alike)
            starts = (0, *accumulate(sum(counts[i]) for i in at[:-1]))
            pieces.append(piece_of(at, number, starts))
        return RowGroup(pieces=tuple(pieces), rows=held, snapshot=snapshot)

    for at, of_groups in enumerate(counts):
        rows = sum(of_groups)
        if small and held + rows > GROUP_ROWS:
            yield together()
            small, held = [], 0
        if rows <= GROUP_ROWS:
            small, held = [*small, at], held + rows
            continue
        for start, count in cut(of_groups):
            piece = piece_of([at], numbers[at], (-start,), count)
            yield RowGroup(pieces=(piece,), rows=count, snapshot=snapshot)
    if small:
        yield together()


def cut(groups: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first row, rows) of at most GROUP_ROWS rows: neighbouring row groups, or slices of a large one."""
    start = held = 0
    for rows in groups:
        if held and held + rows > GROUP_ROWS:
            yield start, held
            start, held = start + held, 0
        held += rows
        while held > GROUP_ROWS:
            yield start, GROUP_ROWS
            start, held = start + GROUP_ROWS, held - GROUP_ROWS
    if held:
        yield start, held


def smaller(
    group: RowGroup, values_of: Callable[[pl.LazyFrame], pl.LazyFrame], most: int, where: str
) -> Iterator[RowGroup]:
    """Yield a row group in parts of about `most` values, which `values_of` counts by row.

    Raises:
        InputError, RetryError: see `RowGroup.collect`.
    """
    for piece in group.pieces:
        alone = replace(group, pieces=(piece,))
        counted = alone.collect(lambda frame, _: values_of(frame).select(rows=pl.len(), values=pl.first().sum()), where)
        rows, values = counted.row(0)
        step = max(1, rows * most // max(values or 0, most))
        for start in range(0, rows, step):
            yield RowGroup(pieces=(_part(piece, start, step),), rows=min(step, rows - start), snapshot=group.snapshot)


def _part(piece: Piece, start: int, rows: int) -> Piece:
    """Return some neighbouring rows of a piece."""
    by_arrow = piece.by_arrow
    return replace(
        piece,
        frame=piece.frame.slice(start, rows),
        by_arrow=None if by_arrow is None else lambda: by_arrow().slice(start, rows),
        starts=tuple(each - start for each in piece.starts),
    )


def in_files(rows: pl.DataFrame, piece: Piece) -> pl.DataFrame:
    """Return rejected rows of a piece, whose column `row` counts in it, with their file and their row there.

    Rows in memory are in no file. Those that stand for an odd line have the reason and the text of that line.
    """
    if not piece.files:
        return rows.with_columns(file=pl.lit(None, pl.String))
    starts = pl.DataFrame({"file": piece.files, "start": piece.starts}, schema={"file": pl.String, "start": pl.Int64})
    at = rows.sort("row", maintain_order=True).join_asof(starts, left_on="row", right_on="start")
    found = at.with_columns(pl.col("row") - pl.col("start")).drop("start")
    return found if piece.odd is None else found.update(piece.odd, on=["file", "row"])
