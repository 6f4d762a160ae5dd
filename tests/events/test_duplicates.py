"""`duplicates`: what is dropped, over row groups and files, and that nothing is by default. Also `--timezone`."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest

from genrec_batch.core import layout
from tests.conftest import small_log


@pytest.fixture
def features(run, model_dir):
    def call(log, *flags):
        if log is not None:
            log.write_parquet("in.parquet")
        ran = run("features", "in.parquet", "f.parquet", "--model", model_dir, "--if-exists", "overwrite", *flags)
        rows = None if ran.code else np.stack(pl.read_parquet("f.parquet").sort("user_id")["features"].to_numpy())
        return ran, rows

    return call


def test_equal_events_are_views_of_their_own_unless_they_are_dropped(features):
    log = small_log()
    _, once = features(log)
    twice = pl.concat([log, log[::3]]).sample(fraction=1.0, shuffle=True, seed=2)
    ran, kept = features(twice)
    assert "duplicates_dropped" not in ran.summary
    assert not np.array_equal(kept, once)
    ran, dropped = features(twice, "--dedupe")
    assert ran.summary["duplicates_dropped"] == len(log[::3])
    same_moment = log.group_by("user_id", "timestamp").len().filter(pl.col("len") > 1)["user_id"]
    rows = ~log["user_id"].unique().sort().is_in(same_moment.implode()).to_numpy()
    np.testing.assert_array_equal(dropped[rows], once[rows])  # ties of one moment follow the shuffled order


def test_duplicates_in_other_files_and_buckets(features, tmp_path):
    folder = tmp_path / "in.parquet"
    folder.mkdir()
    log = small_log(users=300, mean=20)
    for number in range(3):
        log.write_parquet(folder / f"{number}.parquet")
    results = [features(None, "--dedupe", *flags) for flags in ((), ("--memory-limit", "1MiB", "--shard-users", "50"))]
    assert [ran.summary["duplicates_dropped"] for ran, _ in results] == [2 * len(log)] * 2
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_key_columns_can_be_named(features):
    log = small_log()
    again = log.with_columns(watch_duration=pl.lit(1.0))
    ran, _ = features(pl.concat([log, again]), "--dedupe")
    assert ran.summary["duplicates_dropped"] < len(log)
    ran, keyed = features(pl.concat([log, again]), "--dedupe-by", "video_id, timestamp")
    unique = log.unique(["user_id", "video_id", "timestamp"], keep="first", maintain_order=True)
    assert ran.summary["duplicates_dropped"] == 2 * len(log) - len(unique)
    np.testing.assert_array_equal(keyed, features(unique)[1])
    ran, _ = features(log, "--dedupe-by", "video")
    assert ran.code == 2
    assert "Did you mean 'video_id'" in ran.err


def test_utc_is_the_default_zone(features):
    log = small_log()
    np.testing.assert_array_equal(features(log, "--timezone", "UTC")[1], features(log)[1])


@pytest.mark.parametrize(
    ("zone", "moment", "hour", "weekday"),
    [
        ("Europe/Berlin", "2026-01-04T23:30:00", 0.5, 0),  # winter: an hour later, and a Monday
        ("Europe/Berlin", "2026-07-05T21:30:00", 23.5, 6),  # summer: two hours later, still Sunday
        ("Asia/Kolkata", "2026-03-04T20:00:00", 1.5, 3),
        ("America/Los_Angeles", "2026-03-02T02:00:00", 18.0, 6),
    ],
)
def test_hours_and_weekdays_are_those_of_the_zone(features, zone, moment, hour, weekday):
    log = small_log().with_columns(timestamp=pl.lit(dt.datetime.fromisoformat(moment)))
    ran, rows = features(log, "--timezone", zone)
    assert ran.code == 0, ran.err
    assert rows[:, layout.HOUR.start] == pytest.approx(hour / 24)
    assert rows[:, layout.WEEKDAY.start] == pytest.approx(weekday / 7)
    assert (rows[:, layout.HOURS.start + int(hour)] == 1).all()
    assert (rows[:, layout.WEEKDAYS.start + weekday] == 1).all()
    _, given = features(log.with_columns(time_of_day=pl.lit(7)), "--timezone", zone)
    assert given[:, layout.HOUR.start] == pytest.approx(7 / 24)


def test_a_zone_that_there_is_not(features):
    ran, _ = features(small_log(), "--timezone", "Europe/Berln")
    assert ran.code == 2
    assert "no such time zone" in ran.err
