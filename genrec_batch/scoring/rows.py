"""From tokens and scores to rows: the recommendations table.

Owns: the order of a user's rows, the output's columns and types, the long and the nested form. Must not know: how items
were chosen, or where the table goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from genrec_batch.core.arrays import F32, HEADS, I32, I64, U8, Ranked
from genrec_batch.features import feature_scores
from genrec_batch.features.batches import ModelInputs
from genrec_batch.model.catalog import Catalog

FEATURE_SCORES = ("engagement", "retention", "diversity")
PER_USER = ("feature_scores", "history_length", "cold_start")


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The rows of N users in rank order, best first; token 0 (only at a row's end) is no row."""

    tokens_NK: I32
    score_NK: F32
    log_prob_NK: F32
    step_NK: I32  # decode order, from 1
    heads_NKH: F32

    @staticmethod
    def empty(users: int, top_k: int) -> Ranking:
        """Return room for `users` rows of `top_k` items."""
        return Ranking(
            tokens_NK=np.zeros((users, top_k), np.int32),
            score_NK=np.full((users, top_k), -np.inf, np.float32),
            log_prob_NK=np.full((users, top_k), -np.inf, np.float32),
            step_NK=np.zeros((users, top_k), np.int32),
            heads_NKH=np.zeros((users, top_k, len(HEADS)), np.float32),
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


@dataclass(frozen=True, kw_only=True)
class UserColumns:
    """What every row of a user says beside the recommendation, for N users."""

    feature_scores_N3: F32
    history_length_N: I64
    cold_start_N: U8

    @staticmethod
    def of(inputs: ModelInputs) -> UserColumns:
        """Return the columns of users from what the model reads of them."""
        return UserColumns(
            feature_scores_N3=feature_scores(inputs.dense_NF),
            history_length_N=inputs.histories.lengths_N,
            cold_start_N=inputs.histories.cold_start_N(),
        )

    def __len__(self) -> int:
        return len(self.history_length_N)


def recommendations(
    user_ids: pl.Series,
    ranking: Ranking,
    users: UserColumns,
    *,
    catalog: Catalog,
    video_type: pl.DataType,
    nested: bool,
) -> pa.Table:
    """Return the rows of N users, sorted as `user_ids` is and by rank; `video_type` is the log's own type."""
    user_R, column_R = np.nonzero(ranking.tokens_NK)
    rows = {
        "user_id": user_ids.gather(user_R),
        "rank": pl.Series((column_R + 1).astype(np.int32)),
        "video_id": catalog.ids(pl.Series(ranking.tokens_NK[user_R, column_R])).cast(video_type),
        "score": pl.Series(ranking.score_NK[user_R, column_R]),
        "log_prob": pl.Series(ranking.log_prob_NK[user_R, column_R]),
        "step": pl.Series(ranking.step_NK[user_R, column_R]),
    }
    rows |= {head: pl.Series(ranking.heads_NKH[user_R, column_R, h]) for h, head in enumerate(HEADS)}
    per_user = {
        "feature_scores": pl.DataFrame(users.feature_scores_N3, schema=list(FEATURE_SCORES)).to_struct(),
        "history_length": pl.Series(users.history_length_N.astype(np.int32)),
        "cold_start": pl.Series(users.cold_start_N),
    }
    if not nested:
        rows |= {name: values.gather(user_R) for name, values in per_user.items()}
        return pl.DataFrame(rows).to_arrow(compat_level=pl.CompatLevel.oldest())
    lists = pl.DataFrame(rows).group_by("user_id", maintain_order=True).all()
    joined = pl.DataFrame({"user_id": user_ids, **per_user}).join(
        lists, on="user_id", how="left", maintain_order="left"
    )
    listed = [name for name in rows if name != "user_id"]
    filled = joined.with_columns(pl.col(listed).fill_null([])).select("user_id", *listed, *PER_USER)
    return filled.to_arrow(compat_level=pl.CompatLevel.oldest())


def no_recommendations(user_type: pl.DataType, video_type: pl.DataType, *, nested: bool) -> pa.Table:
    """Return the table of no user, with the columns and types of `recommendations`."""
    none = np.zeros(0)
    users = UserColumns(
        feature_scores_N3=np.zeros((0, len(FEATURE_SCORES)), np.float32),
        history_length_N=none.astype(np.int64),
        cold_start_N=none.astype(np.bool_),
    )
    return recommendations(
        pl.Series("user_id", [], user_type),
        Ranking.empty(0, 1),
        users,
        catalog=Catalog(items=pl.DataFrame(schema={"video_id": video_type, "count": pl.UInt64})),
        video_type=video_type,
        nested=nested,
    )
