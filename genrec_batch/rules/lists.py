"""Lists composed of scored videos: the kernel in NumPy, for all users of a batch at once.

Owns: the order of the rules - promoted videos take their places, a greedy pass under caps fills the others, then some
are explored - and every formula of them; its twin, `lists_numba`, computes the same bits. Must not know: tables, ids,
engines, what a column means.

A greedy pass takes, place by place, the video of the greatest value among those that no cap holds back, the first in
the pool's order where several are equal. The value of video i, after the videos S, with relevance r from 0 to 1 and the
weight of diversity w:

    none   the score
    mmr    (1 - w) r_i - w max(0, max over j in S of s_ij)        Carbonell and Goldstein 1998, their lambda is 1 - w
    dpp    (1 - w) r_i + w ln d2_i                                Chen, Zhang and Zhou 2018, greedy MAP inference

d2_i is the variance of video i that the videos of S leave unexplained, by the Cholesky decomposition of their
algorithm 1; theta of their equation 10 is 1 - w, and the value is w times the gain of their log determinant. A
`RIDGE`th of each video's variance is its own, so that alike videos come late and the pass never ends early. Here the
kernel has exp((1 - w)/w (r - 1)) d2, of which that value is w times the logarithm plus 1 - w: exponentials and
logarithms are NumPy's, before and after, so that both kernels have the same bits. Likenesses s are sums of whole
numbers, exact in any order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import EXPLORED, F32, F64, I8, I32, I64, MODEL, PROMOTED, U8

PLAIN, MMR, DPP = range(3)
RIDGE = 1e-3  # of a video's variance, which no other video explains
CHUNK_USERS = 256  # of the NumPy kernel at once


class Rules(NamedTuple):
    """The rules of a run, by token of V videos. Arrays of no column are [V, 0]."""

    caps_D: I32  # most videos of a list with the same code in each of D columns
    codes_VD: I32  # -1 for null
    vectors_VE: F32  # whole numbers, the length of a row at most 4096
    one_over_V: F64  # one over the length, 0 for a video without a vector
    groups_VG: I32  # -1 for null; likeness by columns where there are no vectors
    method: int  # PLAIN, MMR or DPP
    weight: float  # of diversity
    explore: float  # probability of a place


class Pool(NamedTuple):
    """What the lists of B users are composed of: P scored videos, best first."""

    tokens_BP: I32  # 0 at a row's end
    worth_BP: F64  # score (PLAIN), (1 - w) r (MMR) or exp((1 - w)/w (r - 1)) (DPP)
    promoted_BK: I32  # videos that take a place of the list, 0 for none
    draws_BK2: F64  # uniform in [0, 1): whether a place explores, and what; [B, K, 0] where none does

    def rows(self, rows: slice) -> Pool:
        """Return some users, as views."""
        arrays: list[npt.NDArray[Any]] = [each[rows] for each in self]
        return Pool(*arrays)


class Lists(NamedTuple):
    """The lists of B users, of K places."""

    tokens_BK: I32  # 0 at a row's end
    pick_BK: I32  # place in the pool, -1 for a promoted video that is not in it
    source_BK: I8
    value_BK: F64  # of the greedy pass, NaN where it did not choose
    propensity_BK: F64
    capped_B: U8  # whether caps left a list short though videos are left
    dropped_B: I32  # promoted videos that a cap held back

    @staticmethod
    def empty(users: int, places: int) -> Lists:
        """Return room for lists that hold nothing."""
        return Lists(
            tokens_BK=np.zeros((users, places), np.int32),
            pick_BK=np.full((users, places), -1, np.int32),
            source_BK=np.full((users, places), MODEL, np.int8),
            value_BK=np.full((users, places), np.nan),
            propensity_BK=np.ones((users, places)),
            capped_B=np.zeros(users, np.bool_),
            dropped_B=np.zeros(users, np.int32),
        )

    def rows(self, rows: slice) -> Lists:
        """Return some users, as views."""
        arrays: list[npt.NDArray[Any]] = [each[rows] for each in self]
        return Lists(*arrays)


def compose(pool: Pool, rules: Rules) -> Lists:
    """Return the lists of B users."""
    users, places = pool.promoted_BK.shape
    lists = Lists.empty(users, places)
    for start in range(0, users, CHUNK_USERS):
        rows = slice(start, start + CHUNK_USERS)
        _Chunk(pool.rows(rows), rules, lists.rows(rows)).run()
    return lists


class _Chunk:
    """The lists of some users on their way; arrays of `lists` are filled."""

    def __init__(self, pool: Pool, rules: Rules, lists: Lists) -> None:
        self.pool, self.rules, self.lists = pool, rules, lists
        self.users, self.places = pool.promoted_BK.shape
        self.at_B = np.arange(self.users)
        self.codes_BPD = rules.codes_VD[pool.tokens_BP]
        self.free_BP = pool.tokens_BP > 0  # neither in the list nor promoted

    def run(self) -> None:
        promoted_BK = self.promoted()
        chosen_BK, value_BK = self.greedy(promoted_BK)
        self.merge(promoted_BK, chosen_BK, value_BK)
        length_B = (self.lists.tokens_BK > 0).sum(axis=1)
        self.lists.capped_B[:] = (length_B < self.places) & self.free_BP.any(axis=1)
        if self.pool.draws_BK2.shape[2]:
            for place in range(self.places):
                self.explore(place)

    def full(self, list_BK: I32, codes_BXD: I32) -> U8:
        """Return which of X videos a cap holds back from a list of tokens, [B, X]."""
        full_BX: U8 = np.zeros(codes_BXD.shape[:2], np.bool_)
        for column, cap in enumerate(self.rules.caps_D):
            code_BX = codes_BXD[:, :, column]
            theirs_BK = self.rules.codes_VD[list_BK, column]
            count_BX = (code_BX[:, :, None] == theirs_BK[:, None, :]).sum(axis=2)
            full_BX |= (code_BX >= 0) & (count_BX >= cap)
        return full_BX

    def promoted(self) -> I32:
        """Return the promoted videos that no cap holds back, place by place, [B, K]."""
        kept_BK = np.zeros_like(self.pool.promoted_BK)
        for place in range(self.places):
            token_B = self.pool.promoted_BK[:, place]
            held_B = self.full(kept_BK, self.rules.codes_VD[token_B][:, None])[:, 0] & (token_B > 0)
            kept_BK[:, place] = np.where(held_B, 0, token_B)
            self.lists.dropped_B[held_B] += 1
            self.free_BP &= (self.pool.tokens_BP != kept_BK[:, place, None]) | (self.pool.tokens_BP == 0)
        return kept_BK

    def greedy(self, promoted_BK: I32) -> tuple[I32, F64]:
        """Return the places in the pool of the videos that fill the other places, -1 for none, and their values."""
        open_B = self.places - (promoted_BK > 0).sum(axis=1)
        list_BK = promoted_BK.copy()  # with the chosen ones in the empty places, whatever their order
        chosen_BK = np.full_like(promoted_BK, -1)
        value_BK = np.full(promoted_BK.shape, np.nan)
        likeness = _Likeness(self.pool, self.rules, self.places)
        for step in range(self.places):
            can_BP = self.free_BP & ~self.full(list_BK, self.codes_BPD)
            going_B = (step < open_B) & can_BP.any(axis=1)
            value_BP = np.where(can_BP, likeness.value_BP(), -np.inf)
            best_B = value_BP.argmax(axis=1)
            chosen_BK[:, step] = np.where(going_B, best_B, -1)
            value_BK[going_B, step] = value_BP[self.at_B, best_B][going_B]
            self.free_BP[self.at_B[going_B], best_B[going_B]] = False
            empty_B = (list_BK == 0).argmax(axis=1)
            list_BK[self.at_B[going_B], empty_B[going_B]] = self.pool.tokens_BP[self.at_B, best_B][going_B]
            likeness.after(best_B, step)
        return chosen_BK, value_BK

    def merge(self, promoted_BK: I32, chosen_BK: I32, value_BK: F64) -> None:
        """Write the list: promoted videos at their places, chosen ones in order in between, gaps closed."""
        lists, pool, at_B = self.lists, self.pool, self.at_B
        next_B, end_B = np.zeros((2, self.users), np.int64)
        for place in range(self.places):
            token_B, step_B = promoted_BK[:, place], np.minimum(next_B, self.places - 1)
            pick_B = chosen_BK[at_B, step_B]
            model_B = (token_B == 0) & (next_B < self.places) & (pick_B >= 0)
            model = at_B[model_B]
            lists.tokens_BK[model, end_B[model]] = pool.tokens_BP[model, pick_B[model]]
            lists.pick_BK[model, end_B[model]] = pick_B[model]
            lists.value_BK[model, end_B[model]] = value_BK[model, step_B[model]]
            next_B[model] += 1
            fixed = at_B[token_B > 0]
            same_BP = pool.tokens_BP[fixed] == token_B[fixed, None]
            lists.tokens_BK[fixed, end_B[fixed]] = token_B[fixed]
            lists.pick_BK[fixed, end_B[fixed]] = np.where(same_BP.any(axis=1), same_BP.argmax(axis=1), -1)
            lists.source_BK[fixed, end_B[fixed]] = PROMOTED
            end_B += model_B | (token_B > 0)

    def explore(self, place: int) -> None:
        """Draw whether this place explores, and which of the videos beyond the list that fit it."""
        lists, share = self.lists, self.rules.explore
        others_BK = lists.tokens_BK.copy()
        others_BK[:, place] = 0
        can_BP = self.free_BP & ~self.full(others_BK, self.codes_BPD)
        count_B = can_BP.sum(axis=1)
        may_B = (lists.tokens_BK[:, place] > 0) & (lists.source_BK[:, place] == MODEL) & (count_B > 0)
        draw_B = may_B & (self.pool.draws_BK2[:, place, 0] < share)
        lists.propensity_BK[may_B & ~draw_B, place] = 1 - share
        rows = self.at_B[draw_B]
        nth = (self.pool.draws_BK2[rows, place, 1] * count_B[rows]).astype(np.int64)
        pick = (np.cumsum(can_BP[rows], axis=1) > nth[:, None]).argmax(axis=1)
        lists.tokens_BK[rows, place] = self.pool.tokens_BP[rows, pick]
        lists.pick_BK[rows, place] = pick
        lists.source_BK[rows, place] = EXPLORED
        lists.value_BK[rows, place] = np.nan
        lists.propensity_BK[rows, place] = share / count_B[rows]
        self.free_BP[rows, pick] = False


class _Likeness:
    """The values of a pool's videos after those that were chosen."""

    def __init__(self, pool: Pool, rules: Rules, places: int) -> None:
        self._worth_BP, self._rules = pool.worth_BP, rules
        self._tokens_BP, self._at_B = pool.tokens_BP, np.arange(len(pool.tokens_BP))
        if rules.method == PLAIN:
            return
        self._vectors_BPE, self._groups_BPG = rules.vectors_VE[pool.tokens_BP], rules.groups_VG[pool.tokens_BP]
        self._nearest_BP = np.zeros(pool.worth_BP.shape)
        self._left_BP = np.ones(pool.worth_BP.shape)  # of the variance
        self._factors_BPK = np.zeros((*pool.worth_BP.shape, places))

    def value_BP(self) -> F64:
        value_BP: F64 = self._worth_BP
        if self._rules.method == MMR:
            value_BP = self._worth_BP - self._rules.weight * self._nearest_BP
        elif self._rules.method == DPP:
            value_BP = self._worth_BP * self._left_BP
        return value_BP

    def after(self, best_B: I64, step: int) -> None:
        """Go on after one more video was chosen for each user."""
        if self._rules.method == PLAIN:
            return
        alike_BP = self._alike_BP(best_B)
        if self._rules.method == MMR:
            np.maximum(self._nearest_BP, alike_BP, out=self._nearest_BP)
            return
        factors_BPK, best_BK = self._factors_BPK, self._factors_BPK[self._at_B, best_B]
        explained_BP = np.zeros(alike_BP.shape)
        for before in range(step):
            explained_BP += best_BK[:, None, before] * factors_BPK[:, :, before]
        deviation_B = np.sqrt(self._left_BP[self._at_B, best_B])
        factor_BP = ((1 - RIDGE) * alike_BP - explained_BP) / deviation_B[:, None]
        factors_BPK[:, :, step] = factor_BP
        np.maximum(self._left_BP - factor_BP * factor_BP, RIDGE / 2, out=self._left_BP)

    def _alike_BP(self, best_B: I64) -> F64:
        groups = self._groups_BPG.shape[2]
        if groups:
            mine_BG = self._groups_BPG[self._at_B, best_B]
            equal_BP = ((self._groups_BPG == mine_BG[:, None]) & (mine_BG[:, None] >= 0)).sum(axis=2)
            alike_BP: F64 = equal_BP.astype(np.float64) / groups
            return alike_BP
        mine_BE = self._vectors_BPE[self._at_B, best_B]
        dots_BP: npt.NDArray[np.float32] = np.einsum("bpe,be->bp", self._vectors_BPE, mine_BE)
        one_over_V, tokens_BP = self._rules.one_over_V, self._tokens_BP
        return dots_BP.astype(np.float64) * one_over_V[tokens_BP] * one_over_V[tokens_BP[self._at_B, best_B]][:, None]
