"""`shortfalls`: why a list is short, in the summary, the log and the fingerprints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec_batch.scoring.shortfalls import Available


@pytest.fixture
def score(run, log_file, model_dir):
    def call(target, *flags):
        fixed = ["--model", model_dir, "--engine", "torch", "--precision", "fp32"]
        return run("score", log_file, target, *fixed, *flags)

    return call


def by_user(path):
    return dict(pl.read_parquet(path).select("user_id", "shortfall").iter_rows())


def test_each_user_with_too_few_rows_has_a_reason(score, log):
    videos = log["video_id"].value_counts(sort=True)["video_id"].to_list()
    pl.DataFrame({"video_id": videos[:6]}).write_parquet("only.parquet")
    pl.DataFrame({"user_id": [101] * 3, "video_id": videos[:3]}).write_parquet("own.parquet")
    done = score("a", "--only", "only.parquet", "--exclude", "own.parquet", "--top-k", 4, "--shard-users", 9)
    assert done.code == 0, done.err
    seen = {user: set(own) for user, own in log.group_by("user_id").agg("video_id").iter_rows()}
    wanted = {}
    for user, own in seen.items():
        eligible = set(videos[:6]) - (set(videos[:3]) if user == 101 else set())
        why = "few videos are eligible" if len(eligible) < 4 else "all others were seen"
        wanted[user] = why if len(eligible - own) < 4 else None
    assert by_user("a/_fingerprints") == wanted
    rows = dict(pl.concat([pl.read_parquet("a/*.parquet")]).group_by("user_id").len().iter_rows())
    assert {user for user in seen if rows.get(user, 0) < 4} == {user for user, why in wanted.items() if why}
    reasons = [why for why in wanted.values() if why]
    assert done.summary["short_users"] == len(reasons) > 1
    assert done.summary["shortfalls"] == {why: reasons.count(why) for why in set(reasons)}
    some = sorted(user for user, why in wanted.items() if why == "all others were seen")[:5]
    assert done.summary["shortfall_users"] == {"all others were seen": some, "few videos are eligible": [101]}
    assert "get fewer rows: all others were seen: " in " ".join(done.err.split())


def test_a_report_names_some_users_for_each_reason(score, log):
    videos = log["video_id"].value_counts(sort=True)["video_id"].to_list()
    pl.DataFrame({"video_id": videos[:6]}).write_parquet("only.parquet")
    done = score("a", "--only", "only.parquet", "--top-k", 4, "--report", "run.html", "--limit", 30)
    assert done.code == 0, done.err
    (users,) = done.summary["shortfall_users"].values()
    page = Path("run.html").read_text()
    assert "Users with fewer videos than --top-k" in page
    assert ", ".join(map(str, users)) in page


def test_users_with_few_candidates_are_told_apart(score, log):
    videos = log["video_id"].value_counts(sort=True)["video_id"].to_list()
    free = sorted(set(videos[:60]) - set(log.filter(pl.col("user_id").is_in([100, 101, 102]))["video_id"]))
    lists = {100: free[:2], 101: free[:5], 102: [*free[:3], videos[0]], 103: free[:4]}
    pl.DataFrame({"user_id": list(lists), "video_id": list(lists.values())}).write_parquet("given.parquet")
    pl.DataFrame({"video_id": free[:2]}).write_parquet("bans.parquet")
    done = score("a.parquet", "--candidates", "given.parquet", "--exclude", "bans.parquet", "--top-k", 3)
    assert done.code == 0, done.err
    why = by_user("a.parquet.fingerprints")
    assert (why[100], why[101]) == ("few candidates were given", None)
    assert done.summary["excluded_candidates"] == 2 + 2 + 2 + len({*free[:2]} - seen_of(log, 103))
    rows = pl.read_parquet("a.parquet")
    assert not rows["video_id"].is_in(free[:2]).any()
    assert rows.filter(pl.col("user_id") == 101)["video_id"].sort().to_list() == sorted(free[2:5])


def seen_of(log, user):
    return set(log.filter(pl.col("user_id") == user)["video_id"])


def test_a_whole_list_has_no_reason(score):
    done = score("a.parquet", "--top-k", 3)
    assert (done.summary["short_users"], done.summary["shortfalls"]) == (0, {})
    assert "shortfall_users" not in done.summary
    assert set(by_user("a.parquet.fingerprints").values()) == {None}


def test_caps_are_the_reason_where_there_were_enough_videos():
    enough = np.array([9, 9, 9, 2])
    available = Available(given_N=enough, eligible_N=enough, unseen_N=enough)
    assert available.reasons(np.array([3, 2, 3, 0]), 3).tolist() == [-1, 3, -1, 0]
