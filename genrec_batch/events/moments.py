"""A column of moments in a table beside the log: dates, datetimes, ISO 8601 text, or epochs of any unit.

Owns: such a column as microseconds. Must not know: what the moments are for.
"""

from __future__ import annotations

import polars as pl

from genrec_batch.core.errors import InputError
from genrec_batch.events.convert import TIME, converted
from genrec_batch.events.times import time_unit


def is_moment(kind: pl.DataType) -> bool:
    """Return whether a column of this type may hold moments."""
    return kind.is_temporal() or kind.is_integer() or kind.is_float() or kind in (pl.String, pl.Null)


def moments_us(column: pl.Series, where: str) -> pl.Series:
    """Return moments as epoch microseconds (Int64, UTC where they name no zone); null where there is none.

    Numbers are epochs in the unit in which most of them are times since 1973.

    Raises:
        InputError: the column cannot hold moments, or none of its values is one.
    """
    name = column.name
    if not is_moment(column.dtype) or isinstance(column.dtype, (pl.Duration, pl.Time)):
        raise InputError(f"{where}: column {name!r} is {column.dtype}, expected a datetime, ISO 8601 or an epoch")
    frame = column.alias("timestamp").to_frame()
    try:
        unit = time_unit(frame.lazy(), column.dtype, where)
    except InputError as error:
        raise InputError(
            f"{where}: column {name!r} holds no moments, such as {column.drop_nulls()[0]!r}: write datetimes, ISO 8601 "
            "or an epoch in s, ms, us or ns"
        ) from error
    time = frame.select(converted("timestamp", "time", column.dtype, TIME, unit).dt.epoch("us"))["timestamp"]
    if column.count() and not time.count():
        raise InputError(
            f"{where}: column {name!r} holds no moments, such as {column.drop_nulls()[0]!r}: write datetimes, ISO 8601 "
            "or an epoch in s, ms, us or ns"
        )
    return time.alias(name)
