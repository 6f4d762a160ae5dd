"""What a log holds, as the model reads it: users, history lengths, catalog coverage, features that are ever used.

Owns: the counts. Must not know: files, engines. In: a `Dataset`. Out: plain numbers. Histories are read a bucket of
users at a time, so that memory does not grow with the log.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch.core import layout
from genrec_batch.core.arrays import FIRST_ITEM, I64
from genrec_batch.events.dataset import Dataset
from genrec_batch.features.batches import Vectorizer
from genrec_batch.runtime import console

AT_ONCE = 4096  # users whose features are computed together
MOST_BINS = 64  # of the histogram of history lengths
HEAD_SHARES = (0.01, 0.1)  # of the catalog, most viewed first


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return the facts of a data set's users, videos and features, reading its log a bucket of users at a time.

    Raises:
        InputError: a page of the log is damaged.
    """
    users, vectorizer = dataset.users, Vectorizer.of(dataset)
    views = np.zeros(FIRST_ITEM + len(dataset.catalog), np.int64)  # kept events of each token
    users_F = np.zeros(dataset.model.config.features, np.int64)  # with a value that is not 0
    cold = 0
    with console.progress("the data", len(users), "users") as advance:
        for shard in users.shards():
            views += np.bincount(shard.histories.tokens_E, minlength=len(views))
            cold += int(shard.histories.cold_start_N().sum())
            for start in range(0, len(shard), AT_ONCE):
                some = shard.histories.slice(start, min(len(shard), start + AT_ONCE))
                users_F += np.count_nonzero(vectorizer.inputs(some, shard.start + start).dense_NF, axis=0)
                advance(len(some))
    return {
        "facts": {
            **{name: value for name, value in dataset.facts.items() if isinstance(value, int | float | str)},
            "cold_start_users": cold,
        },
        "ignored_columns": dataset.facts.get("ignored_columns", []),
        "lengths": _lengths(users.lengths_N, users.max_events),
        "catalog": _catalog(views),
        "blocks": _blocks(users_F, len(users)),
    }


def _lengths(lengths_N: I64, max_events: int) -> dict[str, Any]:
    quantiles = np.percentile(lengths_N, (10, 25, 50, 75, 90, 99))
    width = -(-(max_events + 1) // MOST_BINS)
    counted = np.bincount(lengths_N // width, minlength=-(-(max_events + 1) // width))
    return {
        "mean": round(float(lengths_N.mean()), 2),
        "max": int(lengths_N.max()),
        "at_most": max_events,
        "full": int((lengths_N == max_events).sum()),
        **{f"p{q}": float(value) for q, value in zip((10, 25, 50, 75, 90, 99), quantiles, strict=True)},
        "histogram": [
            {"from": i * width, "to": min(max_events, (i + 1) * width - 1), "users": int(users)}
            for i, users in enumerate(counted)
        ],
    }


def _catalog(views_T: I64) -> dict[str, Any]:
    """Return how the kept events are spread over the catalog, from the events of each token."""
    views, events = views_T[FIRST_ITEM:], int(views_T.sum())
    known, videos = int(views.sum()), len(views)
    falling = np.sort(views)[::-1]
    return {
        "videos": videos,
        "in_histories": int((views > 0).sum()),
        "coverage": round(float((views > 0).mean()), 4) if videos else 0.0,
        "kept_events": events,
        "unknown_events": events - known,
        "unknown_share": round(1 - known / events, 4) if events else 0.0,
        "head": [
            {
                "share_of_videos": share,
                "share_of_events": round(float(falling[: max(1, round(share * videos))].sum()) / max(1, known), 4),
            }
            for share in HEAD_SHARES
        ],
    }


def _blocks(users_F: I64, users: int) -> list[dict[str, Any]]:
    """Return one row per block of the layout: slots that are ever non-zero, and their mean share of non-zero users."""
    slots: dict[str, list[tuple[int, str]]] = {}
    for slot, block, name in layout.describe():
        slots.setdefault(block, []).append((slot, name))
    rows = []
    for block, members in slots.items():
        used_S = users_F[[slot for slot, _ in members]]
        rows.append(
            {
                "block": block,
                "slots": len(members),
                "used_slots": int((used_S > 0).sum()),
                "coverage": round(float((used_S > 0).mean()), 4),
                "filled": round(float(used_S.mean()) / users, 4),
                "never": [name for (_, name), used in zip(members, used_S, strict=True) if not used],
            }
        )
    return rows
