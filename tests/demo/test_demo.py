"""The demo and the sample command, as a newcomer runs them.

Also tests `tables`.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.core.errors import EngineError
from genrec_batch.demo import demo
from genrec_batch.demo.tables import stdout
from genrec_batch.model import weights
from genrec_batch.reports.tables import stderr


@pytest.fixture
def quick(monkeypatch):
    """The demo with a small model and one size to time, over the sample log."""
    monkeypatch.setitem(weights.PRESETS, "reference", weights.PRESETS["tiny"])
    monkeypatch.setattr(demo, "SIZES", (1,))
    monkeypatch.setattr(demo, "TIMING_S", 0.0)


@pytest.mark.slow
def test_demo_scores_the_sample_log_and_shows_rows(run):
    done = run("demo")
    assert done.code == 0, done.err
    assert "genrec-batch score" in done.out
    assert done.summary["users"] == 505
    assert len(pl.read_parquet("demo_output/recs.parquet")) == 5050


@pytest.mark.usefixtures("quick")
def test_the_shipped_model_recommends_better_than_popularity(run):
    done = run("demo")
    assert done.code == 0, done.err
    assert "untrained" not in done.out + done.err
    found = done.summary["quality"]
    assert found["candidates"] > 0.2
    assert found["candidates"] > 2 * found["popularity"]
    assert "last-item transitions" in done.out


@pytest.mark.usefixtures("quick")
def test_without_the_shipped_model_the_demo_says_that_it_is_untrained(run, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "TRAINED", tmp_path / "absent")
    done = run("demo")
    assert (done.code, done.summary["quality"]) == (0, None), done.err
    assert "The model is untrained" in done.out
    assert "Left out: the model is untrained." in done.out


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("columns", [80, 160])
def test_demo_shows_history_beside_recommendations_at_any_width(run, monkeypatch, columns):
    for console in (stdout, stderr):
        monkeypatch.setattr(console, "_width", columns)
    done = run("demo")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    user = next(line.split("--user ")[1].split()[0] for line in lines if "--user " in line)
    log = pl.read_parquet(demo.SAMPLE).filter(pl.col("user_id") == int(user)).sort("timestamp")
    ours = pl.read_parquet("demo_output/recs.parquet").filter(pl.col("user_id") == int(user))
    start = next(i for i, line in enumerate(lines) if "watched, newest first" in line)
    end = next(i for i, line in enumerate(lines) if line.startswith("2."))
    shown = "\n".join(lines[start:end])
    assert all(str(video) in shown for video in (*log["video_id"].tail(10), *ours["video_id"]))
    assert all(f"{score:.2f}" in shown for score in ours["score"])
    assert "liked" in shown
    assert ("should see" in lines[start]) == (columns == 160)
    tables = [line for line in lines if not line.startswith(("$ ", "  genrec-batch", "{"))]
    assert max(map(len, tables)) <= columns


@pytest.mark.usefixtures("quick")
def test_demo_does_each_thing_once_and_says_where_files_are(run):
    done = run("demo")
    assert done.code == 0, done.err
    commands = [line for line in done.out.splitlines() if line.startswith("$ genrec-batch")]
    words = ("--user ", "--if-exists", "evaluate", "profile", "model export")
    assert [next(word for word in words if word in command) for command in commands] == [
        "--user ", "--if-exists", "evaluate", "profile", "model export"
    ]  # fmt: skip
    assert done.summary["command"] == "demo"
    assert {row["engine"] for row in done.summary["performance"]} >= {"onnxruntime"}
    assert done.summary["export"]["same_videos"] == done.summary["export"]["of"] == 10
    assert all(Path(f"demo_output/model/onnx/{name}.onnx").is_file() for name in ("prefill", "decode", "score"))
    for command in [line.strip() for line in done.out.splitlines() if line.startswith("  genrec-batch inspect")]:
        assert run(*shlex.split(command)[1:]).code == 0
    assert run("demo").code == 0, "a second demo in the same folder"


@pytest.mark.usefixtures("quick")
def test_demo_without_onnx_says_what_to_install_and_goes_on(run, monkeypatch):
    def missing(*_, **__):
        raise EngineError("an export needs the package onnx: pip install 'genrec-batch[cpu]'")

    monkeypatch.setattr(demo.export, "export", missing)
    done = run("demo")
    assert done.code == 0, done.err
    assert "Left out: an export needs the package onnx" in done.out
    assert done.summary["export"] is None


@pytest.mark.usefixtures("quick")
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
