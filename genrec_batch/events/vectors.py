"""Lists of floats in the side tables: their width, their faults, and embeddings of any width as 200 numbers.

Owns: which rows have a vector that cannot be used, and the projection. Must not know: ids, files, what a vector means.

A vector of 200 numbers is used as it is, a shorter one is filled up with zeros. A longer one is hashed as columns are
(Weinberger et al. 2009): number i adds to slot h mod 200, with the sign of bit 63 of h, the xxh64 of the text `[i]`.
Nothing is drawn and no matrix is multiplied, so every machine computes the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from genrec_batch.core.arrays import F32, F64, U8
from genrec_batch.core.errors import InputError
from genrec_batch.core.layout import HASHED, VECTOR_LIMIT
from genrec_batch.events import hashing

Widths = Mapping[str, int | None]  # of a table's vectors by column: None for any, as long as all rows have the same


def check_lists(frame: pl.DataFrame, source: str, wanted: Widths) -> None:
    """Raise InputError, naming column and row, where a column is no list of as many floats as are wanted."""
    there = [(frame[name], width) for name, width in wanted.items() if name in frame.columns]
    faults = [fault for column, width in there for fault in _faults(column, width)]
    if faults:
        raise InputError(f"{source}: its lists do not fit the model:\n  " + "\n  ".join(faults))


def odd_rows(column: pl.Series, width: int | None) -> pl.Series:
    """Return which rows of a column of lists cannot be used though most can: another width, null, NaN, infinity."""
    if not _is_vectors(column.dtype):
        return pl.Series(np.zeros(len(column), np.bool_))
    lists = column.cast(pl.List(pl.Float32))
    right = width or _common_width(lists)
    hole = lists.list.eval((pl.element().is_finite() & pl.element().is_not_null()).not_().any()).list.first()
    odd = hole.fill_null(value=False)
    if right == _common_width(lists):
        odd |= (lists.list.len() != right).fill_null(value=False)
    return odd


def matrix(column: pl.Series, width: int | None) -> tuple[F32, U8]:
    """Return checked lists as [R, width], that of the column where none is given, and which rows are not null.

    Null rows are zeros; values beyond `layout.VECTOR_LIMIT` count as the limit.
    """
    lists = column.cast(pl.List(pl.Float32))
    has_R = lists.is_not_null().to_numpy()
    width = _common_width(lists) if width is None else width
    floats_RD = np.zeros((len(lists), width), np.float32)
    given_RD = lists.drop_nulls().explode().to_numpy().reshape(-1, width) if width else floats_RD[has_R]
    floats_RD[has_R] = np.clip(given_RD, -VECTOR_LIMIT, VECTOR_LIMIT)  # squares and sums still fit a float
    return floats_RD, has_R


def projected(floats_RD: F32) -> F32:
    """Return vectors of any width as [R, 200]; see the module."""
    rows, width = floats_RD.shape
    if width == HASHED:
        return floats_RD
    if width < HASHED:
        return np.concatenate([floats_RD, np.zeros((rows, HASHED - width), np.float32)], axis=1)
    total_R200: F64 = np.zeros((rows, HASHED))
    for place in range(width):
        at, sign = hashing.slot(f"[{place}]")
        total_R200[:, at] += sign * floats_RD[:, place]
    return total_R200.astype(np.float32)


def _is_vectors(kind: pl.DataType) -> bool:
    return isinstance(kind, (pl.List, pl.Array)) and kind.inner.is_numeric()


def _common_width(lists: pl.Series) -> int:
    """Return the commonest width of a column's lists, the larger of two; 0 where it has none."""
    widths = lists.list.len().drop_nulls().alias("width").value_counts().sort("count", "width", descending=True)
    return int(widths["width"][0]) if len(widths) else 0


def _faults(column: pl.Series, width: int | None) -> list[str]:
    what = "floats" if width is None else f"{width} floats"
    if not _is_vectors(column.dtype):
        return [f"column {column.name!r} is {column.dtype}, expected a list of {what}"]
    lists = column.cast(pl.List(pl.Float32))
    lengths = lists.list.len()
    width = _common_width(lists) if width is None else width
    odd = (lists.is_not_null() & (lengths != width)).arg_true()
    if len(odd):
        row = int(odd[0])
        return [f"column {column.name!r} has {lengths[row]} floats in row {row}, expected {width}"]
    flat = lists.explode().drop_nulls()
    if lists.list.eval(pl.element().is_null().any()).explode().any() or not flat.is_finite().all():
        return [f"column {column.name!r} holds null, NaN or infinity inside a list"]
    return []
