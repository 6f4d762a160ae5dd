"""The columns of a request's events as arrays, in NumPy: a call of Polars would cost more than the features do.

Owns: the conversion of each kind of column, which gives what `events.convert` and `events.records` give for a log.
Must not know: order, which events are kept, tokens. In: lists by contract column. Out: `Columns`, or an error with the
column and the row at fault: what costs a log one row is here the mistake of one client, who is told.
"""

from __future__ import annotations

import datetime as dt
import difflib
import functools
import time
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrec_batch.core import layout
from genrec_batch.core.arrays import F64, I8, I64
from genrec_batch.core.errors import ConfigError, InputError, nearest
from genrec_batch.core.option_values import moment_us
from genrec_batch.events.columns import KINDS, KNOWN, REQUIRED, SCORED, WANTED, Kind
from genrec_batch.events.convert import LARGEST
from genrec_batch.events.times import DAY_US, EPOCHS, FIRST_US, HOUR_US, LOCAL

NOTHING = type(None)
TYPES: dict[Kind, set[type]] = {  # of values in JSON
    "number": {int, float, NOTHING},
    "flag": {bool, int, float, NOTHING},
    "category": {str, NOTHING},
    "id": {int, str, NOTHING},
}
PLACES = {name: {value: place for place, value in enumerate(values)} for name, values in layout.CATEGORIES.items()}
NEEDED = [name for name in REQUIRED if name != "user_id"]
CONVERTED = {name: kind for name, kind in SCORED.items() if name not in REQUIRED}
ALIKE = 0.85  # of two names, from which one is taken for the other with a slip
LONGEST = 40  # letters of a name that may be such a slip


@dataclass(frozen=True, kw_only=True)
class Columns:
    """E events in the order of the request. `numbers`, `flags` and `categories` are as in `arrays.Histories`."""

    video: list[Any]  # ids
    time_us_E: I64
    session_E: I64 | None
    numbers: Mapping[str, F64]
    flags: Mapping[str, I8]
    categories: Mapping[str, I8]

    def __len__(self) -> int:
        return len(self.video)

    @property
    def names(self) -> frozenset[str]:
        """The columns that the events have, beside ids and times."""
        session = () if self.session_E is None else ("session_id",)
        return frozenset((*session, *self.numbers, *self.flags, *self.categories))


NONE = Columns(video=[], time_us_E=np.zeros(0, np.int64), session_E=None, numbers={}, flags={}, categories={})


def converted(events: Mapping[str, list[Any]], zone: zoneinfo.ZoneInfo | None = None) -> Columns:
    """Return a request's events.

    Args:
        events: contract columns, and others, which are left out; not those that are a slip in a contract column's name.
        zone: of hours and weekdays that are derived from the time; None: UTC, where features derive them.

    Raises:
        InputError: a column is missing, or a value is none of its kind.
    """
    if not events or not next(iter(events.values())):
        return NONE
    if missing := [name for name in NEEDED if name not in events]:
        raise InputError(f"events: column {missing[0]!r} is missing.{nearest(missing[0], list(events))}")
    _check_names(events)
    video = events["video_id"]
    _check_types("video_id", video, {int, str})
    times = times_us(events["timestamp"])
    session: I64 | None = None
    numbers: dict[str, F64] = {}
    flags: dict[str, I8] = {}
    categories: dict[str, I8] = {}
    for name, kind in CONVERTED.items():
        values = events.get(name)
        if values is None:
            continue
        _check_types(name, values, TYPES[kind])
        if kind == "number":
            numbers[name] = _numbers(values)
        elif kind == "flag":
            flags[name] = _flags(values)
        elif kind == "category":
            places = PLACES[name]
            codes = [-1 if value is None else places.get(value, 0) for value in values]
            categories[name] = np.array(codes, np.int8)
        else:
            session = _codes(values)
    if zone is not None:
        _add_local(times, zone, numbers, flags)
    return Columns(video=video, time_us_E=times, session_E=session, numbers=numbers, flags=flags, categories=categories)


def _check_names(names: Mapping[str, Any]) -> None:
    """Raise InputError for a column that is named almost like a column of the contract that is missing.

    Without it, its values would be left out, and the answer would be another one than was asked for.
    """
    for name in names:
        if name not in KINDS and len(name) <= LONGEST and (meant := _meant(name)) and meant not in names:
            raise InputError(
                f"events: column {name!r} is not in the contract. Did you mean {meant!r}? Rename or omit it"
            )


@functools.lru_cache(maxsize=4096)
def _meant(name: str) -> str | None:
    """Return the column in whose name this one may be a slip; None for none, and for one that nothing reads."""
    return None if name in KNOWN else next(iter(difflib.get_close_matches(name, CONVERTED, n=1, cutoff=ALIKE)), None)


def times_us(values: list[Any]) -> I64:
    """Return times, ISO 8601 texts or epochs of any unit, as epoch microseconds, [E].

    Raises:
        InputError: a time is null, of another form or unit than the others, or not plausible.
    """
    kinds = set(map(type, values))
    if kinds == {str}:
        found = np.array([_of_text(text, "events: timestamp") for text in values], np.int64)
    elif kinds <= {int, float}:
        found = _of_numbers(values, "events: timestamp")
    else:
        alike = {str} if type(values[0]) is str else {int, float}
        row, value = next((row, value) for row, value in enumerate(values) if type(value) not in alike)
        raise InputError(
            f"events: column 'timestamp' holds {value!r:.40} in row {row}, expected all ISO 8601 texts or all epochs, "
            "never null"
        )
    last_us = time.time_ns() // 1000 + DAY_US
    odd = np.flatnonzero((found < FIRST_US) | (found > last_us))
    if len(odd):
        value = values[int(odd[0])]
        raise InputError(
            f"events: timestamp {value!r} in row {int(odd[0])} is before 1990 or more than a day after the server's "
            "clock"
        )
    return found


def moment(value: float | str) -> int:
    """Return `as_of`, an ISO 8601 text or an epoch of any unit, as epoch microseconds.

    Raises:
        InputError: it is neither.
    """
    if isinstance(value, str):
        return _of_text(value, "as_of")
    return int(_of_numbers([value], "as_of")[0])


def _of_text(text: str, name: str) -> int:
    try:
        return moment_us(text, name)
    except ConfigError as error:
        raise InputError(str(error)) from error


def _of_numbers(values: list[Any], name: str) -> I64:
    whole = set(map(type, values)) == {int}
    numbers: Any
    try:
        numbers = np.array(values, np.int64 if whole else np.float64)
    except OverflowError as error:
        raise InputError(f"{name}: a number beyond 64 bits") from error
    low, high = numbers.min(), numbers.max()
    for _, first, beyond, per_second in EPOCHS:
        if first <= low <= high < beyond:
            if not whole:
                numbers = np.rint(numbers * (10**6 / per_second))
            elif per_second <= 10**6:
                numbers = numbers * (10**6 // per_second)
            else:
                numbers = numbers // (per_second // 10**6)
            found_E: I64 = numbers.astype(np.int64)
            return found_E
    span = f"{low}" if low == high else f"from {low} to {high}"
    raise InputError(f"{name}: {span}, which is no time in one of s, ms, us or ns since 1970")


def _check_types(name: str, values: list[Any], allowed: set[type]) -> None:
    if set(map(type, values)) <= allowed:
        return
    row, value = next((row, value) for row, value in enumerate(values) if type(value) not in allowed)
    null = "" if NOTHING in allowed else ", never null"
    raise InputError(f"events: column {name!r} holds {value!r:.40} in row {row}, expected {WANTED[SCORED[name]]}{null}")


def _numbers(values: list[Any]) -> F64:
    """Return numbers, NaN for null and for what is no plausible number."""
    numbers = _floats(values)
    return np.where(np.abs(numbers) <= LARGEST, numbers, np.nan)


def _flags(values: list[Any]) -> I8:
    """Return 1, 0, and -1 for null and for any other number."""
    numbers = _floats(values)
    return np.where(numbers == 1, 1, np.where(numbers == 0, 0, -1)).astype(np.int8)


def _floats(values: list[Any]) -> F64:
    try:
        return np.array(values, np.float64)
    except OverflowError:  # a whole number of hundreds of digits
        return np.array([np.nan if value is None else min(max(value, -1e300), 1e300) for value in values])


def _codes(values: list[Any]) -> I64:
    """Return numbers that are equal where ids are, -1 for null."""
    known: dict[Any, int] = {}
    return np.array([-1 if v is None else known.setdefault(v, len(known)) for v in values], np.int64)


def _add_local(times: I64, zone: zoneinfo.ZoneInfo, numbers: dict[str, F64], flags: dict[str, I8]) -> None:
    """Add hour, weekday and weekend of a time zone where the request does not have them."""
    if {*numbers, *flags} >= set(LOCAL):
        return
    moments = [dt.datetime.fromtimestamp(int(us) // 10**6, zone) for us in times]
    offset_s = [offset.total_seconds() if (offset := moment.utcoffset()) is not None else 0 for moment in moments]
    local_us = times + (np.array(offset_s) * 1e6).astype(np.int64)
    weekday = (local_us // DAY_US + 3) % 7  # 1970-01-01 was a Thursday
    numbers.setdefault("time_of_day", (local_us % DAY_US).astype(np.float64) / HOUR_US)
    numbers.setdefault("day_of_week", weekday.astype(np.float64))
    flags.setdefault("is_weekend", (weekday >= 5).astype(np.int8))
