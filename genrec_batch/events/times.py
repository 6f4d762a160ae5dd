"""The times of a log: their unit, text, which are plausible, and the way out where they are something else.

Owns: epochs by magnitude, ISO 8601 text, the span of plausible times, advice about other clocks. Must not know: which
rows a log has. Each text is read by itself, never by a format that is guessed from another row.
"""

from __future__ import annotations

import itertools
import re
import zoneinfo
from dataclasses import dataclass

import polars as pl

from genrec_batch.core.errors import ConfigError, InputError, nearest

EPOCHS: tuple[tuple[str, int, int, int], ...] = (  # unit, first value, first value beyond, units per second
    ("s", 10**8, 10**10, 1),
    ("ms", 10**11, 10**13, 10**3),
    ("us", 10**14, 10**16, 10**6),
    ("ns", 10**18, 2**63, 10**9),  # from 2001 on: below are other clocks, such as ticks of .NET
)
FIRST_US = 631_152_000 * 10**6  # 1990-01-01: before are clocks that were not set
HOUR_US, DAY_US = 3_600 * 10**6, 86_400 * 10**6  # a day is also by how much a clock may be ahead
LOCAL: dict[str, pl.DataType] = {  # columns that depend on the time zone
    "time_of_day": pl.Float64(),
    "day_of_week": pl.Float64(),
    "is_weekend": pl.Boolean(),
}


@dataclass(frozen=True, kw_only=True)
class TimeUnit:
    """What the values of a time column are."""

    name: str  # "datetime", "text", or "epoch s", "epoch ms", "epoch us", "epoch ns"
    odd: bool = False  # some values are of no epoch in this unit

    def microseconds(self, value: pl.Expr) -> pl.Expr:
        """Return numbers of this unit as floats of microseconds, to tell which are plausible."""
        per_second = next(per for unit, _, _, per in EPOCHS if f"epoch {unit}" == self.name)
        return value.cast(pl.Float64) * (10**6 / per_second)

    def others(self, value: pl.Expr, last_us: int) -> dict[str, pl.Expr]:
        """Return when floats are plausible times in another unit than this one, in which most are, by reason."""
        return {
            f"timestamp in {unit}, where most are in {self.name.removeprefix('epoch ')}": (
                value * (10**6 / per_second)
            ).is_between(FIRST_US, last_us)
            for unit, _, _, per_second in EPOCHS
            if self.odd and f"epoch {unit}" != self.name
        }

    def sound(self, value: pl.Expr) -> pl.Expr:
        """Return the values that are numbers of this unit, which can be converted without overflow; null for others."""
        if not self.odd:
            return value
        first, beyond = next((first, beyond) for unit, first, beyond, _ in EPOCHS if f"epoch {unit}" == self.name)
        return pl.when((value >= first) & (value < beyond)).then(value)


def time_unit(frame: pl.LazyFrame, type_: pl.DataType, source: str, *, text: bool = False) -> TimeUnit:
    """Return the unit of column `timestamp`: of numbers, that in which most are plausible.

    In the column of a `text`, numbers among other words are still numbers.

    Raises:
        InputError: none is, in any unit.
    """
    if text and type_ == pl.String:
        numbers = frame.with_columns(pl.col("timestamp").cast(pl.Int64, strict=False))
        if numbers.select(pl.col("timestamp").is_not_null().any()).collect(engine="streaming").item():
            return time_unit(numbers, pl.Int64(), source)
    if not type_.is_numeric():
        return TimeUnit(name="text" if type_ in (pl.String, pl.Categorical, pl.Enum, pl.Binary) else "datetime")
    number = pl.col("timestamp").cast(pl.Float64)
    time = pl.col("timestamp") if type_.is_integer() else number.filter(number.is_finite())
    low, high = frame.select(low=time.min(), high=time.max()).cast(pl.Int64, strict=False).collect(
        engine="streaming"
    ).row(0)  # fmt: skip
    if low is None or high is None:
        return TimeUnit(name="epoch us")
    for unit, first, beyond, _ in EPOCHS:
        if first <= low <= high < beyond:
            return TimeUnit(name=f"epoch {unit}")
    inside = {unit: ((time >= first) & (time < beyond)).sum() for unit, first, beyond, _ in EPOCHS}
    counts = frame.select(**inside).collect(engine="streaming").row(0, named=True)
    best = max(counts, key=lambda unit: int(counts[unit]))
    if not counts[best]:
        raise InputError(
            f"{source}: column 'timestamp' runs from {low} to {high}, which is no time in s, ms, us or ns since 1970; "
            f"{other_clocks(high)}"
        )
    return TimeUnit(name=f"epoch {best}", odd=True)


def other_clocks(value: int) -> str:
    """Return the way out where numbers such as `value` are no epoch: an entry of `--schema FILE.toml`."""
    digits = str(abs(value))
    coded = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    if coded and digits[:2] in ("19", "20") and "01" <= digits[4:6] <= "12" and "01" <= digits[6:8] <= "31":
        text = f"CAST(your_column AS VARCHAR){'' if len(digits) > 10 else _midnight(len(digits))}"
        form = coded + {8: "%H%M", 10: "%M"}.get(len(digits), "")
        return f"it is a date that is written as a number: timestamp = \"STRPTIME({text}, '{form}')\" reads it"
    if 36_526 <= value < 73_050:  # 2000 to 2099; as days since 1970 it would be 2070 and later
        return 'it is a date of Excel: timestamp = "(your_column - 25569) * 86400" reads it'
    if 1.2e17 <= value < 1.5e17:
        return 'it is a Windows FILETIME: timestamp = "your_column // 10 - 11644473600000000" reads it'
    if 6.2e17 <= value < 6.6e17:
        return 'it is in ticks of .NET: timestamp = "your_column // 10 - 62135596800000000" reads it'
    if 1.2e16 <= value < 1.5e16:
        return 'it is in us since 1601: timestamp = "your_column - 11644473600000000" reads it'
    if 1.9e7 <= value * 60 < 1e10 and value >= 10**7:
        return 'minutes since 1970 become seconds by timestamp = "your_column * 60"'
    return (
        "an entry of --schema FILE.toml converts it, such as "
        'timestamp = "your_column * 60" for minutes since 1970 or timestamp = "your_column * 86400" for days'
    )


def _midnight(digits: int) -> str:
    return " || '0000'" if digits == 8 else " || '00'"


DATES = ((r"\d{1,2}\.\d{1,2}\.\d{4}", "%d.%m.%Y"), (r"(\d{1,2})([/-])\d{1,2}[/-]\d{4}", ""))  # "": which comes first?
CLOCKS = (
    (r"", " || ' 00:00'", " %H:%M"),
    (r"[T ]\d{1,2}:\d\d", "", " %H:%M"),
    (r"[T ]\d{1,2}:\d\d:\d\d", "", " %H:%M:%S"),
    (r"[T ]\d{1,2}:\d\d:\d\d\.\d+", "", " %H:%M:%S%.f"),
    (r"[T ]\d{1,2}:\d\d:\d\d [AaPp][Mm]", "", " %I:%M:%S %p"),
    (r"[T ]\d{1,2}:\d\d [AaPp][Mm]", "", " %I:%M %p"),
)


def text_ways(text: str | None) -> str:
    """Return the way out where texts such as `text` are no ISO 8601: an entry of `--schema FILE.toml`."""
    if text is not None and re.fullmatch(r"\d{9,19}", text):
        return f'timestamp = "CAST(your_column AS BIGINT)" in --schema FILE.toml reads numbers such as {text!r}'
    for (date, form), (clock, more, clock_form) in itertools.product(DATES, CLOCKS):
        match = re.fullmatch(date + clock, text or "")
        if match is not None:
            first, sign = (match[1], match[2]) if not form else ("", "")
            order = ("%d", "%m") if first and int(first) > 12 else ("%m", "%d")
            day = form or sign.join((*order, "%Y"))
            whole = day + (clock_form.replace(" ", "T", 1) if "T" in match[0] else clock_form)
            doubt = "" if not first or int(first) > 12 else ", if the month comes first (else %d and %m change places)"
            return f"timestamp = \"STRPTIME(your_column{more}, '{whole}')\" in --schema FILE.toml reads {text!r}{doubt}"
    example = "" if text is None else f" than ISO 8601, such as {text!r}"
    return (
        "timestamp = \"STRPTIME(your_column, '%d.%m.%Y %H:%M:%S')\" in --schema FILE.toml reads text in another form"
        f"{example}; the letters are those of strftime"
    )


def iso_time(text: pl.Expr) -> pl.Expr:
    """Return ISO 8601 text as naive datetimes in UTC (us), null where it is none.

    Forms: `2026-04-30`, `2026-04-30 12:34`, `2026-04-30T12:34:56.789`, `...Z`, `...+02:00`, `...+0200`, `...+02`, and
    `2026/04/30` for the date.
    """
    plain = (
        text.str.strip_chars()
        .str.replace(r"^(\d{4})/(\d\d?)/(\d\d?)", "$1-$2-$3")
        .str.replace(r"^(\d{4}-\d\d?-\d\d?)T", "$1 ")
        .str.replace(r"(:\d\d(?:\.\d+)?)([+-]\d\d)$", "$1$2:00")
    )

    def read(form: str) -> pl.Expr:
        return plain.str.to_datetime(form, time_unit="us", strict=False)

    return pl.coalesce(
        read("%Y-%m-%d %H:%M:%S%.f"),
        read("%+").dt.replace_time_zone(None),
        read("%Y-%m-%d %H:%M"),
        plain.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")),
    )


def check_zone(zone: str) -> None:
    """Raise ConfigError unless there is a time zone of this name."""
    try:
        pl.Series([0]).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(zone)
    except pl.exceptions.PolarsError as error:
        hint = nearest(zone, sorted(zoneinfo.available_timezones()))
        raise ConfigError(f"--timezone {zone!r}: no such time zone, which is one like Europe/Berlin.{hint}") from error


def local_values(time: pl.Expr, zone: str) -> dict[str, pl.Expr]:
    """Return the hour with its fraction, the weekday (Monday 0) and the weekend of a time (UTC) in a zone."""
    local_us = time.dt.convert_time_zone(zone).dt.replace_time_zone(None).dt.epoch("us")
    weekday = (local_us // DAY_US + 3) % 7  # 1970-01-01 was a Thursday
    return {
        "time_of_day": (local_us % DAY_US).cast(pl.Float64) / HOUR_US,
        "day_of_week": weekday.cast(pl.Float64),
        "is_weekend": weekday >= 5,
    }
