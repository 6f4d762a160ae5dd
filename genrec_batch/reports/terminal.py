"""Sections on a terminal: their sentences and tables, on stdout.

Owns: Rich's part, and what a narrow terminal leaves out. Must not know: what is in a section.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from genrec_batch.core.text import harmless
from genrec_batch.reports.sections import Section, Table
from genrec_batch.runtime.console import stdout

LEAST = 3  # columns that are shown on the narrowest terminal


def show(sections: Iterable[Section]) -> None:
    """Print sections."""
    for section in sections:
        stdout.rule(_text(section.title), align="left", style="dim")
        for sentence in section.lead:
            stdout.print(_text(sentence))
        for table in section.tables:
            _print(table)


def _text(text: str) -> Text:
    return Text(harmless(text, one_line=True))


def _print(table: Table) -> None:
    """Print a table; columns at its end that do not fit the terminal are only named."""
    columns = len(table.columns)
    endless = stdout.options.update(max_width=10_000)
    while columns > LEAST and Measurement.get(stdout, endless, rich_table(table, columns)).minimum > stdout.width:
        columns -= 1
    stdout.print(rich_table(table, columns))
    if columns < len(table.columns):
        stdout.print(Text(f"  on a wider terminal also: {', '.join(table.columns[columns:])}\n", style="dim"))


def rich_table(table: Table, columns: int) -> RichTable:
    """Return the first columns of a table as Rich prints it."""
    shown = RichTable(
        title=_text(table.title),
        title_justify="left",
        title_style="bold",
        show_header=any(table.columns),
        box=SIMPLE_HEAD,
    )
    for i, name in enumerate(table.columns[:columns]):
        if i < table.left:
            shown.add_column(_text(name), overflow="fold")
        else:  # numbers are never broken
            widest = max((len(row[i]) for row in table.rows), default=0)
            shown.add_column(_text(name), justify="right", overflow="fold", min_width=widest)
    for row in table.rows:
        shown.add_row(*(_text(cell) for cell in row[:columns]))
    return shown
