"""`assign`: buckets as Statsig's and GrowthBook's SDKs compute them, as the slow twin does, and what moves whom."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_batch.core.arm_options import ASSIGNS, arms_of
from genrec_batch.rules.assign import Assignment, buckets
from tests.twins import assign as twin

GOLDEN = json.loads(Path(__file__).with_name("assign_golden.json").read_text())


def texts(ids):
    return [str(user).encode() for user in ids]


def assignment(*arms, salt="exp42", assign="xxh64"):
    return Assignment.of(arms_of(arms), salt=salt, assign=assign)


def weighted(weights):
    return [f"arm{place}=model:{weight}" for place, weight in enumerate(weights)]


@pytest.mark.parametrize(("salt", "user", "expected"), GOLDEN["statsig"])
def test_a_bucket_is_that_of_statsigs_sdk(salt, user, expected):
    assert buckets(texts([user]), salt=salt, assign="statsig").tolist() == [expected]


def test_a_gate_of_statsigs_sdk_lets_the_same_users_pass():
    gate = GOLDEN["statsig_gate"]
    found = buckets(texts(gate["ids"]), salt=gate["salt"], assign="statsig")
    assert (found < 100 * gate["percent"]).tolist() == gate["passed"]


@pytest.mark.parametrize(("salt", "user", "expected"), GOLDEN["growthbook"])
def test_a_bucket_is_ten_thousand_times_what_growthbooks_sdk_returns(salt, user, expected):
    assert (buckets(texts([user]), salt=salt, assign="growthbook") / 10_000).tolist() == [expected]


@pytest.mark.parametrize("case", GOLDEN["growthbook_arms"], ids=lambda case: str(case["weights"]))
def test_an_arm_is_the_variation_of_growthbooks_sdk(case):
    of = assignment(*weighted(case["weights"]), salt=case["salt"], assign="growthbook")
    assert of.arms(of.buckets(texts(case["ids"]))).tolist() == case["arms"]


@pytest.mark.parametrize("case", GOLDEN["growthbook_ranges"], ids=lambda case: str(case["weights"]))
def test_ranges_begin_at_the_buckets_where_those_of_growthbooks_sdk_begin(case):
    assert assignment(*weighted(case["weights"]), assign="growthbook").firsts_A.tolist() == case["firsts"]


def test_xxh64_is_of_salt_colon_id():
    assert buckets([b"7", "ü".encode()], salt="exp42", assign="xxh64").tolist() == [6758, 9914]


@pytest.mark.parametrize("assign", ASSIGNS)
@settings(deadline=None)
@given(ids=st.lists(st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(max_size=40))), salt=st.text(max_size=40))
def test_ids_of_any_kind_are_assigned_as_the_twin_does(assign, ids, salt):
    found = buckets(texts(ids), salt=salt, assign=assign)
    assert found.dtype == np.int32
    assert found.tolist() == [twin.bucket(user, salt, assign) for user in ids]


@pytest.mark.slow
@pytest.mark.parametrize("assign", ASSIGNS)
def test_a_million_ids_are_assigned_as_the_twin_does(assign):
    weights = [10, 20, 69.5, 0.5]
    of = assignment(*weighted(weights), assign=assign)
    ids = np.random.default_rng(1).integers(0, 10**9, 1_000_000).tolist()
    arms = of.arms(of.buckets(texts(ids)))
    assert arms.tolist() == [twin.arm(user, "exp42", assign, weights) for user in ids]
    for place, weight in enumerate(weights):  # within five standard deviations
        share = float((arms == place).mean())
        assert abs(share - weight / 100) < 5 * (weight / 100 * (1 - weight / 100) / 1e6) ** 0.5


def test_neither_a_shadow_nor_another_name_moves_anybody():
    ids = texts(range(2000))
    before = assignment("control=a:90", "test=b:10")
    after = assignment("new=c:30:shadow", "old=a:90", "test=b:10")
    numbers = before.buckets(ids)
    assert (after.buckets(ids) == numbers).all()
    assert (before.arms(numbers) == after.arms(numbers)).all()


def test_a_last_arm_that_grows_takes_users_from_its_neighbour_and_loses_none():
    ids = texts(range(5000))
    small, large = assignment("control=a:90", "test=b:10"), assignment("control=a:80", "test=b:20")
    numbers = small.buckets(ids)
    moved = small.arms(numbers) != large.arms(numbers)
    assert 400 < moved.sum() < 600
    assert (large.arms(numbers)[moved] == 1).all()


def test_another_salt_assigns_users_anew():
    ids = texts(range(5000))
    arms = assignment("control=a:50", "test=b:50")
    one, other = (arms.arms(buckets(ids, salt=salt, assign="xxh64")) for salt in ("exp42", "exp43"))
    assert 2200 < (one == other).sum() < 2800


def test_a_shadow_takes_its_range_from_the_top():
    of = assignment("control=a:100", "new=b:12.34:shadow", "other=b:100:shadow")
    numbers = np.array([0, 8765, 8766, 9999], np.int32)
    assert of.shadowed(0, numbers).tolist() == [False, False, True, True]
    assert of.shadowed(1, numbers).all()


def test_nobody_is_assigned_where_there_is_nobody():
    for assign in ASSIGNS:
        of = assignment("control=a:100", assign=assign)
        assert not len(of.arms(of.buckets([])))
