"""A log of several files whose columns have other types: read as one, or an error that names the files.

It tests `log`, `convert`, `io.forms`, `io.by_arrow`, `io.common_types`, `io.row_groups` and `core.snapshot`.
"""

from __future__ import annotations

import datetime as dt
import os
import uuid

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec_batch.core.errors import InputError, RetryError
from genrec_batch.events.log import EventLog
from genrec_batch.io import read, row_groups

MOMENT = dt.datetime(2026, 4, 30, 12, 34, 56, tzinfo=dt.timezone.utc)
USER, TIME = pl.col("user_id"), pl.col("timestamp")
EVENTS = pl.DataFrame(
    {
        "user_id": [1, 2, None, 3],
        "video_id": [10, 11, 12, 13],
        "timestamp": [MOMENT + dt.timedelta(seconds=n) for n in range(4)],
        "watch_duration": [1.0, 2.0, None, 4.0],
        "is_liked": [True, None, False, False],
        "device_type": ["mobile", "tablet", None, "tv"],
    }
)
IDS = {1: uuid.UUID(int=1), 2: uuid.UUID(int=2), 3: uuid.UUID(int=3)}


def opened(folder, *tables, schema_name=None):
    folder.mkdir()
    for number, table in enumerate(tables):
        arrow = table if isinstance(table, pa.Table) else table.to_arrow()
        pq.write_table(arrow, folder / f"{number}.parquet")
    return EventLog.of(read.scan(str(folder), "INPUT"), schema_name, f"INPUT {folder}")


def events(*opening, **options):
    log = opened(*opening, **options)
    return pl.concat([log.usable(number) for number in range(len(log.row_groups))])


@pytest.mark.parametrize(
    "other",
    [
        USER.cast(pl.Float64),
        USER.cast(pl.UInt64),
        USER.cast(pl.Int32),
        USER.cast(pl.Decimal(20, 0)),
        pl.col("watch_duration").cast(pl.Int64),
        pl.col("watch_duration").cast(pl.Decimal(10, 2)),
        pl.col("is_liked").cast(pl.Int8),
        pl.col("is_liked").cast(pl.Float64),
        pl.col("device_type").cast(pl.Categorical),
        pl.col("device_type").cast(pl.Enum(["mobile", "tablet", "tv"])),
        pl.col("device_type").cast(pl.Binary),
        TIME.dt.cast_time_unit("ms"),
        TIME.dt.cast_time_unit("ns"),
        TIME.dt.replace_time_zone(None),
        TIME.dt.convert_time_zone("Asia/Shanghai"),
        TIME.dt.epoch("s"),
        TIME.dt.epoch("ms"),
        TIME.dt.epoch("s").cast(pl.Float64),
        TIME.dt.epoch("ns"),
    ],
    ids=str,
)
def test_types_of_files_meet_in_that_of_the_contract(tmp_path, other):
    alike = events(tmp_path / "alike", EVENTS, EVENTS)
    for name, tables in (
        ("first", (EVENTS.with_columns(other), EVENTS)),
        ("last", (EVENTS, EVENTS.with_columns(other))),
    ):
        assert events(tmp_path / name, *tables).equals(alike)


def test_ids_are_as_wide_as_they_must_be(tmp_path):
    large = EVENTS.with_columns(user_id=USER.cast(pl.UInt64) + 2**63)
    assert events(tmp_path / "large", large)["user_id"].max() == 2**63 + 3
    both = events(tmp_path / "both", large, EVENTS)["user_id"]
    assert both.to_list() == [1, 2, 3], "an id beyond Int64 is a reject, and no other id"


def test_a_fraction_is_no_id(tmp_path):
    found = events(tmp_path / "log", EVENTS.with_columns(user_id=pl.Series([1.0, 1.5, 2.0**53, float("nan")])))
    assert found["user_id"].to_list() == [1]


def test_numbers_and_texts_as_ids_of_one_log_name_both_files(tmp_path):
    text = EVENTS.with_columns(USER.cast(pl.String))
    said = r"'user_id' is Int64 in .*0\.parquet and String in .*1\.parquet.*user_id = 'CAST\(user_id AS VARCHAR\)'"
    with pytest.raises(InputError, match=said):
        events(tmp_path / "log", EVENTS, text)
    (tmp_path / "s.toml").write_text("user_id = 'CAST(user_id AS VARCHAR)'")
    found = events(tmp_path / "again", EVENTS, text, schema_name=str(tmp_path / "s.toml"))
    assert found["user_id"].to_list() == ["1", "2", "3"] * 2


def test_uuids_and_binary_ids_are_text(tmp_path):
    texts = [None if user is None else str(IDS[user]) for user in EVENTS["user_id"]]
    whole = EVENTS.to_arrow()
    raw = pa.array([None if user is None else IDS[user].bytes for user in EVENTS["user_id"]], pa.uuid())
    uuids, text = whole.set_column(0, "user_id", raw), EVENTS.with_columns(user_id=pl.Series(texts))
    binary = text.with_columns(USER.cast(pl.Binary))
    assert events(tmp_path / "log", uuids, text, binary)["user_id"].to_list() == [t for t in texts if t] * 3
    bad = text.with_columns(user_id=pl.Series([b"\xff", *binary["user_id"].to_list()[1:]]))
    assert events(tmp_path / "bad", bad)["user_id"].to_list() == [t for t in texts[1:] if t]


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array([[1]] * 4, pa.list_view(pa.int64())), "list_view"),
        (pa.array([{"x": [1]}] * 4, pa.struct({"x": pa.list_view(pa.int64())})), "list_view"),
        (pa.array([1] * 4, pa.timestamp("us", tz="Moon/Base")), None),
        (pa.array([1] * 4, pa.decimal256(50, 0)), "50"),
    ],
)
def test_a_column_that_nothing_reads_can_have_any_type(tmp_path, column, named, capfd):
    table = EVENTS.to_arrow().append_column("extra", column)
    log = opened(tmp_path / "log", table, EVENTS)
    assert log.contract.reading.ignored == ("extra",)
    assert log.usable(0).equals(events(tmp_path / "alike", EVENTS, EVENTS))
    assert "panicked" not in capfd.readouterr().err
    if named:
        (tmp_path / "s.toml").write_text("watch_duration = 'extra'")
        with pytest.raises(InputError, match=rf"0\.parquet: column 'extra' has the type .*{named}"):
            opened(tmp_path / "read", table, EVENTS, schema_name=str(tmp_path / "s.toml"))


def test_a_file_that_only_arrow_opens_is_cut_like_others(tmp_path, monkeypatch):
    monkeypatch.setattr(row_groups, "GROUP_ROWS", 3)
    table = pl.concat([EVENTS] * 3).to_arrow().append_column("extra", pa.array([[1]] * 12, pa.list_view(pa.int64())))
    (tmp_path / "day=2").mkdir()
    pq.write_table(table, tmp_path / "day=2" / "a.parquet", row_group_size=5)
    source = read.scan(str(tmp_path), "INPUT")
    log = EventLog.of(source, None, "log")
    assert len(log.row_groups) > 3
    assert sum(len(log.required(number)) for number in range(len(log.row_groups))) == 12
    assert source.frame().select("day").collect()["day"].to_list() == [2] * 12


def test_a_text_that_is_no_utf8_is_null(tmp_path):
    raw = pa.array([b"\xff", b"tablet", None, b"tv"], pa.binary()).view(pa.string())
    found = events(tmp_path / "log", EVENTS.to_arrow().set_column(5, "device_type", raw))
    assert found["device_type"].to_list() == [None, "tablet", "tv"]


def test_each_file_must_have_the_required_columns(tmp_path):
    with pytest.raises(InputError, match=r"1\.parquet: column 'video_id' is missing\. Did you mean 'Video_Id'"):
        opened(tmp_path / "case", EVENTS, EVENTS.rename({"video_id": "Video_Id"}))
    with pytest.raises(InputError, match=r"1\.parquet: column 'video_id' is missing\. Other files do not have 'clip'"):
        opened(tmp_path / "name", EVENTS, EVENTS.rename({"video_id": "clip"}))


@pytest.mark.parametrize("how", ["replaced", "written", "removed"])
def test_a_file_that_changes_between_two_looks_is_named_and_nothing_of_it_is_used(tmp_path, how):
    log = opened(tmp_path / "log", EVENTS, EVENTS)
    log.required(0)
    file = tmp_path / "log" / "1.parquet"
    if how == "replaced":
        EVENTS.reverse().write_parquet(tmp_path / "new")
        (tmp_path / "new").replace(file)
    elif how == "written":
        content = file.read_bytes()
        file.write_bytes(content)
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    else:
        file.unlink()
    with pytest.raises(RetryError, match=r"1\.parquet (changed|was removed)") as raised:
        log.usable(0)
    assert raised.value.exit_code == 75
