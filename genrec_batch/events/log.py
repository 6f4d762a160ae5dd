"""A log as contract events, a row group at a time.

Owns: reading row groups in order, and keeping what the survey read of a short log. Must not know: what a column means
to the model, where the events go. In: a log's row groups and its contract. Out: frames of contract columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl

from genrec_batch.events import schema
from genrec_batch.events.columns import REQUIRED
from genrec_batch.io.attempt import unchanged
from genrec_batch.io.read import Source
from genrec_batch.io.row_groups import RowGroup

KEPT_ROWS = 1 << 23  # of a log whose users, videos and times are read only once


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """A log that can be read a row group at a time, in the order of its rows, as often as needed."""

    row_groups: tuple[RowGroup, ...]
    contract: schema.Contract
    where: str  # names the log in errors
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
        expressions = schema.column_names(schema_name).events
        if positive is not None:
            expressions = {**expressions, "recommendation_label": f'"{positive}"'}
        contract = unchanged(
            lambda: schema.read_contract(source.columns, expressions, where, labels=labels),
            source.first_look,
            source.files,
            where,
        )
        return EventLog(row_groups=source.row_groups, contract=contract, where=where)

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
            if self.rows > KEPT_ROWS:
                return frame
            self._kept[number] = frame
        return self._kept[number]

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
        return frame.filter(schema.usable()) if any(frame[n].null_count() for n in REQUIRED) else frame

    def _read(self, number: int, columns: Iterable[str]) -> pl.DataFrame:
        wanted = tuple(columns)
        return self.row_groups[number].collect(
            lambda frame, kind: self.contract.events(frame, wanted, kind), self.where
        )
