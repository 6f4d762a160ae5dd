"""The calibration of heads: a scale and a shift of each head's logit, found on validation.

Owns: that fit, and the figures of a head before and after. Must not know: the network, files. In: probabilities and
labels. Out: `Calibration`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32, F64, HEADS

TRUST = 10.0  # labels' worth of belief in no change: few labels change little
STEPS, SMALLEST_STEP = 100, 1e-9  # of Newton's method
LEAST = 1e-6  # probability that a logit is taken of


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """logit' = scale * logit + shift."""

    scale: float = 1.0
    shift: float = 0.0

    def apply(self, probability: F64) -> F64:
        """Return calibrated probabilities."""
        return _sigmoid(self.scale * _logit(probability) + self.shift)


def fit(probability: F64, label: F64) -> Calibration:
    """Return the scale and shift of least log loss, by Newton's method with shorter steps where one goes too far.

    A scale is never below 0.
    """
    logit = _logit(probability)
    design = np.stack([logit, np.ones_like(logit)])
    begin = np.array([1.0, 0.0])
    trust = TRUST * np.array([max(1.0, float(logit.var())), 1.0]) / 4

    def cost(scale_shift: F64) -> float:
        changed = scale_shift @ design
        return float(
            (np.logaddexp(0, changed) - label * changed).sum() + (trust * (scale_shift - begin) ** 2).sum() / 2
        )

    found, best = begin, cost(begin)
    for _ in range(STEPS):
        predicted = _sigmoid(found @ design)
        gradient = design @ (predicted - label) + trust * (found - begin)
        curvature = (design * (predicted * (1 - predicted))) @ design.T + np.diag(trust)
        step = np.linalg.solve(curvature, gradient)
        while np.abs(step).max() > SMALLEST_STEP and cost(found - step) > best:
            step = step / 2
        if np.abs(step).max() <= SMALLEST_STEP:
            break
        found = found - step
        best = cost(found)
    return Calibration(scale=float(max(found[0], 0.0)), shift=float(found[1]))


def calibrate(probabilities_NCH: F32, labels_NCH: F32) -> tuple[list[Calibration], dict[str, Any]]:
    """Return each head's calibration, and how well it predicts before and after; no change without two labels."""
    calibrations, figures = [], {}
    for place, head in enumerate(HEADS):
        known = ~np.isnan(labels_NCH[..., place])
        label = labels_NCH[..., place][known].astype(np.float64)
        probability = probabilities_NCH[..., place][known].astype(np.float64)
        found = Calibration()
        if len(label) and label.min() < label.max():
            found = fit(probability, label)
            figures[head] = {
                "exposures": len(label),
                "mean_label": float(label.mean()),
                "auc": auc(probability, label >= 0.5),
                "log_loss_uncalibrated": log_loss(probability, label),
                "log_loss": log_loss(found.apply(probability), label),
                "log_loss_of_the_mean": log_loss(np.full(len(label), label.mean()), label),
                **asdict(found),
            }
        calibrations.append(found)
    return calibrations, figures


def log_loss(probability: F64, label: F64) -> float:
    """Return the mean binary cross-entropy."""
    p = np.clip(probability, LEAST, 1 - LEAST)
    return float(-(label * np.log(p) + (1 - label) * np.log(1 - p)).mean())


def auc(probability: F64, positive: Any) -> float | None:
    """Return the chance that a positive is rated above a negative, equal ratings counting half; None without both."""
    values, code = np.unique(probability, return_inverse=True)
    of_positive = np.bincount(code[positive], minlength=len(values)).astype(np.float64)
    of_negative = np.bincount(code[~positive], minlength=len(values)).astype(np.float64)
    pairs = of_positive.sum() * of_negative.sum()
    if not pairs:
        return None
    below = np.cumsum(of_negative) - of_negative
    return float((of_positive * (below + of_negative / 2)).sum() / pairs)


def _logit(probability: F64) -> F64:
    p = np.clip(probability, LEAST, 1 - LEAST)
    return np.asarray(np.log(p / (1 - p)), np.float64)


def _sigmoid(logit: F64) -> F64:
    return np.asarray((1 + np.tanh(logit / 2)) / 2, np.float64)
