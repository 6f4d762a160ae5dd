"""What users did next: the videos that a ranking should have found.

Owns: the sets of target videos, and the groups of rows that are reported apart. Must not know: rankings, metrics,
files. In: tokens of the events after each row's cut, oldest first. Out: `Targets`.

Shapes of this room: M rows (a user with a history and targets), K places of a list, V tokens of the catalog.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from genrec_batch.core.arrays import FIRST_ITEM, I32, I64, U8, Ragged

TAIL_SHARE = 0.2  # of all views that the videos of the tail have together


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The distinct videos among a row's next events; a video beyond the catalog counts and can never be found."""

    tokens: Ragged  # distinct catalog tokens of each row, in the order of their first event
    distinct_M: I64  # distinct videos of each row, those beyond the catalog too; at least 1

    def __len__(self) -> int:
        return len(self.distinct_M)

    def keys(self) -> I64:
        """Return a number for each target that is equal only for the same token in the same row."""
        return row_keys(np.repeat(np.arange(len(self)), self.tokens.lengths_N), self.tokens.values)


def row_keys(row: I64, token: I32) -> I64:
    """Return numbers that are equal only for the same token in the same row."""
    keys: I64 = row.astype(np.int64) << 32 | token.astype(np.int64)
    return keys


def next_videos(tokens: Ragged, video_code_E: I64 | I32, horizon: int) -> Targets:
    """Return the distinct videos of each row's first `horizon` events.

    `tokens` are the events after each row's cut, oldest first, at least one a row; `video_code_E` tells videos apart
    that share the unknown token.
    """
    lengths_M = np.minimum(tokens.lengths_N, horizon)
    row_E = np.repeat(np.arange(len(tokens)), lengths_M)
    place_E = np.arange(len(row_E)) - np.repeat(np.cumsum(lengths_M) - lengths_M, lengths_M)
    place_E += tokens.offsets_N1[row_E]
    _, first = np.unique(row_E << 32 | video_code_E[place_E].astype(np.int64), return_index=True)
    first.sort()
    row_D, token_D = row_E[first], tokens.values[place_E[first]]
    known = token_D >= FIRST_ITEM
    offsets_M1 = np.concatenate([[0], np.cumsum(np.bincount(row_D[known], minlength=len(tokens)))])
    return Targets(
        tokens=Ragged(offsets_N1=offsets_M1, values=token_D[known]),
        distinct_M=np.bincount(row_D, minlength=len(tokens)),
    )


def tail_of(views_V: I64) -> U8:
    """Return which tokens are in the tail: the least viewed videos that have TAIL_SHARE of all views together, [V]."""
    order_V = np.argsort(-views_V, kind="stable")
    before_V = np.cumsum(views_V[order_V]) - views_V[order_V]
    tail_V = np.zeros(len(views_V), np.bool_)
    tail_V[order_V] = before_V >= (1 - TAIL_SHARE) * views_V.sum()
    return tail_V


def groups(first_M: I32, *, cold_M: U8, seen: Ragged, views_V: I64) -> Mapping[str, U8]:
    """Return the rows that are reported apart, by their next video `first_M`, [M] each.

    A row may be in several groups, or in none.
    """
    seen_keys = row_keys(np.repeat(np.arange(len(seen)), seen.lengths_N), seen.values)
    seen_before_M = np.isin(row_keys(np.arange(len(first_M)), first_M), seen_keys) & (first_M >= FIRST_ITEM)
    return {
        "cold start": cold_M,
        "tail video": tail_of(views_V)[first_M] & (first_M >= FIRST_ITEM),
        "seen before": seen_before_M,
        "beyond the catalog": first_M < FIRST_ITEM,
    }
