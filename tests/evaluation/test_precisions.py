"""`verify --evaluate`: the quality that each engine and precision loses."""

from __future__ import annotations

import numpy as np
import pytest

from genrec_batch.evaluation import precisions


def test_every_engine_and_precision_is_compared_on_the_same_rows(run, log_file, model_dir):
    done = run("verify", log_file, "--model", model_dir, "--evaluate", "--include-seen", "--sample", 30)
    assert done.code == 0, done.err
    quality = done.summary["quality"]
    assert (quality["users"], quality["k"], quality["decode"]) == (30, 10, "slate")
    reference, *others = quality["engines"]
    assert (reference["engine"], reference["precision"], reference["lost"]) == ("torch", "fp32", None)
    assert {(each["engine"], each["precision"]) for each in others} >= {("torch", "bf16"), ("onnxruntime", "fp32")}
    for each in others:
        assert each["lost"]["value"] == pytest.approx(1 - each["ndcg"] / reference["ndcg"], abs=1e-4)
    assert "NDCG lost" in done.out


def test_the_loss_is_a_gate(run, log_file, model_dir, monkeypatch):
    def worse(_, expected):
        return {"ndcg": 0.1, "hr": 0.2, "lost": {"value": 0.05, "low": 0.0, "high": 0.1} if expected else None}

    monkeypatch.setattr(precisions, "_figures", worse)
    arguments = ["verify", log_file, "--model", model_dir, "--evaluate", "--sample", 20]
    assert run(*arguments, "--max-quality-loss", 0.06).code == 0
    done = run(*arguments, "--max-quality-loss", 0.04)
    assert (done.code, done.summary["status"]) == (6, "failed")
    assert "--max-quality-loss 0.04: NDCG@10 falls by more:" in done.err


def test_the_interval_of_a_loss_is_that_of_paired_rows():
    random = np.random.default_rng(1)
    theirs = random.random(500)
    ours = theirs * (1 - 0.1 * (random.random(500) < 0.1))
    found = precisions._lost(ours, theirs)
    assert found.value == pytest.approx(1 - ours.sum() / theirs.sum())
    assert 0 < found.low < found.value < found.high < 0.02
    assert precisions._lost(ours, np.zeros(500)).value is None


@pytest.mark.parametrize("flags", [["--test-from", "2026-04-25"], ["--max-quality-loss", "0.1"]])
def test_its_options_go_with_evaluate(run, log_file, model_dir, flags):
    done = run("verify", log_file, "--model", model_dir, *flags)
    assert (done.code, f"{flags[0]} goes with --evaluate" in done.err) == (2, True), done.err
