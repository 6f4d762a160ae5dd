"""Further features of each user: read beside the 1024, demanded by a model that was trained with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec_batch.model import weights
from tests.conftest import small_log

pytest.importorskip("torch", reason="the extra `train` is not installed")
QUICK = ["--preset", "tiny", "--epochs", "2", "--max-events", "6"]
WIDTH = 7


@pytest.fixture
def extra():
    """Further features of most users of the log, and of two others."""
    random = np.random.default_rng(1)
    users = [*range(100, 135), 900, 901]
    rows = [random.normal(3, 2, WIDTH).tolist() for _ in users]
    pl.DataFrame({"user_id": users, "features": rows}).write_parquet("extra.parquet")
    return "extra.parquet"


@pytest.fixture
def trained(run, log_file, extra):
    done = run("train", log_file, "--out", "model", "--extra-features", extra, *QUICK)
    assert done.code == 0, done.err
    return done


def said(done):
    return " ".join(done.err.split())


@pytest.mark.usefixtures("trained")
def test_a_model_reads_the_further_features_and_all_engines_agree(run, log_file, extra):
    assert weights.load(Path("model")).config.features == 1024 + WIDTH
    results = []
    for engine in ("torch", "onnxruntime"):
        given = ["--extra-features", extra, "--max-events", "6", "--engine", engine, "--precision", "fp32"]
        done = run("score", log_file, f"{engine}.parquet", "--model", "model", *given)
        assert done.code == 0, done.err
        results.append(pl.read_parquet(f"{engine}.parquet"))
    assert results[0]["user_id"].n_unique() == small_log()["user_id"].n_unique(), "nobody of the table alone is scored"
    np.testing.assert_allclose(results[0]["log_prob"], results[1]["log_prob"], atol=1e-4)
    other = pl.read_parquet(extra).with_columns(features=pl.col("features").list.eval(-pl.element()))
    other.write_parquet("other.parquet")
    done = run(
        "score", log_file, "changed.parquet", "--model", "model", "--extra-features", "other.parquet", *QUICK[4:]
    )
    assert done.code == 0, done.err
    changed = pl.read_parquet("changed.parquet").filter(pl.col("rank") == 1, pl.col("user_id") < 135)
    before = results[0].filter(pl.col("rank") == 1, pl.col("user_id") < 135)
    assert (changed["log_prob"] != before["log_prob"]).all()


@pytest.mark.usefixtures("trained")
def test_what_the_model_reads_can_be_written(run, log_file, extra):
    done = run("features", log_file, "f.parquet", "--model", "model", "--extra-features", extra, "--max-events", "6")
    assert done.code == 0, done.err
    written = pl.read_parquet("f.parquet")
    table = dict(pl.read_parquet(extra).iter_rows())
    for user, features in written.select("user_id", "features").iter_rows():
        assert features[1024:] == pytest.approx(table.get(user, [0.0] * WIDTH), abs=1e-6)


@pytest.mark.usefixtures("trained")
def test_evaluation_reads_them_too(run, log_file, extra):
    done = run(
        "evaluate", log_file, "--model", "model", "--extra-features", extra, "--max-events", "6", "--engine", "torch"
    )
    assert done.code == 0, done.err
    missing = run("evaluate", log_file, "--model", "model", "--max-events", "6")
    assert (missing.code, "--extra-features is missing" in said(missing)) == (2, True)


@pytest.mark.usefixtures("trained")
def test_a_table_that_is_missing_too_much_or_of_another_width_is_an_error(run, log_file, extra, model_dir):
    missing = run("score", log_file, "recs.parquet", "--model", "model", "--max-events", "6")
    assert (missing.code, "trained with 7 further features of each user" in said(missing)) == (2, True)
    plain = run("score", log_file, "recs.parquet", "--model", model_dir, "--extra-features", extra)
    assert (plain.code, "trained without further features" in said(plain)) == (2, True)
    pl.read_parquet(extra).with_columns(features=pl.col("features").list.head(5)).write_parquet("short.parquet")
    short = run("score", log_file, "recs.parquet", "--model", "model", "--extra-features", "short.parquet", *QUICK[4:])
    assert (short.code, "has 5 floats in row 0, expected 7" in said(short)) == (3, True)
    pl.read_parquet(extra).select("user_id", x=pl.lit(1)).write_parquet("none.parquet")
    none = run("score", log_file, "recs.parquet", "--model", "model", "--extra-features", "none.parquet", *QUICK[4:])
    assert (none.code, "no column 'features' with a list of numbers" in said(none)) == (3, True)


@pytest.mark.usefixtures("trained")
def test_they_go_with_a_users_table(run, log_file, extra):
    pl.DataFrame({"user_id": [100, 101, 777], "level": [1, 2, 3]}).write_parquet("users.parquet")
    given = ["--extra-features", extra, "--users", "users.parquet", "--max-events", "6"]
    done = run("score", log_file, "recs.parquet", "--model", "model", *given)
    assert done.code == 0, done.err
    ids = set(pl.read_parquet("recs.parquet")["user_id"])
    assert 777 in ids
    assert 900 not in ids
