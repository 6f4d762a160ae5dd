"""Shortfalls: users who get fewer than `--top-k` rows, and why.

Owns: the reasons, and how they are counted, kept with the fingerprints and told. Must not know: how rules or engines
work. In: what may be recommended to N users, and how many rows each got. Out: a reason for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genrec_batch.core.arrays import FIRST_ITEM, I8, I64, U8, Masks
from genrec_batch.features.batches import ModelInputs

FEW_GIVEN, FEW_ELIGIBLE, SEEN, CAPS = REASONS = (
    "few candidates were given",
    "few videos are eligible",
    "all others were seen",
    "caps",
)
NONE = -1  # the code of a user with as many rows as wanted; others are places in REASONS
COLUMN = "shortfall"  # of the fingerprints: the reason, null for a whole list
COUNT = "shortfall: "  # before the reason, in the counts of a part
TOLD = 5  # users of each reason that a summary names
WORD_BITS = np.array([word.bit_count() for word in range(1 << 16)], np.uint8)


@dataclass(frozen=True, kw_only=True)
class Available:
    """How many videos there are for each of N users; numbers from `top_k` on may be any such number."""

    given_N: I64  # before rules and what is seen
    eligible_N: I64  # that rules let through
    unseen_N: I64  # of these, that the user has not seen

    @staticmethod
    def of(inputs: ModelInputs, top_k: int, catalog_videos: int) -> Available:
        """Return what there is for the users of some inputs."""
        if inputs.candidates is not None:
            return _of_candidates(inputs)
        users, masks = len(inputs.histories), inputs.masks
        eligible_N = np.full(users, catalog_videos) if masks is None else _allowed(masks, catalog_videos)
        unseen_N = eligible_N.copy()
        if not inputs.include_seen:
            near_R = np.flatnonzero((eligible_N < top_k + inputs.histories.seen.lengths_N) & (eligible_N >= top_k))
            if len(near_R):
                unseen_N[near_R] -= _seen_and_allowed(inputs, near_R)
        return Available(given_N=np.full(users, top_k), eligible_N=eligible_N, unseen_N=unseen_N)

    def reasons(self, items_N: I64, top_k: int) -> I8:
        """Return the code of the reason why users get fewer than `top_k` items, [N]."""
        why_N = np.select(
            [self.given_N < top_k, self.eligible_N < top_k, self.unseen_N < top_k],
            [REASONS.index(FEW_GIVEN), REASONS.index(FEW_ELIGIBLE), REASONS.index(SEEN)],
            REASONS.index(CAPS),
        )
        codes_N: I8 = np.where(items_N < top_k, why_N, NONE).astype(np.int8)
        return codes_N


def _of_candidates(inputs: ModelInputs) -> Available:
    given = inputs.candidates
    assert given is not None
    row_C = np.repeat(np.arange(len(given)), given.lengths_N)
    allowed_C = ~inputs.banned_given()
    counts_N = np.bincount(row_C[allowed_C], minlength=len(given))
    unseen_N = np.bincount(row_C[allowed_C & ~inputs.seen_given()], minlength=len(given))
    return Available(given_N=given.lengths_N, eligible_N=counts_N, unseen_N=unseen_N)


def _allowed(masks: Masks, catalog_videos: int) -> I64:
    """Return how many videos of the catalog each user's mask lets through, [N]."""
    catalog_V = np.zeros((1, masks.banned_MW.shape[1] * 32), np.bool_)
    catalog_V[:, FIRST_ITEM : FIRST_ITEM + catalog_videos] = True
    left_MW = ~masks.banned_MW & Masks.of(catalog_V, [0]).banned_MW
    count_M = WORD_BITS[left_MW.view(np.uint16)].sum(axis=1, dtype=np.int64)
    allowed_N: I64 = count_M[masks.mask_B]
    if masks.own is not None:
        row_E = np.repeat(np.arange(len(masks)), masks.own.lengths_N)
        by_map_E = replace(masks, own=None).take(row_E).banned_BC(masks.own.values[:, None])[:, 0]
        allowed_N = allowed_N - np.bincount(row_E[~by_map_E], minlength=len(masks))
    return allowed_N


def _seen_and_allowed(inputs: ModelInputs, rows_R: I64) -> I64:
    """Return how many distinct videos of the catalog some users have seen that their masks let through."""
    seen = inputs.histories.seen.take(rows_R)
    row_E = np.repeat(np.arange(len(seen)), seen.lengths_N)
    keys = np.unique((row_E << 32 | seen.values)[seen.values >= FIRST_ITEM])
    row_K, token_K = keys >> 32, (keys & 0xFFFFFFFF).astype(np.int32)
    allowed_K: U8 = np.ones(len(keys), np.bool_)
    if inputs.masks is not None:
        allowed_K = ~inputs.masks.take(rows_R[row_K]).banned_BC(token_K[:, None])[:, 0]
    return np.bincount(row_K[allowed_K], minlength=len(rows_R))


def counted(codes_N: I8) -> dict[str, int]:
    """Return the counts of a part for these reasons."""
    found = np.bincount(codes_N[codes_N != NONE], minlength=len(REASONS))
    return {COUNT + reason: int(count) for reason, count in zip(REASONS, found, strict=True) if count}


def column(codes_N: I8) -> pl.Series:
    """Return the reasons as text, null for a whole list."""
    names = pl.Series(COLUMN, [*REASONS, None], pl.String)
    return names.gather(np.where(codes_N == NONE, len(REASONS), codes_N).astype(np.int64))


def nested(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of an output with its counts by reason in one entry, `shortfalls`."""
    if "short_users" not in counts:
        return dict(counts)
    found = {name[len(COUNT) :]: count for name, count in counts.items() if name.startswith(COUNT)}
    return {name: value for name, value in counts.items() if not name.startswith(COUNT)} | {"shortfalls": found}


def some_users(fingerprints: Path) -> dict[str, list[Any]]:
    """Return some users of a finished output for each reason, from the file with its fingerprints."""
    rows = pl.scan_parquet(str(fingerprints), glob=False)
    short = rows.select("user_id", COLUMN).drop_nulls(COLUMN).group_by(COLUMN).agg(pl.col("user_id").bottom_k(TOLD))
    found = short.collect(engine="streaming").sort(COLUMN)
    return {reason: users.sort().to_list() for reason, users in zip(found[COLUMN], found["user_id"], strict=True)}
