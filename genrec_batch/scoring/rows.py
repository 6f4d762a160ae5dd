"""From tokens and scores to rows: the recommendations table.

Owns: the columns that every output has and their types. Must not know: how items were chosen or ordered (`Ranking`),
which columns are written in which layout (`shape`), or where the table goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec_batch.core.arrays import F32, HEADS, I8, I32, I64, MODEL, SOURCES, U8
from genrec_batch.features import feature_scores
from genrec_batch.features.batches import ModelInputs
from genrec_batch.model.catalog import Catalog
from genrec_batch.rules.ranking import Ranking

FEATURE_SCORES = ("engagement", "retention", "diversity")
PER_USER = ("feature_scores", "history_length", "cold_start", "arm", "bucket")  # the last two in a run with arms


@dataclass(frozen=True, kw_only=True)
class UserColumns:
    """What every row of a user says beside the recommendation, for N users."""

    feature_scores_N3: F32
    history_length_N: I64
    cold_start_N: U8
    arm_N: pl.Series | None = None  # names, of a run with arms
    bucket_N: I32 | None = None

    @staticmethod
    def of(inputs: ModelInputs) -> UserColumns:
        """Return the columns of users from what the model reads of them."""
        return UserColumns(
            feature_scores_N3=feature_scores(inputs.dense_NF),
            history_length_N=inputs.histories.lengths_N,
            cold_start_N=inputs.histories.cold_start_N(),
        )

    def frame(self, ids: pl.Series) -> pl.DataFrame:
        """Return the columns with the users' ids."""
        return pl.DataFrame(
            {
                "user_id": ids,
                "feature_scores": pl.DataFrame(self.feature_scores_N3, schema=list(FEATURE_SCORES)).to_struct(),
                "history_length": pl.Series(self.history_length_N.astype(np.int32)),
                "cold_start": pl.Series(self.cold_start_N),
                **({} if self.arm_N is None else {"arm": self.arm_N}),
                **({} if self.bucket_N is None else {"bucket": pl.Series(self.bucket_N, dtype=pl.Int32)}),
            }
        )

    @staticmethod
    def joined(parts: Sequence[tuple[I64, UserColumns]], arm_N: pl.Series, bucket_N: I32) -> UserColumns:
        """Return the columns of N users of several arms, each part with the rows of its users among them."""
        order_N = np.argsort(np.concatenate([rows for rows, _ in parts]))
        return UserColumns(
            feature_scores_N3=np.concatenate([users.feature_scores_N3 for _, users in parts])[order_N],
            history_length_N=np.concatenate([users.history_length_N for _, users in parts])[order_N],
            cold_start_N=np.concatenate([users.cold_start_N for _, users in parts])[order_N],
            arm_N=arm_N,
            bucket_N=bucket_N,
        )


def recommendations(
    user_ids: pl.Series, ranking: Ranking, *, catalog: Catalog, video_type: pl.DataType
) -> pl.DataFrame:
    """Return a row for each recommendation to N users, sorted as `user_ids` is and by rank.

    Its columns are user_id and those of a recommendation; `video_type` is the log's own type.
    """
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
    if ranking.source_NK is not None:
        rows = _with_source(rows, ranking.source_NK[user_R, column_R])
    if ranking.propensity_NK is not None:
        rows["propensity"] = pl.Series(ranking.propensity_NK[user_R, column_R])
    return pl.DataFrame(rows)


def _with_source(rows: dict[str, pl.Series], source_R: I8) -> dict[str, pl.Series]:
    """Add the column source; what no model computed, and the score of a place that it did not decide, become null."""
    score_R = np.where(source_R == MODEL, rows["score"].to_numpy(), np.float32(np.nan))
    nullable = rows | {"score": pl.Series(score_R)}
    numbers = ("score", "log_prob", *HEADS)
    nullable |= {name: nullable[name].fill_nan(None) for name in numbers}
    step_R = rows["step"]
    nullable["step"] = step_R.set(step_R == 0, None)
    return nullable | {"source": pl.Series(SOURCES).gather(source_R)}


def no_recommendations(
    user_type: pl.DataType, video_type: pl.DataType, *, sources: bool = False, propensity: bool = False
) -> tuple[pl.DataFrame, UserColumns]:
    """Return the rows and the columns of no user, with the types of `recommendations`."""
    users = UserColumns(
        feature_scores_N3=np.zeros((0, len(FEATURE_SCORES)), np.float32),
        history_length_N=np.zeros(0, np.int64),
        cold_start_N=np.zeros(0, np.bool_),
    )
    none = Catalog(items=pl.DataFrame(schema={"video_id": video_type, "count": pl.UInt64}))
    ids = pl.Series("user_id", [], user_type)
    ranking = Ranking.empty(0, 1, sources=sources, propensity=propensity)
    return recommendations(ids, ranking, catalog=none, video_type=video_type), users
