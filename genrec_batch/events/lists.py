"""Rows of a user with lists of events: `explode` of `--schema`.

Owns: which rows have lists that make events, and these. Must not know: what a column means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from genrec_batch.core.errors import InputError, nearest
from genrec_batch.io.row_groups import GROUP_ROWS, RowGroup, smaller

MOST_EVENTS = 4 * GROUP_ROWS  # that are read at once; each part of a file's row group costs the decoding of all of it


def listed(frame: pl.LazyFrame, columns: Sequence[str]) -> pl.LazyFrame:
    """Return a file's rows with lists where they have arrays in some columns."""
    types = frame.collect_schema()
    arrays = [(name, kind) for name, kind in types.items() if name in columns and isinstance(kind, pl.Array)]
    return frame.with_columns(pl.col(name).cast(pl.List(kind.inner)) for name, kind in arrays)


def exploded(frame: pl.LazyFrame, columns: Sequence[str], where: str) -> pl.LazyFrame:
    """Return a file's rows with an event for each element of its lists, to learn the types of these.

    Raises:
        InputError: `where` has no such column, or it is no list.
    """
    types = frame.collect_schema()
    for name in columns:
        if name not in types:
            raise InputError(
                f"--schema: explode names {name!r}, which {where} does not have.{nearest(name, list(types))}"
            )
        if not isinstance(types[name], (pl.List, pl.Array)):
            raise InputError(f"--schema: explode names {name!r}, which is {types[name]} in {where} and not a list")
    return listed(frame, columns).filter(even(columns)).explode(*columns) if columns else frame


def bounded(groups: Sequence[RowGroup], columns: Sequence[str], where: str) -> Iterator[RowGroup]:
    """Yield row groups of about `MOST_EVENTS` events each, in order: a million rows may have a billion.

    `where` names the log in errors.

    Raises:
        InputError, RetryError: see `RowGroup.collect`.
    """
    for group in groups:
        yield from smaller(group, lambda frame: _lengths(frame, columns[0]), MOST_EVENTS, where)


def _lengths(frame: pl.LazyFrame, column: str) -> pl.LazyFrame:
    return listed(frame, [column]).select(pl.col(column).list.len())


def even(columns: Sequence[str]) -> pl.Expr:
    """Return whether the lists of a row have as many elements; a null is a list without any."""
    first, *others = (pl.col(name).list.len().fill_null(0) for name in columns)
    return pl.all_horizontal(pl.lit(value=True), *(first == other for other in others))
