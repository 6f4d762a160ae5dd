"""Ids of a table in the type of the log's: an integer, the text that it is written as and the float of it are one id.

Owns: which values are an id of the log's type, and what becomes of the others. Must not know: what the tables are for.
In: a table as it was read. Out: the same table with ids that match the log's, null where a value can be none of them.
"""

from __future__ import annotations

import polars as pl

from genrec_batch.core.errors import InputError
from genrec_batch.io.read import GIVEN, whole
from genrec_batch.runtime.console import LOG

WHOLE = r"^(?:0|-?[1-9]\d*)$"  # a text that an integer is written as; 007 is another id than 7


def same_type(frame: pl.DataFrame, key: str, log: pl.DataType, source: str) -> pl.DataFrame:
    """Return a table whose ids are of the log's type.

    Ids that can be none of the log are null, and in a column `GIVEN` as text.

    Raises:
        InputError: none of them can; `source` names the table.
    """
    given = frame[key]
    if given.dtype == log:
        return frame
    there = frame.select(_of_type(pl.col(key), given.dtype, log))[key]
    odd = given.is_not_null() & there.is_null()
    if not odd.any():
        return frame.with_columns(there)
    if not there.count():
        raise InputError(
            f"{source}: column {key!r} is {given.dtype}, such as {given.drop_nulls()[0]!r}, and that of the log is "
            f"{log}: no row would ever match; give the table whose ids are those of this log"
        )
    earlier = [pl.col(GIVEN)] if GIVEN in frame.columns else []
    now = pl.when(odd).then(given).cast(pl.String)
    return frame.with_columns(there, pl.coalesce(*earlier, now).alias(GIVEN))


def lists_of_type(frame: pl.DataFrame, key: str, log: pl.DataType, source: str) -> pl.DataFrame:
    """Return a table whose lists of ids are of the log's type, without the elements that can be none of the log.

    Raises:
        InputError: none of them can; `source` names the table.
    """
    kind = frame.schema[key]
    inner: pl.DataType = kind.inner  # type: ignore[attr-defined]
    lists = pl.col(key).cast(pl.List(inner))
    if inner == log or (inner.is_integer() and log.is_integer()):  # the catalog may know wider ones than the log has
        return frame.with_columns(lists)
    given = frame.select(lists.explode()).to_series().drop_nulls()
    there = given.to_frame().select(_of_type(pl.col(key), inner, log)).to_series()
    odd = given.filter(there.is_null())
    if len(odd) and not there.count():
        same_type(odd.to_frame(), key, log, source)  # says why
    if len(odd):
        LOG.warning(
            "%s: %s of the %s values in column %r are no %s, as the log's are, such as %r, and were left out",
            source, f"{len(odd):,}", f"{len(given):,}", key, log, odd[0],
        )  # fmt: skip
    return frame.with_columns(lists.list.eval(_of_type(pl.element(), inner, log)).list.drop_nulls())


def _of_type(value: pl.Expr, kind: pl.DataType, log: pl.DataType) -> pl.Expr:
    """Return values of type `kind` in the log's type, null where they can be no id of it."""
    if kind == pl.String and log.is_integer():
        value = pl.when(value.str.contains(WHOLE)).then(value)
    elif kind.is_float() or kind.is_decimal():
        value = whole(value, kind)
    return value.cast(log, strict=False)
