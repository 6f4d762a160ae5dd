"""Figures of heads compared with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as theirs
from sklearn.calibration import calibration_curve

from genrec_batch.evaluation import bootstrap, heads


@pytest.fixture(scope="module")
def exposures():
    """Predictions with ties, labels that follow them, users of 1 to 12 exposures, in mixed order."""
    random = np.random.default_rng(11)
    row = np.repeat(np.arange(300), random.integers(1, 13, 300))
    predicted = np.round(random.beta(1, 4, len(row)), 2)
    label = (random.random(len(row)) < predicted * 0.8).astype(np.float64)
    mixed = random.permutation(len(row))
    return predicted[mixed], label[mixed], row[mixed]


def test_figures_are_those_of_scikit_learn(exposures):
    predicted, label, row = exposures
    found = heads.judge(predicted, label, row, seed=1)
    assert (found.exposures, found.users) == (len(label), 300)
    assert found.auc.value == pytest.approx(theirs.roc_auc_score(label, predicted))
    assert found.log_loss.value == pytest.approx(theirs.log_loss(label, np.clip(predicted, 1e-7, 1 - 1e-7)))
    constant = np.full(len(label), label.mean())
    assert found.constant_log_loss == pytest.approx(theirs.log_loss(label, constant))
    mine = [np.flatnonzero(row == user) for user in range(300)]
    mine = [rows for rows in mine if 0 < label[rows].sum() < len(rows)]
    own = [theirs.roc_auc_score(label[rows], predicted[rows]) for rows in mine]
    assert found.user_auc.value == pytest.approx(np.average(own, weights=[len(rows) for rows in mine]))


def test_the_calibration_curve_is_that_of_scikit_learn(exposures):
    predicted, label, row = exposures
    found = heads.judge(predicted, label, row, seed=1)
    observed, mean = calibration_curve(label, predicted, n_bins=10, strategy="quantile")
    np.testing.assert_allclose([point[0] for point in found.curve], mean)
    np.testing.assert_allclose([point[1] for point in found.curve], observed)
    counts = np.array([point[2] for point in found.curve])
    assert counts.sum() == len(label)
    assert found.ece.value == pytest.approx(np.average(np.abs(observed - mean), weights=counts))


def test_weights_of_resamples_mean_repeated_exposures(exposures):
    predicted, label, _ = exposures
    order = np.argsort(predicted, kind="stable")
    weight = np.random.default_rng(2).integers(0, 3, (4, len(label))).astype(np.float64)
    ours = heads.auc(predicted[order], label[order] > 0, weight)
    for each, weights in zip(ours, weight, strict=True):
        expected = theirs.roc_auc_score(label[order], predicted[order], sample_weight=weights)
        assert each == pytest.approx(expected)


def test_intervals_hold_the_figure_and_do_not_change_with_the_next_run(exposures):
    first, again, other = (heads.judge(*exposures, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    for name in heads.METRICS:
        each = getattr(first, name)
        assert each.low < each.high
        assert name == "ece" or each.low < each.value < each.high


def test_labels_of_one_value_have_no_auc_and_a_log_loss():
    found = heads.judge(np.array([0.2, 0.4]), np.zeros(2), np.array([0, 1]), seed=1)
    assert found.auc == found.user_auc == bootstrap.NOTHING
    assert found.log_loss.value == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert found.positive == 0


def test_no_exposure_is_nothing():
    assert heads.judge(np.zeros(0), np.zeros(0), np.zeros(0, np.int64), seed=1) is None
