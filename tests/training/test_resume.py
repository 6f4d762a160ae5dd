"""A training that was stopped: the weights are those of an undisturbed one, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

from genrec_batch.core.errors import RetryError
from genrec_batch.training import checkpoint, phase

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
