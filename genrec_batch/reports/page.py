"""A report as one HTML file that needs nothing else: no network, light and dark, readable on a phone.

Owns: the markup, and what is embedded (`assets/`: style, Chart.js under its MIT licence, the code that draws). Must not
know: what is in a section. Text is escaped; the tables are plain HTML, so that a page without JavaScript lacks only its
charts. A content policy inside the page forbids it any connection.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape as escape_markup
from importlib import resources

from genrec_batch.core.text import harmless
from genrec_batch.reports.chapters import Report, sections
from genrec_batch.reports.sections import Section, Table

WIDE = 5  # columns beyond which a table takes the whole width of the page
LIBRARY = "chart.umd.min.js"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def escape(text: str) -> str:
    """Return a text for the page: neither markup nor control characters."""
    return escape_markup(harmless(text, one_line=True))


def _asset(name: str) -> str:
    return (resources.files("genrec_batch.reports") / "assets" / name).read_text(encoding="utf-8")


def render(report: Report) -> str:
    """Return the page of a report."""
    what = "Profile" if report["kind"] == "profile" else "Run"
    return page(what, report["version"], report["created"], sections(report))


def page(what: str, version: str, created: str, made: Sequence[Section]) -> str:
    """Return sections as a page with a title."""
    title = f"genrec-batch: {what.lower()} of {created}"
    links = "".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in made)
    drawn = json.dumps([chart for section in made for chart in section.charts]).replace("<", "\\u003c")
    library = _asset(LIBRARY).rpartition("//# sourceMappingURL")[0] or _asset(LIBRARY)
    licence = _asset("chart.LICENSE.md").replace("*/", "")
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>",
            f"<header><h1>{what}</h1><p>genrec-batch {escape(version)}, {escape(created)}</p>",
            f'<nav aria-label="Sections">{links}</nav></header>\n<main>',
            *(_section(section) for section in made),
            "</main>",
            f'<script type="application/json" id="charts">{drawn}</script>',
            f"<script>\n/* Chart.js:\n{licence}*/\n{library}</script>",
            f"<script>\n{_asset('charts.js')}</script>\n</body>\n</html>\n",
        )
    )


def _section(section: Section) -> str:
    lead = "".join(f"<p>{escape(sentence)}</p>" for sentence in section.lead)
    charts = "".join(
        f'<figure class="{chart["kind"]}"><figcaption>{escape(chart["title"])}</figcaption>'
        f'<div class="plot"><canvas id="chart-{chart["name"]}" role="img" '
        f'aria-label="{escape(chart["title"])}; the tables have the figures"></canvas></div></figure>'
        for chart in section.charts
    )
    tables = "".join(_table(table) for table in section.tables)
    panels = f'<div class="panels">{charts}{tables}</div>' if charts or tables else ""
    return f'<section id="{section.name}"><h2>{escape(section.title)}</h2>{lead}{panels}</section>'


def _table(table: Table) -> str:
    def cells(kind: str, texts: object) -> str:
        assert isinstance(texts, list | tuple)
        return "".join(
            f"<{kind}{'' if i < table.left else ' class=n'}>{escape(str(text))}</{kind}>"
            for i, text in enumerate(texts)
        )

    head = f"<thead><tr>{cells('th', list(table.columns))}</tr></thead>" if any(table.columns) else ""
    body = "".join(f"<tr>{cells('td', list(row))}</tr>" for row in table.rows)
    wide = " wide" if len(table.columns) > WIDE else ""
    title = escape(table.title)
    return (
        f'<figure class="table{wide}"><figcaption>{title}</figcaption><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{title}"><table>{head}<tbody>{body}</tbody></table></div></figure>'
    )
