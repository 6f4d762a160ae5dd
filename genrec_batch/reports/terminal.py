"""Sections on a terminal: their sentences and tables, on stdout, as what was asked for.

Owns: Rich's part. Must not know: what is in a section.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from genrec_batch.console import stdout
from genrec_batch.reports.sections import Section, Table


def show(sections: Iterable[Section]) -> None:
    """Print sections."""
    for section in sections:
        stdout.rule(Text(section.title), align="left", style="dim")
        for sentence in section.lead:
            stdout.print(Text(sentence))
        for table in section.tables:
            stdout.print(_rich(table))


def _rich(table: Table) -> RichTable:
    shown = RichTable(
        title=Text(table.title),
        title_justify="left",
        title_style="bold",
        show_header=any(table.columns),
        box=SIMPLE_HEAD,
    )
    for i, name in enumerate(table.columns):
        shown.add_column(Text(name), justify="left" if i < table.left else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown
