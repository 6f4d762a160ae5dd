"""The summary's `warnings` has every warning of stderr, whoever logged it (`runtime/console.py`)."""

from __future__ import annotations

import json

import polars as pl
import pytest

from genrec_batch import score


def on_stderr(done):
    return [record["message"] for record in map(json.loads, done.err.splitlines()) if record["level"] == "warning"]


@pytest.fixture
def flawed(log):
    """A log with rejected rows, an empty column, and users who have seen nearly everything."""
    nulls = log.head(3).with_columns(video_id=pl.lit(None, pl.Int64))
    pl.concat([log, nulls]).with_columns(skip_duration=pl.lit(None, pl.Float64)).write_parquet("flawed.parquet")
    return "flawed.parquet"


def test_every_warning_is_in_the_summary(run, flawed, model_dir):
    done = run("score", flawed, "o.parquet", "--model", model_dir, "--top-k", 110, "--log-format", "json")
    assert done.code == 0, done.err
    said = " ".join(done.summary["warnings"])
    for part in ("rejected", "skip_duration", "fewer than --top-k"):
        assert part in said
    assert done.summary["warnings"] == on_stderr(done)


def test_a_variable_that_nothing_reads_is_among_them(run, log_file, model_dir):
    done = run("features", log_file, "f.parquet", "--model", model_dir, "--log-format", "json", GENREC_BATCH_TOPK="3")
    assert done.code == 0, done.err
    assert "GENREC_BATCH_TOPK" in done.summary["warnings"][0]
    assert done.summary["warnings"] == on_stderr(done)


def test_a_call_of_the_python_api_has_its_own_warnings_alone(flawed, log_file, model_dir):
    assert score(flawed, "a.parquet", model=str(model_dir))["warnings"]
    assert score(str(log_file), "b.parquet", model=str(model_dir))["warnings"] == []
