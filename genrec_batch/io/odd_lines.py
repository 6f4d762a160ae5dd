"""Lines of a text that are no rows: each becomes a row of nulls in its place, and is told with its text.

Owns: what is kept of such lines, and how they are told. Must not know: formats, columns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import polars as pl

KEPT_LINES, KEPT_SIGNS = 100_000, 1_000  # of a file, of a line; rows beyond have a reason and no text
SCHEMA = {"file": pl.String, "row": pl.Int64, "reason": pl.String, "values": pl.String}


@dataclass(kw_only=True)
class OddLines:
    """The odd lines of one text by their row, from 0: the reason, and the line."""

    found: dict[int, tuple[str, str | None]] = field(default_factory=dict)

    def add(self, row: int, reason: str, line: str) -> None:
        """Note that the line at `row` is none."""
        kept = line.strip()[:KEPT_SIGNS] if len(self.found) < KEPT_LINES else None
        self.found[row] = reason, kept

    def said(self, what: str, way_out: str = "") -> str | None:
        """Return how many lines are odd, with the first of them, None without any; `what` says what they are."""
        if not self.found:
            return None
        row, (_, line) = min(self.found.items())
        return f"{len(self.found):,} of its lines {what}, and are rejected, such as row {row:,} ({line!r:.62}){way_out}"

    def frame(self, file: str) -> pl.DataFrame:
        """Return the lines as rejects: file, row, reason, and the line as JSON."""
        rows = [
            (file, row, reason, "{}" if line is None else json.dumps({"line": line}, ensure_ascii=False))
            for row, (reason, line) in self.found.items()
        ]
        return pl.DataFrame(rows, schema=SCHEMA, orient="row")
