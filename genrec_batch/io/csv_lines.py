"""The lines of a text with separators, as Arrow reads them: all values as text, and lines of another width as nulls.

Owns: how such a text is parsed, and which of its lines do not fit. Must not know: types, Parquet, which files there
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from genrec_batch.io.by_arrow import valid_texts
from genrec_batch.io.formats import unpacked

BLOCK = 1 << 24  # bytes that are parsed at once, at least the longest line
NULLS = ["", "\\N", "NULL", "null"]


@dataclass(kw_only=True)
class CsvLines:
    """The lines of a text with a separator, and those that have another number of values than the first one."""

    open_file: Callable[[], IO[bytes]]
    separator: str
    odd: dict[int, str] = field(default_factory=dict)  # lines by their row, from 0

    @contextmanager
    def read(self, types: Mapping[str, pa.DataType]) -> Iterator[csv.CSVStreamingReader]:
        """Open a reader of the lines; it collects odd ones while it is read."""
        with (
            unpacked(self.open_file) as content,
            csv.open_csv(
                content,
                read_options=csv.ReadOptions(block_size=BLOCK, use_threads=False),
                parse_options=csv.ParseOptions(
                    delimiter=self.separator, newlines_in_values=True, invalid_row_handler=self._collect
                ),
                convert_options=csv.ConvertOptions(
                    column_types=types, null_values=NULLS, strings_can_be_null=True, check_utf8=False
                ),
            ) as reader,
        ):
            yield reader

    def _collect(self, row: csv.InvalidRow) -> str:
        self.odd[row.number - 2] = row.text  # the line of names is row 1
        return "skip"

    def with_odd_rows(self, table: pa.Table, start: int) -> pa.Table:
        """Return a table whose first row is row `start`, with a row of nulls in the place of each odd line."""
        table = valid_texts(table)
        stop, places = start + len(table), []
        for row in sorted(row for row in self.odd if row >= start):
            if row > stop:
                break
            places.append(row - start)
            stop += 1
        if places:
            filled = np.ones(stop - start, np.bool_)
            filled[places] = False
            at = np.cumsum(filled) - 1
            table = table.take(pa.array(at, mask=~filled))
        return self._without_names(table, start)

    def _without_names(self, table: pa.Table, start: int) -> pa.Table:
        """Return a table with nulls where a line has the names once more, as texts that were joined have it."""
        again = np.ones(len(table), np.bool_)
        for name, values in zip(table.schema.names[:2], table.columns, strict=False):
            again &= pc.fill_null(pc.equal(values, name), fill_value=False).to_numpy()
        if not again.any():
            return table
        line = self.separator.join(table.schema.names)
        self.odd |= {start + int(row): line for row in np.flatnonzero(again)}
        return table.take(pa.array(np.arange(len(table)), mask=again))

    def said(self) -> str | None:
        """Return what is wrong with the odd lines, None without any."""
        if not self.odd:
            return None
        row, line = min(self.odd.items())
        return (
            f"{len(self.odd):,} of its lines have more or fewer values than its first line has names, or are this line "
            f"once more, and are rejected, such as row {row:,} ({line.strip()[:60]!r}); values with {self.separator!r} "
            "in them belong in double quotes"
        )
