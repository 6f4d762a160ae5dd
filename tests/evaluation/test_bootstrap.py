from __future__ import annotations

import numpy as np
import pytest

from genrec_batch.evaluation import bootstrap


def test_intervals_are_those_of_the_central_limit():
    values = np.random.default_rng(1).random(5000)
    found = bootstrap.means({"x": values}, seed=3)["x"]
    width = 1.96 * values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - width, values.mean() + width), abs=0.1 * width)


def test_the_seed_decides_and_all_values_of_a_row_are_drawn_together():
    values = np.random.default_rng(1).random(100)
    found = bootstrap.means({"x": values, "twice": 2 * values}, seed=3)
    assert found == bootstrap.means({"x": values, "twice": 2 * values}, seed=3)
    assert found != bootstrap.means({"x": values, "twice": 2 * values}, seed=4)
    assert found["twice"].low == pytest.approx(2 * found["x"].low)


def test_rows_without_a_value_are_left_out():
    found = bootstrap.means({"x": np.array([1.0, np.nan, 3.0]), "none": np.full(3, np.nan)}, seed=3)
    assert found["x"].value == 2
    assert found["none"] == bootstrap.NOTHING


def test_many_rows_have_fewer_resamples():
    assert sum(len(some) for some in bootstrap.resamples(1000, 1)) == 1000
    assert sum(len(some) for some in bootstrap.resamples(90_000, 1)) == 222
    for some in bootstrap.resamples(90_000, 1):
        assert (some.sum(axis=1) == 90_000).all()
        break
