"""What a report shows, on any medium: sections of sentences, tables and charts, and numbers with units.

Owns: the form. Must not know: what is in a section (`chapters.py`), terminals or HTML (`terminal.py`, `page.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from genrec_batch.reports.charts import Chart


@dataclass(frozen=True, kw_only=True)
class Table:
    """A title, column names and rows of text; all columns after the first `left` are figures, aligned right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report."""

    name: str  # of its anchor
    title: str
    lead: Sequence[str] = field(default_factory=list)
    tables: Sequence[Table] = field(default_factory=list)
    charts: Sequence[Chart] = field(default_factory=list)


def figure(value: float | None, unit: str = "") -> str:
    """Return a number with thousands separators, three significant digits, and its unit; "-" for None."""
    if value is None:
        return "-"
    whole = isinstance(value, int) or abs(value) >= 1000 or value == 0
    text = f"{value:,.0f}" if whole else f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def duration(seconds: float | None) -> str:
    """Return seconds in a suitable unit: s, ms or µs."""
    if seconds is None or seconds == 0 or seconds >= 1:
        return figure(seconds, "s")
    return figure(seconds * 1e3, "ms") if seconds >= 1e-3 else figure(seconds * 1e6, "µs")


def size(count: float | None) -> str:
    """Return bytes in a suitable unit (powers of 1024)."""
    if count is None:
        return "-"
    value, unit = float(count), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{value:,.0f} B" if unit == "B" else f"{value:,.1f} {unit}"


def rate(value: float, unit: str) -> str:
    """Return a rate with its unit; GB/s as MB/s where that reads better."""
    return figure(1000 * value, "MB/s") if unit == "GB/s" and value < 0.1 else figure(value, unit)


def share(value: float | None) -> str:
    """Return a share as a percentage; "-" for None."""
    return "-" if value is None else f"{value:.1%}"
