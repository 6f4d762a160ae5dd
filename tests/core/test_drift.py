"""The population stability index: by hand, against plain Python, and where a distribution has lumps or holes.

Also tests `drift_options`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_batch.core import drift
from genrec_batch.core.drift import Bins, Distribution, Sample
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import ScoreConfig
from tests.twins import drift as twin


def values(*numbers):
    return np.array(numbers, np.float32)


def test_the_index_is_that_of_a_computation_by_hand():
    before = Bins.of(values(*[1] * 50, *[2] * 30, *[3] * 20))
    now = values(*[1] * 25, *[2] * 30, *[3] * 45)
    by_hand = (0.25 - 0.5) * math.log(0.25 / 0.5) + 0 + (0.45 - 0.2) * math.log(0.45 / 0.2)
    assert drift.move("q", before, now).psi == pytest.approx(by_hand, abs=1e-6)
    assert by_hand == pytest.approx(0.376020, abs=1e-6)
    assert drift.move("q", before, values(*[1] * 50, *[2] * 30, *[3] * 20)).psi == 0


numbers = st.one_of(st.just(float("nan")), st.sampled_from([0.0, 1.0, 50.0]), st.floats(-1e4, 1e4, width=32))


@settings(max_examples=300, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=60), st.lists(numbers, min_size=1, max_size=60))
def test_bins_and_index_are_those_of_plain_python(before, now):
    found = drift.move("q", Bins.of(values(*before)), values(*now)).psi
    assert found == pytest.approx(twin.psi(before, now), abs=1e-4)


def test_a_lump_has_a_bin_of_its_own_and_the_ends_are_open():
    random = np.random.default_rng(1)
    lengths = np.minimum(50, random.integers(1, 100, 4000)).astype(np.float32)  # half of them at the limit
    bins = Bins.of(lengths)
    assert sum(bins.shares) == pytest.approx(1, abs=1e-5)
    assert bins.shares[bins.edges.index(50.0)] == pytest.approx((lengths == 50).mean(), abs=1e-6)
    beyond = bins.shares_of(values(-1, 51, 1e9, np.nan))
    assert (beyond[0], beyond[-2], beyond[-1]) == (0.25, 0.5, 0.25)


def test_samples_of_one_distribution_stay_below_the_stated_noise():
    """Of 500 users each, the index is below 0.1 in 99 of 100 cases; larger samples come closer to 0."""
    random = np.random.default_rng(7)
    found = [
        drift.move("q", Bins.of(random.normal(size=500).astype("f4")), random.normal(size=500).astype("f4")).psi
        for _ in range(300)
    ]
    assert np.mean(np.array(found) > 0.1) < 0.02
    assert 0.02 < np.mean(found) < 0.06
    large = Bins.of(random.normal(size=20_000).astype("f4"))
    assert drift.move("q", large, random.normal(size=20_000).astype("f4")).psi < 0.005


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ([1, 2, 3, 4], [5, 6, 7, 8], "q {psi:.2f} (median 2.5 before, 6.5 now)"),
        ([1, 2, 3], [1, 2, 9], "q {psi:.2f} (mean 2 before, 4 now)"),
        ([1, 2, 3], [2, 2, 2], "q {psi:.2f} (share of users at 1 0.3333 before, 0 now)"),
        ([1, 2, 3, 4], [1, 2, math.nan, math.nan], "q {psi:.2f} (share of users without a value 0 before, 0.5 now)"),
    ],
)
def test_a_move_says_which_way(before, now, said):
    move = drift.move("q", Bins.of(values(*before)), values(*now))
    assert str(move) == said.format(psi=move.psi)


def test_a_category_is_told_by_the_value_whose_share_moved_most():
    device = Bins.of(values(1, 1, 1, 2), range(3))
    assert device.shares == (0, 0.75, 0.25, 0, 0)
    move = drift.move("device type", device, values(2, 2, 2, 1), ("unknown", "mobile", "tablet"))
    assert (move.measure, move.before, move.now) == ("share of mobile", 0.75, 0.25)


def test_what_is_stored_is_read_back_and_damage_is_found():
    bins = Bins.of(np.random.default_rng(0).gamma(2, size=999).astype("f4"))
    found = Distribution(users=999, inputs={"a": bins}, scores={"slate": {"s": bins}})
    stored = json.loads(json.dumps(found.stored()))
    assert Distribution.read(stored) == found
    assert np.array_equal(Bins.read(asdict(bins)).shares_of(values(*bins.edges)), bins.shares_of(values(*bins.edges)))
    stored["inputs"]["a"]["shares"].pop()
    with pytest.raises(ValueError, match="do not fit"):
        Distribution.read(stored)


def test_samples_are_joined_only_with_the_same_quantities():
    first = Sample(names=("a", "b"), values_SQ=np.array([[1, np.nan], [np.inf, 4]], np.float32))
    joined = Sample.joined([first.text(), first.take([1]).text()])
    assert np.array_equal(joined.values_SQ, first.values_SQ[[0, 1, 1]], equal_nan=True)
    assert Sample.joined([first.text(), Sample(names=("a",), values_SQ=first.values_SQ[:, :1]).text()]) is None


@pytest.mark.parametrize("limit", [-0.1, float("nan"), float("inf")])
def test_a_limit_that_is_no_index_is_refused(limit):
    with pytest.raises(ConfigError, match=r"--max-drift .*such as 0\.25"):
        ScoreConfig(max_drift=limit)
