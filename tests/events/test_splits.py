"""Splits: a history at a cut is what `score` builds of the events before it."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from genrec_batch import features
from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.events import splits
from genrec_batch.events.splits import ALL_EVENTS
from tests.histories import build, normalize
from tests.logs import catalog_of


def built(events, catalog, *, as_of_us, max_events=ALL_EVENTS, seen_limit=ALL_EVENTS):
    return build(events, catalog=catalog, as_of_us=as_of_us, max_events=max_events, seen_limit=seen_limit)


@pytest.fixture(scope="module")
def events(log):
    return normalize(log)


@pytest.fixture(scope="module")
def catalog(events):
    return catalog_of(events, vocabulary=60)  # some videos are beyond it


@pytest.fixture(scope="module")
def whole(events, catalog):
    return built(events, catalog, as_of_us=2**52)[1]


def assert_alike(ours, theirs):
    """Compare all but video codes and sessions, which each run numbers anew, and the order of seen items."""
    for field in dataclasses.fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        elif isinstance(a, np.ndarray) and field.name not in ("video_code_E", "session_E"):
            np.testing.assert_array_equal(a, b, err_msg=field.name)
    for row in range(len(ours)):
        seen = [set(each.seen.slice(row, row + 1).values.tolist()) for each in (ours, theirs)]
        assert seen[0] == seen[1]


@pytest.mark.parametrize("seen_limit", [3, 1000])
def test_a_history_at_a_moment_is_what_score_builds_as_of_it(events, catalog, whole, seen_limit):
    moment_us = int(np.quantile(whole.time_us_E, 0.7))
    cuts = splits.from_moment(whole, moment_us, "--valid-from")
    ours = splits.histories_at(whole, cuts, max_events=5, seen_limit=seen_limit)
    everybody, scored = built(events, catalog, as_of_us=moment_us - 1, max_events=5, seen_limit=seen_limit)
    ids = sorted(events["user_id"].unique())
    has_past = np.isin(np.array(ids)[cuts.user_N], everybody.to_numpy())
    theirs = scored.take(np.searchsorted(everybody.to_numpy(), np.array(ids)[cuts.user_N[has_past]]))
    assert_alike(ours.take(np.flatnonzero(has_past)), theirs)
    assert (ours.lengths_N[~has_past] == 0).all()
    ours_dense, theirs_dense = (
        features.compute(each, None, None, max_events=5) for each in (ours.take(np.flatnonzero(has_past)), theirs)
    )
    np.testing.assert_array_equal(ours_dense, theirs_dense)


def test_events_after_a_cut_change_nothing_of_the_history(events, catalog, whole):
    cuts = splits.leave_out(whole)
    ours = splits.histories_at(whole, cuts, max_events=6, seen_limit=1000)
    newest = pl.len().over("user_id") - 1 == pl.int_range(pl.len()).over("user_id")
    shorter = events.sort("timestamp", maintain_order=True).filter(~newest)
    _, without = built(shorter, catalog, as_of_us=2**52, max_events=6)
    theirs = dataclasses.replace(without, as_of_us_N=ours.as_of_us_N)
    assert_alike(ours, theirs)
    np.testing.assert_array_equal(
        features.compute(ours, None, None, max_events=6), features.compute(theirs, None, None, max_events=6)
    )


def test_leave_out_cuts_before_the_newest_events(whole):
    cuts = splits.leave_out(whole, 3)
    assert (cuts.stop_N - cuts.place_N == 3).all()
    assert (cuts.stop_N == whole.offsets_N1[cuts.user_N + 1]).all()
    assert set(cuts.user_N.tolist()) == set(np.flatnonzero(whole.lengths_N > 3).tolist())
    left = splits.before(whole, cuts)
    assert len(left) == len(whole)
    assert left.lengths_N.sum() == whole.lengths_N.sum() - 3 * len(cuts)


def test_a_share_of_the_newest_events(whole):
    moment_us = splits.moment_of_share(whole, 0.1, "--valid-fraction")
    assert 0.05 < (whole.time_us_E >= moment_us).mean() < 0.15


def test_a_moment_outside_the_log_names_the_flag_and_the_log_s_span(whole):
    for moment_us in (1, 2**52):
        with pytest.raises(ConfigError, match=r"--valid-from 2030-01-01: the log has no event .* it runs from 2026-"):
            splits.from_moment(whole, moment_us, "--valid-from 2030-01-01")


def test_a_log_whose_users_have_one_event_cannot_leave_it_out(whole):
    with pytest.raises(InputError, match="at least 1001 events"):
        splits.leave_out(whole, 1000)


def test_a_log_without_a_clock_is_told_from_one_with_one(whole):
    assert splits.has_real_times(whole)
    assert not splits.has_real_times(dataclasses.replace(whole, time_us_E=np.arange(len(whole.time_us_E))))
