"""`columns` and `own_columns`: what NumPy makes of a request's lists, beside what Polars makes of a log's columns."""

from __future__ import annotations

import zoneinfo

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.events import schema
from genrec_batch.events.columns import KINDS
from genrec_batch.events.records import RecordType
from genrec_batch.events.schema_file import ColumnNames, column_names
from genrec_batch.serving import columns
from genrec_batch.serving.own_columns import OwnColumns

BASE = {"video_id": [1, 2, 3], "timestamp": [1_777_000_000, 1_777_000_060, 1_777_000_120]}


def by_polars(events, zone=None):
    """Return the fields of the records that the batch job makes of the same columns."""
    frame = pl.DataFrame({name: pl.Series(name, values, strict=False) for name, values in events.items()})
    frame = frame.with_columns(user_id=pl.lit(1))
    contract = schema.read_contract(frame.lazy(), {}, "the log").in_zone(zone)
    read = contract.events(frame.lazy()).collect()
    record = RecordType.of(tuple(read.columns), read.schema)
    return read.select(record.codes(read.schema))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("watch_duration", [1.5, None, 2]),
        ("watch_percentage", [0, float("nan"), float("inf")]),
        ("rewatch_count", [1, 2**60, 1e31]),
        ("is_liked", [True, False, None]),
        ("is_shared", [1, 0, 2]),
        ("is_holiday", [1.0, 0.5, None]),
        ("is_weekend", [None, None, None]),
        ("device_type", ["mobile", "fridge", None]),
        ("network_type", ["unknown", "5g", ""]),
        ("time_of_day", [23.75, None, 0]),
    ],
)
def test_each_kind_is_converted_as_for_a_log(name, values):
    found, theirs = columns.converted({**BASE, name: values}), by_polars({**BASE, name: values})
    mine = {**found.numbers, **found.flags, **found.categories}[name]
    np.testing.assert_array_equal(mine, theirs[name].to_numpy())
    assert found.time_us_E.tolist() == theirs["time_us"].to_list()
    assert found.names == {name}


def test_sessions_are_equal_where_their_ids_are():
    found = columns.converted({**BASE, "session_id": ["a", None, "a"]})
    assert found.session_E.tolist() == [0, -1, 0]
    assert "session_id" in found.names
    assert KINDS["session_id"] == "id"


@pytest.mark.parametrize(
    ("times", "first_us"),
    [
        ([1_777_000_000, 1_777_000_060, 1_777_000_120], 1_777_000_000_000_000),
        ([1_777_000_000_123, 1_777_000_060_000, 1_777_000_120_000], 1_777_000_000_123_000),
        ([1_777_000_000_123_456, 1_777_000_060_000_000, 1_777_000_120_000_000], 1_777_000_000_123_456),
        ([1_777_000_000_123_456_789, 1_777_000_060_000_000_000, 1_777_000_120_000_000_000], 1_777_000_000_123_456),
        ([1_777_000_000.25, 1_777_000_060, 1_777_000_120.0], 1_777_000_000_250_000),
        (["2026-04-24T03:06:40Z", "2026-04-24 05:06:40+02:00", "2026-04-25"], 1_777_000_000_000_000),
    ],
)
def test_times_of_any_unit_and_form(times, first_us):
    found = columns.times_us(times)
    assert found[0] == first_us
    assert found.tolist() == by_polars({"video_id": [1, 2, 3], "timestamp": times})["time_us"].to_list()
    assert columns.moment(times[0]) == first_us


def test_hours_and_weekdays_of_a_time_zone_are_those_of_a_log():
    events = {
        "video_id": [1, 2, 3],
        "timestamp": ["2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z", "2026-10-25T00:30:00Z"],
    }
    found, theirs = columns.converted(events, zoneinfo.ZoneInfo("Europe/Berlin")), by_polars(events, "Europe/Berlin")
    for name in ("time_of_day", "day_of_week"):
        np.testing.assert_array_equal(found.numbers[name], theirs[name].to_numpy())
    np.testing.assert_array_equal(found.flags["is_weekend"], theirs["is_weekend"].to_numpy())
    own = columns.converted({**events, "time_of_day": [1, 2, 3]}, zoneinfo.ZoneInfo("Europe/Berlin"))
    assert own.numbers["time_of_day"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ({"video_id": [1]}, "column 'timestamp' is missing"),
        ({"timestmp": [1], "video_id": [1]}, "Did you mean 'timestmp'"),
        (
            {**BASE, "watch_percentge": [0.1, 1, 2]},
            "'watch_percentge' is not in the contract. Did you mean",
        ),
        ({**BASE, "is_like": [1, 0, None]}, "'is_like' is not in the contract. Did you mean 'is_liked'?"),
        ({**BASE, "watch_duration": ["1.5", 1, 2]}, "'watch_duration' holds '1.5' in row 0, expected a number"),
        ({**BASE, "is_liked": ["true", True, None]}, "'is_liked' holds 'true' in row 0"),
        ({**BASE, "device_type": ["mobile", 3, None]}, "'device_type' holds 3 in row 1, expected a string"),
        ({**BASE, "video_id": [1, None, 3]}, "'video_id' holds None in row 1, expected an integer or a string, never"),
        ({**BASE, "video_id": [True, 2, 3]}, "holds True in row 0"),
        ({**BASE, "timestamp": [None, 1, 2]}, "'timestamp' holds None in row 0, expected all ISO"),
        ({**BASE, "timestamp": ["2026-04-24", 5, None]}, "'timestamp' holds 5 in row 1, expected all ISO 8601 texts"),
        ({**BASE, "timestamp": [5, 6, 7]}, "from 5 to 7, which is no time"),
        ({**BASE, "timestamp": [2**70, 2**70, 2**70]}, "beyond 64 bits"),
        ({**BASE, "timestamp": ["2026-04-24", "x", "2026-04-24"]}, "'x': not a moment"),
        ({**BASE, "timestamp": ["1989-04-24", "2026-04-24", "2026-04-24"]}, "'1989-04-24' in row 0 is before 1990"),
        ({**BASE, "timestamp": ["2026-04-24", "2199-04-24", "2026-04-24"]}, "a day after the server's clock"),
    ],
)
def test_what_is_no_event_is_refused_with_column_and_row(events, said):
    with pytest.raises(InputError) as refused:
        columns.converted(events)
    assert said in str(refused.value)


def test_columns_of_another_meaning_are_left_out():
    others = {"is_liked": [True, None, False], "is_like": [1, 1, 1], "location": ["x"] * 3, "os_type": ["y"] * 3}
    assert columns.converted({**BASE, **others}).names == {"is_liked"}


def test_a_whole_number_of_hundreds_of_digits_is_no_number():
    assert np.isnan(columns.converted({**BASE, "watch_duration": [10**400, 1, 2]}).numbers["watch_duration"][0])


def test_no_events_are_no_columns():
    assert columns.converted({}) is columns.NONE
    assert len(columns.converted({"video_id": [], "timestamp": [], "is_liked": []})) == 0


KUAIRAND = {
    "video_id": [7, 8, 9],
    "time_ms": [1_650_000_000_000, 1_650_000_001_000, 1_650_000_002_000],
    "play_time_ms": [1500, 0, 3000],
    "duration_ms": [3000, 0, 2000],
    "is_like": [1, 0, 0],
    "is_forward": [0, 0, 1],
    "is_comment": [0, 0, 0],
    "is_follow": [0, 1, 0],
    "tab": [1, 0, 4],
    "is_hate": [0, 0, 1],
}


def test_own_columns_become_the_contract_s():
    found = OwnColumns.of(column_names("kuairand")).contract(KUAIRAND)
    assert found["watch_duration"] == [1.5, 0, 3]
    assert found["watch_percentage"] == [0.5, None, 1.5]
    assert found["watch_complete"] == [False, None, True]
    assert found["is_followed_creator"] == [False, True, False]
    assert found["recommendation_source"] == ["1", "0", "4"]
    assert found["timestamp"] == KUAIRAND["time_ms"]
    assert OwnColumns.of(column_names("kuairand")).contract({}) == {}


def test_rows_that_a_schema_leaves_out_are_no_events():
    own = OwnColumns.of(ColumnNames(events={"timestamp": "at"}, where={"events": "kind = 'view'"}))
    found = own.contract({"video_id": [1, 2], "at": [5, 6], "kind": ["view", "click"]})
    assert found == {"video_id": [1], "timestamp": [5]}


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ({"video_id": [7], "time_ms": [1]}, "reads 'play_time_ms'"),
        ({**KUAIRAND, "tab": [1, "a", None]}, "values of several types"),
    ],
)
def test_own_columns_that_do_not_fit_are_refused(events, said):
    with pytest.raises(InputError) as refused:
        OwnColumns.of(column_names("kuairand")).contract(events)
    assert said in str(refused.value)


def test_an_entry_that_fails_on_a_row_is_told():
    own = OwnColumns.of(ColumnNames(events={"watch_duration": "CAST(seconds AS DOUBLE)", "timestamp": "at"}))
    with pytest.raises(InputError, match="'watch_duration' of the repository's schema fails"):
        own.contract({"video_id": [1], "at": [5], "seconds": ["soon"]})


def test_a_schema_of_lists_cannot_be_served():
    with pytest.raises(ConfigError, match="explode"):
        OwnColumns.of(ColumnNames(name="mine", events={"timestamp": "at"}, explode=("at",)))
    assert OwnColumns.of(column_names(None)) is None
