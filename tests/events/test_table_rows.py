"""Rows of side tables: a bad one is rejected, the newest of an id counts where a column says so."""

from __future__ import annotations

import json

import polars as pl
import pytest

NAN = float("nan")
USERS = pl.DataFrame({"user_id": range(100, 140), "level": [i % 3 for i in range(40)]})


@pytest.fixture
def features(run, log_file, model_dir):
    def call(*flags):
        ran = run("features", log_file, "f.parquet", "--model", model_dir, "--if-exists", "overwrite", *flags)
        slots = None if ran.code else dict(pl.read_parquet("f.parquet").select("user_id", "features").iter_rows())
        return ran, slots

    return call


@pytest.mark.parametrize("flag", ["--users", "--videos", "--candidates"])
def test_a_null_id_and_a_repeated_one_cost_one_row_each(run, log_file, model_dir, flag):
    key = "video_id" if flag == "--videos" else "user_id"
    ids = [*range(1000, 1040)] if flag == "--videos" else [*range(100, 140)]
    table = pl.DataFrame({key: [*ids, None, ids[0]]})
    if flag == "--candidates":
        table = table.with_columns(video_id=pl.lit([1000, 1001, 1002]))
    table.write_parquet("side.parquet")
    score = ["score", log_file, "recs.parquet", "--model", model_dir, "--top-k", "2", flag, "side.parquet"]
    ran = run(*score, "--rejects", "rejects.parquet")
    assert ran.code == 0, ran.err
    name = flag.lstrip("-")
    assert ran.summary["rejected_rows_of_tables"] == {name: {f"{key} is null": 1, f"{key} repeats": 1}}
    rejects = pl.read_parquet("rejects.parquet")
    assert rejects["input"].to_list() == [name, name]
    assert sorted(rejects["row"]) == [40, 41]
    assert json.loads(rejects.filter(reason=f"{key} repeats")["values"][0]) == {key: ids[0]}
    table[[0, 0, 1, 1]].write_parquet("side.parquet")
    assert run(*score, "--if-exists", "overwrite").code == 6


def test_the_first_row_of_an_id_counts_or_the_newest_where_a_column_says_so(features):
    rows = pl.concat([USERS, USERS[:1].with_columns(level=pl.lit(2, pl.Int64))])
    USERS.write_parquet("u.parquet")
    first = features("--users", "u.parquet")[1]
    rows.with_columns(at=pl.int_range(pl.len())).drop("at").write_parquet("u.parquet")
    assert features("--users", "u.parquet")[1][100] == first[100]
    USERS.with_columns(level=pl.when(pl.col("user_id") == 100).then(2).otherwise("level")).write_parquet("u.parquet")
    wanted = features("--users", "u.parquet")[1]
    dated = rows.with_columns(friend_id=pl.int_range(pl.len()))  # a name that is not hashed
    dated.write_parquet("u.parquet")
    ran, newest = features("--users", "u.parquet", "--side-tables-newest", "friend_id")
    assert newest[100] == wanted[100]
    assert "rejected_rows_of_tables" not in ran.summary
    assert features("--users", "u.parquet", "--side-tables-newest", "updated_at")[0].code == 2


def test_a_vector_with_a_hole_costs_its_row(features):
    vectors = [[0.5] * 8 for _ in range(40)]
    vectors[3] = [NAN, *[0.5] * 7]
    USERS.with_columns(profile=pl.Series(vectors)).write_parquet("u.parquet")
    ran, slots = features("--users", "u.parquet")
    reason = "profile holds null, NaN or infinity, or has another width"
    assert ran.summary["rejected_rows_of_tables"] == {"users": {reason: 1}}
    assert slots[103][600] == 0
    assert slots[104][600] == 0.5


def test_entries_and_where_of_side_tables(features, tmp_path):
    raw = USERS.with_columns(age=pl.when(pl.col("user_id") == 106).then(pl.lit("old")).otherwise(pl.lit("30")))
    raw.rename({"user_id": "order"}).write_parquet("u.parquet")
    (tmp_path / "s.toml").write_text('[users]\nuser_id = "order"\nwhere = "level < 2"\nage = "CAST(age AS BIGINT)"\n')
    ran, slots = features("--users", "u.parquet", "--schema", "s.toml")
    assert ran.code == 0, ran.err
    assert ran.summary["rejected_rows_of_tables"] == {"users": {"an expression cannot be computed": 1}}
    assert not any(slots[102][600:800])
    assert any(slots[103][600:800])
