"""Training from end to end: a model that ranks, its card, and what is refused.

Also tests `cli.train` and the modules that a training goes through: `job`, `options`, `material`, `inputs`, `rows`,
`network`, `device`, `loss`, `heads`, `loop`, `phase`, `checkpoint`, `validate`, `finish` and `saving`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec_batch.model import weights
from tests.conftest import small_log

pytest.importorskip("torch", reason="the extra `train` is not installed")
SAMPLE = Path(__file__).parent.parent.parent / "sample_data"
QUICK = ["--preset", "tiny", "--epochs", "2", "--max-events", "10"]


@pytest.fixture
def trained(run, log_file):
    done = run("train", log_file, "--out", "model", *QUICK)
    assert done.code == 0, done.err
    return done


def test_a_trained_model_scores_without_a_warning(run, log_file, trained):
    assert trained.summary["decode"] in ("slate", "candidates")
    done = run("score", log_file, "recs.parquet", "--model", "model", "--max-events", "10")
    assert done.code == 0, done.err
    assert "untrained" not in done.err
    seen = set(small_log().select("user_id", "video_id").iter_rows())
    assert not seen & set(pl.read_parquet("recs.parquet").select("user_id", "video_id").iter_rows())


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("command", [("score", "recs.parquet"), ("features", "features.parquet"), ("evaluate",)])
def test_a_model_is_not_read_in_another_time_zone_than_it_was_trained_in(run, log_file, command):
    """The advice of the error is executed, too: the zone that it names is the one that works."""
    options = ["--model", "model", "--max-events", "10"]
    done = run(command[0], log_file, *command[1:], *options, "--timezone", "Asia/Shanghai")
    assert done.code == 2
    assert "the model was trained with hours and weekdays of UTC; score with --timezone UTC" in done.err
    assert run(command[0], log_file, *command[1:], *options, "--timezone", "UTC").code == 0


@pytest.mark.usefixtures("trained")
def test_the_directory_holds_card_curves_and_log():
    files = {file.name for file in Path("model").iterdir()}
    assert files == {
        "README.md", "catalog.parquet", "config.json", "curves.svg", "model.safetensors", "training.jsonl",
    }  # fmt: skip
    assert not Path(".model.training").exists(), "the checkpoint goes once the model is whole"
    rows = [json.loads(line) for line in Path("model/training.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["epoch"]) for row in rows[:2]] == [("search", 1), ("search", 2)]
    assert Path("model/curves.svg").read_text().startswith("<svg")
    card = Path("model/README.md").read_text()
    assert "so do not score" in card
    assert "Without labels, so of no meaning: monetization." in card
    loaded = weights.load(Path("model"))
    assert loaded.trained
    assert loaded.training is not None
    assert loaded.training.seen_masked
    assert (loaded.training.max_events, loaded.training.heads[0]) == (10, "recommendation")
    assert loaded.training.weights_sha256 == weights.weights_fingerprint(loaded.weights)
    assert len(loaded.training.inputs["mean"]) == 1024
    lines = Path("model/config.json").read_text().splitlines()
    assert not [line for line in lines if re.fullmatch(r"\s*-?[\d.e-]+,?", line)], "a list of numbers is one line"


@pytest.mark.usefixtures("trained")
def test_the_catalog_of_another_model_is_refused(run, log_file):
    frame = pl.read_parquet("model/catalog.parquet")
    frame.with_columns(video_id=pl.col("video_id").reverse()).write_parquet("model/catalog.parquet")
    done = run("score", log_file, "recs.parquet", "--model", "model", "--max-events", "10")
    assert done.code == 4
    assert "not the catalog that the weights were trained with" in " ".join(done.err.split())


@pytest.mark.usefixtures("trained")
def test_embedding_and_output_are_one_matrix_and_rows_without_a_video_are_never_chosen():
    loaded = weights.load(Path("model"))
    videos = len(pl.read_parquet("model/catalog.parquet"))
    stored = loaded.weights
    np.testing.assert_array_equal(stored["token_embedding.weight"], stored["output_projection.weight"])
    bias = stored["output_projection.bias"]
    assert (bias[:2] == -1e4).all()
    assert (bias[2 + videos :] == -1e4).all()
    assert (np.abs(bias[2 : 2 + videos]) < 20).all()


@pytest.mark.slow
def test_the_sample_log_teaches_more_than_popularity(run):
    tables = ["--users", SAMPLE / "users.parquet", "--videos", SAMPLE / "videos.parquet"]
    done = run("train", SAMPLE / "events.parquet", "--out", "model", *tables, "--preset", "tiny", "--epochs", "25")
    assert done.code == 0, done.err
    found = done.summary["validation"]
    assert found["hr@10"] >= 0.18  # popularity: 0.081
