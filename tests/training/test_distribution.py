"""What a training records is what a run on its own log finds: no drift, in inputs and in scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import small_log

pytest.importorskip("torch", reason="the extra `train` is not installed")
QUICK = ["--preset", "tiny", "--epochs", "1", "--max-events", "10"]


@pytest.mark.parametrize("more", [["--no-refit"], ["--include-seen"]])
def test_a_run_on_the_log_of_the_training_has_not_drifted_from_it(run, more):
    small_log(users=520).write_parquet("events.parquet")
    trained = run("train", "events.parquet", "--out", "model", *QUICK, *more)
    assert trained.code == 0, trained.err
    flags = ["--model", "model", "--max-events", "10", "--engine", "torch", "--max-drift", "0.25"]
    flags += [flag for flag in more if flag == "--include-seen"]
    for decode in ("slate", "candidates"):
        done = run("score", "events.parquet", f"{decode}.parquet", *flags, "--decode", decode)
        assert done.code == 0, done.err
        found = done.summary["drift"]["model"]
        assert done.summary["drift"]["left_out"] == {}
        assert {psi for name, psi in found.items() if not name.startswith("log_prob")} == {0.0}, "all users are in both"
        scores = [psi for name, psi in found.items() if name.startswith("log_prob")]
        assert len(scores) == 10
        assert max(scores) < 0.01, "rounding may put a score into the next bin"
    other = run("score", "events.parquet", "other.parquet", *flags[:6], "--limit", "500", "--top-k", "20")
    assert other.code == 0, other.err


def test_card_and_info_tell_the_distribution_and_a_damaged_one_is_an_error(run, log_file):
    assert run("train", log_file, "--out", "model", *QUICK).code == 0
    card = Path("model/README.md").read_text()
    assert "Of 40 users at the end of the training" in card
    assert "| history length | " in card
    assert "at the end of training: history length: mean " in run("model", "info", "model").out
    info = json.loads(run("model", "info", "model", "--json").out)
    assert info["training"]["distribution"]["users"] == 40
    config = json.loads(Path("model/config.json").read_text())
    config["training"]["distribution"]["inputs"]["history length"]["shares"].pop()
    Path("model/config.json").write_text(json.dumps(config))
    done = run("model", "info", "model")
    assert done.code == 4
    assert "the entry `training` is damaged (ValueError" in done.err
