"""`against`: gates against another model on the same rows, and what a difference within the noise means."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.evaluation import against, gates
from genrec_batch.evaluation.run import Measured

KNOWN = ["ndcg@10", "coverage@10", "engagement.auc"]


def measured(value_M, **others):
    value_M = np.asarray(value_M, np.float64)
    return Measured(
        report={},
        figures={"ndcg@10": float(np.nanmean(value_M)), **others},
        value_M={"ndcg@10": value_M},
        row_ids=pl.Series(range(len(value_M))),
        moment_us_M=np.zeros(len(value_M), np.int64),
    )


def judged(text, ours, theirs, max_noise=0.1):
    (found,) = against.judged(gates.parse([text], KNOWN, ("champion",)), ours, theirs, seed=1, max_noise=max_noise)
    return found


def pair(rows, shift, seed=1):
    """Two models whose values differ by about `shift` of a mean of 0.5, much less than users differ."""
    random = np.random.default_rng(seed)
    theirs_M = random.random(rows)
    return measured(theirs_M + 0.5 * shift + random.normal(0, 0.05, rows)), measured(theirs_M)


def test_a_version_that_is_better_holds_and_one_that_is_worse_beyond_the_noise_fails_by_how_much():
    better, champion = pair(2000, 0.1)
    found = judged("ndcg@10>=champion", better, champion)
    assert found["passed"]
    assert "better than the limit" in found["why"]
    worse, champion = pair(2000, -0.1)
    found = judged("ndcg@10>=0.98*champion", worse, champion)
    assert not found["passed"]
    assert found["limit"] == pytest.approx(0.98 * champion.figures["ndcg@10"], rel=1e-4)
    short = 0.98 * champion.figures["ndcg@10"] - worse.figures["ndcg@10"]
    assert f"{short:.3g} short of the limit, beyond the noise" in found["why"]
    assert found["difference"]["high"] < 0


def test_a_difference_within_the_noise_passes_where_the_noise_is_small_enough():
    ours, champion = pair(2000, -0.002)
    found = judged("ndcg@10>=champion", ours, champion)
    assert ours.figures["ndcg@10"] < champion.figures["ndcg@10"]
    assert found["passed"]
    assert "short of the limit, within the noise" in found["why"]
    strict = judged("ndcg@10>=champion", ours, champion, max_noise=0.0)
    assert not strict["passed"]
    assert "too large for --max-noise" in strict["why"]


def test_a_few_rows_excuse_nothing():
    random = np.random.default_rng(3)
    ours, champion = measured(random.random(12) * 0.9), measured(random.random(12))
    found = judged("ndcg@10>=champion", ours, champion)
    assert (found["passed"], "test on more rows" in found["why"]) == (False, True), found


def test_rows_are_paired_so_what_users_have_in_common_is_no_noise():
    ours, champion = pair(500, -0.03)
    alone = np.quantile(np.random.default_rng(1).choice(champion.value_M["ndcg@10"], (500, 500)).mean(axis=1), 0.975)
    assert alone - champion.figures["ndcg@10"] > 0.015, "a model alone is known to 3 % of its figure only"
    assert not judged("ndcg@10>=champion", ours, champion)["passed"]


@pytest.mark.parametrize(("text", "passed"), [("ndcg@10<=1.2*champion", True), ("ndcg@10<0.8*champion", False)])
def test_an_upper_limit_is_judged_the_other_way_round(text, passed):
    ours, champion = pair(2000, 0.0)
    assert judged(text, ours, champion)["passed"] is passed


def test_a_figure_that_is_no_mean_over_rows_is_compared_as_it_is():
    ours, champion = measured([0.5], **{"engagement.auc": 0.699}), measured([0.5], **{"engagement.auc": 0.7})
    found = judged("engagement.auc>=champion", ours, champion)
    assert (found["passed"], found["difference"]["low"]) == (False, None)
    assert judged("engagement.auc>=0.99*champion", ours, champion)["passed"]


def test_a_figure_that_was_not_measured_fails_and_the_first_version_has_nothing_to_hold_against():
    ours, champion = measured([0.5], **{"engagement.auc": None}), measured([0.5], **{"engagement.auc": 0.7})
    assert not judged("engagement.auc>=champion", ours, champion)["passed"]
    first = judged("ndcg@10>=champion", ours, None)
    assert (first["passed"], first["why"]) == (True, "there is no champion yet")
    assert not judged("ndcg@10>=0.6", ours, None)["passed"], "a gate on the figure itself holds for the first, too"


def test_other_rows_are_never_compared():
    ours, champion = pair(10, 0.0)
    with pytest.raises(AssertionError):
        judged("ndcg@10>=champion", ours, measured(champion.value_M["ndcg@10"][:9]))


@pytest.mark.parametrize(
    ("text", "limit", "of"),
    [
        ("ndcg@10>=champion", 1.0, "champion"),
        ("ndcg@10 >= 0.98*champion", 0.98, "champion"),
        ("ndcg@10>0.02", 0.02, ""),
    ],
)
def test_a_gate_is_a_number_or_a_share_of_the_champion(text, limit, of):
    (gate,) = gates.parse([text], KNOWN, ("champion",))
    assert (gate.limit, gate.of) == (limit, of)


@pytest.mark.parametrize(
    ("text", "others", "said"),
    [
        ("ndcg@10>=0.98*champion", (), "goes with `model promote`"),
        ("ndcg@10>=champion", (), "is not a number"),
        ("ndcg@10>=0.98*chammpion", ("champion",), "nor a number times champion"),
        ("ndcg@10>=x*champion", ("champion",), "is not a number"),
        ("ndcg@10>=*champion", ("champion",), "is not a number"),
        ("ndcg@10>=nan*champion", ("champion",), "NaN"),
    ],
)
def test_a_gate_that_cannot_be_read_is_told(text, others, said):
    with pytest.raises(ConfigError, match=said):
        gates.parse([text], KNOWN, others)
