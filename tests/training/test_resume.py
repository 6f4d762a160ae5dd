"""A training that was stopped: the weights are those of an undisturbed one, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

from genrec_batch.core.errors import RetryError
from genrec_batch.training import checkpoint, choice, job, phase
from genrec_batch.training.phase import REFIT, REFIT_SETS, SEARCH_SETS

OPTIONS = ["--preset", "tiny", "--epochs", "3", "--max-events", "6", "--batch-size", "8", "--quiet"]


def model_bytes(place):
    return {name: (Path(place) / name).read_bytes() for name in ("model.safetensors", "catalog.parquet")}


@pytest.fixture
def undisturbed(run, log_file):
    assert run("train", log_file, "--out", "whole", *OPTIONS).code == 0
    return model_bytes("whole")


@pytest.mark.parametrize("saves", [1, 4, 9, 20, 31])
def test_a_run_that_ends_after_any_checkpoint_continues_to_the_same_weights(
    run, log_file, undisturbed, monkeypatch, saves
):
    monkeypatch.setattr(phase, "CHECKPOINT_S", 0)
    real, count = checkpoint.Checkpoints.save, [0]

    def save(self, *arguments):
        real(self, *arguments)
        count[0] += 1
        if count[0] == saves:
            raise RetryError("the power fails")

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    stopped = run("train", log_file, "--out", "model", *OPTIONS)
    assert (stopped.code, count[0]) == (75, saves)
    assert not Path("model").exists()
    continued = run("train", log_file, "--out", "model", *OPTIONS)
    assert continued.code == 0, continued.err
    assert model_bytes("model") == undisturbed


def test_epochs_on_sets_continue_to_the_same_weights_too(run, log_file, monkeypatch):
    """Whichever phase the run ends in: epochs on sets of the search, the training on the whole log, those after it."""
    options = [*OPTIONS[:2], "--epochs", "1", *OPTIONS[4:], "--set-epochs", "1"]

    def always(before, after, epochs, *, several):
        return replace(after, sets={**choice.better(before, after, epochs, several=several).sets, "kept": True})

    monkeypatch.setattr(job, "better", always)
    assert run("train", log_file, "--out", "whole", *options).code == 0
    monkeypatch.setattr(phase, "CHECKPOINT_S", 0)
    real = checkpoint.Checkpoints.save
    for ends_in, most in ((SEARCH_SETS, 3), (checkpoint.SETS, 1), (REFIT, 3), (REFIT_SETS, 3)):
        saved = []

        def save(self, name, tensors, facts, ends=ends_in, most=most, saved=saved):
            real(self, name, tensors, facts)
            saved.append(facts.get("phase", name))
            if saved.count(ends) == most:
                raise RetryError("the power fails")

        with monkeypatch.context() as patched:
            patched.setattr(checkpoint.Checkpoints, "save", save)
            assert run("train", log_file, "--out", ends_in, *options).code == 75
        continued = run("train", log_file, "--out", ends_in, *options)
        assert continued.code == 0, continued.err
        assert model_bytes(ends_in) == model_bytes("whole"), ends_in


def test_a_killed_process_continues_to_the_same_weights(run, log_file, undisturbed):
    code = (
        "from genrec_batch.training import phase\nphase.CHECKPOINT_S = 0\n"
        "import time\nfrom genrec_batch.training import loop\nreal = loop.Trainer.losses\n"
        "def step(self, *given):\n    time.sleep(0.05)\n    return real(self, *given)\n"
        "loop.Trainer.losses = step\nfrom genrec_batch.__main__ import main\nmain()"
    )
    begun = subprocess.Popen([sys.executable, "-c", code, "train", str(log_file), "--out", "model", *OPTIONS])
    state = Path(".model.training/state.safetensors")
    until = time.monotonic() + 120
    while not state.exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(begun.pid, signal.SIGKILL)
    assert begun.wait() == -signal.SIGKILL
    assert state.exists()
    continued = run("train", log_file, "--out", "model", *OPTIONS)
    assert continued.code == 0, continued.err
    assert model_bytes("model") == undisturbed


def test_the_checkpoint_of_another_training_is_refused_with_what_differs(run, log_file, monkeypatch):
    def full(*_):
        raise RetryError("the disk is full")

    monkeypatch.setattr(phase, "run", full)
    assert run("train", log_file, "--out", "model", *OPTIONS).code == 75
    other = run("train", log_file, "--out", "model", *OPTIONS, "--lr", "0.001")
    assert other.code == 2
    said = " ".join(other.err.split())
    assert "another training" in said
    assert "lr" in said
    assert "rm -r" in said


def test_a_damaged_checkpoint_is_named(run, log_file, monkeypatch):
    def full(*_):
        raise RetryError("the disk is full")

    monkeypatch.setattr(phase, "run", full)
    assert run("train", log_file, "--out", "model", *OPTIONS).code == 75
    Path(".model.training/state.safetensors").write_bytes(b"half")
    damaged = run("train", log_file, "--out", "model", *OPTIONS)
    assert damaged.code == 2
    assert "state.safetensors: a damaged checkpoint" in " ".join(damaged.err.split())


def test_a_training_that_continues_begins_with_the_version_that_it_began_with(run, log_file, monkeypatch):
    monkeypatch.setenv("GENREC_BATCH_REGISTRY", "registry")
    for seed in (1, 2):
        assert (
            run("model", "init", f"m{seed}", "--preset", "tiny", "--seed", seed, "--catalog-from", log_file).code == 0
        )
        assert run("model", "register", f"m{seed}", "ranker").code == 0
    run("model", "promote", "ranker@1")
    command = ["train", log_file, "--out", "model", *OPTIONS, "--no-refit", "--init-from", "registry:ranker@champion"]
    with monkeypatch.context() as patched:
        patched.setattr(phase, "CHECKPOINT_S", 0)
        real = checkpoint.Checkpoints.save

        def save(self, *arguments):
            real(self, *arguments)
            raise RetryError("the power fails")

        patched.setattr(checkpoint.Checkpoints, "save", save)
        assert run(*command).code == 75
    run("model", "promote", "ranker@2")
    continued = run(*command)
    assert (continued.code, continued.summary["init_from"]["version"]) == (0, 1), continued.err
    anew = run(*command[:3], "another", *command[4:])
    assert anew.summary["init_from"] == {"name": "ranker", "version": 2, "alias": "champion"}
