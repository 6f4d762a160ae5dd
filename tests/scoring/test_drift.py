"""Drift of whole runs: what moved is named, what did not is not, and nothing is published beyond `--max-drift`.

Also tests `sampled`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from genrec_batch.core.drift import Distribution
from genrec_batch.io import output
from genrec_batch.model import weights
from genrec_batch.model.trained import Trained
from genrec_batch.scoring import drift, writing
from tests.conftest import START, small_log
from tests.logs import catalog_of

USERS = 620
OPTIONS = ["--engine", "onnxruntime", "--precision", "fp32", "--max-events", "20", "--quiet"]


def evenings(seed=1, users=USERS):
    """A log that is watched from six to midnight."""
    log = small_log(users=users, videos=200, seed=seed, mean=12)
    random = np.random.default_rng(seed)
    minutes = pl.Series(random.integers(0, 30, len(log)) * 1440 + 1080 + random.integers(0, 360, len(log)))
    return log.with_columns(timestamp=(minutes * 60_000_000).cast(pl.Duration("us")) + START)


@pytest.fixture(scope="module")
def evening_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "evening"
    save_model(directory)
    return directory


def save_model(directory, seed=3, distribution=None):
    config = weights.PRESETS["tiny"]
    catalog = catalog_of(evenings(), vocabulary=config.vocabulary)
    trained = Trained(
        decode="slate", seen_masked=True, max_events=20, heads=(), catalog_sha256="", distribution=distribution
    )
    arrays = weights.initial_weights(config, seed)
    weights.save(directory, config, arrays, trained=True, card="for tests\n", training=trained)
    catalog.write(directory / "catalog.parquet")


@pytest.fixture
def score(run, evening_model):
    """Scores a frame; returns what the command did."""

    def call(frame, target, *flags, model=evening_model, code=0):
        frame.write_parquet("night.parquet")
        done = run("score", "night.parquet", target, "--model", model, *OPTIONS, *map(str, flags))
        assert done.code == code, done.err
        return done

    return call


def kept_of(path):
    return json.loads((pq.read_metadata(path).metadata or {})[b"genrec.distribution"])


def shifted(log, what):
    if what == "hours":
        return log.with_columns(pl.col("timestamp") - pl.duration(hours=12))
    if what == "milliseconds":
        return log.with_columns(pl.col("watch_duration") * 1000)
    if what == "device":
        return log.with_columns(device_type=pl.lit("tv"))
    if what == "column":
        return log.drop("watch_percentage")
    return log.with_columns(
        video_id=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.col("video_id") + 10**6).otherwise("video_id")
    )


@pytest.mark.parametrize(
    ("what", "quantity", "unmoved"),
    [
        ("hours", "hour of day", "history length"),
        ("milliseconds", "watch duration", "hour of day"),
        ("device", "device type", "watch duration"),
        ("column", "watch percentage", "watch duration"),
        ("unknown", "share of known videos", "watch duration"),
    ],
)
def test_what_shifted_is_named_and_what_did_not_is_stable(score, what, quantity, unmoved):
    score(evenings(1), "a.parquet")
    done = score(shifted(evenings(2), what), "b.parquet", "--previous", "a.parquet")
    found = done.summary["drift"]["previous"]
    assert found[quantity] > 0.25
    assert found[unmoved] < 0.1
    moved = {each["quantity"]: each for each in done.summary["drift"]["moved"]}
    assert moved[quantity]["against"] == "previous"
    assert moved[quantity]["before"] != moved[quantity]["now"]
    assert "drift against the output of --previous (population stability index)" in done.err
    assert any(quantity in warning for warning in done.summary["warnings"]) or len(moved) > drift.SHOWN


def test_two_nights_of_one_log_are_near_zero(score):
    """Other users with the same habits: below the noise that 620 users on both sides have in 99 of 100 cases."""
    score(evenings(1), "a.parquet")
    again = score(evenings(1), "same.parquet", "--previous", "a.parquet", "--strict").summary
    assert again["carried_users"] == USERS
    assert set(again["drift"]["previous"].values()) == {0.0}, (
        "all keep their rows, and their scores are read from there"
    )
    assert len([name for name in again["drift"]["previous"] if name.startswith("log_prob")]) == 10
    found = score(evenings(2), "b.parquet", "--previous", "a.parquet", "--strict").summary["drift"]
    assert max(found["previous"].values()) < 0.1
    assert found["users"] == USERS


@pytest.mark.parametrize("layout", ["long", "nested"])
@pytest.mark.parametrize("decode", ["slate", "candidates"])
def test_scores_of_carried_users_are_those_of_a_full_run(score, layout, decode):
    flags = ["--as-of", "2026-06-01", "--layout", layout, "--decode", decode]
    score(evenings(1), "a.parquet", *flags)
    new = evenings(1).head(200).with_columns(timestamp=pl.lit(START) + pl.duration(days=40))
    both = pl.concat([evenings(1), new])
    summary = score(both, "b.parquet", "--previous", "a.parquet", *flags).summary
    assert 100 < summary["scored_users"] < USERS
    score(both, "full.parquet", *flags)
    carried, full = kept_of("b.parquet"), kept_of("full.parquet")
    assert carried == full


@pytest.mark.parametrize("target", ["b", "b.parquet"])
def test_a_killed_run_that_is_continued_tells_the_same(score, monkeypatch, target):
    score(evenings(1), "a.parquet")
    flags = ["--previous", "a.parquet", "--shard-users", 100]
    night = shifted(evenings(2), "hours")
    whole = score(night, "whole.parquet", *flags).summary["drift"]
    real = output.Output.write

    def write(self, number, *given):
        real(self, number, *given)
        if number == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(output.Output, "write", write)
        score(night, target, *flags, code=130)
    summary = score(night, target, *flags).summary
    assert summary["drift"] == whole
    assert summary["resumed_parts"] > 0
    again = score(night, target, *flags, "--if-exists", "resume").summary
    assert (again["already_complete"], again["drift"]) == (True, whole)


def test_a_run_that_was_killed_while_it_put_its_output_in_place_keeps_its_figures(score, monkeypatch):
    score(evenings(1), "a.parquet")
    flags = ["--previous", "a.parquet", "--shard-users", 100]

    def killed(_path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(output, "sync", killed)  # after the parts' fingerprints are removed
        score(evenings(2), "b", *flags, code=130)
    assert not list(Path(".b.unfinished").glob("part-*.fingerprints"))
    whole = score(evenings(2), "whole.parquet", *flags).summary["drift"]
    assert score(evenings(2), "b", *flags).summary["drift"] == whole
    assert json.loads(pq.read_metadata("b/_fingerprints").metadata[b"genrec.drift"]) == whole


def test_beyond_max_drift_nothing_is_published_and_a_larger_limit_publishes_without_scoring(score):
    score(evenings(1), "recs.parquet")
    before = Path("recs.parquet").read_bytes()
    Path("earlier.parquet").write_bytes(before)
    Path("earlier.parquet.fingerprints").write_bytes(Path("recs.parquet.fingerprints").read_bytes())
    night = shifted(evenings(2), "milliseconds")
    flags = ["--previous", "earlier.parquet", "--if-exists", "overwrite"]
    done = score(night, "recs.parquet", *flags, "--max-drift", "0.25", code=6)
    assert "--max-drift 0.25: OUTPUT recs.parquet is not published" in done.err
    assert "watch duration" in done.err
    assert "hour of day" not in done.err
    assert Path("recs.parquet").read_bytes() == before
    summary = score(night, "recs.parquet", *flags, "--max-drift", "100").summary
    assert (summary["scored_users"], summary["resumed_parts"]) == (0, 1)
    assert summary["drift"]["previous"]["watch duration"] > 0.25
    assert pl.read_parquet("recs.parquet").height == USERS * 10


def test_a_limit_holds_for_the_model_as_for_the_earlier_output(score, tmp_path):
    score(evenings(1), "a.parquet")
    known = kept_of("a.parquet")
    save_model(tmp_path / "model", distribution=Distribution.read(known))
    done = score(evenings(2), "b.parquet", "--max-drift", "0.1", model=tmp_path / "model")
    assert max(done.summary["drift"]["model"].values()) < 0.1
    assert {f"log_prob {place}" for place in range(1, 11)} <= set(done.summary["drift"]["model"])
    night = shifted(evenings(2), "hours")
    done = score(night, "c.parquet", "--max-drift", "0.1", model=tmp_path / "model", code=6)
    assert "against the model's training: hour of day" in done.err.replace("\n", " ").replace("  ", " ")
    assert not Path("c.parquet").exists()


def test_strict_makes_drift_exit_code_6_as_it_does_any_warning(score):
    score(evenings(1), "a.parquet")
    done = score(shifted(evenings(2), "hours"), "b.parquet", "--previous", "a.parquet", "--strict", code=6)
    assert "--strict: nothing is published" in done.err
    assert "hour of day" in done.err


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--decode", "candidates"], "they are of slate, now of candidates"),
        (["--include-seen"], "include_seen (None, now True)"),
        (["--beam-width", "2"], "they are of slate, now of beams"),
        (["--weights", "engagement=1"], "top_k (None, now 10), weights (None, now 'engagement=1')"),
    ],
)
def test_scores_made_in_another_way_are_left_out_with_the_reason(score, flags, why):
    score(evenings(1), "a.parquet")
    found = score(evenings(2), "b.parquet", "--previous", "a.parquet", *flags).summary["drift"]
    assert found["left_out"]["previous"] == [f"scores are not compared: {why}"]
    assert "history length" in found["previous"]
    assert not [name for name in found["previous"] if name.startswith("log_prob")]


def test_scores_of_another_model_are_left_out_and_inputs_are_not(score, tmp_path):
    save_model(tmp_path / "other", seed=4)
    score(evenings(1), "a.parquet")
    found = score(evenings(2), "b.parquet", "--previous", "a.parquet", model=tmp_path / "other").summary["drift"]
    assert found["left_out"]["previous"] == ["scores are not compared: they are of another model"]
    assert max(found["previous"].values()) < 0.1


def test_lists_of_other_lengths_are_compared_at_the_places_that_both_have(score):
    """The n-th video of a slate is the same however many follow it."""
    score(evenings(1), "a.parquet", "--top-k", 3)
    found = score(evenings(1), "b.parquet", "--previous", "a.parquet", "--top-k", 12).summary["drift"]["previous"]
    assert {name: psi for name, psi in found.items() if name.startswith("log_prob")} == {
        "log_prob 1": 0, "log_prob 2": 0, "log_prob 3": 0,
    }  # fmt: skip


def test_the_first_night_is_compared_with_nothing_and_a_limit_says_so(score):
    found = score(evenings(1), "a.parquet").summary
    assert found["drift"]["left_out"] == {
        "model": ["not compared, since it carries no distribution of its training; one trained by this version does"]
    }
    assert not found["warnings"]
    done = score(evenings(1), "b.parquet", "--max-drift", "0.25")
    assert "--max-drift 0.25 was not checked: there is nothing that this run can be compared with" in done.err
    assert "(the model's training: not compared, since it carries no distribution" in done.err
    few = score(evenings(1, users=30), "c.parquet", "--max-drift", "0.25", "--previous", "a.parquet").err
    assert "the output of --previous: not compared, since this run has 30 users, fewer than 500" in few


def test_few_users_are_compared_with_nothing(score):
    score(evenings(1), "a.parquet")
    for flags in (["--limit", 1], ["--user", 105]):
        found = score(evenings(1), f"b{flags[1]}.parquet", "--previous", "a.parquet", *flags).summary["drift"]
        assert "this run has 1 users, fewer than 500" in found["left_out"]["previous"][0]
        assert "previous" in found
        assert not found["previous"]


def test_users_without_a_known_video_trip_the_share_of_known_ones_alone(score):
    score(evenings(1), "a.parquet")
    cold = evenings(1).with_columns(pl.col("video_id") + 10**6)
    summary = score(cold, "b.parquet", "--previous", "a.parquet", "--min-match", "0").summary
    assert summary["cold_start_users"] == USERS
    assert summary["drift"]["previous"]["share of known videos"] > 5
    assert summary["drift"]["previous"]["history length"] == 0


def test_an_output_without_a_distribution_is_compared_with_nothing_and_the_run_goes_on(score, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(writing, "_drift", lambda *_given: {})
        score(evenings(1), "a.parquet")
    summary = score(evenings(2), "b.parquet", "--previous", "a.parquet").summary
    assert summary["drift"]["left_out"]["previous"] == [
        "not compared, since it carries no distribution; an output of this version does"
    ]


def test_users_of_the_users_table_alone_do_not_move_what_the_model_is_compared_with(score, tmp_path):
    score(evenings(1), "a.parquet")
    save_model(tmp_path / "model", distribution=Distribution.read(kept_of("a.parquet")))
    pl.DataFrame({"user_id": range(100, 100 + 3 * USERS)}).write_parquet("users.parquet")
    flags = ["--users", "users.parquet", "--previous", "a.parquet"]
    found = score(evenings(1), "b.parquet", *flags, model=tmp_path / "model").summary["drift"]
    assert found["model"]["history length"] == 0
    assert found["previous"]["history length"] > 0.25, "last night nobody was without events"
