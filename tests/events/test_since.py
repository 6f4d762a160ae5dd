"""`--since`: a log without its older events is the log from that moment on, for every command (`events/log.py`)."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from genrec_batch import Scorer
from tests.conftest import START

NEW = pl.col("timestamp") >= START + dt.timedelta(days=20)
MOMENT = "2026-04-21"


@pytest.fixture
def features(run, model_dir):
    """Computes the features of a log; returns the summary and the table."""

    def call(frame, *flags):
        frame.write_parquet("log.parquet")
        more = ["--model", model_dir, "--if-exists", "overwrite", "--memory-limit", "1MiB"]
        done = run("features", "log.parquet", "f.parquet", *more, *flags)
        assert done.code == 0, done.err
        return done.summary, pl.read_parquet("f.parquet")

    return call


@pytest.mark.parametrize("order", ["shuffled", "timestamp", "user_id"])
def test_only_the_newer_events_count(features, log, order):
    frame = log if order == "shuffled" else log.sort(order)
    summary, some = features(frame, "--since", MOMENT)
    whole, full = features(frame.filter(NEW))
    assert some.equals(full)
    assert summary["events"] == whole["events"] == len(log.filter(NEW))
    assert summary["rejected_rows"] == 0


def test_a_span_ends_at_as_of(features, log):
    last = log["timestamp"].max()
    for as_of, flags in ((last, []), (START + dt.timedelta(days=30), ["--as-of", "2026-05-01"])):
        summary, some = features(log, "--since", "5d", *flags)
        expected = log.filter(pl.col("timestamp").is_between(as_of - dt.timedelta(days=5), as_of))
        assert some["history_length"].sum() == len(expected)
        assert set(some["user_id"]) == set(expected["user_id"])
        assert summary["as_of"] == as_of.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_rows_that_cannot_be_used_are_counted_as_before(features, log):
    nulls = log.head(4).with_columns(video_id=pl.lit(None, pl.Int64), timestamp=pl.lit(START))
    summary, _ = features(pl.concat([log, nulls]), "--since", MOMENT)
    assert summary["rejected_rows"] == 4


def test_a_rolling_window_scores_what_is_in_it(run, log_file, model_dir):
    done = run("score", log_file, "o.parquet", "--model", model_dir, "--since", "3d")
    assert done.code == 0, done.err
    assert done.summary["events"] < 400
    done = run("score", log_file, "o.parquet", "--model", model_dir, "--since", "4d", "--if-exists", "resume")
    assert (done.code, "since" in done.err) == (2, True)


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_evaluate_and_train_leave_the_same_out(run, log_file, model_dir, command):
    where = ["--model", model_dir] if command == "evaluate" else ["--out", "m"]
    done = run(command, log_file, *where, "--since", "2030-01-01")
    assert (done.code, "none is an event from --since (2030-01-01 00:00:00 UTC) on" in done.err) == (3, True), done.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--since", "yesterday"], "--since 'yesterday': not a moment in ISO 8601"),
        (["--since", "30"], "--since '30': not a moment in ISO 8601"),
        (["--since", "2026-05-02", "--as-of", "2026-05-01"], "--since '2026-05-02': not before --as-of"),
    ],
)
def test_what_is_neither_a_moment_nor_a_span_is_refused(run, log_file, flags, said):
    done = run("score", log_file, "o.parquet", *flags)
    assert (done.code, said in done.err) == (2, True), done.err


def test_a_window_without_events_is_an_error_that_names_it(run, log_file, model_dir):
    done = run("score", log_file, "o.parquet", "--model", model_dir, "--since", "2030-01-01")
    assert (done.code, "from --since (2030-01-01 00:00:00 UTC) on" in done.err) == (3, True), done.err


def test_a_scorer_has_the_same_window(log, model_dir):
    some = Scorer(model=str(model_dir), since=MOMENT, as_of="2026-06-01")(log)
    assert pl.from_arrow(some).equals(pl.from_arrow(Scorer(model=str(model_dir), as_of="2026-06-01")(log.filter(NEW))))
