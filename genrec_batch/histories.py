"""Histories: from events in any order to each user's newest events, as flat arrays.

Owns: the order of events, which are kept, which videos count as seen, and who is scored. Must not know: files, feature
slots, the model. In: usable contract events (a Polars frame that holds whole users). Out: sorted user ids and
`arrays.Histories`. The only columnar-to-array step besides the side tables.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from genrec_batch import layout
from genrec_batch.arrays import FIRST_ITEM, I64, Histories, Ragged
from genrec_batch.catalog import Catalog
from genrec_batch.schema import SCORED


def build(
    events: pl.DataFrame,
    *,
    catalog: Catalog,
    as_of_us: int,
    max_events: int,
    seen_limit: int,
    users: pl.DataFrame | None = None,
    videos: pl.DataFrame | None = None,
    also: pl.Series | None = None,
) -> tuple[pl.Series, Histories]:
    """Build the history of every user of `events`, of the `users` table and of `also` (ids), sorted by id.

    Kept are a user's newest `max_events` events up to `as_of_us` (epoch us) by (timestamp, input order), oldest first.
    Seen are the tokens of the newest `seen_limit` distinct videos of all the user's events up to as-of.
    `users` and `videos` have one row per `user_id` / `video_id`; a user without events has a history of length 0.
    """
    events = events.filter(pl.col("timestamp").dt.epoch("us") <= as_of_us)
    events = events.sort("user_id", "timestamp", maintain_order=True)
    in_log = events["user_id"].rle().struct.unnest() if len(events) else None
    ids = _everybody(events["user_id"], users, also)

    log_totals = in_log["len"].to_numpy().astype(np.int64) if in_log is not None else np.zeros(0, np.int64)
    total_N = np.zeros(len(ids), np.int64)
    if in_log is not None:
        total_N[_rows(in_log["value"], ids)] = log_totals

    newest_E = _from_newest(log_totals)
    kept = events.filter(pl.Series(newest_E < max_events))
    videos_seen = _videos(events["video_id"], catalog, videos)
    coded = events.select("video_id").join(videos_seen, on="video_id", how="left", maintain_order="left")
    kept_codes = coded.filter(pl.Series(newest_E < max_events))
    return ids, Histories(
        offsets_N1=_offsets(np.minimum(total_N, max_events)),
        time_us_E=kept["timestamp"].dt.epoch("us").to_numpy().astype(np.int64),
        tokens_E=kept_codes["token"].to_numpy().astype(np.int32),
        video_code_E=kept_codes["code"].to_numpy().astype(np.int32),
        video_row_E=kept_codes["row"].to_numpy().astype(np.int32),
        session_E=_sessions(kept),
        numbers={
            name: kept[name].cast(pl.Float64).to_numpy().astype(np.float64)
            for name, kind in SCORED.items()
            if kind in ("number", "flag") and name in kept.columns
        },
        categories={
            name: _category(kept[name], values) for name, values in layout.CATEGORIES.items() if name in kept.columns
        },
        total_events_N=total_N,
        user_row_N=_rows(ids, users["user_id"]).astype(np.int32)
        if users is not None
        else np.full(len(ids), -1, np.int32),
        seen=_seen(total_N, coded, seen_limit),
        as_of_us=as_of_us,
    )


def _everybody(in_log: pl.Series, users: pl.DataFrame | None, also: pl.Series | None) -> pl.Series:
    ids = [in_log.unique()]
    ids += [users["user_id"].cast(in_log.dtype)] if users is not None else []
    ids += [also.cast(in_log.dtype)] if also is not None else []
    return pl.concat(ids).drop_nulls().unique().sort()


def _rows(ids: pl.Series, table: pl.Series) -> I64:
    """Return the row of each id in `table` (whose ids are distinct), -1 where it is not there, [len(ids)]."""
    rows = table.cast(ids.dtype).alias("id").to_frame().with_row_index("row")
    joined = ids.alias("id").to_frame().join(rows, on="id", how="left", maintain_order="left")
    found: I64 = joined["row"].cast(pl.Int64).fill_null(-1).to_numpy()
    return found


def _offsets(lengths_N: I64) -> I64:
    offsets_N1 = np.zeros(len(lengths_N) + 1, np.int64)
    np.cumsum(lengths_N, out=offsets_N1[1:])
    return offsets_N1


def _from_newest(lengths_N: I64) -> I64:
    """Return each event's distance from its user's newest event, 0 for the newest, [E], for events sorted by user."""
    ends_N = np.cumsum(lengths_N)
    distance_E: I64 = np.repeat(ends_N, lengths_N) - 1 - np.arange(int(lengths_N.sum()))
    return distance_E


def _videos(ids: pl.Series, catalog: Catalog, videos: pl.DataFrame | None) -> pl.DataFrame:
    """Return one row per distinct id: its code (any order), token and row of the videos table (-1: none)."""
    distinct = ids.unique(maintain_order=True)
    rows = _rows(distinct, videos["video_id"]) if videos is not None else np.full(len(distinct), -1)
    return pl.DataFrame({"video_id": distinct, "token": catalog.tokens(distinct), "row": rows}).with_row_index("code")


def _sessions(kept: pl.DataFrame) -> I64 | None:
    if "session_id" not in kept.columns:
        return None
    codes: I64 = kept["session_id"].rank("dense").cast(pl.Int64).fill_null(-1).to_numpy()
    return codes


def _category(values: pl.Series, known: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """Return each value's place in `known`, 0 for a value that is not there, -1 for null, int8 [E]."""
    codes = {value: code for code, value in enumerate(known) if code}
    coded = values.replace_strict(codes, default=0, return_dtype=pl.Int8)
    result: np.ndarray[tuple[int], np.dtype[np.int8]] = coded.set(values.is_null(), -1).to_numpy()
    return result


def _seen(total_N: I64, coded: pl.DataFrame, limit: int) -> Ragged:
    """Return the known tokens among each user's newest `limit` distinct videos, newest first.

    `coded` has the code and token of all events, sorted by user and time.
    """
    newest_first = (
        coded.select("code", "token", user=pl.Series(np.repeat(np.arange(len(total_N)), total_N)))
        .reverse()
        .unique(["user", "code"], keep="first", maintain_order=True)
        .filter(pl.int_range(pl.len()).over("user") < limit)
        .filter(pl.col("token") >= FIRST_ITEM)
        .sort("user", maintain_order=True)
    )
    lengths_N = np.bincount(newest_first["user"].to_numpy(), minlength=len(total_N))
    return Ragged(offsets_N1=_offsets(lengths_N), values=newest_first["token"].to_numpy().astype(np.int32))
