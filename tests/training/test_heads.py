"""Calibration: log loss falls, few labels change little."""

from __future__ import annotations

import numpy as np
import pytest

from genrec_batch.training.heads import Calibration, auc, calibrate, fit, log_loss


def test_probabilities_that_are_too_sure_are_drawn_in():
    random = np.random.default_rng(1)
    logit = random.normal(-1, 1, 5000)
    label = (random.random(5000) < 1 / (1 + np.exp(-logit))).astype(float)
    sure = 1 / (1 + np.exp(-(3 * logit + 1)))
    found = fit(sure, label)
    assert found.scale == pytest.approx(1 / 3, abs=0.03)
    assert found.shift == pytest.approx(-1 / 3, abs=0.1)
    assert log_loss(found.apply(sure), label) < log_loss(sure, label) - 0.1


def test_three_labels_change_little():
    found = fit(np.array([0.5, 0.6, 0.4]), np.array([0.0, 0.0, 1.0]))
    assert abs(found.scale - 1) < 0.2
    assert abs(found.shift) < 0.2


def test_a_head_without_two_labels_is_left_as_it_is():
    probabilities = np.full((4, 2, 4), 0.3, np.float32)
    labels = np.full((4, 2, 4), np.nan, np.float32)
    labels[:, :, 1] = [[0, 1], [1, 0], [0, 0], [0, np.nan]]
    labels[:, :, 2] = 0
    found, figures = calibrate(probabilities, labels)
    assert [calibration == Calibration() for calibration in found] == [True, False, True, True]
    assert list(figures) == ["engagement"]
    assert figures["engagement"]["exposures"] == 7


def test_auc_counts_ties_half():
    assert auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])) == 3.5 / 4
    assert auc(np.array([0.1, 0.2]), np.array([True, True])) is None
