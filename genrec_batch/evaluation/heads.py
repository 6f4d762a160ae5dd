"""Heads: predicted probabilities compared with what users did with the videos that they were shown.

Owns: the formulas. Must not know: where predictions and labels come from. In: a prediction and a label for each
exposure. Out: figures with intervals, and the points of a calibration curve.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32, F64, I64, U8
from genrec_batch.evaluation import bootstrap
from genrec_batch.evaluation.bootstrap import Estimate

BINS = 10  # of the calibration curve, with about as many exposures each
LEAST = 1e-7  # probability that log loss takes for 0, and 1 minus it for 1
AT_ONCE = 1 << 18  # weights of exposures that are held at once
METRICS = ("auc", "user_auc", "log_loss", "ece")


@dataclass(frozen=True, kw_only=True)
class HeadQuality:
    """How well one head predicts one label."""

    exposures: int
    users: int
    positive: float  # share of the exposures whose label is 1, or the mean label
    predicted: float  # mean prediction
    auc: Estimate  # chance that a positive exposure is rated above a negative one
    user_auc: Estimate  # the same within a user, weighted by exposures; users with both labels
    log_loss: Estimate
    constant_log_loss: float  # of always predicting the mean label
    ece: Estimate  # expected calibration error: mean over bins of |mean prediction - mean label|, by exposures
    curve: tuple[tuple[float, float, int], ...]  # mean prediction, mean label and exposures of each bin


def judge(predicted_E: F32 | F64, label_E: F32 | F64, row_E: I64, *, seed: int) -> HeadQuality | None:
    """Compare predictions with labels from 0 to 1; None without exposures.

    `row_E` says whose exposure it is: exposures of a user are resampled together. A label that is neither 0 nor 1
    counts as 1 from 0.5 on where only two classes make sense (AUC).
    """
    if not len(label_E):
        return None
    predicted_E, label_E = predicted_E.astype(np.float64), label_E.astype(np.float64)
    users, user_E = np.unique(row_E, return_inverse=True)
    order_E = np.argsort(predicted_E, kind="stable")
    predicted_E, label_E, user_E = predicted_E[order_E], label_E[order_E], user_E[order_E]
    positive_E = label_E >= 0.5
    loss_E = losses(predicted_E, label_E)
    bin_E = bins(predicted_E)
    drawn: dict[str, list[F64]] = {name: [] for name in METRICS}
    whole = np.ones((1, len(users)))
    auc_U, shown_U = _by_user(predicted_E, positive_E, user_E, len(users))
    weighted_U, counted_U = np.nan_to_num(auc_U) * shown_U, np.where(np.isnan(auc_U), 0, shown_U)
    exposures_U = np.bincount(user_E, minlength=len(users)).astype(np.float64)
    loss_U = np.bincount(user_E, loss_E, len(users))
    gap_UB = np.bincount(user_E * BINS + bin_E, predicted_E - label_E, len(users) * BINS).reshape(-1, BINS)

    def figures(weight_RU: F64) -> dict[str, F64]:
        total_R = weight_RU @ exposures_U
        return {
            "auc": auc(predicted_E, positive_E, weight_RU[:, user_E]),
            "user_auc": _ratio(weight_RU @ weighted_U, weight_RU @ counted_U),
            "log_loss": _ratio(weight_RU @ loss_U, total_R),
            "ece": _ratio(np.abs(weight_RU @ gap_UB).sum(axis=1), total_R),
        }

    value = figures(whole)
    for weight_RU in _few_at_once(len(users), len(label_E), seed):
        for name, values in figures(weight_RU).items():
            drawn[name].append(values)
    found = {name: bootstrap.estimate(float(value[name][0]), np.concatenate(drawn[name])) for name in METRICS}
    mean = float(label_E.mean())
    return HeadQuality(
        exposures=len(label_E),
        users=len(users),
        positive=mean,
        predicted=float(predicted_E.mean()),
        constant_log_loss=float(losses(np.full(len(label_E), mean), label_E).mean()),
        curve=_curve(predicted_E, label_E, bin_E),
        **found,
    )


def _few_at_once(users: int, exposures: int, seed: int) -> Iterator[F64]:
    """Yield resamples of users in groups whose exposures fit in memory together."""
    size = max(1, AT_ONCE // exposures)
    most = max(bootstrap.LEAST_RESAMPLES, min(bootstrap.RESAMPLES, bootstrap.DRAWS // exposures))
    made = 0
    for weight_RU in bootstrap.resamples(users, seed):
        for start in range(0, len(weight_RU), size):
            some_RU = weight_RU[start : start + size][: most - made]
            made += len(some_RU)
            if len(some_RU):
                yield some_RU


def losses(predicted_E: F64, label_E: F64) -> F64:
    """Return the cross-entropy of each exposure, in nats."""
    p_E = np.clip(predicted_E, LEAST, 1 - LEAST)
    loss_E: F64 = -(label_E * np.log(p_E) + (1 - label_E) * np.log1p(-p_E))
    return loss_E


def auc(rising_E: F64, positive_E: U8, weight_RE: F64) -> F64:
    """Return the weighted area under the ROC curve, [R]; predictions rise, equal ones count half. NaN for one class."""
    ends = np.flatnonzero(np.concatenate([rising_E[1:] != rising_E[:-1], [True]]))  # of each group of equal ones
    negative_RG = np.diff(np.cumsum(weight_RE * ~positive_E, axis=1)[:, ends], prepend=0)
    positive_RG = np.diff(np.cumsum(weight_RE * positive_E, axis=1)[:, ends], prepend=0)
    below_RG = np.cumsum(negative_RG, axis=1) - negative_RG / 2
    return _ratio((positive_RG * below_RG).sum(axis=1), positive_RG.sum(axis=1) * negative_RG.sum(axis=1))


def _by_user(rising_E: F64, positive_E: U8, user_E: I64, users: int) -> tuple[F64, I64]:
    """Return each user's own area under the ROC curve (NaN where all labels are alike), and exposures."""
    order_E = np.argsort(user_E, kind="stable")
    user_E, rising_E, positive_E = user_E[order_E], rising_E[order_E], positive_E[order_E]
    begins_E = np.concatenate([[True], (user_E[1:] != user_E[:-1]) | (rising_E[1:] != rising_E[:-1])])
    group_E = np.cumsum(begins_E) - 1
    user_G = user_E[begins_E]
    positive_G, all_G = np.bincount(group_E, positive_E), np.bincount(group_E)
    negative_G = all_G - positive_G
    before_G = np.cumsum(negative_G) - negative_G
    first_G = np.concatenate([[0], np.flatnonzero(np.diff(user_G)) + 1])
    below_G = before_G - np.repeat(before_G[first_G], np.diff(first_G, append=len(user_G))) + negative_G / 2
    won_U = np.bincount(user_G, positive_G * below_G, users)
    positive_U, all_U = np.bincount(user_G, positive_G, users), np.bincount(user_G, all_G, users)
    return _ratio(won_U, positive_U * (all_U - positive_U)), all_U.astype(np.int64)


def bins(predicted_E: F64) -> I64:
    """Return the bin of each prediction: BINS of them with about as many predictions each, equal ones together."""
    edges = np.quantile(predicted_E, np.linspace(0, 1, BINS + 1)[1:-1])
    bin_E: I64 = np.searchsorted(edges, predicted_E, side="left")
    return bin_E


def _curve(predicted_E: F64, label_E: F64, bin_E: I64) -> tuple[tuple[float, float, int], ...]:
    counts = np.bincount(bin_E, minlength=BINS)
    predicted, observed = np.bincount(bin_E, predicted_E, BINS), np.bincount(bin_E, label_E, BINS)
    return tuple((float(predicted[b] / n), float(observed[b] / n), int(n)) for b, n in enumerate(counts) if n)


def _ratio(total: Any, number: Any) -> F64:
    ratio: F64 = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return ratio
