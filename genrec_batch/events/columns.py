"""The columns of the events contract, and the error about a log that does not have them.

Owns: names and kinds of the contract's columns, which types fit a kind, one error that lists every fault. Must not
know: other names for the columns (`schema`), how they are converted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import polars as pl

from genrec_batch.core.errors import InputError, nearest

Kind = Literal["id", "time", "number", "flag", "category", "label"]

REQUIRED = ("user_id", "video_id", "timestamp")
SCORED: dict[str, Kind] = {  # the columns that a score depends on
    "user_id": "id",
    "video_id": "id",
    "timestamp": "time",
    "session_id": "id",
    "watch_duration": "number",
    "watch_percentage": "number",
    "watch_complete": "flag",
    "rewatch_count": "number",
    "skip_duration": "number",
    "is_liked": "flag",
    "is_favorited": "flag",
    "is_shared": "flag",
    "is_commented": "flag",
    "is_followed_creator": "flag",
    "is_blocked_creator": "flag",
    "is_reported": "flag",
    "time_of_day": "number",
    "day_of_week": "number",
    "is_weekend": "flag",
    "is_holiday": "flag",
    "device_type": "category",
    "network_type": "category",
    "recommendation_source": "category",
    "recommendation_position": "number",
}
LABELS: dict[str, Kind] = {  # what a head is to predict of an event; read where a model is trained or judged
    "recommendation_label": "label",
    "engagement_label": "label",
    "retention_label": "label",
    "monetization_label": "label",
}
KINDS: dict[str, Kind] = {**SCORED, **LABELS}
KNOWN = (  # part of the contract, read by nothing here: neither used nor reported as unknown
    "os_type",
    "language",
    "timezone",
    "screen_size",
    "user_level",
    "user_vip",
    "session_duration",
    "session_video_count",
    "session_start_time",
    "recommendation_algorithm",
    "share_platform",
    "share_method",
    "comment_text",
    "comment_sentiment",
    "device_model",
    "os_version",
    "app_version",
    "network_speed",
    "location_country",
    "location_province",
    "location_city",
    "screen_resolution",
    "user_age_group",
    "user_gender",
)

WANTED: dict[Kind, str] = {
    "id": "an integer or a string",
    "time": "a datetime, ISO 8601 text, or a number of epoch seconds, ms, us or ns",
    "number": "a number",
    "flag": "a Boolean, or a number that is 0 or 1",
    "category": "a string",
    "label": "a Boolean, or a number from 0 to 1",
}


def check_columns(
    columns: Mapping[str, pl.DataType],
    source: str,
    *,
    readers: Mapping[str, set[str]],
    kinds: Mapping[str, Kind] = SCORED,
    alone: Sequence[str] = (),
    text: bool = False,
    entries: Mapping[str, str],
) -> None:
    """Raise one InputError that lists every required column that is missing and every column of a wrong type.

    Its first line has the first fault and the way out. `readers` are the columns that each built-in schema reads,
    `kinds` the columns to check, `entries` those of `--schema`, `alone` the columns that other files of the log do not
    have; the values of a `text` may have any form.
    """
    names = list(columns)
    values = text and any(re.fullmatch(r"[\d.]+", name) for name in names)  # in the first line, for want of names
    only = f" Other files do not have {', '.join(map(repr, alone[:3]))}." if alone and not values else ""
    missing = [
        f"column {name!r} is missing.{nearest(name, names) or _inside(name, columns) or only}"
        for name in REQUIRED
        if name not in columns
    ]
    wrong = [
        f"column {name!r} is {columns[name]}, expected {WANTED[kind]}{_as_in(name, kind, columns[name], entries)}."
        f"{_lists(columns)}"
        for name, kind in kinds.items()
        if name in columns and not (_fits(columns[name], kind) or (text and columns[name] == pl.String))
    ]
    if not missing and not wrong:
        return
    if values and len(missing) == len(REQUIRED):
        missing[0] += " Its first line seems to hold values: write a line with the names of the columns above it."
    first, *others = [*missing, *wrong]
    like = [name for name, read in readers.items() if missing and read <= set(names)]
    way_out = f"--schema {like[0]} reads it" if like else "Use --schema FILE.toml to name or convert columns"
    count = f" (and {len(others)} more below)" if others else ""
    if missing:
        others.append(f"the file's columns are: {', '.join(names[:40])}{', ...' if len(names) > 40 else ''}")
    raise InputError("\n  ".join([f"{source}: {first} {way_out}{count}", *others]))


def _inside(name: str, columns: Mapping[str, pl.DataType]) -> str:
    """Return the entry that reads a field of this name of a struct, as the end of an error; "" where there is none."""
    for column, kind in columns.items():
        listed = kind.inner if isinstance(kind, (pl.List, pl.Array)) else None
        if isinstance(listed, pl.Struct) and _path(name, column, listed):
            return (
                f' In --schema FILE.toml, explode = ["{column}"] and {name} = "{_path(name, column, listed)}" read it.'
            )
        path = _path(name, column, kind)
        if path:
            return f' In --schema FILE.toml, {name} = "{path}" reads the field.'
    return ""


def _path(name: str, column: str, kind: pl.DataType) -> str:
    """Return the path of the first field of this name in a struct, "" where there is none."""
    fields = {each.name: cast(pl.DataType, each.dtype) for each in kind.fields} if isinstance(kind, pl.Struct) else {}
    if name in fields:
        return f"{column}.{name}"
    deeper = (_path(name, f"{column}.{field}", inside) for field, inside in fields.items())
    return next(filter(None, deeper), "")


def _as_in(name: str, kind: Kind, kind_of: pl.DataType, entries: Mapping[str, str]) -> str:
    """Return an entry of `--schema` that makes of a column what is expected, as a part of an error."""
    text, sql, own = is_text(kind_of), "", entries.get(name, name)
    value = own if re.fullmatch(r"\w+", own) else f"({own})"
    if isinstance(kind_of, pl.Struct):
        fields = {each.name: cast(pl.DataType, each.dtype) for each in kind_of.fields}
        fit = [each for each, of in fields.items() if _fits(of, kind) and not (kind == "id" and of.is_float())]
        sql = f"{own}.{min(fit, key=lambda field: (field != name, 'id' not in field))}" if fit else ""
    elif isinstance(kind_of, pl.Duration):
        per_second = {"ms": 10**3, "us": 10**6, "ns": 10**9}[kind_of.time_unit]
        sql = f"CAST({value} AS BIGINT) / {per_second}.0"
    elif kind_of == pl.Time and kind == "number":
        sql = f"EXTRACT(HOUR FROM {value}) + EXTRACT(MINUTE FROM {value}) / 60.0"
    elif isinstance(kind_of, (pl.List, pl.Array)) and name not in REQUIRED:
        sql = f"ARRAY_GET({value}, 1)"
    elif name == "time_of_day" and text:
        sql = f"CAST(LEFT({value}, 2) AS DOUBLE)"
    elif kind == "number" and (text or kind_of == pl.Boolean):
        sql = f"CAST({value} AS DOUBLE)"
    elif kind in ("flag", "label") and text:
        sql = f"{value} = 'true'"
    elif kind == "id" and kind_of.is_decimal():
        sql = f"CAST({value} AS BIGINT)"
    elif kind in ("category", "id") and (kind_of.is_numeric() or (kind == "category" and kind_of == pl.Boolean)):
        sql = f"CAST({value} AS VARCHAR)"
    return f', as {name} = "{sql}" makes it' if sql else ""


def _lists(columns: Mapping[str, pl.DataType]) -> str:
    """Return the way out for a row per user with lists of its events."""
    lists = [name for name, kind in columns.items() if isinstance(kind, (pl.List, pl.Array))]
    names = ", ".join(f'"{name}"' for name in lists[:8])
    if not set(lists) & set(REQUIRED):
        return ""
    return f" explode = [{names}] in the file of --schema makes an event of each element."


def _fits(kind_of: pl.DataType, kind: Kind) -> bool:
    if kind_of == pl.Null:
        return True
    if kind == "id":
        return is_text(kind_of) or is_whole(kind_of)
    if kind == "time":
        return kind_of.is_numeric() or kind_of in (pl.Datetime, pl.Date) or is_text(kind_of)
    if kind == "number":
        return kind_of.is_numeric()
    if kind in ("flag", "label"):
        return kind_of == pl.Boolean or kind_of.is_numeric()
    return is_text(kind_of)


def is_text(kind_of: pl.DataType) -> bool:
    """Return whether values of this type are read as text; binary values must be UTF-8."""
    return kind_of in (pl.String, pl.Categorical, pl.Enum, pl.Binary)


def is_whole(kind_of: pl.DataType) -> bool:
    """Return whether values of this type can be integers of at most 64 bits: a double may be one beside a null."""
    if isinstance(kind_of, pl.Decimal):
        return kind_of.scale == 0
    return kind_of.is_numeric() and kind_of not in (pl.Int128, pl.UInt128)
