"""Histories: from events in any order to each user's newest events, as flat arrays.

Owns: the order of events, which are kept, which videos count as seen. Must not know: files, feature slots, the model.
In: all records of some users, in input order (`blocks.Records`). Out: `arrays.Histories`. `build` does the same from a
frame, for tests and notebooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrec_batch.arrays import FIRST_ITEM, I32, I64, Histories, Ragged
from genrec_batch.blocks import Records, RecordType
from genrec_batch.catalog import Catalog
from genrec_batch.counting import Index
from genrec_batch.schema import SCORED

DIGIT = 1 << 16  # NumPy sorts 16-bit integers by counting, in one pass


@dataclass(frozen=True, kw_only=True)
class Videos:
    """What is known of each video of the log, by its row: token (1: not in the catalog) and row of `--videos` or -1."""

    token_V: I32
    row_V: I32


def order(
    records: Records,
    record: RecordType,
    *,
    start: int,
    stop: int,
    videos: Videos,
    user_row_N: I32,
    as_of_us: int,
    max_events: int,
    seen_limit: int,
) -> Histories:
    """Return the histories of users `start`..`stop` (N of them), from all of their records in input order.

    Kept are a user's newest `max_events` events by (timestamp, input order), oldest first. Seen are the tokens of the
    newest `seen_limit` distinct videos of all the user's events, in no particular order.
    """
    user_R = records["user"] - np.int32(start)
    total_N = np.bincount(user_R, minlength=stop - start).astype(np.int64)
    order_R = _by_user_and_time(user_R, records["time_us"], total_N)
    kept_R = order_R if int(total_N.max(initial=0)) <= max_events else order_R[_from_newest(total_N) < max_events]
    kept = records.take(kept_R)
    video_E = np.ascontiguousarray(kept["video"])
    return Histories(
        offsets_N1=_offsets(np.minimum(total_N, max_events)),
        time_us_E=np.ascontiguousarray(kept["time_us"]),
        tokens_E=videos.token_V.take(video_E),
        video_code_E=video_E,
        video_row_E=videos.row_V.take(video_E),
        session_E=_sessions(kept["session_id"]) if "session_id" in record.columns else None,
        numbers={n: _number(kept[n]) for n in record.columns if SCORED[n] in ("number", "flag")},
        categories={n: np.ascontiguousarray(kept[n]) for n in record.columns if SCORED[n] == "category"},
        total_events_N=total_N,
        user_row_N=user_row_N,
        seen=_seen(user_R, records["video"], order_R, total_N, videos.token_V, seen_limit),
        as_of_us=as_of_us,
    )


def _number(column_E: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return a record's column as Float64, NaN for null (a flag's null is -1)."""
    numbers_E = column_E.astype(np.float64)
    if column_E.dtype == np.int8:
        numbers_E[numbers_E < 0] = np.nan
    return numbers_E


def _sessions(id_E: I64) -> I64:
    """Number the session ids from 0, -1 for null, [E]; events of one session mostly stand side by side."""
    if not len(id_E):
        return id_E.astype(np.int64)
    begins_E = np.ones(len(id_E), np.bool_)
    np.not_equal(id_E[1:], id_E[:-1], out=begins_E[1:])
    places = np.flatnonzero(begins_E)
    ids = id_E[places]
    distinct, number = np.unique(ids, return_inverse=True)
    del distinct
    return np.repeat(np.where(ids < 0, -1, number), np.diff(places, append=len(id_E)))


def _by_user_and_time(user_R: I32, time_us_R: I64, total_N: I64) -> I64:
    """Return the rows by (user, time, input order), [R]; rows that come in time order need no comparison."""
    order_R = _by_user(user_R, len(total_N))
    time_R = time_us_R[order_R]
    falls_R = time_R[1:] < time_R[:-1]
    ends = np.cumsum(total_N)[:-1]
    falls_R[ends[(ends > 0) & (ends < len(time_R))] - 1] = False  # from one user to the next it may
    if not falls_R.any():
        return order_R
    since_R = (time_us_R - time_us_R.min()).astype(np.uint64)
    bits = int(since_R.max()).bit_length()
    if bits + len(total_N).bit_length() > 64:
        return np.lexsort((time_us_R, user_R))
    key_R = user_R.astype(np.uint64) << np.uint64(bits) | since_R
    order_R = np.argsort(key_R)
    return _ties_in_input_order(order_R, key_R[order_R])


def _by_user(user_R: I32, users: int) -> I64:
    low = np.argsort((user_R & (DIGIT - 1)).astype(np.uint16), kind="stable")
    if users <= DIGIT:
        return low
    high = (user_R >> 16).astype(np.uint16)
    return low[np.argsort(high[low], kind="stable")]


def _ties_in_input_order(order_R: I64, sorted_R: npt.NDArray[np.uint64]) -> I64:
    """Put rows of equal keys, which an unstable sort leaves in any order, in rising order."""
    same_R = sorted_R[1:] == sorted_R[:-1]
    if not same_R.any():
        return order_R
    tied_R = np.zeros(len(order_R), np.bool_)
    tied_R[1:] |= same_R
    tied_R[:-1] |= same_R
    places = np.flatnonzero(tied_R)
    order_R[places] = order_R[places][np.lexsort((order_R[places], sorted_R[places]))]
    return order_R


def _offsets(lengths_N: I64) -> I64:
    offsets_N1 = np.zeros(len(lengths_N) + 1, np.int64)
    np.cumsum(lengths_N, out=offsets_N1[1:])
    return offsets_N1


def _from_newest(lengths_N: I64) -> I64:
    """Return each event's distance from its user's newest event, 0 for the newest, [E], for events sorted by user."""
    ends_N = np.cumsum(lengths_N)
    distance_E: I64 = np.repeat(ends_N, lengths_N) - 1 - np.arange(int(lengths_N.sum()))
    return distance_E


def _seen(user_R: I32, video_R: I32, order_R: I64, total_N: I64, token_V: I32, limit: int) -> Ragged:
    """Return the known tokens among each user's newest `limit` distinct videos."""
    key_R = user_R.astype(np.int64) << 32 | video_R
    busy_N = total_N > limit
    if busy_N.any():  # only they can have more distinct videos than count
        of_busy = order_R[busy_N[user_R[order_R]]]
        kept = [np.sort(_newest_distinct(key_R[of_busy], limit)), np.sort(key_R[~busy_N[user_R]])]
        key_R = np.sort(np.concatenate(kept))
    else:
        key_R.sort()
    first_R = np.ones(len(key_R), np.bool_)
    np.not_equal(key_R[1:], key_R[:-1], out=first_R[1:])
    token_R = token_V.take(key_R & 0xFFFFFFFF)
    first_R &= token_R >= FIRST_ITEM
    lengths_N = np.bincount((key_R[first_R] >> 32), minlength=len(total_N))
    return Ragged(offsets_N1=_offsets(lengths_N), values=token_R[first_R])


def _newest_distinct(key_R: I64, limit: int) -> I64:
    """Return the keys of the newest `limit` distinct videos of each user; keys stand by user, oldest first."""
    newest_first = key_R[::-1]
    distinct, first = np.unique(newest_first, return_index=True)
    del distinct
    first.sort()  # distinct videos, users falling, newest first
    keys = newest_first[first]
    starts = np.flatnonzero(np.concatenate([[True], (keys[1:] >> 32) != (keys[:-1] >> 32)]))
    place = np.arange(len(keys)) - np.repeat(starts, np.diff(starts, append=len(keys)))
    return keys[place < limit]


def build(
    events: pl.DataFrame,
    *,
    catalog: Catalog,
    as_of_us: int,
    max_events: int,
    seen_limit: int,
    users: pl.DataFrame | None = None,
    videos: pl.DataFrame | None = None,
) -> tuple[pl.Series, Histories]:
    """Build the history of every user of a frame of usable contract events, and of the `users` table, sorted by id.

    `users` and `videos` have one row per `user_id` / `video_id`; a user without events has a history of length 0.
    """
    events = events.filter(pl.col("timestamp").dt.epoch("us") <= as_of_us)
    ids = everybody(events["user_id"], users["user_id"] if users is not None else None)
    seen_ids = events["video_id"].unique(maintain_order=True)
    record = RecordType.of(tuple(events.columns), events.schema)
    return ids, order(
        record.pack(events, Index(ids).rows(events["user_id"]), Index(seen_ids).rows(events["video_id"])),
        record,
        start=0,
        stop=len(ids),
        videos=known(seen_ids, catalog, videos["video_id"] if videos is not None else None),
        user_row_N=rows_of(ids, users["user_id"] if users is not None else None),
        as_of_us=as_of_us,
        max_events=max_events,
        seen_limit=seen_limit,
    )


def everybody(in_log: pl.Series, *others: pl.Series | None) -> pl.Series:
    """Return all ids, each once, in rising order."""
    ids = [in_log, *(other.cast(in_log.dtype) for other in others if other is not None)]
    return pl.concat([each.unique() for each in ids]).drop_nulls().unique().sort()


def known(ids: pl.Series, catalog: Catalog, table: pl.Series | None) -> Videos:
    """Return what is known of distinct video ids: their tokens, and their rows of the videos table."""
    token_V = catalog.tokens(ids).to_numpy() if len(ids) else np.zeros(0, np.int32)
    return Videos(token_V=token_V, row_V=rows_of(ids, table))


def rows_of(ids: pl.Series, table: pl.Series | None) -> I32:
    """Return the row of each id in a table's distinct ids, -1 where it is not there or there is no table."""
    if table is None:
        return np.full(len(ids), -1, np.int32)
    return Index(table.cast(ids.dtype)).rows(ids)
