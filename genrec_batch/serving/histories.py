"""Histories of requests: what `events.histories` builds of a log, built of a few users' own events.

Owns: the order of a request's events, which are kept, which videos count as seen. Must not know: the form of a request,
feature slots, the model. In: `Columns` of users whose requests have the same columns. Out: `arrays.Histories`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from genrec_batch.core.arrays import I32, I64, Histories, Ragged, offsets_of
from genrec_batch.serving.columns import Columns
from genrec_batch.serving.videos import Videos


@dataclass(frozen=True, kw_only=True)
class History:
    """One user's kept events, oldest first."""

    columns: Columns
    kept_E: I64  # places of the kept events in `columns`
    tokens_E: I32
    video_code_E: I32
    video_row_E: I32
    seen_X: I32  # tokens
    total_events: int
    as_of_us: int

    def __len__(self) -> int:
        return len(self.kept_E)

    def newest(self, count: int) -> History:
        """Return the history with its newest events only; what is seen stays."""
        first = max(0, len(self) - count)
        return (
            self
            if first == 0
            else replace(
                self,
                kept_E=self.kept_E[first:],
                tokens_E=self.tokens_E[first:],
                video_code_E=self.video_code_E[first:],
                video_row_E=self.video_row_E[first:],
            )
        )


def of(
    columns: Columns,
    videos: Videos,
    *,
    as_of_us: int | None,
    total_events: int | None,
    seen: I32,
    max_events: int,
    seen_limit: int,
) -> History:
    """Return the history of one user's events, of which those after as-of are ignored.

    A history keeps the newest `max_events` events by (timestamp, order in the request). Seen are the newest
    `seen_limit` distinct videos of all events up to as-of, and `seen`, tokens that the request has beside them.
    """
    time_us = columns.time_us_E
    as_of = int(time_us.max(initial=0)) if as_of_us is None else as_of_us
    order = np.argsort(time_us, kind="stable")
    order = order[: int(np.searchsorted(time_us[order], as_of, side="right"))]
    tokens, kept = videos.tokens(columns.video), order[-max_events:] if max_events else order[:0]
    code_of: dict[int | str, int] = {}
    codes = np.array([code_of.setdefault(video, len(code_of)) for video in columns.video], np.int32)
    own = order
    if len(order) > seen_limit:
        _, last = np.unique(codes[order][::-1], return_index=True)  # of each video, from the newest event back
        own = order[len(order) - 1 - np.sort(last)[:seen_limit]]
    return History(
        columns=columns,
        kept_E=kept,
        tokens_E=tokens[kept],
        video_code_E=codes[kept],
        video_row_E=videos.rows([columns.video[place] for place in kept]),
        seen_X=np.concatenate([tokens[own], seen]),
        total_events=max(len(order), total_events or 0),
        as_of_us=as_of,
    )


def joined(users: Sequence[History], user_row_N: I32) -> Histories:
    """Return the histories of N users: those with events have the same columns.

    `user_row_N` is the row of each user in the table of profiles that these requests brought, -1 for none.
    """
    like = next((each.columns for each in users if len(each)), users[0].columns)
    with_events = [each for each in users if len(each)]

    def columns(of_one: Callable[[Columns], Mapping[str, Any]]) -> dict[str, Any]:
        return {
            name: np.concatenate([of_one(each.columns)[name][each.kept_E] for each in with_events])
            for name in (of_one(like) if with_events else ())
        }

    sessions = [each.columns.session_E[each.kept_E] for each in with_events if each.columns.session_E is not None]
    tokens_E = np.concatenate([each.tokens_E for each in users])
    return Histories(
        offsets_N1=offsets_of(np.array([len(each) for each in users])),
        time_us_E=np.concatenate([each.columns.time_us_E[each.kept_E] for each in users]),
        tokens_E=tokens_E,
        video_code_E=np.concatenate([each.video_code_E for each in users]),
        video_row_E=np.concatenate([each.video_row_E for each in users]),
        session_E=np.concatenate(sessions) if sessions else None,
        numbers=columns(lambda each: each.numbers),
        flags=columns(lambda each: each.flags),
        categories=columns(lambda each: each.categories),
        total_events_N=np.array([each.total_events for each in users]),
        user_row_N=user_row_N,
        as_of_us_N=np.array([each.as_of_us for each in users]),
        seen=Ragged(
            offsets_N1=offsets_of(np.array([len(each.seen_X) for each in users])),
            values=np.concatenate([each.seen_X for each in users]),
        ),
    )
