"""The sampled users of one shard: what the model read of them, and how it scored what it recommends to them.

Owns: gathering both while the shard goes through a run, and the text that is kept beside its part. Must not know: what
the samples are compared with (`scoring/drift.py`), engines, files. In: inputs, then the ranking of scored users and the
rows of those who keep theirs. Out: a text.

The n-th score is the log_prob of the n-th video in the order of decoding, so that it does not depend on how many more a
slate has; of lists that are not slates, it is that of rank n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec_batch.core.arrays import F32, I64
from genrec_batch.core.drift import Sample
from genrec_batch.features import sampled
from genrec_batch.features.batches import ModelInputs
from genrec_batch.features.sampled import RANKS, SCORES, rounded
from genrec_batch.rules.ranking import Ranking

NOT_KNOWN = np.float32(np.inf)
SAMPLE = "genrec.sample"  # in the metadata of what is kept beside a part


@dataclass(frozen=True, kw_only=True)
class SampledUsers:
    """C sampled users of a shard of N."""

    rows_C: I64  # their places among the N, rising
    names: tuple[str, ...]  # of the Q quantities of inputs
    inputs_CQ: F32
    scores_CR: F32  # of R places of a list, filled by `rank` and `carry`; infinity until then, NaN without a video
    by_step: bool  # places are those of decoding, not ranks

    @staticmethod
    def of(inputs: ModelInputs, rows_C: I64, top_k: int, *, by_step: bool) -> SampledUsers:
        """Take the quantities of the users at `rows_C`."""
        return SampledUsers(
            rows_C=rows_C,
            names=sampled.names_of(inputs.dense_NF.shape[1]),
            inputs_CQ=sampled.quantities(inputs, rows_C),
            scores_CR=np.full((len(rows_C), min(top_k, RANKS)), NOT_KNOWN, np.float32),
            by_step=by_step,
        )

    @property
    def columns(self) -> tuple[str, str]:
        """Columns of rows that `carry` reads."""
        return "step" if self.by_step else "rank", "log_prob"

    def rank(self, ranking: Ranking, rows_S: I64 | None) -> None:
        """Take the scores of those who were ranked: the S users at `rows_S` of the shard, or all."""
        place_C = self.rows_C if rows_S is None else np.searchsorted(rows_S, self.rows_C)
        mine_C = np.full(len(place_C), True) if rows_S is None else np.isin(self.rows_C, rows_S)
        self.scores_CR[mine_C] = log_prob_of(ranking, self.scores_CR.shape[1], by_step=self.by_step)[place_C[mine_C]]

    def carry(self, ids: pl.Series, rows: pl.DataFrame, kept_M: I64) -> None:
        """Take the scores of those who keep rows of an earlier output: `kept_M` of the shard's `ids`, with their rows.

        Where these lack a column, the scores are not known.
        """
        key = self.columns[0]
        mine_C = np.isin(self.rows_C, kept_M)
        if not mine_C.any() or not set(self.columns) <= set(rows.columns):
            return
        mine = ids.gather(self.rows_C[mine_C])
        found = rows.filter(pl.col("user_id").is_in(mine.implode()), pl.col(key).is_between(1, self.scores_CR.shape[1]))
        scores_MR = np.full((len(mine), self.scores_CR.shape[1]), np.nan, np.float32)
        row_R = mine.search_sorted(found["user_id"]).to_numpy()
        scores_MR[row_R, found[key].to_numpy() - 1] = found["log_prob"].cast(pl.Float32).fill_null(np.nan).to_numpy()
        self.scores_CR[mine_C] = rounded(scores_MR)

    def text(self) -> str:
        """Return what is kept of these users."""
        names = (*self.names, *SCORES[: self.scores_CR.shape[1]])
        return Sample(names=names, values_SQ=np.concatenate([self.inputs_CQ, self.scores_CR], axis=1)).text()


def log_prob_of(ranking: Ranking, places: int, *, by_step: bool) -> F32:
    """Return the log_prob of the videos at the first places, [N, places]; NaN where there is none."""
    users, width = ranking.tokens_NK.shape
    place_NK = ranking.step_NK - 1 if by_step else np.broadcast_to(np.arange(width), (users, width))
    user_R, column_R = np.nonzero((ranking.tokens_NK > 0) & (place_NK >= 0) & (place_NK < places))
    found_NP = np.full((users, places), np.nan, np.float32)
    found_NP[user_R, place_NK[user_R, column_R]] = ranking.log_prob_NK[user_R, column_R]
    return rounded(found_NP)
