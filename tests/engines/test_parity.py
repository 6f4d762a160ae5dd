"""How far two engines agree: the figures, the gates, the command.

Also tests `scoring.verify`.
"""

from __future__ import annotations

import numpy as np
import pytest

from genrec_batch.core.arrays import Ranked
from genrec_batch.core.errors import GateError
from genrec_batch.engines import choose, parity
from genrec_batch.model import weights
from genrec_batch.scoring import engine


def ranked(tokens, log_prob=None, heads=0.5):
    tokens = np.array(tokens, np.int32)
    log_prob = np.zeros(tokens.shape) if log_prob is None else np.array(log_prob)
    heads_BKH = np.full((*tokens.shape, 4), heads, np.float32)
    return Ranked(tokens_BK=tokens, log_prob_BK=log_prob.astype(np.float32), heads_BKH=heads_BKH)


def test_differences_count_only_after_the_same_items():
    ours = ranked([[2, 3, 4], [5, 6, 7]], [[-1.0, -2.0, -3.0], [-1.0, -9.0, -9.0]])
    reference = ranked([[2, 3, 4], [5, 8, 7]], [[-1.0, -2.5, -3.0], [-1.0, -1.0, -1.0]], heads=0.4)
    found = parity.compare(ours, reference)
    assert (found.users, found.top1_match, found.compared_items) == (2, 1.0, 4)
    assert found.topk_overlap == pytest.approx((1 + 2 / 3) / 2)
    assert found.largest["log_prob"] == 0.5
    assert found.mean["engagement"] == pytest.approx(0.1)


def test_each_failing_gate_is_named_with_what_was_measured():
    found = parity.compare(ranked([[2, 3]]), ranked([[4, 5]]))
    with pytest.raises(GateError) as caught:
        found.check(min_topk_overlap=0.98, min_top1=0.5, max_difference=None)
    assert "--min-topk-overlap 0.98: measured 0.0000" in str(caught.value)
    assert "--min-top1 0.5: measured 0.0000" in str(caught.value)
    worse = parity.compare(ranked([[2]], [[-1.0]]), ranked([[2]], [[-1.5]]))
    with pytest.raises(GateError, match=r"--max-difference 0\.1: measured 0\.5 in log_prob"):
        worse.check(min_topk_overlap=0.0, min_top1=0.0, max_difference=0.1)
    worse.check(min_topk_overlap=1.0, min_top1=1.0, max_difference=0.6)


def test_batches_of_different_widths_are_joined():
    whole = parity.joined([ranked([[2, 3, 4]]), ranked([[5]])])
    assert whole.tokens_BK.tolist() == [[2, 3, 4], [5, 0, 0]]


@pytest.mark.parametrize("flags", [[], ["--decode", "candidates", "--num-candidates", "20"], ["--beam-width", "2"]])
def test_verify_compares_two_engines_over_a_log(run, log_file, model_dir, flags):
    arguments = ["--model", model_dir, "--engine", "onnxruntime", "--against", "torch", "--sample", 20]
    arguments += ["--precision", "fp32"]
    done = run("verify", log_file, *arguments, "--max-difference", "0.001", *flags)
    assert done.code == 0, done.err
    assert (done.summary["users"], done.summary["top1_match"]) == (20, 1.0)
    assert done.summary["engine"].startswith("onnxruntime in fp32")
    failed = run("verify", log_file, *arguments, "--max-difference", "0", *flags)
    assert (failed.code, failed.summary["status"], "--max-difference 0.0" in failed.err) == (6, "failed", True)


@pytest.mark.parametrize("least", [0.0, 1.1])
def test_verify_holds_what_score_would_take(run, log_file, model_dir, monkeypatch, least):
    monkeypatch.setattr(choose, "fast_precisions", lambda *_: ("bf16",))
    monkeypatch.setattr(choose, "LEAST_OVERLAP", least)  # bf16 always passes, or never
    arguments = ["--model", model_dir, "--engine", "torch", "--device", "cpu"]
    scored = run("score", log_file, "recs.parquet", *arguments).summary
    verified = run("verify", log_file, *arguments, "--sample", 20, "--min-topk-overlap", 0).summary
    assert verified["engine"] == f"torch in {scored['precision']} on cpu"
    assert scored["precision"] == ("bf16" if least == 0 else "fp32")
    assert verified["engine_why"].startswith(scored["engine_why"])  # and takes its check again


def test_a_job_that_fails_its_own_check_writes_nothing(run, log_file, model_dir, tmp_path, monkeypatch):
    arguments = ["score", log_file, "recs.parquet", "--model", model_dir, "--verify-sample", "40"]
    assert run(*arguments).code == 0
    for name in ("recs.parquet", "recs.parquet.fingerprints"):
        (tmp_path / name).unlink()
    other = weights.demo_model(weights.PRESETS["tiny"], seed=9)
    monkeypatch.setattr(
        engine,
        "reference_engine",
        lambda asked: choose.reference_engine(other.with_catalog(asked.tokens - 2)),
    )
    done = run(*arguments)
    assert (done.code, "--min-topk-overlap 0.98: measured 0." in done.err) == (6, True), done.err
    assert [p.name for p in tmp_path.iterdir() if "recs" in p.name] == []
    assert run(*arguments, "--min-topk-overlap", "0").code == 0
