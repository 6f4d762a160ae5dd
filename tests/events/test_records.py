"""Columns into `records`: both sorters return the same bytes, whatever the columns hold; `records_numba`."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_batch.events.records import RecordType
from genrec_batch.events.sorter import NUMPY
from genrec_batch.events.sorter_numba import NumbaSorter

EXAMPLES = settings(max_examples=100, deadline=None, derandomize=True)
DEVICES = st.sampled_from([None, "", "mobile", "tablet", "tv", "tv ", "unknown", "mobile phones in landscape", "é"])
ROW = st.tuples(
    st.integers(0, 5), st.integers(0, 9), st.integers(-(2**60), 2**60), DEVICES, st.none() | st.booleans(),
    st.none() | st.floats(width=32), st.none() | st.integers(-9, 9), st.none() | st.sampled_from(["a", "b"]),
)  # fmt: skip
SCHEMA = {
    "user": pl.Int32,
    "video": pl.Int32,
    "timestamp": pl.Datetime("us", "UTC"),
    "device_type": pl.String,
    "is_liked": pl.Boolean,
    "watch_duration": pl.Float32,
    "rewatch_count": pl.Int64,
    "session_id": pl.String,
}


@EXAMPLES
@given(rows=st.lists(ROW), cut=st.integers(0, 3), seed=st.integers(0, 9))
def test_both_twins_pack_the_same_records(rows, cut, seed):
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row").slice(cut)
    record = RecordType.of(tuple(frame.columns[2:]), frame.schema)
    ids = [frame[name].to_numpy() for name in ("user", "video")]
    for place_R in (None, np.random.default_rng(seed).permutation(len(frame)).astype(np.int32)):
        plain = NUMPY.pack(record, frame, *ids, place_R)
        compiled = NumbaSorter().pack(record, frame, *ids, place_R)
        for name in ("user", "video", "time_us", *record.columns):
            np.testing.assert_array_equal(compiled[name], plain[name], name)


@EXAMPLES
@given(rows=st.lists(ROW, min_size=3), cuts=st.data())
def test_columns_in_several_arrays_are_packed_like_those_in_one(rows, cuts):
    """As a log of many row groups is read; its columns need not be cut alike."""
    whole = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    alike = cuts.draw(st.booleans())
    places = st.integers(0, len(whole))
    common = cuts.draw(places)
    frame = pl.DataFrame([in_two(column, common if alike else cuts.draw(places)) for column in whole])
    record = RecordType.of(tuple(whole.columns[2:]), whole.schema)
    ids = [whole[name].to_numpy() for name in ("user", "video")]
    place_R = np.random.default_rng(1).permutation(len(whole)).astype(np.int32)
    expected = NUMPY.pack(record, whole, *ids, place_R)
    got = NumbaSorter().pack(record, frame, *ids, place_R)
    for name in ("user", "video", "time_us", *record.columns):
        np.testing.assert_array_equal(got[name], expected[name], name)


def in_two(column, cut):
    """Return a column that lies in two arrays."""
    return pl.concat([column[:cut].rechunk(), column[cut:].rechunk()], rechunk=False)


@pytest.mark.parametrize("sorter", [NUMPY, NumbaSorter()])
def test_a_text_that_is_not_in_the_list_is_coded_0(sorter):
    devices = pl.Series("device_type", ["tv", None, "phone", "a television set", "unknown", "mobile"])
    frame = pl.DataFrame([devices, pl.Series("timestamp", [0] * 6).cast(pl.Datetime("us"))])
    rows_R = np.zeros(6, np.int32)
    record = RecordType.of(("device_type",), frame.schema)
    assert sorter.pack(record, frame, rows_R, rows_R)["device_type"].tolist() == [4, -1, 0, 0, 0, 1]
