"""A log as contract events, a piece at a time, and what one look over all of it says.

Owns: reading pieces in order, the rejects, who and what is in the log and how often (the survey). Must not know: what a
column means to the model, where pieces go. In: a log's pieces and how it is read. Out: frames of contract columns, and
a `Survey` whose size grows with users and videos, never with rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import polars as pl

from genrec_batch.core.errors import GateError, InputError
from genrec_batch.events import schema
from genrec_batch.events.columns import REQUIRED
from genrec_batch.events.ids import Counted, Counter, Span, count
from genrec_batch.events.sorter import NUMPY, Sorter
from genrec_batch.io.read import Piece, reading
from genrec_batch.runtime import console, threads

KEPT_ROWS = 1 << 23  # of a log whose users, videos and times are read only once


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """A log that can be read piece by piece, in the order of its rows, as often as needed."""

    pieces: tuple[Piece, ...]
    contract: schema.Contract
    where: str  # names the log in errors
    latest_us: dict[int, int] = field(default_factory=dict, repr=False)  # of each piece that the survey has read
    _kept: dict[int, pl.DataFrame] = field(default_factory=dict, repr=False)  # what `required` read

    @staticmethod
    def of(
        frame: pl.LazyFrame,
        pieces: Sequence[Piece],
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
        contract = reading(
            lambda: schema.read_contract(frame, expressions, where, check_times=False, labels=labels), where
        )
        return EventLog(pieces=tuple(pieces), contract=contract, where=where)

    @property
    def rows(self) -> int:
        """Rows of the log, usable or not."""
        return sum(piece.rows for piece in self.pieces)

    def required(self, number: int) -> pl.DataFrame:
        """Return user, video and time of a piece's rows, unusable ones too; kept for later where the log is short.

        Raises:
            InputError: a page is damaged.
            RetryError: a connection was lost.
        """
        if number not in self._kept:
            frame = self._read(number, REQUIRED)
            if self.rows > KEPT_ROWS:
                return frame
            self._kept[number] = frame
        return self._kept[number]

    def usable(self, number: int) -> pl.DataFrame:
        """Return a piece's usable events in contract columns.

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
        return reading(self.contract.events(self.pieces[number].frame, columns).collect, self.where)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one look over a log says: rows and rejects, its span of time, and users and videos with their counts.

    Counts are of usable events up to as-of. `users` and `videos` have columns user_id or video_id and count, by rising
    id. `spans` has each piece's smallest and largest user_id, None where it has no such event.
    """

    rows: int
    usable: int
    nulls: dict[str, int]
    as_of_us: int
    users: pl.DataFrame
    videos: pl.DataFrame
    spans: list[Span | None]
    by_time: bool  # timestamps never fall from row to row


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What one piece says."""

    users: Counted
    videos: Counted
    nulls: dict[str, int]
    usable: int
    times: tuple[int, int, int, int, bool] | None  # epoch us: first and last row, least, largest; whether none falls


def survey(log: EventLog, as_of_us: int | None, workers: int, sorter: Sorter = NUMPY) -> Survey:
    """Read user, video and time of every row once.

    `as_of_us` None means the log's last timestamp.

    Raises:
        InputError: not readable, or no row is usable.
    """
    users, videos = Counter("user_id"), Counter("video_id")
    spans: list[Span | None] = []
    nulls = dict.fromkeys(REQUIRED, 0)
    usable, last_us, by_time, before_us = 0, 0, True, 0
    look = partial(_look, log, as_of_us, sorter, users, videos)
    with console.progress("reading", log.rows, "rows") as advance:
        looks = threads.ordered(look, range(len(log.pieces)), workers=workers, name="survey")
        for piece, seen in zip(log.pieces, looks, strict=True):
            users.add(seen.users)
            videos.add(seen.videos)
            spans.append(seen.users.span)
            nulls = {name: count + seen.nulls[name] for name, count in nulls.items()}
            usable += seen.usable
            if seen.times is not None:
                first_us, end_us, least_us, latest_us, rises = seen.times
                schema.check_span(least_us, latest_us, log.where)
                by_time = by_time and rises and before_us <= first_us
                before_us, last_us = end_us, max(last_us, latest_us)
            advance(piece.rows)
    if not usable and log.rows:
        raise InputError(f"{log.where}: no row can be scored: null {told(nulls)} of {log.rows:,} rows")
    return Survey(
        rows=log.rows,
        usable=usable,
        nulls=nulls,
        as_of_us=last_us if as_of_us is None else as_of_us,
        users=users.frame(),
        videos=videos.frame(),
        spans=spans,
        by_time=by_time,
    )


def _look(log: EventLog, as_of_us: int | None, sorter: Sorter, users: Counter, videos: Counter, number: int) -> Looked:
    frame = log.required(number)
    nulls = {name: frame[name].null_count() for name in REQUIRED}
    usable = frame.filter(schema.usable()) if any(nulls.values()) else frame
    counted = usable
    if as_of_us is not None and len(usable):
        counted = usable.filter(pl.col("timestamp").dt.epoch("us") <= as_of_us)
    times = None
    if len(usable):
        time_us = usable["timestamp"].cast(pl.Int64)
        times = time_us[0], time_us[-1], *sorter.extent(time_us)
        log.latest_us[number] = times[3]
    return Looked(
        users=count(counted["user_id"], sorter, users.tallies),
        videos=count(counted["video_id"], sorter, videos.tallies),
        nulls=nulls,
        usable=len(usable),
        times=times,
    )


def told(nulls: dict[str, int]) -> str:
    """Return the nulls of required columns as words: "user_id in 13, video_id in 9"."""
    return ", ".join(f"{name} in {count:,}" for name, count in nulls.items() if count)


def check_rejects(found: Survey, most: float, where: str) -> None:
    """Raise GateError where more than the share `most` of all rows cannot be used (`--max-rejects`)."""
    rejected = found.rows - found.usable
    if rejected > most * found.rows:
        raise GateError(
            f"{where}: {rejected:,} of {found.rows:,} rows are rejected (null {told(found.nulls)}), more than "
            f"--max-rejects {most}; mend the log or raise the limit"
        )
