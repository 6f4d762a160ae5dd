"""Values that make no sense: each kind is warned about, and the remedy that the warning names mends it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.conftest import small_log

SPREAD = pl.int_range(pl.len())


@pytest.fixture
def score(run, tmp_path, model_dir):
    def call(log, *flags, schema=None):
        log.write_parquet("in.parquet")
        if schema is not None:
            (tmp_path / "s.toml").write_text(schema)
            flags = (*flags, "--schema", "s.toml")
        (tmp_path / "recs.parquet").unlink(missing_ok=True)
        arguments = ["in.parquet", "recs.parquet", "--model", model_dir, "--top-k", "2", "--engine", "torch"]
        return run("score", *arguments, *flags)

    return call


def about(ran, column):
    return [said for said in ran.summary["warnings"] if said.startswith(f"{column}: ")]


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("watch_duration", pl.col("watch_duration") * 1000, "milliseconds perhaps"),
        ("watch_duration", pl.col("watch_duration") - 10, "no seconds from 0"),
        ("skip_duration", SPREAD * 500, "milliseconds perhaps"),
        ("watch_percentage", pl.col("watch_percentage") * 100, "percent perhaps"),
        ("time_of_day", SPREAD % 24 * 100 + SPREAD % 60, "HHMM perhaps"),
        ("time_of_day", SPREAD % 1440, "minutes of the day perhaps"),
        ("time_of_day", SPREAD * 97 % 86_400, "seconds of the day perhaps"),
        ("day_of_week", SPREAD % 7 + 1, "from 1 to 7 perhaps"),
        ("rewatch_count", SPREAD % 2 - 1, "no counts"),
        ("recommendation_position", SPREAD % 9 - 5, "no positions"),
        ("is_liked", SPREAD % 3, "neither 0 nor 1"),
        ("watch_duration", pl.when(SPREAD % 5 == 0).then(np.nan).otherwise("watch_duration"), "are NaN, infinite"),
        ("device_type", pl.col("device_type").str.to_uppercase(), "but for case or spaces"),
        ("network_type", pl.lit("WiFi "), "but for case or spaces, such as 'WiFi '"),
        ("network_type", pl.lit("it's LTE"), "none of its values is in its list, such as"),
    ],
)
def test_the_remedy_of_a_warning_mends_what_it_is_about(score, column, values, said):
    log = small_log(mean=40).with_columns(values.alias(column))
    ran = score(log)
    assert ran.code == 0, ran.err
    (warning,) = about(ran, column)
    assert said in warning
    assert column in ran.summary["odd_values"]
    remedy = re.search(rf'{column} = ".*"$', warning)[0]
    mended = score(log, schema=remedy)
    assert mended.code == 0, mended.err
    assert about(mended, column) == []


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("watch_duration", pl.lit("$1,234.5"), "100% of its values are no numbers (such as '$1,234.5')"),
        ("watch_duration", pl.lit("12 s"), "no numbers"),
        ("watch_duration", pl.lit("n/a"), "no numbers"),
        ("is_liked", pl.lit("it's so"), 'neither 0 nor 1 (such as "it\'s so")'),
        ("is_liked", pl.lit("7"), "neither 0 nor 1"),
    ],
)
def test_the_remedy_for_values_of_a_text_mends_them(run, model_dir, column, values, said):
    small_log(mean=20).with_columns(values.alias(column)).write_csv("in.csv")
    arguments = ["score", "in.csv", "recs.parquet", "--model", model_dir, "--if-exists", "overwrite"]
    ran = run(*arguments)
    assert ran.code == 0, ran.err
    (warning,) = [each for each in about(ran, column) if "remedy" in each]
    assert said in warning
    Path("s.toml").write_text(re.search(rf'{column} = ".*"$', warning)[0])
    mended = run(*arguments, "--schema", "s.toml")
    assert mended.code == 0, mended.err
    assert [each for each in about(mended, column) if "remedy" in each] == []


@pytest.mark.parametrize(("yes", "no"), [("t", "f"), ("Y", "N"), ("TRUE", "false"), ("1", "0")])
def test_flags_as_data_bases_write_them_in_texts(run, model_dir, yes, no):
    log = small_log()
    liked = pl.when(pl.col("is_liked")).then(pl.lit(yes)).otherwise(pl.lit(no))
    log.write_parquet("in.parquet")
    log.with_columns(is_liked=liked).write_csv("in.csv")
    for name in ("in.parquet", "in.csv"):
        done = run("features", name, f"{name}.out.parquet", "--model", model_dir)
        assert done.code == 0, done.err
    flags = [pl.read_parquet(f"{name}.out.parquet")["features"].list.slice(40, 4) for name in ("in.parquet", "in.csv")]
    assert flags[0].equals(flags[1])


def test_a_few_values_beyond_the_range_are_no_other_unit(score):
    none = pl.when(SPREAD % 30 == 0).then(999_999.0).otherwise("watch_duration")
    (warning,) = about(score(small_log(mean=40).with_columns(watch_duration=none)), "watch_duration")
    assert warning.endswith('"CASE WHEN watch_duration BETWEEN 0 AND 10000 THEN watch_duration END"')


def test_a_remedy_is_about_the_entry_that_is_there(score):
    log = small_log().rename({"watch_duration": "played"}).with_columns(pl.col("played") * 1e6)
    ran = score(log, schema='watch_duration = "played / 10.0"')
    (warning,) = about(ran, "watch_duration")
    assert warning.endswith('watch_duration = "(played / 10.0) / 1000.0"')


@pytest.mark.parametrize("fault", [0, 1, 30])
def test_up_to_one_percent_is_counted_and_not_warned_about(score, fault):
    log = small_log(mean=60).with_columns(time_of_day=pl.when(fault > SPREAD).then(99).otherwise(7))
    ran = score(log)
    assert ran.summary.get("odd_values", {}).get("time_of_day", {}).get("implausible", 0) == fault
    assert bool(about(ran, "time_of_day")) == (fault > 0.01 * len(log))


def test_values_of_which_some_are_in_no_list_are_what_the_layout_expects(score):
    ran = score(small_log())  # a third of its devices are fridges
    assert about(ran, "device_type") == []


def test_strict_makes_a_warning_exit_6_and_publishes_nothing(score, tmp_path):
    log = small_log().with_columns(time_of_day=pl.lit(1430))
    ran = score(log, "--strict")
    assert ran.code == 6
    assert "time_of_day: 100% of its values" in ran.err
    assert not (tmp_path / "recs.parquet").exists()
    fine = score(small_log(), "--strict")
    assert fine.code == 0, fine.err


def test_a_log_that_is_read_while_it_is_scored_is_judged_before_it_is_published(score, tmp_path):
    log = small_log(users=400).sort("user_id").with_columns(time_of_day=pl.lit(1430))
    ran = score(log, "--strict", "--shard-users", "20", "--memory-limit", "1MiB")
    assert ran.code == 6
    assert not (tmp_path / "recs.parquet").exists()


@pytest.mark.parametrize("kind", [pl.Date, pl.Datetime("us", "Asia/Shanghai"), pl.Int64])
def test_dates_in_the_place_of_times_are_told_and_the_remedy_mends_it(score, log, kind):
    start = pl.lit(1_776_000_000 // 86_400 * 86_400)
    if kind == pl.Int64:  # all the same
        days = log.with_columns(at="timestamp", timestamp=start)
    else:
        day = pl.from_epoch(start + SPREAD % 9 * 86_400, "s")
        moved = day.dt.replace_time_zone("Asia/Shanghai") if kind != pl.Date else day.cast(pl.Date)
        days = log.with_columns(at="timestamp", timestamp=moved)
    ran = score(days)
    assert ran.code == 0, ran.err
    (said,) = about(ran, "timestamp")
    assert f"have the same time of day ({'16:00:00' if 'Shanghai' in str(kind) else '00:00:00'} UTC)" in said
    assert not about(score(days, "--if-exists", "overwrite", schema='timestamp = "at"\n'), "timestamp")
    assert score(days, "--strict", "--if-exists", "overwrite").code == 6


def test_times_of_one_event_each_may_be_dates(score, log):
    one = log.unique("user_id").with_columns(timestamp=pl.lit(1_776_038_400))
    assert not about(score(one), "timestamp")


def test_one_user_with_a_large_part_of_the_events_is_named_and_the_remedy_leaves_them_out(score):
    log = small_log(users=120)
    shared = log.with_columns(user_id=pl.when(SPREAD % 3 == 0).then(0).otherwise("user_id"))
    ran = score(shared)
    (said,) = about(ran, "user_id")
    assert "user_id: 0 has 33% of the events of 121 users" in said
    remedy = re.search(r"where = \".*\"", said)[0]
    after = score(shared, schema=remedy)
    assert after.code == 0, after.err
    assert not about(after, "user_id")
    assert 0 not in pl.read_parquet("recs.parquet")["user_id"].to_list()
    assert not about(score(log), "user_id")


def test_texts_for_no_id_are_told_and_the_remedy_leaves_them_out(score, log):
    column = "user_id"
    texts = log.with_columns(pl.col(column).cast(pl.String))
    odd = pl.when(SPREAD % 7 == 0).then(pl.lit("None")).when(SPREAD % 7 == 1).then(pl.lit("NaN")).otherwise(column)
    mixed = texts.with_columns(odd.alias(column))
    ran = score(mixed, "--min-match", "0")
    (said,) = about(ran, column)
    assert "have an id that says that there is none ('NaN', 'None')" in said
    after = score(mixed, "--min-match", "0", schema=re.search(r"where = \".*\"", said)[0])
    assert after.code == 0, after.err
    assert not about(after, column)
    assert after.summary["events"] < ran.summary["events"]
    assert not about(score(texts, "--min-match", "0"), column)


def test_ids_that_excel_has_cut_are_told_and_its_numbers_are_read(run, model_dir, tmp_path):
    rows = [f"1.2345{n}E+11,{1000 + n},{1_775_000_000 + n},1.5E+0{n % 2}" for n in range(10)]
    (tmp_path / "a.csv").write_text("\n".join(["user_id,video_id,timestamp,watch_duration", *rows]))
    ran = run("score", "a.csv", "recs.parquet", "--model", model_dir, "--min-match", "0")
    assert ran.code == 0, ran.err
    assert "10 events have an id such as '1.23450E+11', which Excel has cut" in about(ran, "user_id")[0]
    assert not about(ran, "watch_duration")
    assert ran.summary.get("odd_values", {}) == {}
