"""`earlier`: outputs that `--exclude-recommended` reads, how old they may be, and those that it refuses."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from tests.conftest import START

KEYS = ["user_id", "video_id"]


@pytest.fixture
def score(run, log_file, model_dir):
    def call(target, *flags, as_of=30, log=log_file):
        moment = (START + dt.timedelta(days=as_of)).isoformat()
        fixed = ["--model", model_dir, "--engine", "torch", "--precision", "fp32", "--top-k", 3, "--as-of", moment]
        return run("score", log, target, *fixed, *flags)

    return call


def stored(path):
    folder = Path(path).is_dir()
    return pl.read_parquet(f"{path}/**/*.parquet" if folder else path, hive_partitioning=folder)


def pairs(path):
    rows = stored(path)
    if "video_id_1" in rows.columns:
        rows = rows.unpivot(pl.selectors.starts_with("video_id_"), index="user_id", value_name="video_id")
    rows = rows.explode("video_id") if rows.schema["video_id"].is_nested() else rows
    return set(rows.drop_nulls("video_id").select(KEYS).iter_rows())


FORMS = {
    "wide": ("a", "--shard-users", 7, "--layout", "wide"),
    "file": ("a.parquet",),
    "parts": ("a", "--shard-users", 7),
    "nested": ("a", "--shard-users", 7, "--layout", "nested"),
    "folders": ("a", "--shard-users", 7, "--partition-by", "cold_start"),
    "folders of users": ("a", "--shard-users", 7, "--partition-by", "user_id"),
    "folders of videos": ("a", "--partition-by", "video_id"),
    "nested folders of users": ("a", "--partition-by", "user_id", "--layout", "nested"),
    "wide folders of users": ("a", "--partition-by", "user_id", "--layout", "wide"),
    "nested file": ("a.parquet", "--layout", "nested"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("size", [16384, 11])
def test_no_user_gets_a_video_again(score, form, size):
    assert score(*form, as_of=29).code == 0
    done = score("b", "--exclude-recommended", form[0], "--shard-users", size)
    assert done.code == 0, done.err
    assert len(pairs("b")) == len(pairs(form[0])) == 120
    assert not pairs("b") & pairs(form[0])
    rules = done.summary["rules"][f"--exclude-recommended {form[0]}"]
    assert rules == {"rows": len(stored(form[0])), "as_of": "2026-04-30T00:00:00Z"}


def test_several_nights_count_up_to_an_age(score):
    assert score("old", as_of=22.5).code == 0
    assert score("new", as_of=23).code == 0
    done = score("b", "--exclude-recommended", "old", "--exclude-recommended", "new")
    assert done.code == 0, done.err
    assert pairs("old") & pairs("b"), "a list of 7.5 days ago may come back"
    assert not pairs("new") & pairs("b")
    said = "--exclude-recommended old: left out, since it is 7 days, 12:00:00 older than this run, beyond --again-after"
    assert said in " ".join(done.err.split())
    assert list(done.summary["rules"]) == ["--exclude-recommended new"]
    score("c", "--exclude-recommended", "old", "--exclude-recommended", "new", "--again-after", "8d")
    assert not (pairs("old") | pairs("new")) & pairs("c")


def test_folders_of_users_whose_ids_are_texts(score, log):
    texts = log.with_columns(pl.format("ü/{}=%", "user_id").alias("user_id"))
    texts.write_parquet("texts.parquet")
    score("a", "--partition-by", "user_id", as_of=29, log="texts.parquet")
    score("flat", as_of=29, log="texts.parquet")
    assert score("b", "--exclude-recommended", "a", log="texts.parquet").code == 0
    assert len(pairs("b")) == 120
    assert not pairs("flat") & pairs("b")


def test_an_output_of_a_later_moment_does_not_count(score):
    assert score("later", as_of=31).code == 0
    done = score("b", "--exclude-recommended", "later")
    assert "left out, since it is of a later as-of than this run" in " ".join(done.err.split())
    assert "rules" not in done.summary


def test_ids_that_are_texts_are_ranges_too(score, log):
    texts = log.with_columns(pl.col("user_id").cast(pl.String))
    texts.write_parquet("texts.parquet")
    score("a", "--shard-users", 7, as_of=29, log="texts.parquet")
    score("b", "--exclude-recommended", "a", log="texts.parquet")
    assert len(pairs("b")) == 120
    assert not pairs("a") & pairs("b")
    done = score("c", "--exclude-recommended", "a")
    assert (done.code, "column 'user_id' is String and that of the log is Int64" in done.err) == (3, True)


def test_users_without_rows_in_it_get_any_video(score, log):
    log.filter(pl.col("user_id") > 120).write_parquet("some.parquet")
    score("a", as_of=29, log="some.parquet")
    score("plain")
    score("b", "--exclude-recommended", "a")
    first = [pair for pair in pairs("plain") if pair[0] <= 120]
    assert set(first) == {pair for pair in pairs("b") if pair[0] <= 120}


def test_an_earlier_output_is_an_input_of_the_run(score):
    score("a", as_of=29)
    first = score("b", "--exclude-recommended", "a").summary
    again = score("b", "--exclude-recommended", "a", "--if-exists", "resume").summary
    assert again["already_complete"]
    score("a", "--include-seen", "--if-exists", "overwrite", as_of=29)
    assert score("c", "--exclude-recommended", "a").summary["run_id"] != first["run_id"]
    metadata = pl.read_parquet_metadata("b/part-00000.parquet")
    assert '"exclude_recommended": {"bytes"' in metadata["genrec.input"]


def change(path, at, value):
    content = bytearray(Path(path).read_bytes())
    content[at] ^= value
    Path(path).write_bytes(content)


def test_a_damaged_output_is_an_error_that_names_it(score):
    score("a", "--shard-users", 20, as_of=29)
    score("a.parquet", as_of=29)
    faults = {
        "a byte of a part": lambda: change("x/part-00001.parquet", 90, 1),
        "a part is missing": lambda: Path("x/part-00001.parquet").unlink(),
        "a part too many": lambda: shutil.copy("x/part-00001.parquet", "x/part-00009.parquet"),
        "the manifest": lambda: Path("x/_manifest.json").write_text("{}"),
        "not finished": lambda: Path("x/_SUCCESS").unlink(),
    }
    for name, damage in faults.items():
        shutil.copytree("a", "x")
        damage()
        done = score("b", "--exclude-recommended", "x")
        assert (done.code, "--exclude-recommended x: " in done.err) == (3, True), name
        shutil.rmtree("x")
    change("a.parquet", 90, 1)
    done = score("b", "--exclude-recommended", "a.parquet")
    assert (done.code, "--exclude-recommended a.parquet: it is damaged" in done.err) == (3, True)
    Path("a.parquet").write_bytes(Path("a.parquet").read_bytes()[:-9])
    assert score("b", "--exclude-recommended", "a.parquet").code == 3
    assert not Path("b").exists()


def test_what_is_no_output_is_an_error_that_names_it(score, log_file, run):
    done = score("b", "--exclude-recommended", "event.parquet")
    assert (done.code, "no such file or directory. Did you mean 'events.parquet'?" in done.err) == (3, True)
    done = score("b", "--exclude-recommended", log_file)
    assert (done.code, "not a finished and whole output of `genrec-batch score`" in done.err) == (3, True)
    assert run("features", log_file, "f.parquet", "--limit", 2).code == 0
    done = score("b", "--exclude-recommended", "f.parquet", "--again-after", "52w", as_of=60)
    assert (done.code, "column 'video_id' is missing" in done.err) == (3, True)


def test_the_output_itself_is_a_usage_error(score):
    score("a", as_of=29)
    done = score("a", "--exclude-recommended", "./a", "--if-exists", "overwrite")
    assert (done.code, "this run's OUTPUT would replace it" in done.err) == (2, True)
    assert pq.read_table("a").num_rows == 120
