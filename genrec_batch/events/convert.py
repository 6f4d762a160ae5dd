"""Columns of any type as the contract's fixed types, so that files of different types become one log.

Owns: in which type the files of a log meet, and the conversion to it. Must not know: what is in the files. In: a
column's kind and its types in several files. Out: its one type, and an expression for each of its own types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from genrec_batch.core.errors import InputError
from genrec_batch.events.columns import KINDS, REQUIRED, Kind, is_text
from genrec_batch.events.times import TimeUnit, iso_time

TIME = pl.Datetime("us", "UTC")
LARGEST = 1e30  # of a plausible number: its square and sums still fit a float
EXACT_IN_FLOAT32 = (pl.Float32, pl.Int8, pl.Int16, pl.UInt8, pl.UInt16)
WORDS = {  # flags in texts, also as data bases write them
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0"), False),
}
UNITS = {"epoch s": 10**6, "epoch ms": 10**3, "epoch us": 1, "epoch ns": 10**-3}  # microseconds


def _meeting_type(kind: Kind, types: Sequence[pl.DataType]) -> pl.DataType | None:
    """Return the type in which columns of these types meet; None for ids that are integers here and texts there."""
    known = [type_ for type_ in types if type_ != pl.Null]
    if kind == "id":
        return _id_type(known)
    if kind in ("number", "label"):
        exact = known and kind == "number" and all(type_ in EXACT_IN_FLOAT32 for type_ in known)
        return pl.Float32() if exact else pl.Float64()
    return {"time": TIME, "flag": pl.Boolean()}.get(kind, pl.String())


def common_type(name: str, own: Sequence[Mapping[str, pl.DataType]], files: Sequence[str], source: str) -> pl.DataType:
    """Return the type of a column in which all files of a log meet; sessions, which are only compared, meet in text.

    Raises:
        InputError: the ids of users or videos are numbers in one of the files and texts in another.
    """
    met = _meeting_type(KINDS[name], [types[name] for types in own if name in types])
    if met is not None:
        return met
    if name not in REQUIRED:
        return pl.String()
    text = next(at for at, types in enumerate(own) if is_text(types[name]))
    whole = next(at for at, types in enumerate(own) if types[name] != pl.Null and not is_text(types[name]))
    raise InputError(
        f"{source}: its files disagree: column {name!r} is {own[whole][name]} in {files[whole]} and "
        f"{own[text][name]} in {files[text]}, and no number equals a text; make all of them texts with "
        f"--schema FILE.toml and in it {name} = 'CAST({name} AS VARCHAR)'"
    )


def _id_type(types: Sequence[pl.DataType]) -> pl.DataType | None:
    texts = [is_text(type_) for type_ in types]
    if any(texts):
        return pl.String() if all(texts) else None
    whole = [type_ if type_.is_integer() else pl.Int64() for type_ in types]  # doubles beside a null, decimals
    if len({type_.is_signed_integer() for type_ in whole}) == 1:
        return max(whole, key=lambda type_: int(str(type_).lstrip("UInt")))
    return pl.Int64()


def converted(name: str, kind: Kind, own: pl.DataType, wanted: pl.DataType, unit: TimeUnit) -> pl.Expr:
    """Return the expression that converts a column of type `own` to the type in which its files meet.

    Numbers that are NaN, infinite or beyond 1e30, flags other than 0 and 1, labels that are not from 0 to 1, and ids
    that are fractions or do not fit the type become null.

    Args:
        name: the column.
        kind: what it is in the contract.
        own: its type in these files.
        wanted: see `common_type`.
        unit: of times.
    """
    column = pl.col(name)
    if own == pl.Null:
        return column.cast(wanted)
    if own == pl.String and kind not in ("id", "category"):
        return _of_text(column.str.strip_chars(), kind, unit).alias(name)
    if kind == "time":
        return _time(column, own, unit)
    if kind == "number":
        number = column.cast(pl.Float64)
        return pl.when(number.abs() <= LARGEST).then(number).alias(name)
    if kind == "label":
        label = column.cast(pl.Float64)
        return pl.when(label.is_between(0, 1)).then(label).alias(name)
    if kind == "flag" and own != pl.Boolean:
        return pl.when((column == 0) | (column == 1)).then(column == 1).alias(name)
    if own.is_float():
        exact = 2**24 if own == pl.Float32 else 2**53  # beyond, neighbouring ids are one number
        whole = pl.when((column.abs() < exact) & (column.floor() == column)).then(column)
        return whole.cast(wanted).alias(name)
    return column if own == wanted else column.cast(wanted, strict=False)


def _of_text(text: pl.Expr, kind: Kind, unit: TimeUnit) -> pl.Expr:
    """Return values of a column of text, of which some are what they should be; others are null."""
    if kind == "time":
        is_number = unit.name in UNITS
        return _time(
            text.cast(pl.Int64, strict=False) if is_number else text, pl.Int64() if is_number else pl.String(), unit
        )
    if kind == "flag":
        return text.str.to_lowercase().replace_strict(WORDS, default=None, return_dtype=pl.Boolean)
    number = text.cast(pl.Float64, strict=False)
    fits = number.is_between(0, 1) if kind == "label" else number.abs() <= LARGEST
    return pl.when(fits).then(number)


def _time(column: pl.Expr, own: pl.DataType, unit: TimeUnit) -> pl.Expr:
    if unit.name in UNITS and own.is_integer():
        number = unit.sound(column).cast(pl.Int64)
        if unit.name == "epoch s":
            return (number * 10**6).cast(TIME)
        return number.cast(pl.Datetime(unit.name.removeprefix("epoch "), "UTC")).cast(TIME)  # type: ignore[arg-type]
    if unit.name in UNITS:
        microseconds = unit.sound(column.cast(pl.Float64)) * UNITS[unit.name]
        return microseconds.round().cast(pl.Int64, strict=False).cast(TIME)
    if is_text(own):
        return iso_time(column.cast(pl.String)).dt.replace_time_zone("UTC")
    if isinstance(own, pl.Datetime) and own.time_zone:
        return column.dt.convert_time_zone("UTC").cast(TIME)
    return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
