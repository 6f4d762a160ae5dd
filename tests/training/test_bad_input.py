"""What cannot be learned from, or saved: an error that says so, and nothing lost."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.model import weights
from genrec_batch.training import loop, phase, saving
from genrec_batch.training.options import TrainConfig
from tests.conftest import small_log

QUICK = ["--preset", "tiny", "--epochs", "2", "--max-events", "6"]


def said(done):
    return " ".join(done.err.split())


def trained_on(run, frame, *options):
    frame.write_parquet("log.parquet")
    done = run("train", "log.parquet", "--out", "model", *QUICK, *options)
    assert not Path("model").exists() or done.code == 0
    return done


@pytest.mark.parametrize(
    ("frame", "code", "message"),
    [
        (small_log().clear(), 3, "no rows, so nothing to learn from"),
        (small_log().with_columns(video_id=pl.lit(None, pl.Int64)), 3, "no row can be scored"),
        (small_log().filter(pl.col("user_id") == 105), 3, "all events are of one user"),
        (small_log().with_columns(video_id=pl.lit(7)), 3, "1 video, of which the vocabulary of 1000 holds 1"),
        (small_log().unique("user_id"), 3, "no user has two events"),
        (small_log().with_columns(engagement_label=pl.lit(0)), 3, "'engagement_label' is 0 in every event"),
    ],
)
def test_a_log_without_anything_to_learn(run, frame, code, message):
    done = trained_on(run, frame)
    assert (done.code, message in said(done)) == (code, True), said(done)
    assert not Path(".model.training").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--valid-from", "2031-01-01"], "--valid-from 2031-01-01: the log has no event from it on"),
        (["--valid-from", "2001-01-01"], "--valid-from 2001-01-01: the log has no event before it"),
        (["--valid-from", "soon"], "--valid-from 'soon': not a moment"),
        (["--valid-fraction", "1.5"], "--valid-fraction 1.5: above 0 and below 1"),
        (["--leave-one-out", "--valid-fraction", "0.1"], "only one of them"),
        (["--vocab-size", "2"], "no item beside padding and unknown"),
        (["--width", "60"], "width 60 is not a multiple of heads 16"),
        (["--positions", "8"], "--max-events 6 needs 11 positions, and the model has 8"),
        (["--time-limit", "soon"], "--time-limit 'soon': a time such as 90s, 45m or 2h"),
        (["--lr", "7"], "--lr 7.0: above 0 and below 1"),
        (["--dropout", "1"], "--dropout 1.0: from 0 to below 1"),
        (["--init-from", "nowhere"], "--init-from nowhere: no such directory"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_options_that_do_not_fit(run, options, message):
    done = trained_on(run, small_log(), *options)
    assert done.code in (2, 4, 5)
    assert message in said(done), said(done)


def test_labels_of_one_value_in_flags_leave_the_head_out(run):
    done = trained_on(run, small_log().with_columns(is_liked=pl.lit(False)))
    assert done.code == 0, done.err
    assert done.summary["heads_without_labels"] == ["engagement", "monetization"]


def test_a_model_that_is_there_already_is_not_replaced(run, log_file, model_dir):
    done = run("train", log_file, "--out", model_dir, *QUICK)
    assert done.code == 4
    assert "holds a model already" in said(done)


def test_videos_beyond_the_vocabulary_are_counted_and_never_targets(run):
    done = trained_on(run, small_log(), "--vocab-size", "10")
    assert done.code == 0, done.err
    assert "do not fit the vocabulary of 10" in said(done)
    assert "--vocab-size" in said(done)
    assert done.summary["catalog_videos"] == 8
    assert len(pl.read_parquet("model/catalog.parquet")) == 8


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_loss_that_is_not_a_number_ends_with_the_last_good_model(run, log_file, monkeypatch, epoch):
    real = loop.Trainer.losses

    def losses(self, batch, noise):
        found = real(self, batch, noise)
        return found if self.step < (epoch - 1) * 5 else loop.Losses(
            items=found.items * float("nan"), heads=found.heads, positions=found.positions, rows=found.rows
        )  # fmt: skip

    monkeypatch.setattr(phase, "estimated_epoch_s", lambda *_: 1.0)
    monkeypatch.setattr(loop.Trainer, "losses", losses)
    done = run("train", log_file, "--out", "model", *QUICK, "--batch-size", "8")
    assert done.code == 6
    assert "the loss is not a number" in said(done)
    assert "a smaller --lr" in said(done)
    assert not Path("model").exists()
    good = Path(".model.training/last-good")
    assert good.exists() == (epoch == 2)
    if good.exists():
        assert weights.load(good).trained
        assert run("score", log_file, "recs.parquet", "--model", good, "--max-events", "6").code == 0


def test_a_loss_that_grows_is_a_divergence(run, log_file, monkeypatch):
    monkeypatch.setattr(phase, "DIVERGED_STEPS", 2)
    monkeypatch.setattr(phase, "DIVERGED", -1.0)
    done = run("train", log_file, "--out", "model", *QUICK, "--batch-size", "8")
    assert done.code == 6
    assert "the loss diverges" in said(done)


def test_a_full_disk_loses_nothing(run, log_file, monkeypatch):
    whole = run("train", log_file, "--out", "whole", *QUICK)
    assert whole.code == 0

    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(saving, "curves", full)
        done = run("train", log_file, "--out", "model", *QUICK)
    assert done.code == 75
    assert "the disk is full" in said(done)
    assert not Path("model").exists()
    again = run("train", log_file, "--out", "model", *QUICK)
    assert again.code == 0, again.err
    assert "continuing" in again.err
    for name in ("model.safetensors", "catalog.parquet"):
        assert Path("model", name).read_bytes() == Path("whole", name).read_bytes()


def test_another_model_s_videos_are_found_by_id(run, log_file):
    assert run("train", log_file, "--out", "first", *QUICK).code == 0
    other = small_log(seed=9).filter(pl.col("video_id") > 1001)
    done = trained_on(run, other, "--init-from", "first")
    assert done.code == 0, done.err
    assert "begin with the embeddings of first" in said(done)
    assert weights.load(Path("model")).config == weights.PRESETS["tiny"]


def test_a_model_of_another_layout_is_refused_to_begin_with(run, log_file):
    assert run("train", log_file, "--out", "first", *QUICK).code == 0
    stored = Path("first/config.json")
    stored.write_text(stored.read_text().replace('"layout": "', '"layout": "0'))
    done = trained_on(run, small_log(), "--init-from", "first")
    assert done.code == 4
    assert "made for feature layout" in said(done)


@pytest.mark.parametrize(("more", "planned"), [([], 3), (["--set-epochs", "1"], 2)])
def test_a_run_with_a_time_limit_plans_fewer_epochs(run, log_file, monkeypatch, more, planned):
    monkeypatch.setattr(phase, "estimated_epoch_s", lambda *_: 100.0)
    options = [*QUICK[:2], "--epochs", "40", "--time-limit", "10m", "--max-events", "6", *more]
    done = run("train", log_file, "--out", "model", *options)
    assert done.code == 0, done.err
    assert done.summary["planned_epochs"] == planned  # of 200 s each, with the refit
    assert "about 10 min with the refit" in said(done)
    assert ("and 1 on sets" in said(done)) == bool(more)


def test_options_are_checked_without_reading_anything():
    assert TrainConfig(preset="reference", lr=0.1).recipe().lr == 0.1
    assert TrainConfig().sizes() == weights.PRESETS["lightweight"]
    assert TrainConfig(layers=2, width=32).sizes().layers == 2
    assert TrainConfig(max_events=1019).horizon(TrainConfig().sizes()) == 4
    with pytest.raises(ConfigError, match="--epochs 0: at least 1"):
        TrainConfig(epochs=0)
    with pytest.raises(ConfigError, match="--set-epochs -1"):
        TrainConfig(set_epochs=-1)
