"""The survey of a log: one pass that says which users and videos are in it, how often, and when.

Owns: counts of users, videos and rejected rows, the range of times, `--max-rejects`. Must not know: what a column means
to the model. In: a log. Out: a `Survey`, whose size grows with users and videos, never with rows.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter as Counts
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import polars as pl

from genrec_batch.core.errors import InputError
from genrec_batch.events import schema
from genrec_batch.events.columns import REQUIRED
from genrec_batch.events.ids import Counted, Counter, IdRange, count
from genrec_batch.events.log import EventLog
from genrec_batch.events.rejects import RejectFile, check_share, in_words
from genrec_batch.events.sorter import NUMPY, Sorter
from genrec_batch.events.times import other_clocks, text_ways
from genrec_batch.runtime import console, threads


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one pass over a log found. Counts are of usable events up to as-of."""

    rows: int
    usable: int
    rejects: dict[str, int]  # rows that cannot be used, by reason
    as_of_us: int
    users: pl.DataFrame  # user_id and count, by rising id
    videos: pl.DataFrame  # video_id and count, by rising id
    user_ranges: list[IdRange | None]  # of each row group, None where it has no such event
    by_time: bool  # timestamps never fall from row to row


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one row group has."""

    users: Counted
    videos: Counted
    faulty: pl.DataFrame | None  # rows that cannot be used
    usable: int
    times: tuple[int, int, int, int, bool] | None  # epoch us: first and last row, least, largest; whether none falls


def survey(
    log: EventLog, as_of_us: int | None, workers: int, sorter: Sorter = NUMPY, rejected: RejectFile | None = None
) -> Survey:
    """Read user, video and time of every row once; `as_of_us` None means the log's last timestamp.

    Rows that cannot be used go to `rejected`.

    Raises:
        InputError: not readable, or no row is usable.
    """
    users, videos = Counter("user_id"), Counter("video_id")
    user_ranges: list[IdRange | None] = []
    rejects: Counts[str] = Counts()
    usable, last_us, by_time, before_us = 0, 0, True, 0
    look = partial(_look, log, as_of_us, sorter, users, videos)
    with console.progress("reading", log.rows, "rows") as advance:
        looks = threads.ordered(look, range(len(log.row_groups)), workers=workers, name="survey")
        for group, seen in zip(log.row_groups, looks, strict=True):
            users.add(seen.users)
            videos.add(seen.videos)
            user_ranges.append(seen.users.range)
            if seen.faulty is not None:
                rejects.update(seen.faulty["reason"].to_list())
                if rejected is not None:
                    rejected.add("events", seen.faulty)
            usable += seen.usable
            if seen.times is not None:
                first_us, end_us, _, latest_us, rises = seen.times
                by_time = by_time and rises and before_us <= first_us
                before_us, last_us = end_us, max(last_us, latest_us)
            advance(group.rows)
    if not usable and log.rows:
        raise InputError(
            f"{log.where}: no row can be scored, of {log.rows:,}: {in_words(rejects) or _none_left(log)}"
            f"{_too_old(log)}{_way_out(log, rejects)}"
        )
    return Survey(
        rows=log.rows,
        usable=usable,
        rejects=dict(rejects),
        as_of_us=last_us if as_of_us is None else as_of_us,
        users=users.frame(),
        videos=videos.frame(),
        user_ranges=user_ranges,
        by_time=by_time,
    )


def _look(log: EventLog, as_of_us: int | None, sorter: Sorter, users: Counter, videos: Counter, number: int) -> _Seen:
    frame = log.required(number)
    usable = frame.filter(schema.usable()) if any(frame[name].null_count() for name in REQUIRED) else frame
    uneven = bool(log.contract.explode)  # rows whose lists differ in length are no events
    faulty = log.faulty(number) if uneven or len(usable) < len(frame) else None
    counted = usable
    if as_of_us is not None and len(usable):
        counted = usable.filter(pl.col("timestamp").dt.epoch("us") <= as_of_us)
    times = None
    if len(usable):
        time_us = usable["timestamp"].cast(pl.Int64)
        times = time_us[0], time_us[-1], *sorter.extent(time_us)
        log.latest_us[number] = times[3]
    return _Seen(
        users=count(counted["user_id"], sorter, users.tallies),
        videos=count(counted["video_id"], sorter, videos.tallies),
        faulty=faulty,
        usable=len(usable),
        times=times,
    )


def _none_left(log: EventLog) -> str:
    """Return why rows without a fault are no events."""
    if any(log.contract.where):
        return "`where` of --schema is true for none of them"
    return "none is an event"


def _too_old(log: EventLog) -> str:
    """Return that `--since` may have left nothing."""
    if log.since_us is None:
        return ""
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(microseconds=log.since_us)
    return f" from --since ({moment:%Y-%m-%d %H:%M:%S} UTC) on"


def _way_out(log: EventLog, rejects: Mapping[str, int]) -> str:
    """Return what to do where no row has a usable time."""
    for name in ("user_id", "video_id"):
        kinds = [own[name] for own in log.contract.own if name in own]
        if f"{name} is null" in rejects and pl.Binary in kinds:
            return f"; bytes that are no UTF-8 count as null: write {name} as text, such as HEX({name}) in its query"
        if f"{name} cannot be read" in rejects and any(kind.is_float() for kind in kinds):
            return (
                f"; {name} is a column of floats, whose values are fractions or, from 2^53 on (Float32: 2^24), not the "
                f"ids that were meant: write {name} again as integers or as text"
            )
    faulty = log.faulty(0).filter(pl.col("reason").str.starts_with("timestamp"))
    values = json.loads(faulty["values"][0] or "{}") if len(faulty) else {}
    read = log.contract.raw("timestamp", 0).meta.root_names()
    example = values.get(read[0]) if len(read) == 1 else None
    if "timestamp cannot be read" in rejects:
        return f"; {text_ways(example if isinstance(example, str) else None)}"
    return f"; {other_clocks(int(str(example)))}" if str(example).isdigit() else ""


def check_rejects(found: Survey, most: float, where: str) -> None:
    """Raise GateError where more than the share `most` of all rows cannot be used (`--max-rejects`)."""
    check_share(found.rejects, found.usable + sum(found.rejects.values()), most, where)
