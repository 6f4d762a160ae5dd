"""`given_ids`: ids of side tables as numbers with fractions and as text, in the type of the log's."""

from __future__ import annotations

import json

import polars as pl
import pytest

IDS = [*range(100, 140)]


@pytest.fixture
def score(run, log_file, model_dir):
    def call(*flags):
        always = ["--model", model_dir, "--top-k", "2", "--if-exists", "overwrite", "--rejects", "rejects.parquet"]
        return run("score", log_file, "recs.parquet", *always, *flags)

    return call


@pytest.mark.parametrize(("flag", "name"), [("--users", "users"), ("--users-only", "users_only")])
@pytest.mark.parametrize("odd", [12.5, float("inf"), 2.0**53])
def test_one_number_that_is_no_id_costs_one_row(score, flag, name, odd):
    pl.DataFrame({"user_id": [*map(float, IDS), odd, None, float("nan")], "level": 1}).write_parquet("side.parquet")
    ran = score(flag, "side.parquet", "--max-rejects", "0.1")
    assert ran.code == 0, ran.err
    rejects = pl.read_parquet("rejects.parquet").filter(input=name)
    assert rejects["row"].to_list()[0] == 40
    assert rejects["reason"][0] == "user_id is no Int64, as the log's are"
    assert float(json.loads(rejects["values"][0])["user_id"]) == odd
    assert set(rejects["reason"][1:]) == {"user_id is null"}


def test_a_table_without_any_id_is_refused(score):
    pl.DataFrame({"user_id": [12.5, 13.5]}).write_parquet("side.parquet")
    ran = score("--users", "side.parquet")
    assert ran.code == 3
    assert "--users side.parquet: column 'user_id' is Float64, expected an integer or a string" in ran.err


@pytest.mark.parametrize("videos", [[1000.0, 1001.0, 1002.5, float("nan")], ["1000", "1001", "x", "01002"]])
@pytest.mark.parametrize("nested", [True, False])
def test_a_candidate_that_is_no_id_is_left_out_and_no_other_is_taken_for_it(score, videos, nested):
    if nested:
        table = pl.DataFrame({"user_id": [100], "video_id": [videos]})
    else:
        table = pl.DataFrame({"user_id": 100, "video_id": videos})
    table.write_parquet("side.parquet")
    ran = score("--candidates", "side.parquet", "--include-seen", "--top-k", "3")
    assert ran.code == 0, ran.err
    assert sorted(pl.read_parquet("recs.parquet")["video_id"]) == [1000, 1001]
    said = f"2 of the 4 values in column 'video_id' are no Int64, as the log's are, such as {videos[2]!r}"
    assert any(said in warning for warning in ran.summary["warnings"])


def test_the_text_ids_of_a_log_are_met_by_whole_numbers(run, log_file, model_dir):
    log = pl.read_parquet(log_file).with_columns(pl.col("user_id").cast(pl.String))
    log.write_parquet("texts.parquet")
    pl.DataFrame({"user_id": [100.0, 101.0, None, 102.5]}).write_parquet("side.parquet")
    ran = run(
        *("score", "texts.parquet", "recs.parquet", "--model", model_dir, "--users-only", "side.parquet"),
        *("--max-rejects", "0.6", "--top-k", "2"),
    )
    assert ran.code == 0, ran.err
    assert set(pl.read_parquet("recs.parquet")["user_id"]) == {"100", "101"}
    assert ran.summary["rejected_rows_of_tables"] == {
        "users_only": {"user_id is null": 1, "user_id is no whole number": 1}
    }
