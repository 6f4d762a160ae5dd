"""Composing lists: from the videos that were scored to those of a list, for all users of a batch at once.

Owns: the order of the rules, what `score` means under each, and which kernel computes. Must not know: tables, ids,
engines. In: a batch's scored videos, the promoted ones and the users' keys. Out: `Composed`.

The rules follow each other: boosts change the scores; the best videos by score, or by score and diversity, fill the
list as far as caps allow; promoted videos take their places before, so caps count them; then places are explored. So
caps hold in the list as it is written, no video is in it twice, and only promoted videos were not scored.

The propensity of a row is the probability that its video is at its place, given the places before it: explore / n for
one that was drawn from n that fitted, 1 - explore for one that could have been replaced, 1 where nothing was left to
chance. The probabilities of all videos that a place can show add up to 1, and none is 0: an average of outcome /
propensity over rows of a place is unbiased for what a list would do there (Horvitz and Thompson 1952).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import F32, F64, I8, I32, I64, U8, U64, Ranked
from genrec_batch.rules import draws, lists
from genrec_batch.rules.lists import DPP, MMR, PLAIN, Pool, Rules
from genrec_batch.runtime import compiled

Kernel = Literal["numba", "numpy"]
COMPILED_FROM = 3_000  # users of a run from which loading numba and the kernel pays


def kernel_name(users: int) -> Kernel:
    """Return which kernel composes the lists of all users of a run, given their number; both compute the same bits."""
    return "numpy" if users < COMPILED_FROM else _fastest()


@cache
def _fastest() -> Kernel:
    def load() -> None:
        from genrec_batch.rules import lists_numba  # noqa: F401 - does it load?

    return "numba" if compiled.loads(load, "NumPy composes the lists") else "numpy"


@dataclass(frozen=True, kw_only=True)
class Composed:
    """The lists of B users, of K places."""

    tokens_BK: I32  # 0 at a row's end
    column_BK: I64  # which column of what was scored, -1 for a promoted video that was not
    score_BK: F32  # what the rank is by, which never rises; NaN where no score decided
    source_BK: I8
    propensity_BK: F32 | None  # None where nothing is explored
    capped_B: U8  # whether caps left the list short
    dropped_B: I32  # promoted videos that a cap held back


@dataclass(frozen=True, kw_only=True)
class Composer:
    """The rules of a run, the same for all its users."""

    top_k: int
    rules: Rules
    boost_V: F64  # [0] where nothing is boosted
    kernel: Kernel = "numpy"

    @property
    def explores(self) -> bool:
        """Whether rows have a propensity."""
        return self.rules.explore > 0

    def fingerprint(self) -> str:
        """Return a sha256 over what the rules read of videos."""
        digest = hashlib.sha256()
        for array in (*self.rules[:5], self.boost_V):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def boosted(self, tokens_BP: I32, score_BP: F32) -> F32:
        """Return scores with what is added to them, [B, P]; -inf stays."""
        if not len(self.boost_V):
            return score_BP
        return (score_BP + self.boost_V[tokens_BP]).astype(np.float32)

    def compose(self, ranked: Ranked, score_BP: F32, promoted_BK: I32 | None, keys_B: U64) -> Composed:
        """Return the lists of B users.

        Args:
            ranked: what was scored, in decode order.
            score_BP: the score of each, -inf for none.
            promoted_BK: videos that take a place of the list, 0 for none.
            keys_B: of the users, by `draws.keys`.
        """
        score_BP = self.boosted(ranked.tokens_BK, score_BP)
        order_BP = np.argsort(-score_BP, axis=1, kind="stable")
        score_BP = np.take_along_axis(score_BP, order_BP, axis=1)
        pool = Pool(
            tokens_BP=np.take_along_axis(ranked.tokens_BK, order_BP, axis=1),
            worth_BP=self._worth(score_BP),
            promoted_BK=np.zeros((len(score_BP), self.top_k), np.int32) if promoted_BK is None else promoted_BK,
            draws_BK2=draws.uniform(keys_B, self.top_k, 2 if self.explores else 0),
        )
        found = self._composed(pool)
        column_BK = np.take_along_axis(order_BP, np.maximum(found.pick_BK, 0), axis=1)
        return Composed(
            tokens_BK=found.tokens_BK,
            column_BK=np.where(found.pick_BK < 0, -1, column_BK),
            score_BK=self._scores(found.value_BK),
            source_BK=found.source_BK,
            propensity_BK=found.propensity_BK.astype(np.float32) if self.explores else None,
            capped_B=found.capped_B,
            dropped_B=found.dropped_B,
        )

    def _composed(self, pool: Pool) -> lists.Lists:
        if self.kernel == "numpy":
            return lists.compose(pool, self.rules)
        from genrec_batch.rules import lists_numba

        return lists_numba.compose(pool, self.rules)

    def _worth(self, score_BP: F32) -> F64:
        """Return what each video is worth alone, [B, P]: see `Pool`; relevance is 1 for the best, 0 for the worst."""
        score = score_BP.astype(np.float64)
        if self.rules.method == PLAIN:
            return score
        there_BP = np.isfinite(score)
        least_B = np.min(score, axis=1, where=there_BP, initial=np.inf)
        range_B = np.maximum(
            np.max(score, axis=1, where=there_BP, initial=-np.inf) - least_B, np.finfo(np.float32).tiny
        )
        relevance_BP = np.where(there_BP, (np.where(there_BP, score, 0) - np.where(there_BP, least_B[:, None], 0)), 0)
        relevance_BP /= np.where(np.isfinite(range_B), range_B, 1)[:, None]
        kept = 1 - self.rules.weight
        if self.rules.method == MMR:
            return kept * relevance_BP
        worth_BP: F64 = np.exp(kept / self.rules.weight * (relevance_BP - 1))
        return worth_BP

    def _scores(self, value_BK: F64) -> F32:
        """Return values of the greedy pass as scores, [B, K]: for dpp, see `lists`; NaN stays."""
        if self.rules.method == DPP:
            value_BK = (1 - self.rules.weight) + self.rules.weight * np.log(value_BK)
        return _falling(value_BK).astype(np.float32)


def _falling(value_BK: F64) -> F64:
    """Return values that fall but for rounding, without a rise."""
    falling_BK: npt.NDArray[np.float64] = np.fmin.accumulate(value_BK, axis=1)
    return np.where(np.isnan(value_BK), np.nan, falling_BK)
