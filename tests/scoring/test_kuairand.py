"""The real log, with its dirt: exact duplicates, clock ties, zero durations, sentinels in the side tables."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec_batch import features
from genrec_batch.core import layout
from genrec_batch.events import schema_file, side_tables
from tests.histories import build, normalize
from tests.logs import catalog_of


@pytest.fixture
def arguments(kuairand, run):
    log = kuairand / "events.parquet"
    made = run("model", "init", "tiny", "--preset", "tiny", "--catalog-from", log, "--schema", "kuairand")
    assert made.code == 0, made.err
    side = ["--users", kuairand / "users.parquet", "--videos", kuairand / "videos.parquet"]
    return [log, "recs.parquet", "--schema", "kuairand", "--model", "tiny", *side]


@pytest.mark.slow
def test_every_user_gets_new_videos_of_the_log_in_order(run, arguments, kuairand):
    done = run("score", *arguments, "--engine", "onnxruntime")
    assert done.code == 0, done.err
    events, users = pl.read_parquet(kuairand / "events.parquet"), pl.read_parquet(kuairand / "users.parquet")
    rows = pl.read_parquet("recs.parquet")
    assert set(rows["user_id"]) == set(users["user_id"]) >= set(events["user_id"])
    assert rows.group_by("user_id").agg("rank").filter(pl.col("rank") != list(range(1, 11))).is_empty()
    assert rows.select(pl.struct("user_id", "video_id").is_duplicated().any()).item() is False
    assert rows.join(events, on=["user_id", "video_id"], how="inner").is_empty()
    assert rows["video_id"].is_in(events["video_id"].unique().implode()).all()
    assert rows.equals(rows.sort("user_id", "rank"))
    numbers = rows.select("score", "log_prob", "recommendation", "engagement", "retention", "monetization")
    assert numbers.to_numpy().min() > -100
    assert rows.filter("cold_start")["user_id"].n_unique() == done.summary["cold_start_users"]
    assert done.summary["users_without_events"] == len(users) - events["user_id"].n_unique()


@pytest.mark.slow
def test_beam_candidates_and_blends_work_on_it_too(run, arguments):
    for number, flags in enumerate(
        (["--beam-width", "2"], ["--decode", "candidates", "--num-candidates", "30"], ["--weights", "retention=1"])
    ):
        done = run("score", arguments[0], f"{number}.parquet", *arguments[2:], "--limit", "300", *flags)
        assert (done.code, done.summary["rows"]) == (0, 3000), done.err


@pytest.mark.slow
def test_all_rules_together_hold_on_it(run, arguments, kuairand):
    videos = pl.read_parquet(kuairand / "videos.parquet").select("video_id", "author_id", "tag", "upload_dt")
    views = pl.read_parquet(kuairand / "events.parquet").select("user_id", "video_id")
    popular = views["video_id"].value_counts(sort=True)["video_id"]
    tables = {"banned": popular.head(50), "cleared": popular.head(3000), "chosen": popular.slice(100, 3)}
    for name, ids in tables.items():
        ids.to_frame().write_parquet(f"{name}.parquet")
    some = ["--limit", "3000", "--engine", "onnxruntime"]
    assert run("score", arguments[0], "before", *arguments[2:], *some, "--as-of", "2022-04-28").code == 0
    rules = ["--exclude", "banned.parquet", "--only", "cleared.parquet", "--exclude-recommended", "before"]
    rules += ["--max-age", "21d", "--max-per", "author_id=1,tag=2", "--diversify", "mmr"]
    rules += ["--boost", "play_progress=0.5", "--promote", "chosen.parquet", "--explore", "0.1"]
    rules += ["--fallback", "popular:3d:by=user_active_degree"]
    done = run("score", *arguments, *some, *rules)
    assert done.code == 0, done.err
    rows = pl.read_parquet("recs.parquet").join(videos, on="video_id", how="left")
    assert not rows["video_id"].is_in(tables["banned"].implode()).any()
    assert rows["video_id"].is_in(tables["cleared"].implode()).all()
    assert rows["upload_dt"].min() >= "2022-04-10"
    earlier = pl.read_parquet("before/*.parquet").select("user_id", "video_id")
    assert rows.join(pl.concat([views, earlier]), on=["user_id", "video_id"]).is_empty()
    assert not rows.select(pl.struct("user_id", "video_id").is_duplicated().any()).item()
    for column, most in (("author_id", 1), ("tag", 2)):
        assert rows.drop_nulls(column).group_by("user_id", column).len()["len"].max() <= most
    assert set(rows["source"]) == {"model", "promoted", "explored", "popular"}
    short = int((rows.group_by("user_id").len()["len"] < 10).sum())
    assert done.summary["short_users"] == sum(done.summary["shortfalls"].values()) == short


def test_features_of_the_real_log_are_finite_and_reach_every_block_it_has(kuairand):
    names = schema_file.column_names("kuairand")
    events = normalize(pl.read_parquet(kuairand / "events.parquet"), names.events)
    users, videos = pl.read_parquet(kuairand / "users.parquet"), pl.read_parquet(kuairand / "videos.parquet")
    catalog = catalog_of(events, vocabulary=10_000)
    last = int(events["timestamp"].dt.epoch("us").max())
    _, built = build(events, catalog=catalog, as_of_us=last, max_events=50, seen_limit=1000, users=users, videos=videos)
    dense = features.compute(built, side_tables.users_table(users), side_tables.videos_table(videos), max_events=50)
    assert abs(dense).max() < 100
    reached = {block for slot, block, _ in layout.describe() if abs(dense[:, slot]).max() > 0}
    assert reached >= {"watch duration", "watch percentage", "interaction flags", "time", "statistics", "sequence"}
    assert reached >= {"recommendation source", "user profile", "videos"}
    pytest.importorskip("numba", reason="the extra `fast` is not installed")
    sides = side_tables.users_table(users), side_tables.videos_table(videos)
    compiled = features.compute(built, *sides, max_events=50, kernel="numba")
    np.testing.assert_array_equal(compiled, dense)
