"""`score --explain`: the list of `score` itself, and where each candidate and each removed one comes from.

Also tests `composed`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import shutil

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.reports import explain
from genrec_batch.reports.options import RunConfig

USER = 107


def options(model_dir, **more):
    return RunConfig(model=str(model_dir), engine="onnxruntime", top_k=5, max_events=8, **more)


@pytest.fixture
def explained(log_file, model_dir):
    return explain.explained(options(model_dir), str(log_file), str(USER))


def test_the_list_is_that_of_score(explained, run, log_file, model_dir):
    done = run(
        "score", log_file, "o.parquet", "--model", model_dir, "--engine", "onnxruntime", "--top-k", 5,
        "--max-events", 8, "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = pl.read_parquet("o.parquet").filter(pl.col("user_id") == USER)
    told = pl.DataFrame(explained["recommended"])
    assert told["video_id"].to_list() == rows["video_id"].to_list()
    assert np.allclose(told["log_prob"], rows["log_prob"], atol=1e-4)
    by_step = rows.sort("step")
    assert [s["chosen"] for s in explained["steps"]] == by_step["video_id"].to_list()


def test_with_arms_the_list_is_that_of_the_users_arm(run, log_file, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "other")
    arms = ["--arm", f"a={model_dir}:50", "--arm", f"b={tmp_path / 'other'}:50", "--arm", "b.include-seen=true"]
    options = [*arms, "--salt", "exp42", "--engine", "onnxruntime", "--top-k", 5, "--quiet"]
    assert run("score", log_file, "o.parquet", *options).code == 0
    rows = pl.read_parquet("o.parquet")
    for arm in ("a", "b"):
        user = rows.filter(pl.col("arm") == arm)["user_id"][0]
        done = run("score", log_file, "--explain", user, *options)
        assert done.code == 0, done.err
        mine = rows.filter(pl.col("user_id") == user)
        assert (done.summary["arm"], done.summary["bucket"]) == (arm, mine["bucket"][0])
        assert [row["video_id"] for row in done.summary["recommended"]] == mine["video_id"].to_list()
        assert done.summary["seen"]["removed"] == (arm == "a")
    shown = run("score", log_file, "--explain", user, *options[:-1]).out
    assert f"In the arm b, by bucket {mine['bucket'][0]:,} of 0 to 9,999." in " ".join(shown.split())
    done = run("score", log_file, "--explain", f"0{user}", *options)
    assert done.code == 2
    assert f"--explain 0{user}: the log's id is {user}, by which the arm is chosen; give it so" in done.err


def test_the_history_is_the_newest_first_and_counts_what_is_left_out(explained, log):
    mine = log.filter(pl.col("user_id") == USER).sort("timestamp", maintain_order=True).reverse()
    assert [row["video_id"] for row in explained["history"]] == mine["video_id"].head(8).to_list()
    assert explained["events"] == {
        "in_all": len(mine), "kept": 8, "older_left_out": len(mine) - 8, "max_events": 8,
    }  # fmt: skip
    assert set(explained["seen"]["videos"]) == set(mine["video_id"])


def test_each_seen_video_is_named_once(model_dir, log):
    again = log.filter(pl.col("user_id") == USER).with_columns(pl.col("timestamp") + pl.duration(days=1))
    unknown = again.head(1).with_columns(video_id=pl.lit(999_999, pl.Int64))
    pl.concat([log, again, again, unknown, unknown]).write_parquet("twice.parquet")
    seen = explain.explained(options(model_dir), "twice.parquet", str(USER))["seen"]
    assert sorted(seen["videos"]) == sorted(again["video_id"].unique())
    assert seen["not_in_catalog"] == 1


def test_a_removed_candidate_was_seen_and_stood_above(explained):
    seen = set(explained["seen"]["videos"])
    chosen = [s["chosen"] for s in explained["steps"]]
    assert len(set(chosen)) == 5
    assert not seen & set(chosen)
    for number, step in enumerate(explained["steps"]):
        assert all((row["video_id"] in seen) == row["removed_as_seen"] for row in step["best"])
        assert [row["log_prob"] for row in step["best"]] == sorted((r["log_prob"] for r in step["best"]), reverse=True)
        assert not {row["video_id"] for row in step["best"]} & set(chosen[:number])  # read ones are not looked at again
        free = [row["video_id"] for row in step["best"] if not row["removed_as_seen"]]
        if free:
            assert free[0] == step["chosen"]


def test_with_include_seen_nothing_is_removed(log_file, model_dir):
    told = explain.explained(options(model_dir, include_seen=True), str(log_file), str(USER))
    assert not told["seen"]["removed"]
    assert all(not row["removed_as_seen"] for step in told["steps"] for row in step["best"])
    assert all(step["removed_before_it"] == 0 for step in told["steps"])


def test_feature_blocks_are_those_that_the_model_reads(explained, run, log_file, model_dir):
    assert run("features", log_file, "f.parquet", "--model", model_dir, "--max-events", 8, "--quiet").code == 0
    dense = pl.read_parquet("f.parquet").filter(pl.col("user_id") == USER)["features"].to_numpy()[0]
    norms = [block["norm"] for block in explained["features"]]
    assert norms == sorted(norms, reverse=True)
    assert np.hypot.reduce(norms) == pytest.approx(np.linalg.norm(dense), rel=1e-3)
    for block in explained["features"]:
        for slot in block["largest"]:
            assert slot["value"] == pytest.approx(dense[slot["slot"]], abs=1e-4)


def test_unknown_videos_are_named(model_dir, tmp_path, log):
    strange = log.with_columns(
        video_id=pl.when((pl.col("user_id") == USER) & (pl.int_range(pl.len()).over("user_id") < 2))
        .then(999_999)
        .otherwise(pl.col("video_id"))
    )
    strange.write_parquet(tmp_path / "strange.parquet")
    config = RunConfig(model=str(model_dir), engine="onnxruntime", top_k=3)
    told = explain.explained(config, str(tmp_path / "strange.parquet"), str(USER))
    assert told["unknown_videos"] == [999_999]
    assert sum(not row["known"] for row in told["history"]) == 2


@pytest.mark.parametrize(
    ("more", "steps"), [({"decode": "candidates", "num_candidates": 20}, 1), ({"beam_width": 2}, 1)]
)
def test_other_ways_to_decode_look_once(log_file, model_dir, more, steps):
    told = explain.explained(options(model_dir, **more), str(log_file), str(USER))
    assert len(told["steps"]) == steps
    assert len(told["recommended"]) == 5


def test_a_user_without_events_is_explained_too(log_file, model_dir, tmp_path):
    pl.DataFrame({"user_id": [9999], "country": ["FR"]}).write_parquet(tmp_path / "users.parquet")
    told = explain.explained(options(model_dir, users=str(tmp_path / "users.parquet")), str(log_file), "9999")
    assert told["cold_start"]
    assert told["in_users_table"]
    assert told["history"] == []
    assert len(told["recommended"]) == 5


def test_a_user_that_is_not_there_is_named_by_the_option_that_was_typed(run, log_file, model_dir):
    for user, said in (
        ("999999", "--explain 999999: neither in INPUT"),
        ("bob", "--explain bob: the log's user_id is"),
    ):
        done = run("score", log_file, "--model", model_dir, "--explain", user)
        assert (done.code, f"\nerror: {said}" in done.err) == (2, True), done.err
    done = run("score", log_file, "--model", model_dir, "--user", "999999")
    assert "--user 999999: neither" in done.err


def test_the_command_shows_it(run, log_file, model_dir):
    done = run("score", log_file, "--model", model_dir, "--explain", USER, "--engine", "onnxruntime", "--top-k", 3)
    assert done.code == 0, done.err
    for text in (f"User {USER}", "Kept history, newest first", "Features by magnitude", "Candidates per step"):
        assert text in done.out
    assert done.summary["user_id"] == USER
    quiet = run(
        "score", log_file, "--model", model_dir, "--explain", USER, "--engine", "onnxruntime", "--top-k", 3, "--quiet"
    )
    assert len(quiet.summary["steps"]) == 3
    assert run("score", log_file, "--model", model_dir, "--explain", 5).code == 2
    both = run("score", log_file, "o.parquet", "--model", model_dir, "--explain", USER)
    assert both.code == 2
    assert "--explain describes one user" in both.err


def test_a_user_of_the_real_log_is_explained(kuairand):
    config = RunConfig(
        schema="kuairand", users=str(kuairand / "users.parquet"), videos=str(kuairand / "videos.parquet"), top_k=5
    )
    events = pl.read_parquet(kuairand / "events.parquet", columns=["user_id"])
    user = events["user_id"].value_counts(sort=True)["user_id"][0]
    told = explain.explained(config, str(kuairand / "events.parquet"), str(user))
    assert told["events"]["in_all"] == (events["user_id"] == user).sum()
    assert len(told["recommended"]) == len(told["steps"]) == 5
    assert [s["chosen"] for s in told["steps"]] == [
        r["video_id"] for r in sorted(told["recommended"], key=lambda r: r["step"])
    ]
    assert told["in_users_table"]
    assert {b["block"] for b in told["features"] if b["non_zero"]} >= {"user profile", "videos", "statistics"}


def test_seen_videos_that_the_catalog_has_not_are_counted_apart(run, log, log_file, model_dir, tmp_path):
    small = tmp_path / "small"
    shutil.copytree(model_dir, small)
    known = pl.read_parquet(small / "catalog.parquet").head(30)
    known.write_parquet(small / "catalog.parquet")
    seen = set(log.filter(pl.col("user_id") == USER)["video_id"])
    told = explain.explained(options(small), str(log_file), str(USER))["seen"]
    assert set(told["videos"]) == seen & set(known["video_id"])
    assert told["not_in_catalog"] == len(seen - set(known["video_id"])) > 0
    done = run("score", log_file, "--model", small, "--explain", USER, "--engine", "onnxruntime", "--top-k", 5)
    assert "None" not in done.out + done.err
    assert f"{told['not_in_catalog']} other seen videos are not in the catalog" in done.out + done.err


def test_each_removed_video_names_its_rules(log, log_file, model_dir, run):
    free = sorted(set(log["video_id"]) - set(log.filter(pl.col("user_id") == USER)["video_id"]))
    pl.DataFrame({"video_id": free[:20]}).write_parquet("bans.parquet")
    pl.DataFrame({"user_id": [USER] * 10, "video_id": free[15:25]}).write_parquet("own.parquet")
    fixed = ["--model", model_dir, "--engine", "torch", "--precision", "fp32", "--top-k", 3]
    assert run("score", log_file, "earlier", *fixed, "--limit", 12).code == 0
    last = set(pl.read_parquet("earlier/*.parquet").filter(pl.col("user_id") == USER)["video_id"])
    rules = {"exclude": ("bans.parquet", "own.parquet"), "exclude_recommended": ("earlier",)}
    told = explain.explained(options(model_dir, **rules), str(log_file), str(USER))
    names = ["--exclude bans.parquet", "--exclude own.parquet", "--exclude-recommended earlier"]
    assert [rule["rule"] for rule in told["rules"]] == names
    assert [rule["videos"] for rule in told["rules"]] == [20, 10, len(last)]
    removed = {"seen": set(told["seen"]["videos"]), **dict(zip(names, (free[:20], free[15:25], last), strict=True))}
    rows = [row for step in told["steps"] for row in step["best"]]
    for row in rows:
        assert row["removed_by"] == [name for name, videos in removed.items() if row["video_id"] in videos]
    assert {name for row in rows for name in row["removed_by"]} & set(names)
    assert not {row["video_id"] for row in told["recommended"]} & {*free[:25], *last}
    flags = ["--exclude", "bans.parquet", "--exclude", "own.parquet", "--exclude-recommended", "earlier"]
    shown = run("score", log_file, "--explain", USER, *fixed, *flags)
    assert shown.code == 0, shown.err
    assert "--exclude bans.parquet removes 20 videos of the catalog: " in " ".join(shown.out.split())


@pytest.fixture
def shelf(log):
    """A table of the log's videos, of three creators."""
    ids = log["video_id"].unique().sort()
    creators = {"video_id": ids, "creator_id": ids % 3, "is_new": ids % 5 == 0}
    pl.DataFrame(creators).write_parquet("shelf.parquet")
    pl.DataFrame({"video_id": [int(ids[-1])], "rank": [2]}).write_parquet("promoted.parquet")
    return ids


def test_rules_that_compose_a_list_are_named_for_each_video_that_they_move(run, log_file, model_dir, shelf):
    rules = ["--max-per", "creator_id=2", "--boost", "is_new=5", "--promote", "promoted.parquet", "--explore", "0.5"]
    options = ["--model", model_dir, "--videos", "shelf.parquet", "--engine", "torch", "--precision", "fp32", *rules]
    done = run("score", log_file, *options, "--explain", 105, "--quiet")
    assert done.code == 0, done.err
    facts = done.summary
    assert run("score", log_file, "recs.parquet", *options).code == 0
    written = pl.read_parquet("recs.parquet").filter(pl.col("user_id") == 105)
    assert [row["video_id"] for row in facts["recommended"]] == written["video_id"].to_list()
    assert [row["source"] for row in facts["recommended"]] == written["source"].to_list()
    moved = {row["video_id"]: row for row in facts["composed"]}
    assert {video for video, row in moved.items() if row["rank"]} == set(written["video_id"])
    promoted = moved[int(shelf[-1])]
    assert (promoted["rank"], promoted["source"], promoted["moved_by"][-1]) == (2, "promoted", "promoted to place 2")
    reasons = [reason for row in facts["composed"] for reason in row["moved_by"]]
    assert any(reason == "boosted by +5" for reason in reasons)
    assert any(reason.startswith("capped by creator_id=") for reason in reasons)
    explored = [row for row in facts["composed"] if row["source"] == "explored"]
    assert explored
    assert all(row["moved_by"][-1] == f"explored at place {row['rank']}" for row in explored)
    shown = run("score", log_file, *options, "--explain", 105)
    assert "How rules composed the list" in shown.out
    assert "capped by creator_id=" in shown.out


@pytest.mark.usefixtures("shelf")
def test_a_demotion_names_the_diversity(run, log_file, model_dir):
    options = ["--model", model_dir, "--videos", "shelf.parquet", "--engine", "torch", "--precision", "fp32"]
    done = run("score", log_file, *options, "--diversify", "mmr=0.7", "--explain", 105, "--quiet")
    assert done.code == 0, done.err
    reasons = [reason for row in done.summary["composed"] for reason in row["moved_by"]]
    assert any(reason.startswith("demoted by mmr=0.7: ") for reason in reasons)


def test_the_list_has_the_carried_columns(log, log_file, model_dir):
    videos, users = log.select("video_id").unique(), log.select("user_id").unique()
    day = pl.lit(dt.date(2026, 4, 1)).alias("day")
    videos.with_columns(day, title="v" + pl.col("video_id").cast(pl.String)).write_parquet("videos.parquet")
    users.with_columns(langs=pl.lit(["de", "fr"]), name=pl.lit("x")).write_parquet("users.parquet")
    asked = options(model_dir, videos="videos.parquet", users="users.parquet", carry="title,langs,day")
    rows = json.loads(json.dumps(explain.explained(asked, str(log_file), str(USER))["recommended"]))
    assert len(rows) == 5
    assert [row["title"] for row in rows] == [f"v{row['video_id']}" for row in rows]
    assert {(*row["langs"], row["day"]) for row in rows} == {("de", "fr", "2026-04-01")}
    with pytest.raises(ConfigError, match="--carry nosuch: no such column in --videos or --users"):
        explain.explained(dataclasses.replace(asked, carry="nosuch"), str(log_file), str(USER))


def test_what_a_fallback_moves_is_named_too(run, log_file, model_dir, shelf):
    pl.DataFrame({"user_id": [999]}).write_parquet("users.parquet")
    rules = ["--max-per", "creator_id=4", "--promote", "promoted.parquet", "--fallback", "popular", "--quiet"]
    tables = ["--users", "users.parquet", "--videos", "shelf.parquet"]
    done = run("score", log_file, "--model", model_dir, "--engine", "torch", *tables, *rules, "--explain", 999)
    assert done.code == 0, done.err
    facts = done.summary
    named = [(row["video_id"], row["source"]) for row in facts["composed"] if row["rank"] is not None]
    assert named == [(row["video_id"], row["source"]) for row in facts["recommended"]]
    assert {source for _, source in named} == {"popular", "promoted"}
    last = {row["video_id"]: row["moved_by"][-1] for row in facts["composed"] if row["moved_by"]}
    assert last[named[0][0]] == "popular at place 1"
    assert last[int(shelf[-1])] == "promoted to place 2"
    gone = [row["video_id"] for row in facts["composed"] if row["ranks"].get("promote") == 1 and row["rank"] is None]
    assert all(last[video] == "fallback: out of the list, from place 1" for video in gone)
