"""Which users are sampled, and the quantities that are watched of them."""

from __future__ import annotations

import numpy as np
import pytest

from genrec_batch import features
from genrec_batch.core import layout
from genrec_batch.core.arrays import FIRST_ITEM
from genrec_batch.features import sampled
from genrec_batch.features.batches import ModelInputs
from tests.histories import build, normalize
from tests.logs import busy_log, catalog_of, events_frame


@pytest.fixture(scope="module")
def inputs():
    log = busy_log(seed=3, events_per_user=[1, 3, 30, 80, 2, 0, 12], videos=40)
    events = normalize(events_frame(log.events, log.columns))
    _, built = build(
        events, catalog=catalog_of(events, vocabulary=20), as_of_us=log.as_of_us, max_events=50, seen_limit=9
    )
    dense_NF = features.compute(built, None, None, max_events=50)
    return ModelInputs(
        histories=built, dense_NF=dense_NF, profile=None, video=None, candidates=None, include_seen=False
    )


def test_quantities_are_what_their_names_say(inputs):
    names, histories = sampled.names_of(1024), inputs.histories
    found = sampled.quantities(inputs, np.arange(len(histories)))
    assert found.shape == (len(histories), len(names))
    for user in range(len(histories)):
        row = dict(zip(names, found[user], strict=True))
        slots = inputs.dense_NF[user].astype(float)
        first, stop = histories.offsets_N1[user], histories.offsets_N1[user + 1]
        assert row["history length"] == stop - first
        known = sum(int(token) >= FIRST_ITEM for token in histories.tokens_E[first:stop])
        assert row["share of known videos"] == pytest.approx(known / (stop - first))
        hours = (histories.as_of_us_N[user] - histories.time_us_E[stop - 1]) / 3.6e9
        assert row["hours since newest event"] == pytest.approx(hours, rel=1e-3, abs=1e-3)
        assert row["hour of day"] == pytest.approx(sum(slots[60:70] ** 2) ** 0.5, rel=1e-3)
        assert row["statistics"] == pytest.approx(sum(slots[500:600] ** 2) ** 0.5, rel=1e-3)
        sequence = [slot for slot in range(1000, 1020) if slot != layout.RECENCY]
        assert row["sequence"] == pytest.approx(sum(slots[sequence] ** 2) ** 0.5, rel=1e-3)
        code = histories.categories["device_type"][stop - 1]
        assert np.isnan(row["device type"]) if code < 0 else row["device type"] == code


def test_a_user_without_events_has_no_share_and_no_time(inputs):
    empty = ModelInputs(
        histories=inputs.histories.slice(0, 0), dense_NF=inputs.dense_NF[:0], profile=None, video=None,
        candidates=None, include_seen=False,
    )  # fmt: skip
    assert sampled.quantities(empty, np.arange(0)).shape == (0, len(sampled.names_of(1024)))
    assert sampled.names_of(1030)[len(sampled.NORMS)] == "extra features"


def test_who_is_sampled_depends_on_no_shard_and_meets_every_pattern():
    total = 400_000
    whole = sampled.rows_of(0, total, total)
    assert abs(len(whole) - sampled.MOST_USERS) < 5
    parts = [start + sampled.rows_of(start, 7_001, total) for start in range(0, total, 7_001)]
    parts = np.concatenate(parts)
    assert np.array_equal(parts[parts < total], whole)
    for period in (2, 7, 24, 1000):
        counts = np.bincount(whole % period, minlength=period)
        assert counts.max() / counts.min() < 2.5, period
    assert len(sampled.rows_of(0, 500, 500)) == 500, "a small run is watched whole"


def test_numbers_that_differ_by_rounding_are_one():
    values = np.float32([1.2345678, 1.2345679, 0.0, 7.5e-5, 123456.7])
    assert sampled._four_digits(values)[0] == sampled._four_digits(values)[1]
    assert sampled._four_digits(values) == pytest.approx(values, rel=1e-3)
