"""Histories: from events in any order to each user's newest events, as flat arrays.

Owns: the order of events, which are kept, which videos count as seen. Must not know: files, feature slots, the model.
In: all records of some users, in input order (`records.Records`). Out: `arrays.Histories`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrec_batch.core.arrays import I32, I64, Histories, Ragged, offsets_of
from genrec_batch.core.errors import InputError
from genrec_batch.events.columns import KINDS
from genrec_batch.events.ids import IdIndex
from genrec_batch.events.records import Records, RecordType
from genrec_batch.events.sorter import NUMPY, Sorter

NUMBERS = {"number", "label"}  # kinds that become Float64


@dataclass(frozen=True, kw_only=True)
class VideoRows:
    """The token of each video of the log (1: not in the catalog), and its row of `--videos`, -1 where it has none."""

    token_V: I32
    row_V: I32
    beyond_V: I32 | None = None  # numbers above 0 of videos that the model does not know

    @staticmethod
    def of(videos: pl.Series, table: pl.Series | None, token_V: I32 | None) -> VideoRows:
        """Return those of the log's videos, whose tokens are their places among them where none are given."""
        codes_V = np.arange(len(videos), dtype=np.int32) if token_V is None else token_V
        return VideoRows(token_V=codes_V, row_V=rows_of(videos, table))


def build(
    chunks: Sequence[Records],
    record: RecordType,
    *,
    start: int,
    total_N: I64,
    videos: VideoRows,
    user_row_N: I32,
    as_of_us: int,
    max_events: int,
    seen_limit: int,
    sorter: Sorter = NUMPY,
) -> Histories:
    """Build the histories of the users from row `start` on, from all their records (`total_N` each) in input order.

    A history keeps a user's newest `max_events` events by (timestamp, input order), oldest first. Seen are the tokens
    of all the user's events, or of the newest `seen_limit` distinct videos if there are more; tokens may repeat.

    Raises:
        InputError: the records are not those that the survey counted.
    """
    kept_N = np.minimum(total_N, max_events)
    arrays = _columns(record, int(kept_N.sum()))
    seen_is_kept = int(total_N.max(initial=0)) <= min(max_events, seen_limit)
    video_R = None if seen_is_kept else np.empty(int(total_N.sum()), np.int32)
    counted = sorter.newest(
        chunks, record.kind, start=start, total_N=total_N, keep=max_events, targets=arrays, video_R=video_R
    )
    video_E, offsets_N1 = arrays["video"], offsets_of(kept_N)
    if not counted or any(len(rows) and rows.min() < 0 for rows in (video_E, video_R) if rows is not None):
        raise InputError("INPUT changed while it was read; run the same command again once nothing writes to it")
    tokens_E = sorter.take(videos.token_V, video_E)
    return Histories(
        offsets_N1=offsets_N1,
        time_us_E=arrays["time_us"],
        tokens_E=tokens_E,
        video_code_E=video_E,
        video_row_E=sorter.take(videos.row_V, video_E),
        session_E=_sessions(arrays["session_id"]) if "session_id" in arrays else None,
        numbers=_of(NUMBERS, arrays),
        flags=_of({"flag"}, arrays),
        categories=_of({"category"}, arrays),
        total_events_N=total_N,
        user_row_N=user_row_N,
        as_of_us_N=np.full(len(total_N), as_of_us),
        seen=Ragged(offsets_N1=offsets_N1, values=tokens_E)
        if video_R is None
        else seen_tokens(video_R, total_N, videos.token_V, seen_limit, sorter),
        beyond=None if videos.beyond_V is None else _numbered(video_E if video_R is None else video_R, total_N, videos),
    )


def _numbered(video_R: I32, total_N: I64, videos: VideoRows) -> Ragged:
    """Return the numbers of each user's videos that the model does not know, of all events."""
    assert videos.beyond_V is not None
    number_R = videos.beyond_V[video_R]
    lengths_N = np.bincount(np.repeat(np.arange(len(total_N)), total_N)[number_R > 0], minlength=len(total_N))
    return Ragged(offsets_N1=offsets_of(lengths_N), values=number_R[number_R > 0])


def _columns(record: RecordType, events: int) -> dict[str, npt.NDArray[Any]]:
    """Return an empty array for each field of a history: numbers as Float64, the others as in the record."""
    wide = {name for name in record.columns if KINDS[name] in NUMBERS}
    names = ["video", "time_us", *record.columns]
    return {name: np.empty(events, np.float64 if name in wide else record.kind[name]) for name in names}


def _of(kinds: set[str], arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of some kinds."""
    return {name: array for name, array in arrays.items() if KINDS.get(name) in kinds}


def _sessions(id_E: I64) -> I64:
    """Number the session ids from 0, -1 for null, [E]; events of one session are mostly neighbours."""
    if not len(id_E):
        return id_E.astype(np.int64)
    begins_E = np.ones(len(id_E), np.bool_)
    np.not_equal(id_E[1:], id_E[:-1], out=begins_E[1:])
    places = np.flatnonzero(begins_E)
    ids = id_E[places]
    distinct, number = np.unique(ids, return_inverse=True)
    del distinct
    return np.repeat(np.where(ids < 0, -1, number), np.diff(places, append=len(id_E)))


def seen_tokens(video_R: I32, total_N: I64, token_V: I32, limit: int, sorter: Sorter = NUMPY) -> Ragged:
    """Return the tokens of all of a user's events, or of the newest `limit` distinct videos if there are more."""
    busy = np.flatnonzero(total_N > limit)
    values = sorter.take(token_V, video_R)
    if not len(busy):
        return Ragged(offsets_N1=offsets_of(total_N), values=values)
    begins, counts = (np.cumsum(total_N) - total_N)[busy], total_N[busy]
    places = np.arange(int(counts.sum())) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
    user_R = np.repeat(busy, counts)
    keys = _newest_distinct(user_R << 32 | video_R[places], limit)
    lengths_N = total_N.copy()
    lengths_N[busy] = np.bincount(keys >> 32, minlength=len(total_N))[busy]
    firsts = np.cumsum(lengths_N[busy]) - lengths_N[busy]
    values[np.arange(len(keys)) + np.repeat(begins - firsts, lengths_N[busy])] = token_V.take(keys & 0xFFFFFFFF)
    left = zip([0, *(begins + counts)], [*(begins + lengths_N[busy]), len(values)], strict=True)
    return Ragged(offsets_N1=offsets_of(lengths_N), values=np.concatenate([values[start:stop] for start, stop in left]))


def _newest_distinct(key_R: I64, limit: int) -> I64:
    """Return the keys of the newest `limit` distinct videos of each user, by user, from keys that are oldest first."""
    newest_first = key_R[::-1]
    distinct, first = np.unique(newest_first, return_index=True)
    del distinct
    first.sort()  # distinct videos, users falling, newest first
    keys = newest_first[first]
    starts = np.flatnonzero(np.concatenate([[True], (keys[1:] >> 32) != (keys[:-1] >> 32)]))
    place = np.arange(len(keys)) - np.repeat(starts, np.diff(starts, append=len(keys)))
    return keys[place < limit][::-1]


def all_ids(in_log: pl.Series, *others: pl.Series | None) -> pl.Series:
    """Return the distinct ids of all series, rising."""
    ids = [in_log, *(other.cast(in_log.dtype) for other in others if other is not None)]
    return pl.concat([each.unique() for each in ids]).drop_nulls().unique().sort()


def rows_of(ids: pl.Series, table: pl.Series | None) -> I32:
    """Return the row of each id in a table's distinct ids, -1 for an unknown id or if there is no table."""
    if table is None:
        return np.full(len(ids), -1, np.int32)
    return IdIndex(table.cast(ids.dtype)).rows(ids)
