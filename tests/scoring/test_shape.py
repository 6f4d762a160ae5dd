"""`shape` and `carry`: what rows carry, in which columns and in which layout, through the whole job."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.api import Scorer, score
from genrec_batch.core.errors import ConfigError
from genrec_batch.io import published
from genrec_batch.io.recommended import Recommended

FLAGS = ["--as-of", "2026-06-01", "--shard-users", "7", "--precision", "fp32", "--engine", "torch"]
CARRY = "title,kind,tags,made,info,price,users.country,age"
LAYOUTS = ("long", "nested", "wide")


def videos(log, title="t"):
    """A table of most of the log's videos with a column of every kind."""
    ids = log["video_id"].unique().sort()[5:]
    return pl.DataFrame(
        {
            "video_id": ids,
            "title": [f"{title}{number}" for number in ids],
            "kind": pl.Series([f"c/{number % 3}" for number in ids]).cast(pl.Categorical),
            "tags": [[f"a{number}", None] for number in ids],
            "made": [dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(hours=number) for number in ids],
            "info": [{"size": number, "hd": True} for number in ids],
            "price": pl.Series([number / 3 for number in ids], dtype=pl.Float32),
            "country": ["jp"] * len(ids),
        }
    )


def users(log):
    """A table of most of the log's users, and of one who has watched nothing."""
    ids = [*log["user_id"].unique().sort()[3:], 7]
    return pl.DataFrame({"user_id": ids, "country": [["de", "fr", None][number % 3] for number in ids], "age": ids})


@pytest.fixture
def tables(log, log_file):
    videos(log).write_parquet("videos.parquet")
    users(log).write_parquet("users.parquet")
    return log_file


@pytest.fixture
def call(tables, model_dir, run):
    def go(target, *flags, code=0):
        beside = ["--videos", "videos.parquet", "--users", "users.parquet", "--min-match", "0"]
        done = run("score", tables, target, "--model", model_dir, *beside, *FLAGS, *flags)
        assert done.code == code, done.err
        return done

    return go


def rows_of(path):
    files, metadata = published.files_of(Path(path))
    return Recommended.of(files, metadata).all_rows().collect()


@pytest.fixture
def wanted(call, log):
    """Rows without carried columns, to which Polars joins the tables."""
    call("plain.parquet")
    plain = pl.read_parquet("plain.parquet")
    mine = users(log).select("user_id", "country", "age")
    theirs = videos(log).drop("country").with_columns(pl.col("kind").cast(pl.String))
    joined = plain.join(theirs, on="video_id", how="left").join(mine, on="user_id", how="left")
    assert 0 < joined["title"].null_count() < len(joined)
    return joined.sort("user_id", "rank")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", ["recs", "recs.parquet"])
def test_every_layout_carries_the_columns_of_both_tables_with_their_types(call, wanted, layout, target):
    call(target, "--carry", CARRY, "--layout", layout)
    rows = rows_of(target)
    assert rows.select(wanted.columns).equals(wanted)
    assert rows.select(wanted.columns).schema == wanted.schema


def test_the_wide_layout_has_numbered_columns_and_null_where_a_list_is_short(call):
    call("recs.parquet", "--layout", "wide", "--top-k", "90", "--columns", "video_id,user_id,score,cold_start")
    rows = pl.read_parquet("recs.parquet")
    numbers = range(1, 91)
    assert rows.columns == [
        *(f"video_id_{k}" for k in numbers), "user_id", *(f"score_{k}" for k in numbers), "cold_start"
    ]  # fmt: skip
    assert len(rows) == 41
    assert rows["video_id_1"].null_count() == 0
    assert 0 < rows["video_id_90"].null_count() < 41
    assert rows["video_id_90"].is_null().equals(rows["score_90"].is_null())


def test_columns_are_those_that_were_chosen_in_their_order(call, wanted):
    call("recs", "--carry", CARRY, "--columns", "title,rank,user_id,video_id,age")
    rows = pl.read_parquet("recs/part-*.parquet")
    assert rows.equals(wanted.select("title", "rank", "user_id", "video_id", "age"))


def test_a_carried_column_can_have_another_name(call, wanted):
    call("recs.parquet", "--carry", "video_country=videos.country,country=users.country")
    rows = pl.read_parquet("recs.parquet")
    assert rows["country"].equals(wanted["country"])
    assert set(rows["video_country"].drop_nulls()) == {"jp"}
    assert rows["video_country"].is_null().equals(wanted["title"].is_null().alias("video_country"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--carry", "titel"], "no such column in --videos or --users. Did you mean 'title'?"),
        (["--carry", "users.title"], "no such column in --users."),
        (["--carry", "country"], "write videos.country or users.country"),
        (["--columns", "user_id,rank,video_id,source"], "'source' is a column of runs with rules or arms only"),
        (["--partition-by", "title"], "the output has no such column"),
        (["--partition-by", "score"], "its type is Float32"),
        (["--carry", "tags", "--partition-by", "tags"], "its type is List(String)"),
        (["--carry", "kind", "--partition-by", "kind", "--layout", "nested"], "name a column of the user"),
        (["--carry", "kind", "--partition-by", "kind", "--layout", "wide"], "name a column of the user"),
    ],
)
def test_a_column_that_is_not_there_is_refused_before_anything_is_published(call, flags, said):
    done = call("recs", *flags, code=2)
    assert said in done.err
    assert not Path("recs").exists()


def test_one_file_has_no_folders(call):
    assert "OUTPUT recs.parquet is one file" in call("recs.parquet", "--partition-by", "cold_start", code=2).err


@pytest.mark.parametrize(
    ("flags", "column"),
    [
        (["--carry", "kind"], "kind"),
        (["--carry", "users.country"], "country"),
        (["--carry", "users.country", "--layout", "nested"], "country"),
        (["--carry", "users.country", "--layout", "wide"], "country"),
        ([], "cold_start"),
        ([], "rank"),
    ],
)
def test_folders_hold_the_rows_of_an_output_without_them(call, flags, column):
    call("flat", *flags)
    call("recs", *flags, "--partition-by", column)
    flat, rows = rows_of("flat"), rows_of("recs")
    assert rows.sort("user_id", "rank").select(flat.columns).equals(flat)
    folders = {str(value).lower() if value is not None else "__HIVE_DEFAULT_PARTITION__" for value in flat[column]}
    found = {folder.name for folder in Path("recs").iterdir() if folder.is_dir()}
    assert found == {f"{column}={value}".replace("/", "%2F") for value in folders}


@pytest.mark.parametrize("flags", [["--layout", "wide"], ["--partition-by", "kind"], ["--layout", "nested"]])
def test_inspect_finds_the_same_in_every_form(call, run, flags):
    call("flat", "--carry", "kind")
    call("recs", "--carry", "kind", *flags)
    looks = [json.loads(run("inspect", name, "--json").out) for name in ("flat", "recs")]
    for part in ("counts", "scores", "videos"):
        assert looks[0][part] == looks[1][part]
    assert all(check["ok"] for check in looks[1]["checks"])
    assert flags[1] in looks[1]["form"]


def test_inspect_notices_what_is_wrong_in_folders(call, run):
    call("recs", "--carry", "kind", "--partition-by", "kind")
    part = next(Path("recs").glob("kind=*/part-00001.parquet"))
    part.write_bytes(part.read_bytes()[:-9] + b"damaged!!")
    done = run("inspect", "recs")
    assert done.code == 6
    assert f"{part.relative_to('recs')} (damaged" in done.err


def test_inspect_and_the_printed_rows_do_without_columns_that_were_not_chosen(call, run):
    done = call("recs", "--columns", "user_id,rank,video_id", "--user", "105")
    assert "105" in done.out
    assert run("inspect", "recs").code == 0
    found = json.loads(run("inspect", "recs", "--json").out)
    assert (found["scores"], found["counts"]["cold_start_users"], found["counts"]["rows"]) == ([], None, 10)


@pytest.mark.parametrize("first", [["--layout", "wide"], ["--layout", "nested"], ["--partition-by", "cold_start"], []])
@pytest.mark.parametrize("second", [["--layout", "wide"], ["--layout", "long"]])
def test_rows_are_kept_whatever_the_layouts_with_tonights_titles(call, log, first, second):
    """With embeddings the model does not read titles, so that its input is the same."""
    vectors = pl.Series("embedding", [[0.0] * 4] * 89)
    videos(log, "old title of ").with_columns(vectors).write_parquet("videos.parquet")
    call("a", *first)
    videos(log, "new title of ").with_columns(vectors).write_parquet("videos.parquet")
    done = call("b.parquet", "--previous", "a", "--carry", CARRY, *second)
    assert done.summary["carried_users"] == 41
    call("full.parquet")
    full = pl.read_parquet("full.parquet").drop("feature_scores")
    rows = rows_of("b.parquet")
    assert rows.select(full.columns).equals(full)
    assert rows["title"].drop_nulls().str.starts_with("new title of ").all()


def test_an_output_without_the_columns_of_tonight_gives_no_row_and_says_why(call):
    call("a", "--columns", "user_id,rank,video_id,step")
    assert call("b", "--previous", "a", "--columns", "user_id,rank,video_id").summary["carried_users"] == 41
    done = call("c", "--previous", "a", "--columns", "user_id,rank,video_id,score,step")
    assert done.summary["carried_users"] == 0
    assert "its columns, which were chosen by --columns without score" in done.err


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_with_other_columns_is_another_run(call, layout):
    call("a", "--layout", layout, "--carry", "title")
    done = call("a", "--layout", layout, "--if-exists", "resume", code=2)
    assert "config.carry ('title', now None)" in done.err
    assert call("a", "--layout", layout, "--carry", "title", "--if-exists", "resume").summary["already_complete"]


def test_the_python_api_takes_the_same_options(tables, model_dir, wanted):
    options = {"model": str(model_dir), "precision": "fp32", "engine": "torch", "as_of": "2026-06-01"}
    options |= {"videos": "videos.parquet", "users": "users.parquet", "carry": "title,age"}
    score(tables, "recs", **options, partition_by="age", min_match=0.0, columns="user_id,rank,video_id,title,age")
    assert rows_of("recs").sort("user_id", "rank")["title"].equals(wanted["title"])
    scorer = Scorer(**options, layout="wide", columns="user_id,video_id,title,age", top_k=2)
    events = pl.read_parquet(tables)
    some = pl.DataFrame(scorer(events))
    assert some.columns == ["user_id", "video_id_1", "video_id_2", "title_1", "title_2", "age"]
    nobody = pl.DataFrame(scorer(events.clear()))
    assert nobody.schema == some.schema
    with pytest.raises(ConfigError, match="there is no OUTPUT"):
        Scorer(**options, partition_by="age")
