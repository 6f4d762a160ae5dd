"""Match rates: how far the model's catalog and each table meet the log, and what is too little.

It tests `joins`, `beside` and `user_list`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from genrec_batch import Scorer
from genrec_batch.model.weights import PRESETS
from tests.logs import catalog_of


@pytest.fixture
def score(run, log_file, model_dir):
    def call(*flags, command="score", model=model_dir):
        target = [] if command == "verify" else ["o.parquet"]
        return run(command, log_file, *target, "--model", model, "--if-exists", "overwrite", *flags)

    return call


def ids(*numbers, key="user_id"):
    return pl.DataFrame({key: numbers, "age": range(len(numbers))})


def given(users, *videos):
    return pl.DataFrame({"user_id": users, "video_id": [list(videos)] * len(users)})


def with_catalog(model_dir, rows):
    shutil.copytree(model_dir, "other")
    catalog_of(rows, vocabulary=PRESETS["tiny"].vocabulary).write(Path("other/catalog.parquet"))
    return "other"


def test_the_summary_tells_how_much_of_each_side_met(score, log):
    ids(*range(100, 120), 7, 8, 9).write_parquet("users.parquet")
    ids(1000, 1001, 5, key="video_id").write_parquet("videos.parquet")
    given([100, 101], 1000, 1001, 5).write_parquet("given.parquet")
    tables = ["--users", "users.parquet", "--videos", "videos.parquet", "--candidates", "given.parquet"]
    done = score(*tables, "--include-seen")
    assert done.code == 0, done.err
    found, videos = done.summary["matches"], log["video_id"].n_unique()
    everything = {"ids": videos, "against": "log", "against_ids": videos, "met": videos, "share": 1.0}
    assert found["catalog"] == {**everything, "share_of_events": 1.0}
    assert found["users"] == {"ids": 23, "against": "log", "against_ids": 40, "met": 20, "share": 0.8696}
    assert found["videos"]["met"] == 2
    assert found["candidate_users"] == {"ids": 2, "against": "log", "against_ids": 40, "met": 2, "share": 1.0}
    assert (found["candidate_videos"]["against"], found["candidate_videos"]["met"]) == ("catalog", 2)
    assert "--users users.parquet: 20 of its 23 user_id are among the 40 of INPUT" in done.err


@pytest.mark.parametrize(
    ("flag", "table"),
    [
        ("--users", ids(*range(35))),
        ("--users", ids(1, 2, 3)),
        ("--videos", ids(*range(35), key="video_id")),
        ("--candidates", given(range(30), 1000)),
        ("--candidates", given(range(100, 130), 1, 2, 3)),
        ("--candidates", given([100], 5)),
    ],
)
def test_a_table_of_other_ids_is_an_error_that_shows_some_of_each(score, flag, table):
    table.write_parquet("table.parquet")
    done = score(flag, "table.parquet")
    assert done.code == 3, done.err
    assert f"{flag} table.parquet: 0 of its" in done.err
    assert "there: 10" in done.err, "ids of the log"
    assert "--min-match 0" in done.err
    assert not Path("o.parquet").exists()


@pytest.mark.parametrize("flag", ["--users", "--videos"])
def test_the_advice_of_the_error_scores_everybody(score, flag):
    ids(*range(35), key=f"{flag[2:-1]}_id").write_parquet("table.parquet")
    done = score(flag, "table.parquet", "--min-match", "0")
    assert done.code == 0, done.err
    assert "under half" in " ".join(done.summary["warnings"])


def test_few_ids_may_have_none_in_common(score):
    ids(7, 8).write_parquet("users.parquet")
    done = score("--users", "users.parquet")
    assert (done.code, done.summary["users"]) == (0, 42)
    assert "0 of its 2 user_id" in " ".join(done.summary["warnings"])


def test_under_half_is_a_warning_and_min_match_a_gate(score):
    ids(*range(130, 170)).write_parquet("users.parquet")
    done = score("--users", "users.parquet")
    assert (done.code, done.summary["users"]) == (0, 70)
    assert "10 of its 40 user_id" in done.summary["warnings"][0]
    assert score("--users", "users.parquet", "--min-match", "0.25").code == 0
    gated = score("--users", "users.parquet", "--min-match", "0.3")
    assert gated.code == 6
    assert "a share of 0.250 of the smaller side, less than --min-match 0.3" in gated.err


@pytest.mark.parametrize("command", ["score", "features", "verify"])
def test_a_catalog_of_other_ids_is_an_error(score, log, model_dir, command):
    other = with_catalog(model_dir, log.with_columns(pl.col("video_id") - 1000))
    done = score(command=command, model=other)
    assert done.code == 4, done.err
    assert "--model other: 0 of its" in done.err
    assert "there: 1000, 1001, 1002" in done.err


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_train_and_evaluate_join_as_score_does(run, log, log_file, model_dir, command):
    ids(*range(35)).write_parquet("users.parquet")
    where = ["--model", model_dir] if command == "evaluate" else ["--out", "trained"]
    done = run(command, log_file, *where, "--users", "users.parquet")
    assert done.code == 3, done.err
    assert "--users users.parquet: 0 of its 35 user_id are among the 40 of EVENTS" in done.err
    if command == "evaluate":
        other = with_catalog(model_dir, log.with_columns(pl.col("video_id") - 1000))
        assert run("evaluate", log_file, "--model", other).code == 4


def test_a_model_that_knows_few_of_the_events_is_said(score, log, model_dir):
    counts = log["video_id"].value_counts(sort=True)
    rare = counts.filter(pl.col("count") <= 2)["video_id"]
    done = score(model=with_catalog(model_dir, log.filter(pl.col("video_id").is_in(rare.implode()))))
    assert done.code == 0, done.err
    assert done.summary["matches"]["catalog"]["share"] == 1.0
    assert done.summary["matches"]["catalog"]["share_of_events"] < 0.5
    assert "of the log's events are of videos that the model knows" in " ".join(done.summary["warnings"])


def test_tables_without_rows_are_errors(score, log, model_dir):
    ids(1).clear().write_parquet("users.parquet")
    done = score("--users", "users.parquet")
    assert (done.code, "--users users.parquet: no rows" in done.err) == (3, True)
    for table, said in ((given([100], 5).clear(), "no rows"), (given([100], 5).with_columns(video_id=[]), "no video")):
        table.cast({"video_id": pl.List(pl.Int64)}).write_parquet("given.parquet")
        done = score("--candidates", "given.parquet")
        assert (done.code, f"--candidates given.parquet: {said}" in done.err) == (3, True), done.err
    done = score(model=with_catalog(model_dir, log.clear()))
    assert (done.code, "catalog.parquet: the catalog has no rows" in done.err) == (4, True), done.err


def listed(*users, name="only.parquet", kind=pl.Int64):
    pl.DataFrame({"user_id": pl.Series(users, dtype=kind), "reason": ["test"] * len(users)}).write_parquet(name)
    return ["--users-only", name]


@pytest.mark.parametrize("command", ["score", "features"])
def test_users_only_scores_just_these_as_a_full_run_does(score, command):
    flags = ["--engine", "onnxruntime"] if command == "score" else []
    assert score(*flags, command=command).code == 0
    full = pl.read_parquet("o.parquet").filter(pl.col("user_id").is_in([103, 117]))
    done = score(*flags, *listed(117, 103, 103, kind=pl.Int32), command=command)
    assert (done.code, done.summary["users"]) == (0, 2), done.err
    some = pl.read_parquet("o.parquet")
    assert some["user_id"].unique().sort().to_list() == [103, 117]
    assert some.drop(pl.col(pl.Float32)).equals(full.drop(pl.col(pl.Float32)))


def test_users_only_goes_with_the_other_tables(score):
    ids(100, 101, 7).write_parquet("users.parquet")
    given([100, 102, 103], 1000, 1001).write_parquet("given.parquet")
    done = score("--users", "users.parquet", *listed(7, 100, 103, 5))
    assert (done.code, done.summary["users"], done.summary["users_without_events"]) == (0, 3, 1), done.err
    assert "--users-only only.parquet: 1 of its users are in no input" in " ".join(done.summary["warnings"])
    assert done.summary["matches"]["users_only"]["met"] == 3
    done = score("--candidates", "given.parquet", "--include-seen", *listed(102, 103, 104))
    assert (done.code, done.summary["users"]) == (0, 2), done.err


@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
def test_candidates_may_have_a_row_each(run, log, model_dir, kind):
    log.with_columns(pl.col("user_id").cast(kind)).write_parquet("events.parquet")
    lists = given([100, 102], 1001, 1000, 1002).with_columns(pl.col("user_id").cast(kind))
    lists.explode("video_id").sample(fraction=1, shuffle=True, seed=1).sort("user_id").write_parquet("flat.parquet")
    lists.write_parquet("lists.parquet")
    for name in ("flat", "lists"):
        flags = ["--candidates", f"{name}.parquet", "--include-seen", "--engine", "onnxruntime", "--precision", "fp32"]
        done = run("score", "events.parquet", f"o{name}.parquet", "--model", model_dir, *flags)
        assert (done.code, done.summary["users"], done.summary["rows"]) == (0, 2, 6), done.err
    columns = ["user_id", "rank", "video_id"]
    assert pl.read_parquet("oflat.parquet", columns=columns).equals(pl.read_parquet("olists.parquet", columns=columns))


LIST = {
    "u.csv": b"user_id\n103\n117\n103\n",
    "u.txt": b"103\n117\n",
    "users": b"\xef\xbb\xbfuser_id\r\n103\r\n\r\n117",
    "wide.csv": b"user_id,reason\n103,x\n117,y\n103,z\n",
}


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, pl.Int64) for name in LIST), ("u.csv", pl.String), ("users", pl.String)]
)
def test_users_only_may_be_a_text(run, log, model_dir, name, kind):
    log.with_columns(pl.col("user_id").cast(kind)).write_parquet("events.parquet")
    Path(name).write_bytes(LIST[name])
    command = ["score", "events.parquet", "o.parquet", "--model", model_dir, "--users-only", name]
    done = run(*command)
    assert (done.code, done.summary["users"]) == (0, 2), done.err
    assert run(*command, "--if-exists", "resume").summary["already_complete"]
    Path(name).write_bytes(LIST[name].replace(b"117", b"118"))
    done = run(*command, "--if-exists", "resume")
    assert (done.code, "users_only" in done.err) == (2, True), done.err


def test_users_only_in_many_row_groups(score, monkeypatch, log):
    monkeypatch.setattr("genrec_batch.io.row_groups.GROUP_ROWS", 50)
    log.filter(pl.col("user_id") < 110).write_parquet("some.parquet", row_group_size=20)
    done = score("--users-only", "some.parquet")
    assert (done.code, done.summary["users"]) == (0, 10), done.err


def test_a_text_of_other_ids_names_one(score):
    Path("u.txt").write_text("103\nbob\n")
    done = score("--users-only", "u.txt")
    assert (done.code, "--users-only u.txt: 'bob' is on a line of its own and no Int64" in done.err) == (3, True)
    Path("u.txt").write_text("")
    assert score("--users-only", "u.txt").code in (3, 99)


def test_users_only_of_nobody(score):
    done = score(*listed(1))
    assert (done.code, "--users-only only.parquet: 0 of its 1 user_id" in done.err) == (3, True)
    done = score(*listed())
    assert (done.code, "--users-only only.parquet: no rows, so nobody to score" in done.err) == (99, True)
    assert score(*listed(100), "--user", "101").code == 2
    ids(1, key="uid").write_parquet("only.parquet")
    done = score("--users-only", "only.parquet")
    assert (done.code, "column 'user_id' is missing. Did you mean 'uid'" in done.err) == (3, True), done.err


def test_another_list_is_another_run(score):
    assert score(*listed(100, 101), "--shard-users", "1").code == 0
    done = score(*listed(100, 102), "--shard-users", "1", "--if-exists", "resume")
    assert (done.code, "users_only" in done.err) == (2, True), done.err


def test_a_block_of_a_log_may_have_new_videos_alone(log, model_dir):
    new = log.head(30).with_columns(pl.col("video_id") - 1000)
    assert Scorer(model=str(model_dir))(new.to_arrow())["cold_start"].to_pylist()[0]
