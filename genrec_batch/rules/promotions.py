"""Promoted videos: which of them take which places of whose list.

Owns: who gets a promoted video, and the places. Must not know: files, scores, how the rest of a list is composed. In:
the table of `--promote` as tokens, and what the users have seen or must not get. Out: a token or 0 for each place of N
users' lists.

A video with a place takes it. Of the others, in the table's order, as many as `--promote-share` of a list (rounded half
up) take places between: with n of them and F places that are not taken, number j, from 0, takes place
floor((2 j + 1) F / (2 n)) of those F, so a single one is in the middle and several are evenly apart. A video that its
user has seen, or that a rule excludes, is not promoted, and the next one of the table takes its turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec_batch.core.arrays import I32, I64, U8, Masks, Ragged, offsets_of
from genrec_batch.events import histories


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """The promoted videos of N users: places, and how many videos were left out for some user."""

    tokens_NK: I32  # 0 for none
    seen: int
    excluded: int


@dataclass(frozen=True, kw_only=True)
class Promotions:
    """The table of a run: the rows of each user, or those of all users where `offsets_N1` is None."""

    offsets_N1: I64 | None
    token_R: I32
    place_R: I32  # from 0, -1 without a place
    top_k: int
    spread: int  # videos without a place in a list
    vocabulary: int

    @staticmethod
    def of(table: pl.DataFrame, user_ids: pl.Series, *, top_k: int, share: float, vocabulary: int) -> Promotions:
        """Arrange a table of `read_promoted` by the users of a run."""
        offsets_N1 = None
        if "user_id" in table.columns:
            user_R = histories.rows_of(table["user_id"], user_ids)
            order_R = np.argsort(user_R, kind="stable")
            order_R = order_R[user_R[order_R] >= 0]
            offsets_N1 = offsets_of(np.bincount(user_R[order_R], minlength=len(user_ids)))
            table = table[order_R]
        return Promotions(
            offsets_N1=offsets_N1,
            token_R=table["token"].to_numpy().astype(np.int32),
            place_R=(table["rank"].fill_null(0) - 1).to_numpy().astype(np.int32),
            top_k=top_k,
            spread=int(share * top_k + 0.5),
            vocabulary=vocabulary,
        )

    def promoted(self, places_N: I64, seen: Ragged | None, masks: Masks | None) -> Promoted:
        """Return the promoted videos of N users.

        Args:
            places_N: their places in the run.
            seen: videos that must not be recommended to them again.
            masks: what else must not be recommended to them.
        """
        barred = _Barred(self, seen, masks)
        if self.offsets_N1 is None:
            fixed_NK, spread_NM = self._of_all(len(places_N), barred)
        else:
            fixed_NK, spread_NM = self._of_each(self.offsets_N1, places_N, barred)
        return Promoted(tokens_NK=_placed(fixed_NK, spread_NM), seen=barred.seen, excluded=barred.excluded)

    def _of_all(self, users: int, barred: _Barred) -> tuple[I32, I32]:
        """Return the videos at their places, [N, K], and those to spread, at a row's front, [N, M]."""
        rows_N = np.arange(users)
        fixed_NK, spread_NM = np.zeros((users, self.top_k), np.int32), np.zeros((users, self.spread), np.int32)
        have_N = np.zeros(users, np.int64)
        for token, place in zip(self.token_R, self.place_R, strict=True):
            wanting = rows_N if place >= 0 else np.flatnonzero(have_N < self.spread)
            if not len(wanting):
                break  # those with a place come first in the table
            taken = wanting[~barred.check(wanting, np.full(len(wanting), token))]
            if place >= 0:
                fixed_NK[taken, place] = token
            else:
                spread_NM[taken, have_N[taken]] = token
                have_N[taken] += 1
        return fixed_NK, spread_NM

    def _of_each(self, offsets_N1: I64, places_N: I64, barred: _Barred) -> tuple[I32, I32]:
        tokens, places = (
            Ragged(offsets_N1=offsets_N1, values=values).take(places_N) for values in (self.token_R, self.place_R)
        )
        users, token_R = len(places_N), tokens.values
        user_R = np.repeat(np.arange(users), tokens.lengths_N)
        free_R = ~barred.check(user_R, token_R)
        user_R, token_R, place_R = user_R[free_R], token_R[free_R], places.values[free_R]
        fixed_NK, spread_NM = np.zeros((users, self.top_k), np.int32), np.zeros((users, self.spread), np.int32)
        placed_R = place_R >= 0
        fixed_NK[user_R[placed_R], place_R[placed_R]] = token_R[placed_R]
        user_S, token_S = user_R[~placed_R], token_R[~placed_R]
        nth_S = np.arange(len(user_S)) - offsets_of(np.bincount(user_S, minlength=users))[user_S]
        first_S = nth_S < self.spread
        spread_NM[user_S[first_S], nth_S[first_S]] = token_S[first_S]
        return fixed_NK, spread_NM


class _Barred:
    """Which videos must not be promoted to whom, and how many were not."""

    def __init__(self, promotions: Promotions, seen: Ragged | None, masks: Masks | None) -> None:
        self._masks, self._keys = masks, np.zeros(0, np.int64)
        self.seen = self.excluded = 0
        if seen is not None:
            wanted_V = np.zeros(promotions.vocabulary, np.bool_)
            wanted_V[promotions.token_R] = True
            hits = np.flatnonzero(wanted_V[seen.values])
            user_H = np.searchsorted(seen.offsets_N1, hits, "right") - 1
            self._keys = np.unique(user_H << 32 | seen.values[hits])

    def check(self, user_R: I64, token_R: I32) -> U8:
        """Return which of R pairs of user and video are barred; exclusion counts before seen."""
        excluded_R = np.zeros(len(user_R), np.bool_)
        if self._masks is not None and len(user_R):
            excluded_R = self._masks.take(user_R).banned_BC(token_R[:, None])[:, 0]
        seen_R = np.isin(user_R << 32 | token_R, self._keys) & ~excluded_R
        self.excluded += int(excluded_R.sum())
        self.seen += int(seen_R.sum())
        return excluded_R | seen_R


def _placed(fixed_NK: I32, spread_NM: I32) -> I32:
    """Return lists with the videos that have no place spread over those that are not taken, [N, K]."""
    placed_NK = fixed_NK.copy()
    free_N = (fixed_NK == 0).sum(axis=1)
    count_N = np.minimum((spread_NM > 0).sum(axis=1), free_N)
    free_NK = np.argsort(fixed_NK > 0, axis=1, kind="stable")  # the free places of each list, in order
    for nth in range(spread_NM.shape[1]):
        rows = np.flatnonzero(count_N > nth)
        place = (2 * nth + 1) * free_N[rows] // (2 * count_N[rows])
        placed_NK[rows, free_NK[rows, place]] = spread_NM[rows, nth]
    return placed_NK
