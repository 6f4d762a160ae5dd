"""Columns of side tables hashed into 200 signed floats (Weinberger et al. 2009).

Owns: the place and the sign of a text, which columns are hashed. Must not know: which tables there are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
import xxhash

from genrec_batch.core.arrays import F32, F64
from genrec_batch.core.errors import InputError
from genrec_batch.core.layout import HASHED


def slot(text: str) -> tuple[int, float]:
    """Return the place and the sign of a hashed text."""
    h = xxhash.xxh64_intdigest(text.encode(), seed=0)
    return h % HASHED, -1.0 if h >> 63 else 1.0


def hash_columns(frame: pl.DataFrame) -> F32:
    """Hash all columns except ids and lists into 200 signed floats a row, [R, 200] (Weinberger et al. 2009).

    h = xxh64 (seed 0) of the UTF-8 text; the slot is h mod 200, the sign + where bit 63 is 0, else -. A category, a
    Boolean or a time adds 1 for the text `column=value`, a number x (of a duration, its seconds) adds
    sgn(x) ln(1 + |x|) for the text `column`.
    """
    total_R200: F64 = np.zeros((len(frame), HASHED))
    rows_R = np.arange(len(frame))
    for column in frame.get_columns():
        name, kind = column.name, column.dtype
        if name == "id" or name.endswith("_id") or kind.is_nested() or kind in (pl.Null, pl.Binary, pl.Object):
            continue
        if kind.is_numeric() or kind == pl.Duration:
            number = column.dt.total_microseconds() / 1e6 if kind == pl.Duration else column
            x = number.cast(pl.Float64).to_numpy()
            x = np.where(np.isfinite(x), x, 0.0)
            place, sign = slot(name)
            total_R200[:, place] += sign * np.sign(x) * np.log1p(np.abs(x))
            continue
        text = _text(column)
        distinct = text.drop_nulls().unique(maintain_order=True)
        places = [slot(f"{name}={value}") for value in distinct]
        coded = pl.DataFrame({"value": distinct, "code": np.arange(len(distinct))})
        code = text.alias("value").to_frame().join(coded, on="value", how="left", maintain_order="left")["code"]
        there = code.is_not_null().to_numpy()
        code_R = code.fill_null(0).to_numpy()
        slots = np.array([slot for slot, _ in places] or [0])
        signs = np.array([sign for _, sign in places] or [0.0])
        total_R200[rows_R[there], slots[code_R[there]]] += signs[code_R[there]]
    return total_R200.astype(np.float32)


def check_values(values: Mapping[str, object], name: str) -> None:
    """Raise InputError, naming the value, where `hash_values` cannot hash one; `name` says what they are."""
    for key, value in values.items():
        if not isinstance(value, (bool, int, float, str, type(None), list)):
            raise InputError(f"{name}: {key!r} is an object, expected a number, a Boolean or a string")
        if isinstance(value, int) and abs(value) > 2**64:
            raise InputError(f"{name}: {key!r} is a whole number beyond 64 bits")


def hash_values(values: Mapping[str, object]) -> F32:
    """Hash one row of values by column name, [200], as `hash_columns` does with the row of a table."""
    total_200: F64 = np.zeros(HASHED)
    for name, value in values.items():
        if name == "id" or name.endswith("_id") or value is None or isinstance(value, list):
            continue
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            place, sign = slot(name)
            x = float(value) if np.isfinite(value) else 0.0
            total_200[place] += sign * np.sign(x) * np.log1p(abs(x))
        else:
            place, sign = slot(f"{name}={str(value).lower() if isinstance(value, bool) else value}")
            total_200[place] += sign
    return total_200.astype(np.float32)


def _text(column: pl.Series) -> pl.Series:
    if column.dtype == pl.Boolean:
        return column.cast(pl.Int8).replace_strict({1: "true", 0: "false"}, return_dtype=pl.String)
    if column.dtype == pl.Datetime:
        return column.dt.to_string("iso:strict")
    return column.cast(pl.String)
