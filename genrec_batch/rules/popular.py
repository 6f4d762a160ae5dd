"""`--fallback popular`: the most viewed videos, and how they fill lists that have room.

Owns: the order of popular videos, and which of them a user gets. Must not know: engines, rows, how views are counted.
In: views, the rules, and lists as numbers of a `Universe`. Out: the same lists with popular videos at their ends.

A list of a group goes on with that of everybody. Equal views are in the order of the videos' ids. A popular video
that a cap of `--max-per` holds back is passed over, and the next one takes its turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec_batch.core.arrays import FIRST_ITEM, I32, I64, U8, Masks, Ragged, offsets_of
from genrec_batch.events.views import Views
from genrec_batch.model.catalog import Catalog
from genrec_batch.rules import columns
from genrec_batch.rules.universe import Universe

BEYOND = 10_000  # most viewed videos beyond the catalog that may fill lists
OF_GROUP = 1_000  # most viewed videos of a group, before those of everybody
LOOKED_AT = 1 << 22  # videos of all lists that are looked at together
FROM_NOBODY = -1  # the place in the given list of a popular video


def beyond_catalog(views: Views, catalog: Catalog, video_type: pl.DataType) -> pl.Series:
    """Return the most viewed videos that the catalog does not have."""
    ids = _ranked(views.overall)["video_id"]
    known = catalog.items["video_id"].cast(video_type, strict=False).drop_nulls()
    return ids.filter(~ids.is_in(known.implode())).head(BEYOND)


def _ranked(counts: pl.DataFrame) -> pl.DataFrame:
    return counts.sort(["count", "video_id"], descending=[True, False])


@dataclass(frozen=True, kw_only=True)
class Caps:
    """`--max-per`: the most videos of a list with the same value in each of D columns of `--videos`."""

    caps_D: I32
    codes_UD: I32  # of the universe's numbers, -1 for null

    @staticmethod
    def of(caps: Mapping[str, int], videos: pl.DataFrame, universe: Universe) -> Caps:
        """Return the caps by column over a table of video_id and these columns.

        Raises:
            ConfigError: the table has no such column.
            InputError: a column holds lists.
        """
        codes_UD = np.full((len(universe), len(caps)), -1, np.int32)
        token_R = universe.tokens(videos["video_id"])
        codes_UD[token_R] = columns.codes(videos, caps, "--max-per")[FIRST_ITEM:]
        codes_UD[~universe.videos_U] = -1
        return Caps(caps_D=np.array(list(caps.values()), np.int32), codes_UD=codes_UD)


@dataclass(frozen=True, kw_only=True)
class Popular:
    """The most viewed videos that rules for all let through: row 0 for everybody, then a row for each group."""

    lists: Ragged  # numbers of the universe
    group_N: I32  # of the users of a run, -1 for none
    caps: Caps | None = None

    @staticmethod
    def of(views: Views, universe: Universe, removed_U: U8, ids: pl.Series, caps: Caps | None = None) -> Popular:
        """Return the lists for users with these ids, without the videos that rules for all remove."""
        rows = [_tokens(_ranked(views.overall), universe, removed_U)]
        group_N: I32 = np.full(len(ids), -1, np.int32)
        if views.by_group is not None and views.groups is not None:
            group_N = views.groups.of_users(ids)
            ranked = _ranked(views.by_group)
            parts = ranked.partition_by("group", as_dict=True, include_key=False)
            none = ranked.clear()
            frames = (parts.get((group,), none) for group in range(len(views.groups.values)))
            rows += [_tokens(frame, universe, removed_U)[:OF_GROUP] for frame in frames]
        offsets = offsets_of(np.array([len(row) for row in rows]))
        return Popular(lists=Ragged(offsets_N1=offsets, values=np.concatenate(rows)), group_N=group_N, caps=caps)

    def filled(
        self, held_RK: I32, given_RK: I32, places_R: I64, banned: Masks, seen: Sequence[Ragged]
    ) -> tuple[I32, I64]:
        """Return R lists with popular videos where they have room, and where each video was in the given list.

        Args:
            held_RK: videos of the lists that stay at their places, 0 elsewhere.
            given_RK: the whole lists; what is not held comes last, where there are too few popular videos.
            places_R: the users' places in the run.
            banned: what rules remove, over the universe.
            seen: further videos that each user does not get.

        Returns: the lists, and for each video its place in the given list, -1 for one that is there as a popular one.
        """
        filling = _Filling.of(held_RK, banned, seen, self.caps)
        group_R = self.group_N[places_R]
        filling.take(self.lists, group_R + 1, group_R >= 0)
        filling.take(self.lists, np.zeros_like(group_R), np.ones(len(group_R), np.bool_))
        filling.append(given_RK)
        return filling.closed()


def _tokens(ranked: pl.DataFrame, universe: Universe, removed_U: U8) -> I32:
    tokens = universe.tokens(ranked["video_id"])
    kept: I32 = tokens[universe.videos_U[tokens] & ~removed_U[tokens]]
    return kept


@dataclass(kw_only=True)
class _Filling:
    """Lists that are being filled, each from its first free place to its last."""

    tokens_RK: I32
    from_RK: I64  # the place of each video in the given list, -1 for a popular one
    free_RK: I64  # the places without a held video in order, then the others
    room_R: I64  # how many are free
    count_R: I64  # how many of these are filled
    banned: Masks
    seen: I64  # row << 32 | token, rising
    caps: Caps | None

    @staticmethod
    def of(held_RK: I32, banned: Masks, seen: Sequence[Ragged], caps: Caps | None) -> _Filling:
        keys = [np.repeat(np.arange(len(each)), each.lengths_N) << 32 | each.values for each in seen]
        return _Filling(
            tokens_RK=held_RK.copy(),
            from_RK=np.where(held_RK > 0, np.arange(held_RK.shape[1]), FROM_NOBODY),
            free_RK=np.argsort(held_RK > 0, axis=1, kind="stable"),
            room_R=(held_RK == 0).sum(axis=1),
            count_R=np.zeros(len(held_RK), np.int64),
            banned=banned,
            seen=np.unique(np.concatenate([np.zeros(0, np.int64), *keys])),
            caps=caps,
        )

    def take(self, lists: Ragged, list_R: I32, may_R: U8) -> None:
        """Go through a list for each row, from its beginning, until the row is full or the list ends."""
        length_R = np.where(may_R, lists.lengths_N[list_R], 0)
        start, few = 0, 4 * self.tokens_RK.shape[1]
        looked_at = few  # of a list at a time; more where few of its first are left
        while True:
            rows_Q = np.flatnonzero((self.count_R < self.room_R) & (length_R > start))
            if not len(rows_Q):
                return
            width = min(looked_at, max(few, LOOKED_AT // len(rows_Q)), int(length_R.max()))
            at_QW = start + np.arange(width)[None, :]
            there_QW = at_QW < length_R[rows_Q, None]
            first_Q = lists.offsets_N1[list_R[rows_Q], None]
            self._add(rows_Q, np.where(there_QW, lists.values.take(first_Q + at_QW, mode="clip"), 0))
            start, looked_at = start + width, 4 * looked_at

    def _add(self, rows_Q: I64, tokens_QW: I32) -> None:
        banned = Masks(banned_MW=self.banned.banned_MW, mask_B=self.banned.mask_B[rows_Q])  # no bit map is copied
        fine_QW = (tokens_QW > 0) & ~banned.banned_BC(tokens_QW)
        fine_QW &= ~_in(rows_Q[:, None] << 32 | tokens_QW, self.seen)
        self._put(rows_Q, tokens_QW, fine_QW, np.full(tokens_QW.shape[1], FROM_NOBODY))

    def append(self, tokens_RK: I32) -> None:
        """Add given videos where there is still room; rules let them through already."""
        rows_Q = np.flatnonzero(self.count_R < self.room_R)
        self._put(rows_Q, tokens_RK[rows_Q], tokens_RK[rows_Q] > 0, np.arange(tokens_RK.shape[1]))

    def closed(self) -> tuple[I32, I64]:
        """Return the lists without gaps, and where each video was in the given list."""
        order_RK = np.argsort(self.tokens_RK == 0, axis=1, kind="stable")
        tokens_RK: I32 = np.take_along_axis(self.tokens_RK, order_RK, axis=1)
        return tokens_RK, np.take_along_axis(self.from_RK, order_RK, axis=1)

    def _put(self, rows_Q: I64, tokens_QW: I32, fine_QW: U8, from_W: I64) -> None:
        """Add videos that are fine and not in the list yet, in their order, as many as there is room for."""
        for place in range(self.tokens_RK.shape[1]):
            fine_QW &= tokens_QW != self.tokens_RK[rows_Q, place, None]
        if self.caps is not None:
            room_Q = (self.room_R - self.count_R)[rows_Q]
            fine_QW = _within_caps(self.caps, self.tokens_RK[rows_Q], tokens_QW, fine_QW, room_Q)
        at_QW = self.count_R[rows_Q, None] + np.cumsum(fine_QW, axis=1) - 1
        taken_QW = fine_QW & (at_QW < self.room_R[rows_Q, None])
        row_T, column_T = np.nonzero(taken_QW)
        place_T = self.free_RK[rows_Q[row_T], at_QW[row_T, column_T]]
        self.tokens_RK[rows_Q[row_T], place_T] = tokens_QW[row_T, column_T]
        self.from_RK[rows_Q[row_T], place_T] = from_W[column_T]
        self.count_R[rows_Q] += taken_QW.sum(axis=1)


def _within_caps(caps: Caps, list_QK: I32, tokens_QW: I32, fine_QW: U8, room_Q: I64) -> U8:
    """Return which of W fine videos a list takes, one after the other, as long as it has room and no cap is full."""
    codes_QWD, list_QKD = caps.codes_UD[tokens_QW], caps.codes_UD[list_QK]
    left_QW, taken_QW = fine_QW.copy(), np.zeros_like(fine_QW)
    for place in range(list_QK.shape[1]):
        left_QW &= ~_held_back(caps, codes_QWD, taken_QW, list_QKD, list_QKD[:, place])
    at_Q = np.arange(len(room_Q))
    for nth in range(int(room_Q.max(initial=0))):
        going_Q = at_Q[(nth < room_Q) & left_QW.any(axis=1)]
        if not len(going_Q):
            break
        first_Q = left_QW[going_Q].argmax(axis=1)
        taken_QW[going_Q, first_Q], left_QW[going_Q, first_Q] = True, False
        newest_QD = np.full(codes_QWD[:, 0].shape, -1, np.int32)
        newest_QD[going_Q] = codes_QWD[going_Q, first_Q]
        left_QW &= ~_held_back(caps, codes_QWD, taken_QW, list_QKD, newest_QD)
    return taken_QW


def _held_back(caps: Caps, codes_QWD: I32, taken_QW: U8, list_QKD: I32, newest_QD: I32) -> U8:
    """Return which videos are like the newest one of a list in a column whose cap is now full, [Q, W]."""
    held_QW = np.zeros_like(taken_QW)
    for column, cap in enumerate(caps.caps_D):
        code_Q = newest_QD[:, column, None]
        same_QW = (codes_QWD[:, :, column] == code_Q) & (code_Q >= 0)
        count_Q = (list_QKD[:, :, column] == code_Q).sum(axis=1) + (same_QW & taken_QW).sum(axis=1)
        held_QW |= same_QW & (count_Q >= cap)[:, None]
    return held_QW


def _in(keys: I64, sorted_keys: I64) -> U8:
    """Return which keys are among some rising ones."""
    if not len(sorted_keys):
        return np.zeros(keys.shape, np.bool_)
    at = np.searchsorted(sorted_keys, keys).clip(max=len(sorted_keys) - 1)
    found: U8 = sorted_keys[at] == keys
    return found
