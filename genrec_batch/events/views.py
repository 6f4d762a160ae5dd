"""How often videos were viewed lately, by everybody or by groups of users: one pass over the log's newest rows.

Owns: which views count, and the group of each user. Must not know: tokens, rules, lists. In: a log and a window that
ends at as-of. Out: `Views`, counts of videos by group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec_batch.core.arrays import I32
from genrec_batch.core.errors import ConfigError, nearest
from genrec_batch.events.ids import IdIndex
from genrec_batch.events.log import EventLog
from genrec_batch.runtime import console, threads

NO_GROUP = -1  # of a user whose value is not known
MERGED_ROWS = 1 << 22  # counts of single row groups that may wait before they are added up


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The group of each user who has one: users with the same value of a column."""

    values: pl.Series  # of each group, as text
    index: IdIndex  # of the users
    group_U: I32  # and their groups

    @staticmethod
    def of(users: pl.DataFrame, column: str) -> Groups:
        """Return the groups of distinct users with a column of values; null is no group."""
        known = users.select("user_id", pl.col(column).cast(pl.String)).drop_nulls()
        values = known[column].unique().sort()
        group_U = IdIndex(values).rows(known[column])
        return Groups(values=values, index=IdIndex(known["user_id"]), group_U=group_U)

    def of_users(self, ids: pl.Series) -> I32:
        """Return the group of each user, -1 without one, [len(ids)]."""
        row_N = self.index.rows(ids)
        return np.where(row_N >= 0, self.group_U[row_N], NO_GROUP).astype(np.int32) if len(self.group_U) else row_N


@dataclass(frozen=True, kw_only=True)
class Views:
    """Views of videos: a row for each video, and for each group and video, with the number of views."""

    overall: pl.DataFrame  # video_id, count
    by_group: pl.DataFrame | None  # group, video_id, count
    groups: Groups | None


def views_of(log: EventLog, since_us: int | None, as_of_us: int, groups: Groups | None) -> Views:
    """Return the views after `since_us` and up to as-of; row groups that end before are not read.

    Raises:
        InputError, RetryError: see `EventLog.required`.
    """

    def counted(number: int) -> pl.DataFrame:
        rows = _between(log.required(number), since_us, as_of_us)
        if groups is None:
            return rows.group_by("video_id").agg(count=pl.len().cast(pl.UInt64))
        group = pl.Series("group", groups.of_users(rows["user_id"]))
        return rows.with_columns(group).group_by("group", "video_id").agg(count=pl.len().cast(pl.UInt64))

    keys = ["video_id"] if groups is None else ["group", "video_id"]
    found = _merged(_mapped(log, counted, since_us, "counting views"), lambda all_: _summed(all_, keys))
    overall = found if groups is None else _summed(found, ["video_id"])
    mine = None if groups is None else found.filter(pl.col("group") != NO_GROUP)
    return Views(overall=overall.select("video_id", "count"), by_group=mine, groups=groups)


def groups_of_log(log: EventLog, column: str, as_of_us: int) -> Groups:
    """Return the groups of users by their newest non-null value of a column of the log, up to as-of.

    Raises:
        ConfigError: the log has no such column.
        InputError, RetryError: see `EventLog.required`.
    """
    names = log.own_columns()
    if column not in names:
        raise ConfigError(
            f"--fallback: {column!r} is a column neither of --users nor of the log.{nearest(column, names)} The log's "
            f"columns: {', '.join(names[:40])}"
        )

    def newest(number: int) -> pl.DataFrame:
        rows = _between(log.with_column(number, column), None, as_of_us)
        return _newest(rows.select("user_id", "timestamp", pl.col(column).alias("value")).drop_nulls("value"))

    found = _merged(_mapped(log, newest, None, "finding the groups of users"), _newest)
    return Groups.of(found, "value")


def _newest(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the newest row of each user, of equal ones the last."""
    return rows.sort("timestamp", maintain_order=True).group_by("user_id").last()


def _summed(counts: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    return counts.group_by(keys).agg(pl.col("count").sum())


def _between(rows: pl.DataFrame, since_us: int | None, as_of_us: int) -> pl.DataFrame:
    time_us = pl.col("timestamp").dt.epoch("us")
    wanted = pl.all_horizontal(pl.col("user_id", "video_id").is_not_null(), time_us <= as_of_us)
    return rows.filter(wanted if since_us is None else wanted & (time_us > since_us))


def _mapped(
    log: EventLog, work: Callable[[int], pl.DataFrame], since_us: int | None, name: str
) -> Iterator[pl.DataFrame]:
    """Yield the work over each row group that has a row after `since_us`, of one where none has."""
    latest, every = log.latest_us, range(len(log.row_groups))
    numbers = [n for n in every if since_us is None or latest.get(n, since_us + 1) > since_us] or [0]
    with console.progress(name, sum(log.row_groups[n].rows for n in numbers), "rows") as advance:
        for number, frame in zip(
            numbers, threads.ordered(work, numbers, workers=threads.cores(), name="views"), strict=True
        ):
            advance(log.row_groups[number].rows)
            yield frame


def _merged(frames: Iterator[pl.DataFrame], merge: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    """Merge the frames of row groups, many at a time; their order is kept."""
    waiting: list[pl.DataFrame] = []
    merged_rows = 0
    for frame in frames:
        waiting.append(frame)
        if sum(map(len, waiting)) > max(MERGED_ROWS, 2 * merged_rows):
            waiting = [merge(pl.concat(waiting))]
            merged_rows = len(waiting[0])
    return merge(pl.concat(waiting))
