"""`promoted`: the table of `--promote`, and every fault of it."""

from __future__ import annotations

import json

import polars as pl
import pytest


@pytest.fixture
def score(run, log_file, model_dir):
    def call(table, *more):
        pl.DataFrame(table).write_parquet("promoted.parquet")
        options = ["--model", model_dir, "--engine", "torch", "--precision", "fp32", "--promote", "promoted.parquet"]
        return run("score", log_file, "recs.parquet", *options, "--if-exists", "overwrite", *more)

    return call


def said(done):
    return " ".join(done.err.split())


@pytest.mark.parametrize(
    ("table", "code", "text"),
    [
        ({"video": [1]}, 3, "column 'video_id' is missing"),
        ({"video_id": pl.Series([], dtype=pl.Int64)}, 3, "no rows, so nothing to promote"),
        ({"video_id": [1, 2]}, 3, "none of its 2 video_id (1, 2) is in the model's catalog"),
        ({"video_id": ["x", "y"]}, 3, "no row would ever match"),
        ({"video_id": [1001], "rank": [0]}, 3, "column 'rank' holds 0, expected places from 1 to --top-k 10"),
        ({"video_id": [1001], "rank": [11]}, 3, "column 'rank' holds 11"),
        ({"video_id": [1001], "rank": [1.5]}, 3, "column 'rank' holds 1.5"),
        ({"video_id": [1001], "rank": ["first"]}, 3, "column 'rank' is String"),
        ({"video_id": [1001, 1002], "rank": [4, 4]}, 3, "several videos have place 4; give each its own"),
        (
            {"video_id": [1001, 1002], "user_id": [100, 100], "rank": [4, 4]},
            3,
            "several videos have place 4 of user 100",
        ),
        ({"video_id": [1001, 1001]}, 6, "video_id repeats"),
        ({"video_id": [1001] * 5, "user_id": [1, 2, 3, 4, 5]}, 3, "next to nothing joins"),
        ({"video_id": [1001, 1002], "user_id": [100, None]}, 6, "user_id is null"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(score, table, code, text):
    done = score(table)
    assert done.code == code, done.err
    assert text in said(done)


def test_videos_that_the_model_lacks_are_left_out_and_counted(score):
    done = score({"video_id": [1001, 5, 6], "rank": [1.0, None, None]})
    assert done.code == 0, done.err
    assert "2 of its 3 videos are not in the catalog and left out" in said(done)
    assert done.summary["matches"]["promote"] == {"ids": 3, "against": "catalog", "met": 1}


def test_a_video_of_several_users_is_no_repeat_and_one_place_can_be_in_many_lists(score):
    done = score({"video_id": [1001, 1001, 1002], "user_id": [100, 101, 101], "rank": [1, 1, None]}, "--include-seen")
    assert done.code == 0, done.err
    rows = pl.read_parquet("recs.parquet").filter(pl.col("source") == "promoted")
    assert rows.select("user_id", "rank", "video_id").rows() == [(100, 1, 1001), (101, 1, 1001), (101, 6, 1002)]


def test_the_table_is_an_input_of_the_run(score):
    assert score({"video_id": [1001]}).code == 0
    metadata = pl.read_parquet_metadata("recs.parquet")
    assert json.loads(metadata["genrec.input"])["promote"]["rows"] == 1
    first = metadata["genrec.run_id"]
    assert score({"video_id": [1002]}).code == 0
    assert pl.read_parquet_metadata("recs.parquet")["genrec.run_id"] != first
