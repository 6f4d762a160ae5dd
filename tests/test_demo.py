"""The demo and the sample command, as a newcomer runs them."""

from __future__ import annotations

import polars as pl
import pytest

from genrec_batch import demo


@pytest.mark.slow
def test_demo_scores_the_sample_log_and_shows_rows(run):
    done = run("demo")
    assert done.code == 0, done.err
    assert "genrec-batch score" in done.out
    assert done.summary["users"] == 500
    assert len(pl.read_parquet("demo_output/recs.parquet")) == 5000


def test_demo_outside_a_checkout_makes_its_log(run, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "SAMPLE", tmp_path / "nowhere.parquet")
    done = run("demo", "--users", "20")
    assert done.code == 0, done.err
    assert done.summary["users"] == 20


def test_sample_writes_the_same_log_for_the_same_seed(run, tmp_path):
    for name in ("a", "b"):
        done = run("sample", f"{name}.parquet", "--users", "50", "--events-per-user", "5", "--seed", "3")
        assert done.code == 0, done.err
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert run("sample", "a.parquet", "--users", "50").code == 2


def test_sample_takes_an_order_a_length_and_an_older_log_of_its_own(run):
    small = ("sample", "log.parquet", "--users", "40", "--events-per-user", "6", "--days", "3", "--videos", "100")
    for order, column in (("time", "timestamp"), ("user", "user_id")):
        done = run(*small, "--order", order, "--if-exists", "overwrite")
        assert done.code == 0, done.err
        log = pl.read_parquet("log.parquet")
        assert log[column].is_sorted()
        assert (len(log), log["timestamp"].dt.date().n_unique()) == (done.summary["rows"], 3)
        assert log["video_id"].n_unique() <= 100
    again = run(*small)
    assert (again.code, "--if-exists overwrite" in again.err) == (2, True)
    for name, value in (("--order", "random"), ("--if-exists", "resume")):
        wrong = run("sample", "new.parquet", name, value)
        assert (wrong.code, name in wrong.err) == (2, True)


def test_demo_leaves_a_folder_of_yours_alone(run, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    done = run("demo", "--folder", "mine")
    assert (done.code, "not made by the demo" in done.err) == (2, True)
    assert (tmp_path / "mine" / "model").is_dir()
