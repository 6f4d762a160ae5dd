"""What validation decides: epochs on sets are kept where they pay, and undone to the bit where they do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

from genrec_batch.training import job
from genrec_batch.training.choice import Choice, better
from genrec_batch.training.validate import Lists

OPTIONS = ["--preset", "tiny", "--epochs", "1", "--max-events", "6", "--batch-size", "8", "--quiet"]


ROWS = 200


def lists(gains, recall):
    """Lists of which every row is as good, but for the last tenth, which are worth nothing."""
    some_N = np.arange(ROWS) < 0.9 * ROWS
    return Lists(hit_N=some_N * 1.0, gain_N=some_N * gains, recall_N=some_N * recall)


def choice(decode, found):
    return Choice(decode=decode, lists=found, figures={"decode": {decode: found.figures()}})


def test_epochs_on_sets_are_kept_where_the_lists_of_the_default_decoding_are_better():
    before, after = choice("candidates", lists(0.10, 0.20)), choice("slate", lists(0.09, 0.25))
    kept = better(before, after, 2, several=True)
    assert (kept.decode, kept.set_epochs, kept.sets["kept"]) == ("slate", 2, True)
    assert kept.sets["before"]["candidates"]["recall@10"] == pytest.approx(0.9 * 0.2)
    undone = better(before, after, 2, several=False)  # one event is held out: only the next video counts
    assert (undone.decode, undone.set_epochs, undone.sets["kept"]) == ("candidates", 0, False)
    assert undone.sets["after"]["slate"]["ndcg@10"] == pytest.approx(0.9 * 0.09)
    assert better(before, before, 2, several=True).set_epochs == 0, "as good is not better"


def test_what_chance_explains_is_no_gain():
    random = np.random.default_rng(1)
    before = lists(0.10, 0.20)
    noise_N = random.normal(0, 0.05, ROWS)
    noise_N += 0.0005 - noise_N.mean()  # a seventh of the standard error
    after = Lists(hit_N=before.hit_N, gain_N=before.gain_N + noise_N, recall_N=before.recall_N)
    assert after.worth(several=True) > before.worth(several=True)
    assert not after.better_than(before, several=True)
    assert not after.better_than(before, several=False)


def test_a_gain_is_the_difference_of_what_lists_are_worth():
    """The rows whose mean is judged add up to one product less the other."""
    random = np.random.default_rng(2)
    some, others = (Lists(hit_N=random.random(9), gain_N=random.random(9), recall_N=random.random(9)) for _ in range(2))
    more = some.more_than(others, several=True)
    assert more.mean() == pytest.approx(some.worth(several=True) - others.worth(several=True))


@pytest.fixture
def trained_on_sets(run, log_file, monkeypatch):
    """Train with and without epochs on sets, of which validation says what the test wants it to say."""

    def train(*, kept):
        def said(before, after, epochs, *, several):
            found = better(before, after, epochs, several=several)
            return replace(after if kept else before, sets={**found.sets, "kept": kept})

        monkeypatch.setattr(job, "better", said)
        found = {}
        for name, more in (("plain", []), ("sets", ["--set-epochs", "2"])):
            done = run("train", log_file, "--out", name, *OPTIONS, *more)
            assert done.code == 0, done.err
            found[name] = (
                done.summary,
                Path(name, "model.safetensors").read_bytes(),
                Path(name, "README.md").read_text(),
            )
        return found["plain"], found["sets"]

    return train


def test_epochs_on_sets_that_do_not_help_leave_no_trace_in_the_weights(trained_on_sets):
    (plain, weights, _), (sets, undone, card) = trained_on_sets(kept=False)
    assert undone == weights
    assert (plain["sets"], sets["sets"]["kept"], sets["set_epochs"]) == (None, False, 0)
    assert sets["validation"] == plain["validation"]
    assert "| slate, after 2 epochs on sets, which were undone |" in card


def test_epochs_on_sets_that_help_are_taken_over_into_the_training_on_the_whole_log(trained_on_sets):
    (_, weights, _), (sets, kept, card) = trained_on_sets(kept=True)
    assert kept != weights
    assert (sets["sets"]["kept"], sets["set_epochs"]) == (True, 2)
    assert sets["validation"]["decode"] == sets["sets"]["after"]
    assert "2 further epochs were on sets" in card
    assert "| slate, before 2 epochs on sets |" in card
    rows = [json.loads(line) for line in Path("sets/training.jsonl").read_text().splitlines()]
    phases = [row["phase"] for row in rows if "sets" in row["phase"]]
    assert phases == ["search on sets"] * 2 + ["refit on sets"] * 2
    assert [row["epoch"] for row in rows if row["phase"] == "refit on sets"] == [1, 2]
