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
from pyarrow import csv

from genrec_batch.io.by_arrow import valid_texts
from genrec_batch.io.formats import unpacked
from genrec_batch.io.odd_lines import OddLines

BLOCK = 1 << 24  # bytes that are parsed at once, at least the longest line
OTHER_WIDTH = "line has another number of values than the first line has names"
OPEN_QUOTE = "line is between double quotes of other lines"
NAMES_AGAIN = "line is the first line once more"
NULLS = ["", "\\N", "NULL", "null"]


@dataclass(kw_only=True)
class CsvLines:
    """The lines of a text with a separator, and those that have another number of values than the first one."""

    open_file: Callable[[], IO[bytes]]
    separator: str
    odd: OddLines = field(default_factory=OddLines)
    _found: list[tuple[int, str]] = field(default_factory=list)  # odd rows in the order of the parser: number, text
    _extra: int = 0  # rows that were made so far beyond those of the parser: of its rows that are several lines

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
        self._found.append((row.number - 2, row.text))  # the line of names is row 1
        return "skip"

    def clear(self) -> None:
        """Forget what was found, before the lines are read once more."""
        self._found.clear()

    def with_odd_rows(self, table: pa.Table, start: int) -> pa.Table:
        """Return a table whose first row is row `start`, with a row of nulls in the place of each odd line.

        A double quote that is never closed makes one row of many lines, which are as many odd ones.
        """
        table, first = valid_texts(table), start - self._extra
        texts: dict[int, tuple[str, str]] = {}
        while self._found and self._found[0][0] - first <= len(table) + len(texts):
            number, line = self._found.pop(0)
            texts[number - first] = OTHER_WIDTH, line
        whole = np.ones(len(table) + len(texts), np.bool_)
        whole[list(texts)] = False
        source = np.where(whole, np.cumsum(whole) - 1, -1)
        for row, line in self._swallowing(table).items():
            at = int(np.flatnonzero(source == row)[0])
            texts[at], source[at] = (OPEN_QUOTE, line), -1
        if texts:
            lines = np.ones(len(source), np.int64)
            lines[list(texts)] = [line.strip().count("\n") + 1 for _, line in texts.values()]
            places = start + np.cumsum(lines) - lines
            for at, (reason, line) in texts.items():
                for number, one in enumerate(line.strip().split("\n")):
                    self.odd.add(int(places[at]) + number, reason if number == 0 else OPEN_QUOTE, one)
            self._extra += int((lines - 1).sum())
            at_R = np.repeat(source, lines)
            table = table.take(pa.array(at_R, mask=at_R < 0))
        return self._without_names(table, start)

    def _swallowing(self, table: pa.Table) -> dict[int, str]:
        """Return the rows with a value that has whole lines of the text in it, and these lines."""
        from pyarrow import compute as pc  # imported late: it takes a twentieth of a second, and Parquet needs none

        found = {}
        for values in table.columns:
            if not pa.types.is_string(values.type) or not pc.any(pc.match_substring(values, "\n")).as_py():
                continue
            for row in np.flatnonzero(pc.fill_null(pc.count_substring(values, "\n"), 0).to_numpy() > 1):
                inner = values[int(row)].as_py().split("\n")[1:-1]
                if all(line.count(self.separator) == table.num_columns - 1 for line in inner):
                    one = table.slice(int(row), 1).to_pylist()[0]
                    found[int(row)] = self.separator.join("" if v is None else v for v in one.values())
        return found

    def _without_names(self, table: pa.Table, start: int) -> pa.Table:
        """Return a table with nulls where a line has the names once more, as texts that were joined have it."""
        from pyarrow import compute as pc

        again = np.ones(len(table), np.bool_)
        for name, values in zip(table.schema.names[:2], table.columns, strict=False):
            again &= pc.fill_null(pc.equal(values, name), fill_value=False).to_numpy()
        if not again.any():
            return table
        line = self.separator.join(table.schema.names)
        for row in np.flatnonzero(again):
            self.odd.add(start + int(row), NAMES_AGAIN, line)
        return table.take(pa.array(np.arange(len(table)), mask=again))

    def said(self) -> str | None:
        """Return what is wrong with the odd lines, None without any."""
        return self.odd.said(
            "have more or fewer values than its first line has names, are this line once more, or are between double "
            "quotes of other lines",
            f"; values with {self.separator!r} in them belong in double quotes, and a double quote in them is doubled",
        )
