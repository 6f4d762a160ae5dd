"""Values that make no sense: what of each column is outside of what it can mean, and the likely remedy.

Owns: the plausible range of each column, and the warnings. Must not know: files, features. In: events in contract
columns, a row group at a time. Out: `Look`s, one for each column and row group; warnings over all of them.

Numbers are looked at in every row by their extremes, which costs next to nothing; where those are plausible, all values
are. Nulls that a conversion made, and categories, are looked at in the first rows of each row group.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce

import polars as pl

from genrec_batch.core import layout
from genrec_batch.events.columns import KINDS

SAMPLE = 1 << 16  # rows of a row group in which what is not cheap is looked for
SHARE = 0.01  # of a column's values, above which there is a warning
OTHER_UNIT = 0.1  # of a column's values, from which on it may be in another unit
LONGEST_S = 10_000.0  # that a view can last, seconds
RANGES: dict[str, tuple[float, float, str]] = {  # the least and the largest plausible value, in words
    "watch_duration": (0, LONGEST_S, "seconds from 0 to 10,000"),
    "skip_duration": (0, LONGEST_S, "seconds from 0 to 10,000"),
    "watch_percentage": (0, 3, "shares of the video, where 1.0 is all of it"),
    "rewatch_count": (0, 10_000, "counts"),
    "recommendation_position": (0, 1_000_000, "positions from 0"),
    "time_of_day": (0, 23.999_999_9, "hours from 0 to below 24"),
    "day_of_week": (0, 6, "weekdays from 0, Monday, to 6"),
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a column has in some rows: counts, and its extremes where it is a number."""

    values: int = 0
    below: int = 0  # the plausible range
    above: int = 0
    no_clock: int = 0  # times of day whose last two digits are no minutes
    least: float | None = None
    largest: float | None = None
    sampled: int = 0  # values that were looked at one by one
    made_null: int = 0  # of these, by the conversion
    unknown: int = 0  # of these, not in the category's list
    spelt: int = 0  # of these, in the list but for case or spaces
    example: str | None = None  # of an unknown one, or of one that became null

    def __add__(self, other: Look) -> Look:
        """Return the look at both rows together."""
        counts = ("values", "below", "above", "no_clock", "sampled", "made_null", "unknown", "spelt")
        return Look(
            **{name: getattr(self, name) + getattr(other, name) for name in counts},
            least=_of_both(min, self.least, other.least),
            largest=_of_both(max, self.largest, other.largest),
            example=self.example or other.example,
        )


def looks(
    frame: pl.DataFrame, made_null: Callable[[list[str]], Mapping[str, tuple[int, int, str | None]]]
) -> dict[str, Look]:
    """Return the look at each column of events.

    `made_null` returns, for some columns, how many values of the first rows became null, of how many, and one of them.
    """
    found = {name: Look(values=len(frame) - frame[name].null_count()) for name in frame.columns if name in KINDS}
    numbers = [name for name in found if name in RANGES and found[name].values]
    if numbers:
        extremes = frame.select(pl.col(numbers).min().name.prefix("min "), pl.col(numbers).max().name.prefix("max "))
        seen = extremes.row(0, named=True)
        for name in numbers:
            found[name] = _number(frame[name], found[name], float(seen[f"min {name}"]), float(seen[f"max {name}"]))
    head = frame.head(SAMPLE)
    for name, look in found.items():
        if KINDS[name] == "category" and look.values:
            found[name] = _category(head[name], look)
    lossy = [
        name
        for name, look in found.items()
        if KINDS[name] in ("number", "flag", "label") and len(frame) - look.values > SHARE * len(frame)
    ]
    for name, (made, sampled, example) in (made_null(lossy) if lossy else {}).items():
        found[name] = replace(found[name], made_null=made, sampled=sampled, example=example)
    return found


def warnings(found: Iterable[Mapping[str, Look]], entries: Mapping[str, str], *, categories: bool = True) -> list[str]:
    """Return a warning for each column of which over 1% of the values make no sense.

    Args:
        found: the looks at every row group.
        entries: those of `--schema`, which the remedy then changes.
        categories: whether values that are in no list are to be named.
    """
    said = []
    for name, look in _together(found).items():
        source = f"({entries[name]})" if name in entries else name
        fault = _number_fault(name, look, source) or _null_fault(name, look, source)
        if fault is None and categories:
            fault = _category_fault(name, look, source)
        if fault is not None:
            what, sql = fault
            remedy = json.dumps(sql, ensure_ascii=False)  # also a string of TOML
            said.append(f"{name}: {what}; likely remedy in --schema FILE.toml: {name} = {remedy}")
    return said


def counts(found: Iterable[Mapping[str, Look]]) -> dict[str, dict[str, int]]:
    """Return what was odd, by column: values, those outside of the plausible range, and of a sample those made null."""
    odd = {}
    for name, look in _together(found).items():
        outside = look.below + look.above
        if outside or look.made_null or look.unknown:
            sample = {"sampled": look.sampled, "made_null": look.made_null, "unknown": look.unknown}
            odd[name] = {"values": look.values, "implausible": outside, **(sample if look.sampled else {})}
    return odd


def _together(found: Iterable[Mapping[str, Look]]) -> dict[str, Look]:
    total: dict[str, Look] = {}
    for each in list(found):
        for name, look in each.items():
            total[name] = total.get(name, Look()) + look
    return total


def _number(column: pl.Series, look: Look, least: float, largest: float) -> Look:
    low, high, _ = RANGES[column.name]
    below = int((column < low).sum()) if least < low else 0
    above = int((column > high).sum()) if largest > high else 0
    no_clock = int((column % 100 >= 60).sum()) if above and column.name == "time_of_day" else 0
    return replace(look, least=least, largest=largest, below=below, above=above, no_clock=no_clock)


def _category(head: pl.Series, look: Look) -> Look:
    known = layout.CATEGORIES[head.name][1:]
    texts = head.drop_nulls()
    unknown = texts.filter(~texts.is_in(known))
    spelt = int(unknown.str.strip_chars().str.to_lowercase().is_in(known).sum()) if len(unknown) else 0
    example = str(unknown[0]) if len(unknown) else None
    return replace(look, sampled=len(texts), unknown=len(unknown), spelt=spelt, example=example)


def _number_fault(name: str, look: Look, source: str) -> tuple[str, str] | None:
    outside = look.below + look.above
    if name not in RANGES or outside <= SHARE * look.values or look.largest is None or look.least is None:
        return None
    low, high, meaning = RANGES[name]
    run = f"they run from {look.least:g} to {look.largest:g}"
    what = f"{_percent(outside, look.values)} of its values are no {meaning} ({run})"
    within = f"CASE WHEN {source} BETWEEN {low:g} AND {high:g} THEN {source} END"
    if look.below > look.above or look.above < OTHER_UNIT * look.values:
        return what, within  # a few values are faults of their own, such as 999999 for none, and no other unit
    if name in ("watch_duration", "skip_duration"):
        return what + ", milliseconds perhaps", f"{source} / 1000.0"
    if name == "watch_percentage":
        return what + ", percent perhaps", f"{source} / 100.0"
    if name == "day_of_week" and look.largest == 7 and look.least >= 1:
        return what + ", from 1 to 7 perhaps", f"{source} - 1"
    if name == "time_of_day" and not look.no_clock and look.largest < 2400:
        return what + ", HHMM perhaps", f"{source} // 100 + {source} % 100 / 60.0"
    if name == "time_of_day" and look.largest <= 86_400:
        minutes = look.largest < 1440
        return (
            what + f", {'minutes' if minutes else 'seconds'} of the day perhaps",
            f"{source} / {60 if minutes else 3600}.0",
        )
    return what, within


def _null_fault(name: str, look: Look, source: str) -> tuple[str, str] | None:
    if look.made_null <= SHARE * look.sampled:
        return None
    share, example = _percent(look.made_null, look.sampled), look.example or ""
    such = f" (such as {example!r})"
    if KINDS[name] == "number":
        if not _is_number(example):
            return f"{share} of its values are no numbers{such}, and count as null", _of_text(example, source)
        return (
            f"{share} of its values are NaN, infinite or beyond 1e30, and count as null",
            f"CASE WHEN {source} BETWEEN -1e30 AND 1e30 THEN {source} END",
        )
    what = f"{share} of its values are neither 0 nor 1{such}, and count as null"
    return what, f"{source} > 0" if _is_number(example) else f"{source} = {_quoted(example)}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _of_text(example: str, source: str) -> str:
    """Return SQL that reads numbers with signs and units around them and commas in them, as in $1,234.50."""
    around = re.fullmatch(r"(?P<before>\D*?)(?P<number>-?[\d,.]*\d)(?P<after>\D*)", example)
    if around is None or ("," in around["number"].rpartition(".")[2] and "." in around["number"]):
        return f"TRY_CAST({source} AS DOUBLE)"
    for sign in filter(None, (around["before"], around["after"], "," if "," in around["number"] else "")):
        source = f"REPLACE({source}, {_quoted(sign)}, '')"
    return f"CAST({source} AS DOUBLE)"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _category_fault(name: str, look: Look, source: str) -> tuple[str, str] | None:
    if not look.unknown or KINDS[name] != "category":
        return None
    known = layout.CATEGORIES[name][1:]
    said = f", such as {look.example!r}; the list is {', '.join(known)}"
    if look.spelt > SHARE * look.sampled:
        share = _percent(look.spelt, look.sampled)
        return f"{share} of its values are in its list but for case or spaces{said}", f"LOWER(TRIM({source}))"
    if look.unknown < look.sampled:
        return None
    one = f"CASE WHEN {source} = {_quoted(str(look.example))} THEN '{known[0]}' END"
    return f"none of its values is in its list{said}", one


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if part >= whole * 0.1 else f"{part / whole:.1%}"


def _of_both(choose: Callable[[float, float], float], a: float | None, b: float | None) -> float | None:
    return reduce(choose, [each for each in (a, b) if each is not None]) if (a, b) != (None, None) else None
