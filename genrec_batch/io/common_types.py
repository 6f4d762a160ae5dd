"""One type for a column that has several in the files of a table.

Owns: which types have one in common, and the cast to it. Must not know: the events contract, which has fixed types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from genrec_batch.core.errors import InputError


def common_types(schemas: Sequence[tuple[str, Mapping[str, pl.DataType]]], where: str) -> dict[str, pl.DataType]:
    """Return one type for each column of several tables, each with the name of its first file.

    Numbers widen, texts meet in String, times in microseconds (in UTC where one has a zone), lists by their values.

    Raises:
        InputError: two types have no type in common; the message names a file of each.
    """
    types: dict[str, pl.DataType] = {}
    first_seen: dict[str, str] = {}
    faults = []
    for file, schema in schemas:
        for name, kind in schema.items():
            have = types.setdefault(name, kind)
            first_seen.setdefault(name, file)
            wide = common_type(have, kind)
            if wide is None:
                faults.append(f"column {name!r} is {have} in {first_seen[name]} and {kind} in {file}")
            else:
                types[name] = wide
    if faults:
        hint = "convert one of them with --schema FILE.toml, or write the column again in one type"
        raise InputError(f"{where}: its files disagree; {hint}:\n  " + "\n  ".join(faults[:20]))
    return types


def common_type(a: pl.DataType, b: pl.DataType) -> pl.DataType | None:
    """Return a type that values of both types can be cast to, None if there is none."""
    if a == b:
        return a
    if pl.Null in (a, b):  # a file without any value has no type
        return b if a == pl.Null else a
    if a.is_integer() and b.is_integer() and a.is_signed_integer() == b.is_signed_integer():
        return max(a, b, key=lambda kind: int(str(kind).lstrip("UInt")))
    if a.is_integer() and b.is_integer():
        return pl.Int64()
    if all(kind.is_numeric() or kind == pl.Boolean for kind in (a, b)):
        return pl.Float64() if any(kind.is_float() or kind.is_decimal() for kind in (a, b)) else pl.Int64()
    if all(kind in (pl.String, pl.Categorical, pl.Enum) for kind in (a, b)):
        return pl.String()
    if all(kind in (pl.Datetime, pl.Date) for kind in (a, b)):
        zoned = any(getattr(kind, "time_zone", None) for kind in (a, b))
        return pl.Datetime("us", "UTC" if zoned else None)
    if isinstance(a, pl.List | pl.Array) and isinstance(b, pl.List | pl.Array):
        inner = common_type(_inner(a), _inner(b))
        return None if inner is None else pl.List(inner)
    return None


def _inner(kind: pl.List | pl.Array) -> pl.DataType:
    return kind.inner if isinstance(kind.inner, pl.DataType) else kind.inner()


def in_types(frame: pl.LazyFrame, types: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    """Return a frame in types that `common_types` has found; columns that it does not have are null."""
    have = frame.collect_schema()
    return frame.select(
        _in_type(name, have[name], kind) if name in have else pl.lit(None, kind).alias(name)
        for name, kind in types.items()
    )


def _in_type(name: str, have: pl.DataType, kind: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if have == kind:
        return column
    if isinstance(kind, pl.Datetime) and kind.time_zone:
        zoned = isinstance(have, pl.Datetime) and have.time_zone
        moved = (
            column.dt.convert_time_zone("UTC") if zoned else column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        )
        return moved.cast(kind)
    return column.cast(kind)
