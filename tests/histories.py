"""Histories of a frame of events, without files: what the package does in several steps, for tests of single steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from genrec_batch.core.arrays import Histories
from genrec_batch.events import histories, schema
from genrec_batch.events.histories import VideoRows, all_ids, rows_of
from genrec_batch.events.ids import IdIndex
from genrec_batch.events.records import RecordType
from genrec_batch.events.sorter import NUMPY
from genrec_batch.model.catalog import Catalog


def normalize(frame: pl.DataFrame, expressions: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Return the usable rows of a frame in contract columns."""
    found = schema.read_contract(frame.lazy(), expressions or {}, "the frame")
    return found.events(frame.lazy()).filter(schema.usable()).collect()


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
    ids = all_ids(events["user_id"], users["user_id"] if users is not None else None)
    seen_ids = events["video_id"].unique(maintain_order=True)
    record = RecordType.of(tuple(events.columns), events.schema)
    user_R = IdIndex(ids).rows(events["user_id"])
    return ids, histories.build(
        [NUMPY.pack(record, events, user_R, IdIndex(seen_ids).rows(events["video_id"]))],
        record,
        start=0,
        total_N=np.bincount(user_R, minlength=len(ids)).astype(np.int64),
        videos=VideoRows(
            token_V=catalog.tokens(seen_ids).to_numpy(),
            row_V=rows_of(seen_ids, videos["video_id"] if videos is not None else None),
        ),
        user_row_N=rows_of(ids, users["user_id"] if users is not None else None),
        as_of_us=as_of_us,
        max_events=max_events,
        seen_limit=seen_limit,
    )
