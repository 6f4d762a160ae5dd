"""The check of precision that a training makes for the first run of its model."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

from genrec_batch.core.errors import EngineError
from genrec_batch.engines import choose
from genrec_batch.training import precheck

QUICK = ["--preset", "tiny", "--epochs", "1", "--max-events", "10"]
SCORE = ["--model", "model", "--max-events", "10", "--device", "cpu"]


@pytest.fixture(autouse=True)
def a_cpu_that_is_fast_in_bf16(monkeypatch):
    monkeypatch.setattr(choose, "fast_precisions", lambda *_: ("bf16",))
    monkeypatch.setattr(precheck, "device_of", lambda *_: "cpu")
    monkeypatch.setattr(choose, "device_of", lambda *_: "cpu")


def test_the_first_run_takes_the_check_of_the_training(run, log_file, monkeypatch):
    made = run("train", log_file, "--out", "model", *QUICK).summary["engine_check"]
    assert (made["why"], made["taken_again"]) == ("the first run with this model here", False)
    monkeypatch.setattr(choose, "_fastest", None)  # no comparison from here on
    first = run("score", log_file, "recs.parquet", *SCORE)
    assert first.code == 0, first.err
    assert first.summary["engine_check"] == made | {"taken_again": True}


def test_a_run_with_other_options_checks_for_itself(run, log_file):
    run("train", log_file, "--out", "model", *QUICK)
    check = run("score", log_file, "recs.parquet", *SCORE, "--top-k", 3).summary["engine_check"]
    assert check["taken_again"] is False
    assert "top_k" in check["why"]


def test_a_check_that_fails_leaves_the_model(run, log_file, monkeypatch):
    def fails(*_args, **_kwargs):
        raise EngineError("no room")

    monkeypatch.setattr(precheck, "select", fails)
    done = run("train", log_file, "--out", "model", *QUICK)
    assert done.code == 0, done.err
    assert "engine_check" not in done.summary
    assert "--precision auto is checked when the model first scores, not now: no room" in done.err
    assert run("model", "info", "model").code == 0
