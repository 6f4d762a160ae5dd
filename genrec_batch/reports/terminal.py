"""A report on a terminal: the sections' sentences and tables, on stderr (stdout's last line is the JSON summary).

Owns: Rich's part. Must not know: what is in a section.
"""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from genrec_batch.console import stderr
from genrec_batch.reports.sections import Report, Table, sections


def show(report: Report) -> None:
    """Print a report."""
    for section in sections(report):
        stderr.rule(Text(section.title), align="left", style="dim")
        for sentence in section.lead:
            stderr.print(Text(sentence))
        for table in section.tables:
            stderr.print(_rich(table))


def _rich(table: Table) -> RichTable:
    shown = RichTable(
        title=Text(table.title), title_justify="left", title_style="bold", show_header=any(table.columns), box=SIMPLE_HEAD
    )
    for i, name in enumerate(table.columns):
        shown.add_column(Text(name), justify="left" if i < table.left else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown
