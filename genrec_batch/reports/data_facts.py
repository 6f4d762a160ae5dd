"""What a log holds, as the model reads it: users, history lengths, catalog coverage, features that are ever used.

Owns: the counts. Must not know: files, engines. In: a `Job`. Out: plain numbers. Features are computed a few thousand
users at a time, so that memory does not grow with the log.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch import features, layout
from genrec_batch.arrays import FIRST_ITEM, I64
from genrec_batch.job import Job

PIECE = 4096  # users whose features are computed at once
MOST_BINS = 64  # of the histogram of history lengths
HEAD_SHARES = (0.01, 0.1)  # of the catalog, most viewed first


def describe(job: Job, *, max_events: int) -> dict[str, Any]:
    """Return the facts of a job's users, videos and features."""
    return {
        "facts": {name: value for name, value in job.facts.items() if isinstance(value, int | str)},
        "ignored_columns": job.facts.get("ignored_columns", []),
        "lengths": _lengths(job.histories.lengths_N, max_events),
        "catalog": _catalog(job),
        "blocks": _blocks(job, max_events),
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


def _catalog(job: Job) -> dict[str, Any]:
    tokens_E, videos = job.histories.tokens_E, len(job.catalog)
    views = np.bincount(tokens_E, minlength=FIRST_ITEM + videos)[FIRST_ITEM:]
    known = int(views.sum())
    falling = np.sort(views)[::-1]
    return {
        "videos": videos,
        "in_histories": int((views > 0).sum()),
        "coverage": round(float((views > 0).mean()), 4) if videos else 0.0,
        "kept_events": len(tokens_E),
        "unknown_events": len(tokens_E) - known,
        "unknown_share": round(1 - known / len(tokens_E), 4) if len(tokens_E) else 0.0,
        "head": [
            {
                "share_of_videos": share,
                "share_of_events": round(float(falling[: max(1, round(share * videos))].sum()) / known, 4)
                if known
                else 0.0,
            }
            for share in HEAD_SHARES
        ],
    }


def _blocks(job: Job, max_events: int) -> list[dict[str, Any]]:
    """Return a row per block of the layout: slots that are ever non-zero, and how full they are on average."""
    users_F = np.zeros(layout.FEATURES, np.int64)  # with a value that is not 0
    for start in range(0, len(job), PIECE):
        part = job.histories.slice(start, min(len(job), start + PIECE))
        dense_NF = features.compute(part, job.users, job.videos, max_events=max_events)
        users_F += np.count_nonzero(dense_NF, axis=0)
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
                "filled": round(float(used_S.mean()) / len(job), 4),
                "never": [name for (_, name), used in zip(members, used_S, strict=True) if not used],
            }
        )
    return rows
