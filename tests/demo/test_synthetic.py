"""Synthetic logs: the same bytes anywhere, skewed and dirty as configured; the committed sample is reproduced.

Also tests `demo.synthetic`, `synthetic.log`, `synthetic.views`, `synthetic.world` and `synthetic.write`.
"""

from __future__ import annotations

import errno
import os
import re
import runpy
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from genrec_batch.core.errors import ConfigError, RetryError
from genrec_batch.demo.synthetic import SampleConfig, users_frame, videos_frame, write
from genrec_batch.demo.synthetic.views import FAULTS, arranged
from genrec_batch.demo.synthetic.world import World, bits, chance, key, quarters, zipf
from genrec_batch.events import schema
from genrec_batch.events.columns import KINDS, KNOWN

CONFIG = SampleConfig(users=2_000, events_per_user=30, seed=5, videos=3_000)
DIRTY = replace(CONFIG, dirt=0.05)
SMALL = SampleConfig(users=80, events_per_user=12, seed=1, videos=200, dirt=0.1)
SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
EVENT = ["user_id", "session_id", "recommendation_source", "timestamp", "video_id", "watch_duration"]


def made(folder: Path, config: SampleConfig, **options: Any) -> pl.DataFrame:
    path = folder / "log.parquet"
    write(config, path, overwrite=True, **options)
    return pl.read_parquet(path)


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> pl.DataFrame:
    return made(tmp_path_factory.mktemp("clean"), CONFIG)


@pytest.fixture(scope="module")
def dirty(tmp_path_factory) -> tuple[pl.DataFrame, dict[str, Any]]:
    path = tmp_path_factory.mktemp("dirty") / "log.parquet"
    counts = write(DIRTY, path)
    return pl.read_parquet(path), counts


# what a log looks like


def test_log_has_the_contract_types_and_nothing_that_is_ignored(clean):
    reading = schema.read_contract(clean.lazy(), {}, "the log").reading
    assert reading.ignored == ()
    assert set(clean.columns) <= {*KINDS, *KNOWN}
    assert clean.schema["user_id"] == clean.schema["video_id"] == pl.Int64
    assert clean.schema["timestamp"] == pl.Datetime("us", "UTC")
    assert clean.schema["device_type"] == clean.schema["network_type"] == pl.String
    assert {clean.schema[name] for name in clean.columns if name.startswith("is_")} == {pl.Boolean}


def test_every_user_is_there_and_lengths_have_the_mean_asked_for(clean):
    lengths = clean.group_by("user_id").len().sort("user_id")
    assert lengths["user_id"].to_list() == list(range(1, CONFIG.users + 1))
    assert lengths["len"].mean() == pytest.approx(CONFIG.events_per_user, rel=0.02)
    assert lengths["len"].max() > 8 * CONFIG.events_per_user  # a long tail ...
    assert lengths["len"].median() < 0.75 * CONFIG.events_per_user  # ... and many short histories


@pytest.mark.parametrize("mean", [1, 1.5, 4])
def test_short_histories_keep_their_mean_too(tmp_path, mean):
    log = made(tmp_path, SampleConfig(users=4_000, events_per_user=mean, seed=2))
    assert len(log) / 4_000 == pytest.approx(mean, rel=0.03)


def test_few_videos_have_many_views(clean):
    views = clean["video_id"].value_counts(sort=True)["count"]
    top = CONFIG.videos // 100
    assert views.head(top).sum() / len(clean) > 0.2
    assert len(views) > 0.7 * CONFIG.videos  # and a long tail is seen as well
    assert clean["video_id"].is_in(videos_frame(CONFIG)["video_id"].implode()).all()


def test_ids_tell_nothing_of_popularity(clean):
    views = clean["video_id"].value_counts()
    assert abs(views.select(pl.corr("video_id", "count", method="spearman")).item()) < 0.1


def test_evenings_are_busier_than_nights_and_all_days_are_used(clean):
    hours = clean["timestamp"].dt.hour().value_counts()
    at = dict(hours.iter_rows())
    assert at[20] + at[21] > 4 * (at[3] + at[4])
    days = clean["timestamp"].dt.date().value_counts().sort("timestamp")
    full = days.filter(pl.col("timestamp").is_between(CONFIG.start, date(2026, 5, 17)))["count"]
    assert len(full) == CONFIG.days
    assert full.min() > 0.6 * len(clean) / CONFIG.days


def test_sessions_are_short_and_one_video_follows_the_other(clean):
    sessions = clean.group_by("session_id").agg(
        pl.col("user_id").n_unique().alias("users"),
        pl.len().alias("events"),
        (pl.col("timestamp").max() - pl.col("timestamp").min()).dt.total_seconds().alias("span_s"),
    )
    assert sessions["users"].max() == 1
    assert 5 < sessions["events"].mean() < 12
    assert sessions["span_s"].max() < 2 * 3600
    neighbours = clean.select(
        gap_s=pl.col("timestamp").diff().over("session_id").dt.total_milliseconds() / 1000,
        before_s=pl.col("watch_duration").shift(1).over("session_id"),
    ).drop_nulls()
    assert (neighbours["gap_s"] >= neighbours["before_s"] - 0.06).all()  # nobody watches two videos at once


def test_percentage_is_duration_over_the_videos_length(clean):
    joined = clean.join(videos_frame(CONFIG), on="video_id", how="left")
    off = (joined["watch_duration"] / joined["duration_s"] - joined["watch_percentage"]).abs()
    assert off.max() < 1e-5
    assert (joined["watch_complete"] == (joined["watch_percentage"] >= 0.95)).all()


def test_liking_goes_with_watching_and_with_taste(clean):
    seen = clean.join(videos_frame(CONFIG), on="video_id", how="left").with_columns(
        favourite=pl.col("category").mode().first().over("user_id") == pl.col("category")
    )
    favourite, other = seen.filter("favourite"), seen.filter(~pl.col("favourite"))
    assert favourite["watch_percentage"].mean() > other["watch_percentage"].mean() + 0.1
    assert favourite["is_liked"].mean() > 1.5 * other["is_liked"].mean()
    finished, skipped = seen.filter("watch_complete"), seen.filter(pl.col("watch_percentage") < 0.25)
    assert finished["is_liked"].mean() > 5 * skipped["is_liked"].mean()
    assert skipped["is_blocked_creator"].mean() > 5 * finished["is_blocked_creator"].mean()
    assert (skipped["skip_duration"] > 0).all()
    assert (finished["skip_duration"] == 0).all()


def test_history_predicts_the_next_video_better_than_popularity(clean):
    pairs = clean.select("user_id", "video_id", next=pl.col("video_id").shift(-1).over("user_id")).drop_nulls()
    train, test = pairs.filter(pl.col("user_id") <= 1_600), pairs.filter(pl.col("user_id") > 1_600)
    popular = train["video_id"].value_counts(sort=True).head(10)["video_id"]
    by_popularity = test["next"].is_in(popular.implode()).mean()
    after = train.group_by("video_id", "next").len().sort("len", "next", descending=True)
    after = after.group_by("video_id", maintain_order=True).head(10).select("video_id", "next")
    by_history = len(test.join(after, on=["video_id", "next"], how="semi")) / len(test)
    assert by_history > 1.5 * by_popularity


def test_nulls_stand_where_real_logs_have_them_and_nowhere_else(clean):
    tv, old = pl.col("device_type") == "tv", pl.col("app_version").is_in(["6.9.2", "7.0.1"])
    expected = {
        "is_shared": tv,
        "is_commented": tv,
        "is_favorited": old,
        "rewatch_count": pl.col("app_version") == "6.9.2",
        "recommendation_position": pl.col("recommendation_source").is_in(["search", "following"]),
    }
    for column, where in expected.items():
        assert clean.select((pl.col(column).is_null() == where).all()).item(), column
    always = [c for c in clean.columns if c not in {*expected, "network_type", "retention_label"}]
    assert clean.select(always).null_count().sum_horizontal().item() == 0
    assert 0.005 < clean["network_type"].null_count() / len(clean) < 0.05


def test_retention_label_says_whether_the_next_session_begins_within_a_day(clean):
    sessions = clean.sort("timestamp").group_by("user_id", "session_id", maintain_order=True).first()
    sessions = sessions.with_columns(wait=pl.col("timestamp").shift(-1).over("user_id") - pl.col("timestamp"))
    returned = sessions.filter(pl.col("wait") <= pl.duration(hours=24))
    assert returned["retention_label"].all()
    stayed_away = sessions.filter(pl.col("wait") > pl.duration(hours=26))  # an empty session may lie between
    assert stayed_away["retention_label"].mean() < 0.05
    last_day = clean.filter(pl.col("retention_label").is_null())["timestamp"]
    assert (last_day.dt.date() >= date(2026, 5, 17)).all()


# seeds, orders, chunks


def test_same_seed_same_bytes_and_another_seed_other_rows(tmp_path):
    for name in ("a", "b"):
        write(SMALL, tmp_path / f"{name}.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    first, other = pl.read_parquet(tmp_path / "a.parquet"), made(tmp_path, replace(SMALL, seed=2))
    assert first["video_id"].head(100).to_list() != other["video_id"].head(100).to_list()
    assert not users_frame(SMALL).equals(users_frame(replace(SMALL, seed=2)))
    assert not videos_frame(SMALL).equals(videos_frame(replace(SMALL, seed=2)))


@pytest.mark.parametrize("order", ["time", "user", "shuffled"])
@pytest.mark.parametrize("chunk_rows", [1, 37, 500])
def test_rows_made_at_a_time_change_no_byte(tmp_path, order, chunk_rows):
    config = replace(SMALL, order=order)
    write(config, tmp_path / "whole.parquet", group_rows=300)
    write(config, tmp_path / "chunked.parquet", group_rows=300, chunk_rows=chunk_rows)
    assert (tmp_path / "whole.parquet").read_bytes() == (tmp_path / "chunked.parquet").read_bytes()


@settings(max_examples=25, deadline=None)
@given(
    users=st.integers(1, 40),
    mean=st.floats(1, 40),
    seed=st.integers(0, 2**63 - 1),
    dirt=st.floats(0, 1),
    days=st.integers(1, 60),
    order=st.sampled_from(["time", "user", "shuffled"]),
    chunk_rows=st.integers(1, 300),
)
def test_any_log_is_complete_whatever_the_chunks(users, mean, seed, dirt, days, order, chunk_rows):
    config = SampleConfig(users=users, events_per_user=mean, seed=seed, videos=50, dirt=dirt, days=days, order=order)
    world = World(config)
    events = {
        (int(u), int(n))
        for chunk in arranged(world, chunk_rows)
        for u, n in zip(chunk.users_E, chunk.numbers_E, strict=True)
    }
    lengths = world.people(np.arange(users)).events_U
    assert events == {(u, n) for u in range(users) for n in range(lengths[u])}


def test_the_three_orders_hold_the_same_rows(tmp_path):
    logs = {order: made(tmp_path, replace(DIRTY, order=order)) for order in ("time", "user", "shuffled")}
    sort_by = [*EVENT, "watch_percentage", "recommendation_position"]
    by_time = logs["time"].sort(sort_by)
    for order in ("user", "shuffled"):
        assert_frame_equal(logs[order].sort(sort_by), by_time)
    assert logs["time"]["timestamp"].drop_nulls().is_sorted()
    users = logs["user"]["user_id"].drop_nulls()
    assert users.is_sorted()
    place = logs["shuffled"].with_row_index().drop_nulls(["timestamp", "user_id"])
    assert not place["timestamp"].is_sorted()
    for column in ("timestamp", "user_id"):
        assert abs(place.select(pl.corr("index", pl.col(column).cast(pl.Int64), method="spearman")).item()) < 0.05


@pytest.mark.parametrize("order", ["time", "user", "shuffled"])
def test_chunks_stay_near_the_size_asked_for(order):
    config = SampleConfig(users=20_000, events_per_user=20, seed=3, order=order)
    sizes = [len(chunk) for chunk in arranged(World(config), 10_000)]
    assert sum(sizes) == pytest.approx(400_000, rel=0.02)
    assert len(sizes) >= 30
    assert max(sizes) < 3 * 10_000


# dirt


def test_faults_are_counted_and_as_many_as_asked_for(dirty):
    log, counts = dirty
    faults = counts["faults"]
    assert tuple(faults) == FAULTS
    assert counts["rows"] == len(log)
    events = len(log) - faults["duplicates"]
    for kind, count in faults.items():
        expected = DIRTY.dirt / len(FAULTS) * (0.87 if kind == "clock_ties" else 1)  # a session's first cannot tie
        assert count / events == pytest.approx(expected, rel=0.15), kind
    ids = ["user_id", "video_id", "timestamp"]
    assert log.select(pl.sum_horizontal(pl.col(ids).is_null()).max()).item() == 1
    assert log.select(pl.any_horizontal(pl.col(ids).is_null()).sum()).item() == faults["null_ids"]
    assert log["watch_duration"].null_count() == faults["null_values"] == log["is_liked"].null_count()
    assert len(log) - log.n_unique() == faults["duplicates"]
    zero = log.filter((pl.col("watch_duration") == 0) & pl.col("watch_percentage").is_null())
    assert len(zero) == faults["zero_durations"]
    whole = log.unique().drop_nulls(ids)
    tied = len(whole) - whole.select("user_id", "timestamp").n_unique()
    assert tied == pytest.approx(faults["clock_ties"], rel=0.02)  # some ties are with a row that lost an id


def test_a_clean_log_has_no_faults(clean, tmp_path):
    assert set(write(CONFIG, tmp_path / "log.parquet")["faults"].values()) == {0}
    assert clean.n_unique() == len(clean)
    assert (clean["watch_duration"] > 0).all()
    assert clean.select("user_id", "timestamp").n_unique() > 0.999 * len(clean)


# files


def test_a_directory_holds_the_rows_of_the_one_file_in_parts(tmp_path):
    one = write(DIRTY, tmp_path / "log.parquet", group_rows=4_000)
    many = write(DIRTY, tmp_path / "log", group_rows=4_000, part_rows=8_000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "log.parquet"]  # no temporary name is left
    parts = sorted((tmp_path / "log").iterdir())
    assert [p.name for p in parts] == [f"part-{i:05d}.parquet" for i in range(many["files"])]
    assert [pl.read_parquet(p).height for p in parts][:-1] == [8_000] * (many["files"] - 1)
    assert_frame_equal(pl.read_parquet(parts), pl.read_parquet(tmp_path / "log.parquet"))
    assert many["bytes"] == sum(p.stat().st_size for p in parts)
    same = {"rows", "users", "videos", "first", "last", "faults"}
    assert {k: one[k] for k in same} == {k: many[k] for k in same}


def test_counts_describe_the_file(dirty):
    log, counts = dirty
    assert (counts["rows"], counts["users"]) == (len(log), DIRTY.users)
    assert abs(counts["videos"] - log["video_id"].n_unique()) <= 2
    assert counts["first"] == log["timestamp"].min().isoformat(timespec="milliseconds")
    assert counts["last"] == log["timestamp"].max().isoformat(timespec="milliseconds")


def test_what_exists_is_kept_unless_overwritten(tmp_path):
    for name in ("log.parquet", "log"):
        path = tmp_path / name
        write(SMALL, path)
        with pytest.raises(ConfigError, match="exists"):
            write(SMALL, path)
        write(replace(SMALL, users=3), path, overwrite=True)
        assert pl.read_parquet(path)["user_id"].n_unique() <= 4
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_with_other_peoples_files_is_never_replaced(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.odt").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis\.odt"):
        write(SMALL, folder, overwrite=True)
    assert (folder / "thesis.odt").read_text() == "mine"
    (tmp_path / "log").write_text("a file")
    with pytest.raises(ConfigError, match="file"):
        write(SMALL, tmp_path / "log", overwrite=True)


@pytest.mark.parametrize("name", ["log.parquet", "log/part-00000.parquet"])
def test_what_is_no_sample_is_never_replaced(tmp_path, name):
    """Such as the recommendations of the last night, by a mistyped name."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    for mine in (
        lambda: pl.DataFrame({"user_id": [1], "score": [0.5]}).write_parquet(file),
        lambda: file.write_text("x"),
    ):
        mine()
        before = file.read_bytes()
        with pytest.raises(ConfigError, match=f"{file.name} is not overwritten: it is not a log"):
            write(SMALL, tmp_path / name.split("/")[0], overwrite=True)
        assert file.read_bytes() == before


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        write(SMALL, tmp_path / "nowhere" / "log.parquet")


@pytest.mark.parametrize("name", ["log.parquet", "log"])
@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, RetryError), (errno.EIO, ConfigError)])
def test_a_failing_disk_leaves_nothing_behind(tmp_path, monkeypatch, name, number, kind):
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind, match=name):
        write(SMALL, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_config_out_of_range_names_every_flag_at_fault():
    with pytest.raises(ConfigError) as error:
        SampleConfig(users=0, events_per_user=0.5, seed=-1, videos=3, dirt=1.5, days=0, order="random")  # type: ignore[arg-type]
    flags = ("--users", "--events-per-user", "--seed", "--videos", "--dirt", "--days", "--order")
    assert all(flag in str(error.value) for flag in flags)


# side tables


def test_side_tables_have_one_row_per_id():
    users, videos = users_frame(SMALL, without_events=5), videos_frame(SMALL)
    assert users["user_id"].to_list() == list(range(1, SMALL.users + 6))
    assert videos["video_id"].is_sorted()
    assert videos["video_id"].n_unique() == len(videos) == SMALL.videos
    assert videos["duration_s"].is_between(4, 180).all()
    assert users_frame(SMALL).equals(users.head(SMALL.users))  # more users change nothing about these
    assert videos.drop_nulls().group_by("creator_id").agg(pl.col("category").n_unique())["category"].max() == 1


def test_log_and_users_table_agree(clean):
    joined = clean.join(users_frame(CONFIG), on="user_id", how="left", suffix="_table")
    for column in ("language", "user_level", "user_vip"):
        assert (joined[column] == joined[f"{column}_table"]).all(), column


# draws


def test_draws_are_uniform_and_streams_independent():
    counter = np.arange(200_000)
    one, two = bits(key(9, 0), counter), bits(key(9, 1), counter)
    columns = np.stack([*quarters(one), *quarters(two)]) / 65536
    assert np.abs(columns.mean(axis=1) - 0.5).max() < 0.005
    assert np.abs(np.corrcoef(columns) - np.eye(8)).max() < 0.01
    assert np.abs(np.corrcoef(columns[0, 1:], columns[0, :-1])[0, 1]) < 0.01
    assert (quarters(one)[0] < chance(0.3)).mean() == pytest.approx(0.3, abs=0.005)


def test_a_draw_does_not_depend_on_its_neighbours():
    everything = bits(key(4, 2), np.arange(1_000))
    assert bits(key(4, 2), np.array([700, 3]))[0] == everything[700]


def test_zipf_ranks_are_as_frequent_as_one_over_rank():
    counts = np.bincount(zipf(100, 16), minlength=100)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.02)
    assert all(a >= b - 1 for a, b in pairwise(counts))


# the committed sample


@pytest.fixture(scope="module")
def remade(tmp_path_factory) -> Iterator[tuple[Path, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("sample_data")
    script = runpy.run_path(str(SAMPLE_DATA / "make.py"))
    return folder, script["make"](folder)


@pytest.mark.parametrize("name", ["events", "users", "videos"])
def test_the_committed_sample_is_what_its_script_makes(remade, name):
    folder, _ = remade
    assert_frame_equal(pl.read_parquet(SAMPLE_DATA / f"{name}.parquet"), pl.read_parquet(folder / f"{name}.parquet"))


def test_the_samples_readme_tells_the_truth(remade):
    _, counts = remade
    text = (SAMPLE_DATA / "README.md").read_text()
    events, users, videos = (pl.read_parquet(SAMPLE_DATA / f"{n}.parquet") for n in ("events", "users", "videos"))
    rows = dict(re.findall(r"\| `(\w+)\.parquet` \| ([\d,]+) \|", text))
    assert rows == {"events": f"{len(events):,}", "users": f"{len(users):,}", "videos": f"{len(videos):,}"}
    assert (
        f"{counts['users']:,} users, {counts['videos']:,} videos, {events['session_id'].n_unique():,} sessions" in text
    )
    assert f"({events['timestamp'].min():%Y-%m-%d} to {events['timestamp'].max():%Y-%m-%d}, UTC)" in text
    assert (
        f"{videos['creator_id'].drop_nulls().n_unique()} creators, {videos['category'].n_unique()} categories" in text
    )
    assert f"(null for {videos['creator_id'].null_count()})" in text
    assert f"({len(events.columns)} columns" in text
    stated = re.search(r"(\d+) exact duplicates, (\d+) rows .*?\n(\d+) rows .*?, (\d+) with .*?, (\d+) with", text)
    assert stated is not None
    assert [int(n) for n in stated.groups()] == list(counts["faults"].values())
    for column in (*events.columns, *users.columns, *videos.columns):
        assert f"`{column}`" in text, column
    cold = users["user_id"].filter(~users["user_id"].is_in(events["user_id"].drop_nulls().unique().implode()))
    assert cold.to_list() == [501, 502, 503, 504, 505]
    assert (SAMPLE_DATA / "events.parquet").stat().st_size < 400_000
