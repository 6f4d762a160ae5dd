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
from genrec_batch.events.rejects import RejectFile, check_share, clock_hint, in_words
from genrec_batch.events.sorter import NUMPY, Sorter
from genrec_batch.events.times import DAY_US, other_clocks, text_ways
from genrec_batch.runtime import console, threads
from genrec_batch.runtime.console import LOG

NO_IDS = ("none", "nan", "null", "undefined", "n/a", "<na>", "(null)")  # as programs write it
CUT_BY_EXCEL = r"^\d(?:[.,]\d+)?E\+\d+$"
MANY_USERS, ONE_USER = 100, 0.2  # users among whom one with such a share of the events is no person


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
    clock_us: int | None = None  # the time of day that all usable events have, us after midnight UTC


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one row group has."""

    users: Counted
    videos: Counted
    faulty: pl.DataFrame | None  # rows that cannot be used
    usable: int
    times: tuple[int, int, int, int, bool] | None  # epoch us: first and last row, least, largest; whether none falls
    clock_us: int | None  # the time of day that all have


def survey(
    log: EventLog, as_of_us: int | None, workers: int, sorter: Sorter = NUMPY, rejected: RejectFile | None = None
) -> Survey:
    """Read user, video and time of every row once; `as_of_us` None means the log's last timestamp.

    Rows that cannot be used go to `rejected`. Times that are dates or all the same are warned about.

    Raises:
        InputError: not readable, or no row is usable.
    """
    users, videos = Counter("user_id"), Counter("video_id")
    user_ranges: list[IdRange | None] = []
    rejects: Counts[str] = Counts()
    usable, last_us, by_time, before_us = 0, 0, True, 0
    clocks: set[int | None] = set()
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
                clocks.add(seen.clock_us)
            advance(group.rows)
    if not usable and log.rows:
        raise InputError(
            f"{log.where}: no row can be scored, of {log.rows:,}: {in_words(rejects) or _none_left(log)}"
            f"{_too_old(log)}{_way_out(log, rejects)}{clock_hint(rejects)}"
        )
    found = Survey(
        rows=log.rows,
        usable=usable,
        rejects=dict(rejects),
        as_of_us=last_us if as_of_us is None else as_of_us,
        users=users.frame(),
        videos=videos.frame(),
        user_ranges=user_ranges,
        by_time=by_time,
        clock_us=clocks.pop() if len(clocks) == 1 else None,
    )
    for fault in filter(None, (times_fault(found), id_fault(found.users), id_fault(found.videos), user_fault(found))):
        LOG.warning("%s", fault)
    return found


def _look(log: EventLog, as_of_us: int | None, sorter: Sorter, users: Counter, videos: Counter, number: int) -> _Seen:
    frame = log.required(number)
    usable = frame.filter(schema.usable()) if any(frame[name].null_count() for name in REQUIRED) else frame
    uneven = bool(log.contract.explode)  # rows whose lists differ in length are no events
    bad = len(usable) < len(frame)
    faulty = log.faulty(number, events=bad) if uneven or bad else None
    counted = usable
    if as_of_us is not None and len(usable):
        counted = usable.filter(pl.col("timestamp").dt.epoch("us") <= as_of_us)
    times, clock_us = None, None
    if len(usable):
        time_us = usable["timestamp"].cast(pl.Int64)
        times = time_us[0], time_us[-1], *sorter.extent(time_us)
        log.latest_us[number] = times[3]
        clock_us = _clock(time_us, *times[:4])
    return _Seen(
        users=count(counted["user_id"], sorter, users.tallies),
        videos=count(counted["video_id"], sorter, videos.tallies),
        faulty=faulty,
        usable=len(usable),
        times=times,
        clock_us=clock_us,
    )


def _clock(time_us: pl.Series, *some_us: int) -> int | None:
    """Return the time of day that all times have, None where they differ, which some of them tell in most logs."""
    clock_us = some_us[0] % DAY_US
    if any(each % DAY_US != clock_us for each in some_us):
        return None
    return clock_us if (time_us % DAY_US == clock_us).all() else None


def times_fault(found: Survey) -> str | None:
    """Return what is odd about times that are dates or all the same, None where users have one event each at most."""
    if found.clock_us is None or found.usable <= len(found.users):
        return None
    clock = (dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(microseconds=found.clock_us)).time()
    return (
        f"timestamp: all {found.usable:,} events have the same time of day ({clock:%H:%M:%S} UTC), as dates without a "
        "time have: a user's events of a day are taken in the order of the rows, and hours mean nothing; likely "
        "remedy: the column that has the moment of a view, in --schema FILE.toml as timestamp"
    )


def id_fault(counts: pl.DataFrame) -> str | None:
    """Return that texts which mean that there is no id are ids of a log, or that Excel has cut them."""
    name = counts.columns[0]
    if counts.schema[name] != pl.String:
        return None
    none = counts.filter(pl.col(name).str.strip_chars().str.to_lowercase().is_in(NO_IDS))
    if len(none):
        words = ", ".join(_quoted(word) for word in none[name])
        remedy = json.dumps(f"{name} NOT IN ({words})", ensure_ascii=False)
        return (
            f"{name}: {none['count'].sum():,} events have an id that says that there is none ({words}); likely remedy "
            f"in --schema FILE.toml: where = {remedy}"
        )
    cut = counts.filter(pl.col(name).str.contains(CUT_BY_EXCEL))
    if len(cut):
        return (
            f"{name}: {cut['count'].sum():,} events have an id such as {cut[name][0]!r}, which Excel has cut, so that "
            "different ones are the same; export the table anew without opening it in Excel, or with ids as text"
        )
    return None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def user_fault(found: Survey) -> str | None:
    """Return that one of many users has a large part of all events, as the id of people who are not logged in has."""
    if len(found.users) < MANY_USERS:
        return None
    user, events = found.users.row(int(found.users["count"].arg_max() or 0))
    share = events / int(found.users["count"].sum())
    if share < ONE_USER:
        return None
    shown = _quoted(user) if isinstance(user, str) else str(user)
    remedy = json.dumps(f"user_id <> {shown}", ensure_ascii=False)
    return (
        f"user_id: {user!r} has {share:.0%} of the events of {len(found.users):,} users, "
        f"as the id of people without one has; likely remedy in --schema FILE.toml: where = {remedy}"
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
