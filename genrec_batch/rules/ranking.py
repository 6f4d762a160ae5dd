"""Lists in rank order: what was scored for users, by falling score.

Owns: the order of a user's rows, and what is kept of each. Must not know: ids, tables, how items were chosen. In:
ranked or composed lists of some users. Out: a `Ranking`, from which the batch job makes rows and a server answers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32, HEADS, I8, I32, I64, MODEL, Ranked
from genrec_batch.rules.compose import Composed


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The rows of N users in rank order, best first; token 0 (only at a row's end) is no row.

    A place that the score did not decide (its source is not the model) has the score NaN, which becomes null; so do
    log_prob and heads that no model computed, and step 0.
    """

    tokens_NK: I32
    score_NK: F32
    log_prob_NK: F32
    step_NK: I32  # decode order, from 1
    heads_NKH: F32
    source_NK: I8 | None = None  # codes of `SOURCES`; None where every row is the model's
    propensity_NK: F32 | None = None  # probability of a row at its place, given those before it; None: nothing is drawn

    @staticmethod
    def empty(users: int, top_k: int, *, sources: bool = False, propensity: bool = False) -> Ranking:
        """Return room for `users` rows of `top_k` items, with what lists that are composed say of a row."""
        return Ranking(
            tokens_NK=np.zeros((users, top_k), np.int32),
            score_NK=np.full((users, top_k), -np.inf, np.float32),
            log_prob_NK=np.full((users, top_k), -np.inf, np.float32),
            step_NK=np.zeros((users, top_k), np.int32),
            heads_NKH=np.zeros((users, top_k, len(HEADS)), np.float32),
            source_NK=np.full((users, top_k), MODEL, np.int8) if sources else None,
            propensity_NK=np.ones((users, top_k), np.float32) if propensity else None,
        )

    def put(self, rows_B: I64, ranked: Ranked, score_BK: F32) -> None:
        """Rank B users' items by falling score, ties in decode order, and keep the best top_k at `rows_B`."""
        order_BK = np.argsort(-score_BK, axis=1, kind="stable")[:, : self.tokens_NK.shape[1]]
        width = order_BK.shape[1]
        self.tokens_NK[rows_B, :width] = np.take_along_axis(ranked.tokens_BK, order_BK, axis=1)
        self.score_NK[rows_B, :width] = np.take_along_axis(score_BK, order_BK, axis=1)
        self.log_prob_NK[rows_B, :width] = np.take_along_axis(ranked.log_prob_BK, order_BK, axis=1)
        self.step_NK[rows_B, :width] = order_BK + 1
        self.heads_NKH[rows_B, :width] = np.take_along_axis(ranked.heads_BKH, order_BK[:, :, None], axis=1)

    def taken(self, order_NK: I64) -> Ranking:
        """Return the rows of each user in another order."""
        arrays: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: np.take_along_axis(each, order_NK.reshape(order_NK.shape + (1,) * (each.ndim - 2)), axis=1)
            for name, each in arrays.items()
            if each is not None
        }
        return Ranking(**moved)

    def put_composed(self, rows_B: I64, ranked: Ranked, composed: Composed) -> None:
        """Write the composed lists of B users at `rows_B`, with the model's numbers where it scored the video."""
        assert self.source_NK is not None
        column_BK = np.maximum(composed.column_BK, 0)
        scored_BK = composed.column_BK >= 0
        log_prob_BK = np.take_along_axis(ranked.log_prob_BK, column_BK, axis=1)
        heads_BKH = np.take_along_axis(ranked.heads_BKH, column_BK[:, :, None], axis=1)
        self.tokens_NK[rows_B] = composed.tokens_BK
        self.score_NK[rows_B] = composed.score_BK
        self.log_prob_NK[rows_B] = np.where(scored_BK, log_prob_BK, np.float32(np.nan))
        self.step_NK[rows_B] = composed.column_BK + 1
        self.heads_NKH[rows_B] = np.where(scored_BK[:, :, None], heads_BKH, np.float32(np.nan))
        self.source_NK[rows_B] = composed.source_BK
        if self.propensity_NK is not None and composed.propensity_BK is not None:
            self.propensity_NK[rows_B] = composed.propensity_BK
