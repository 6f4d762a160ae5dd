"""Metrics of ranked lists, one value a row, so that means and intervals need no second look at a list.

Owns: the formulas. Must not know: where a list comes from, files. In: lists of tokens and `Targets`. Out: arrays by
metric. Relevance is 0 or 1; the names and values are those of `ir-measures` (Success@k, nDCG@k, RR@k, R@k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec_batch.core.arrays import F32, F64, FIRST_ITEM, I32, I64, U8
from genrec_batch.evaluation.targets import Targets, row_keys

ACCURACY = ("hr", "ndcg", "mrr", "recall")
OF_LISTS = ("coverage", "novelty", "diversity")
ROWS = 1 << 14  # of lists whose vectors are held at once


def names(ks: Sequence[int]) -> list[str]:
    """Return the names of all metrics of a ranking, such as `ndcg@10`."""
    return [f"{metric}@{k}" for metric in (*ACCURACY, *OF_LISTS) for k in ks]


def hits(tokens_MK: I32, targets: Targets) -> U8:
    """Return which places of the lists hold a target, [M, K]; token 0 is no place."""
    rows_MK = np.broadcast_to(np.arange(len(tokens_MK))[:, None], tokens_MK.shape)
    return np.isin(row_keys(rows_MK, tokens_MK), targets.keys()) & (tokens_MK >= FIRST_ITEM)


def accuracy(tokens_MK: I32, targets: Targets, ks: Sequence[int]) -> dict[str, F64]:
    """Return HR, NDCG, MRR and recall at each k, [M] each; a list shorter than k has nothing behind its end."""
    hit_MK = hits(tokens_MK, targets)
    width = hit_MK.shape[1]
    gain_K = 1 / np.log2(np.arange(width) + 2)
    found_MK, dcg_MK = np.cumsum(hit_MK, axis=1), np.cumsum(hit_MK * gain_K, axis=1)
    ideal_D = np.cumsum(1 / np.log2(np.arange(max(ks)) + 2))
    first_M = np.where(hit_MK.any(axis=1), hit_MK.argmax(axis=1), width)
    values: dict[str, F64] = {}
    for k in ks:
        last = min(k, width) - 1
        values[f"hr@{k}"] = (found_MK[:, last] > 0).astype(np.float64)
        values[f"ndcg@{k}"] = dcg_MK[:, last] / ideal_D[np.minimum(targets.distinct_M, k) - 1]
        values[f"mrr@{k}"] = np.where(first_M <= last, 1 / (first_M + 1), 0.0)
        values[f"recall@{k}"] = found_MK[:, last] / targets.distinct_M
    return values


@dataclass(frozen=True, kw_only=True)
class Videos:
    """What is known of the catalog's videos beside their tokens."""

    views_V: I64  # in the history of the log
    vector_VD: F32  # of length 1 (0 where nothing is known): videos are alike as their vectors are

    @property
    def surprise_V(self) -> F64:
        """Return -log2 of each video's share of the views, one view added to each, [V]."""
        counts_V = self.views_V + 1.0
        surprise_V: F64 = -np.log2(counts_V / counts_V[FIRST_ITEM:].sum())
        return surprise_V


def beyond_accuracy(tokens_MK: I32, videos: Videos, ks: Sequence[int]) -> dict[str, F64]:
    """Return novelty and diversity at each k, [M] each, NaN for a list that is too short to have one.

    Novelty is the mean surprise of a list's videos, in bits. Diversity is 1 minus the mean cosine of the vectors of all
    pairs of a list's videos.
    """
    values = {f"{metric}@{k}": np.full(len(tokens_MK), np.nan) for metric in ("novelty", "diversity") for k in ks}
    surprise_V = videos.surprise_V
    for start in range(0, len(tokens_MK), ROWS):
        part_MK = tokens_MK[start : start + ROWS]
        there_MK = part_MK >= FIRST_ITEM
        size_MK = np.cumsum(there_MK, axis=1, dtype=np.int64)
        surprise_MK = np.cumsum(surprise_V[part_MK] * there_MK, axis=1)
        cosine_MK = _cosines(part_MK, there_MK, videos.vector_VD)
        for k in ks:
            last = min(k, part_MK.shape[1]) - 1
            size_M = size_MK[:, last]
            rows = slice(start, start + len(part_MK))
            pairs_M = size_M * (size_M - 1) / 2
            values[f"novelty@{k}"][rows] = _ratio(surprise_MK[:, last], size_M)
            values[f"diversity@{k}"][rows] = 1 - _ratio(cosine_MK[:, last], pairs_M)
    return values


def _cosines(tokens_MK: I32, there_MK: U8, vector_VD: F32) -> F64:
    """Return the sum of the cosines of all pairs among the first k + 1 videos of each list, [M, K]."""
    sum_MD = np.zeros((len(tokens_MK), vector_VD.shape[1]), np.float32)
    cosine_MK = np.zeros(tokens_MK.shape)
    for k in range(tokens_MK.shape[1]):
        vector_MD = vector_VD[tokens_MK[:, k]] * there_MK[:, k, None]
        cosine_MK[:, k] = np.einsum("md,md->m", sum_MD, vector_MD)
        sum_MD += vector_MD
    total_MK: F64 = np.cumsum(cosine_MK, axis=1)
    return total_MK


def _ratio(total_M: F64, count_M: F64 | I64) -> F64:
    """Return total / count, NaN where the count is 0."""
    ratio_M: F64 = np.divide(total_M, count_M, out=np.full(len(total_M), np.nan), where=count_M > 0)
    return ratio_M


def coverage(tokens_MK: I32, tokens: int, ks: Sequence[int]) -> dict[str, float]:
    """Return the share of the catalog's videos that are in the first k of any list; `tokens` counts padding too."""
    found = {}
    for k in ks:
        shown = np.bincount(tokens_MK[:, :k].ravel(), minlength=tokens)[FIRST_ITEM:] > 0
        found[f"coverage@{k}"] = float(shown.mean()) if len(shown) else 0.0
    return found
