"""A log as contract events, a row group at a time.

Owns: reading row groups in order, and keeping what the survey read of a short log. Must not know: what a column means
to the model, where the events go. In: a log's row groups and its contract. Out: frames of contract columns.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import polars as pl

from genrec_batch.core.option_values import is_span, since_us
from genrec_batch.events import lists, schema, schema_file
from genrec_batch.events.columns import REQUIRED
from genrec_batch.events.plausible import SAMPLE
from genrec_batch.events.rejects import faulty_rows
from genrec_batch.events.times import DAY_US, FIRST_US
from genrec_batch.io.attempt import unchanged
from genrec_batch.io.read import Source
from genrec_batch.io.row_groups import RowGroup, in_files
from genrec_batch.runtime.console import LOG

KEPT_ROWS = 1 << 23  # of a log whose users, videos and times are read only once


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """A log that can be read a row group at a time, in the order of its rows, as often as needed."""

    row_groups: tuple[RowGroup, ...]
    contract: schema.Contract
    where: str  # names the log in errors
    last_us: int  # the last plausible time: a day after now, epoch us
    since_us: int | None = None  # events before it are left out, epoch us
    latest_us: dict[int, int] = field(default_factory=dict, repr=False)  # of each row group that the survey has read
    _kept: dict[int, pl.DataFrame] = field(default_factory=dict, repr=False)  # what `required` read

    @staticmethod
    def of(
        source: Source,
        schema_name: str | None,
        where: str,
        *,
        positive: str | None = None,
        labels: bool = False,
    ) -> EventLog:
        """Find out how a log is read: for scoring, or with `labels`.

        `positive` names the log's own column that is to be the label of recommendation.

        Raises:
            InputError, ConfigError: it does not fit the contract.
        """
        names = schema_file.column_names(schema_name)
        expressions, only = names.events, names.where.get("events")
        if positive is not None:
            expressions = {**expressions, "recommendation_label": f'"{positive}"'}
        contract = unchanged(
            lambda: schema.read_contract(
                source.columns, expressions, where, labels=labels, only=only, explode=names.explode
            ),
            source.first_look,
            source.files,
            where,
        )
        absent = contract.reading.absent
        if absent:
            said = ", ".join(f"{name} (in {files:,} of {len(source.files):,})" for name, files in absent.items())
            LOG.info("%s: columns that are missing in some files, and null there: %s", where, said)
        last_us = time.time_ns() // 1000 + DAY_US
        groups = source.row_groups
        if names.explode:
            groups = tuple(lists.bounded(groups, names.explode, where))
        return EventLog(row_groups=groups, contract=contract, where=where, last_us=last_us)

    @property
    def rows(self) -> int:
        """Rows of the log, usable or not."""
        return sum(group.rows for group in self.row_groups)

    def required(self, number: int) -> pl.DataFrame:
        """Return user, video and time of all rows of a row group, unusable ones too; a short log keeps them for later.

        Raises:
            InputError: a page is damaged.
            RetryError: a connection was lost, or a file has changed since it was first seen.
        """
        if number not in self._kept:
            frame = self._read(number, REQUIRED)
            if self.rows > KEPT_ROWS or self.contract.explode:  # rows of lists may be any number of events
                return self._recent(frame)
            self._kept[number] = frame
        return self._recent(self._kept[number])

    def usable(self, number: int) -> pl.DataFrame:
        """Return the usable events of a row group in contract columns.

        Raises:
            InputError, RetryError: see `required`.
        """
        frame = self._kept.pop(number, None)
        if frame is not None:
            others = [name for name in self.contract.reading.columns if name not in REQUIRED]
            frame = pl.concat([frame, self._read(number, others)], how="horizontal") if others else frame
        else:
            frame = self._read(number, self.contract.reading.columns)
        return self._recent(frame.filter(schema.usable()) if any(frame[n].null_count() for n in REQUIRED) else frame)

    def with_column(self, number: int, column: str | None) -> pl.DataFrame:
        """Return user, video and time of the usable events of a row group, and one more column of the log as text.

        A column of the contract is what the contract makes of it; another one is as it is in the files, null where one
        does not have it.

        Raises:
            InputError, RetryError: see `required`.
        """
        if column is None or column in REQUIRED:
            frame = self.required(number)
        elif column in self.contract.reading.columns:
            frame = self._read(number, (*REQUIRED, column)).with_columns(pl.col(column).cast(pl.String))
        else:
            own = self.row_groups[number].collect(lambda rows, kind: self._own(rows, column, kind), self.where)
            frame = pl.concat([self._read(number, REQUIRED), own], how="horizontal")
        return self._recent(frame.filter(schema.usable()))

    def _own(self, rows: pl.LazyFrame, column: str, kind: int) -> pl.LazyFrame:
        there = column in rows.collect_schema().names()
        value = pl.col(column) if there else pl.lit(None)
        return self.contract.rows(rows, kind).select(value.cast(pl.String, strict=False).alias(column))

    def own_columns(self) -> list[str]:
        """Return the names of the log's columns, its own and those of the contract."""
        kinds = {piece.columns: piece.frame for group in self.row_groups for piece in group.pieces}
        own = [name for frame in kinds.values() for name in frame.collect_schema().names()]
        return list(dict.fromkeys([*self.contract.reading.columns, *own]))

    def in_zone(self, zone: str | None) -> EventLog:
        """Return the log with hours and weekdays of `--timezone`.

        Raises:
            ConfigError: there is no such zone.
        """
        return replace(self, contract=self.contract.in_zone(zone))

    def since(self, text: str | None, as_of_us: int | None) -> EventLog:
        """Return the log from the moment of `--since` on; where that is a span before the last event, find it first.

        Raises:
            InputError, RetryError: see `required`.
        """
        if text is None:
            return self
        if as_of_us is None and is_span(text):
            last = pl.col("timestamp").filter(schema.usable()).dt.epoch("us").max()
            times = [self.required(number).select(last).item() for number in range(len(self.row_groups))]
            as_of_us = max((time for time in times if time is not None), default=0)
        return replace(self, since_us=since_us(text, as_of_us or 0))

    def _recent(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return rows without the events before `since_us`; rows that are none stay."""
        if self.since_us is None:
            return frame
        return frame.filter(~schema.usable() | (pl.col("timestamp").dt.epoch("us") >= self.since_us))

    def faulty(self, number: int, *, events: bool = True) -> pl.DataFrame:
        """Return file, row (from 0), reason and values of the rows of a row group that cannot be used.

        Without `events`, only rows whose lists are of unequal length: the events are known to be all right.

        Raises:
            InputError, RetryError: see `required`.
        """
        group, found = self.row_groups[number], []
        for piece in group.pieces:
            of_piece = replace(group, pieces=(piece,))
            rows = of_piece.collect(
                lambda frame, kind: faulty_rows(self.contract, frame, kind, self.last_us, events=events), self.where
            )
            found.append(in_files(rows, piece))
        return pl.concat(found)

    def made_null(self, number: int, columns: list[str]) -> dict[str, tuple[int, int, str | None]]:
        """Return how many values of each column the conversion makes null, of how many, and one of them.

        Looks at the first rows of a row group.

        Raises:
            InputError, RetryError: see `required`.
        """
        group = self.row_groups[number]
        piece = replace(group.pieces[0], frame=group.pieces[0].frame.head(SAMPLE), by_arrow=None)
        counts = replace(group, pieces=(piece,)).collect(
            lambda frame, kind: self.contract.made_null(frame, columns, kind), self.where
        )
        if not counts.columns:
            return {}
        found = counts.row(0, named=True)
        return {name: (each["made"], each["values"], each["example"]) for name, each in found.items()}

    def _read(self, number: int, columns: Iterable[str]) -> pl.DataFrame:
        wanted = tuple(columns)
        frame = self.row_groups[number].collect(
            lambda frame, kind: self.contract.events(frame, wanted, kind), self.where
        )
        return self._checked(frame) if "timestamp" in wanted else frame

    def _checked(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return events with nulls for implausible times and blank ids; most row groups have none."""
        moment = pl.col("timestamp").cast(pl.Int64)
        low, high = frame.select(low=moment.min(), high=moment.max()).row(0)
        if low is not None and (low < FIRST_US or high > self.last_us):
            frame = frame.with_columns(pl.when(moment.is_between(FIRST_US, self.last_us)).then(pl.col("timestamp")))
        for name in ("user_id", "video_id"):
            least = frame[name].min() if frame.schema[name] == pl.String else None
            if isinstance(least, str) and least < "!":  # empty, or begins with a space
                frame = frame.with_columns(pl.when(pl.col(name).str.strip_chars() != "").then(pl.col(name)))
        return frame
