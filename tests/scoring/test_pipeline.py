"""The job's course: a device that is too small, and what a run says of itself.

Also tests `engine`, `lineage`, `results`, `shard`, `writing` and `rows`.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.errors import DeviceMemoryError
from genrec_batch.engines import batch_size, decode
from genrec_batch.engines.precisions import runs_here
from genrec_batch.events import by_user
from genrec_batch.model import weights
from genrec_batch.model.trained import Trained


def small_device(monkeypatch, most):
    """Let every batch of more than `most` users run out of memory, after the first two batches went well."""
    tried = []
    real = decode.recommend

    def recommend(engine, batch, decoding):
        tried.append(len(batch))
        if len(batch) > most and len(tried) > 2:
            raise DeviceMemoryError("the device is out of memory")
        return real(engine, batch, decoding)

    monkeypatch.setattr(decode, "recommend", recommend)
    return tried


def test_out_of_memory_halves_the_batch_and_goes_on(run, log_file, model_dir, monkeypatch):
    arguments = ["score", log_file, "a.parquet", "--model", model_dir, "--precision", "fp32", "--batch-size", "12"]
    assert run(*arguments).code == 0
    tried = small_device(monkeypatch, most=3)
    done = run(*arguments[:2], "b.parquet", *arguments[3:])
    assert done.code == 0, done.err
    assert "users in a batch, continuing with" in " ".join(done.err.split())
    assert done.summary["batch_users"] == max(tried[-3:]) <= 3
    a, b = pl.read_parquet("a.parquet"), pl.read_parquet("b.parquet")
    assert a.select("user_id", "rank", "video_id").equals(b.select("user_id", "rank", "video_id"))


def test_out_of_memory_at_one_user_is_try_again_later(run, log_file, model_dir, monkeypatch):
    small_device(monkeypatch, most=0)
    done = run("score", log_file, "a.parquet", "--model", model_dir, "--precision", "fp32", "--batch-size", "4")
    assert (done.code, "out of memory" in done.err) == (75, True)


def test_many_beams_are_told_what_they_cost(run, log_file, model_dir, monkeypatch):
    arguments = ["--model", model_dir, "--precision", "fp32", "--limit", 2, "--top-k", 3]
    done = run("score", log_file, "a.parquet", *arguments, "--beam-width", 20)
    assert done.code == 0, done.err
    assert "--beam-width 20: 20 slates are decoded for each user" in " ".join(done.err.split())
    assert done.summary["batch_users"] == 512 // 20
    assert "slates" not in run("score", log_file, "b.parquet", *arguments, "--beam-width", 4).err
    monkeypatch.setattr(batch_size, "machine_bytes", lambda: 1 << 20)
    done = run("score", log_file, "c.parquet", *arguments, "--beam-width", 20)
    assert (done.code, "--beam-width 20 needs about" in done.err) == (2, True)


def test_a_column_without_any_value_is_told(run, log, model_dir):
    bad = log.with_columns(watch_duration=pl.lit(float("nan")), is_liked=pl.lit(7))
    bad.write_parquet("bad.parquet")
    arguments = ["--model", model_dir, "--limit", 3]
    done = run("score", "bad.parquet", "a.parquet", *arguments)
    assert done.code == 0, done.err
    assert "watch_duration, is_liked: no value in the whole log" in " ".join(done.err.split())
    one = log.with_columns(watch_duration=pl.when(pl.col("user_id") > 110).then("watch_duration"))
    one.write_parquet("one.parquet")
    assert "no value" not in run("score", "one.parquet", *arguments[:2], "--user", 105).err


@pytest.mark.parametrize(
    ("users", "size", "expected"), [(5, 2, [(0, 2), (2, 4), (4, 5)]), (2, 9, [(0, 2)]), (0, 9, [])]
)
def test_shards_cover_all_users_in_order(users, size, expected):
    assert by_user.shards(users, size) == expected


def test_include_seen_warns_of_a_model_that_was_trained_without_seen_videos(run, log_file, model_dir, tmp_path):
    trained = Trained(decode="candidates", seen_masked=True, max_events=50, heads=(), catalog_sha256="")
    loaded = weights.load(model_dir)
    weights.save(tmp_path / "m", loaded.config, loaded.weights, trained=True, card="", training=trained)
    shutil.copy(model_dir / "catalog.parquet", tmp_path / "m" / "catalog.parquet")
    plain = run("score", log_file, tmp_path / "a.parquet", "--model", tmp_path / "m")
    assert "ranks seen videos badly" not in plain.err
    stored = pl.read_parquet_metadata(tmp_path / "a.parquet")["genrec.config"]
    assert json.loads(stored)["decode"] == "candidates", "an output says what --decode auto was"
    warned = run("score", log_file, tmp_path / "b.parquet", "--model", tmp_path / "m", "--include-seen")
    assert warned.code == 0
    assert "ranks seen videos badly" in warned.err


ENGINES = (("torch", "fp32"), ("torch", "bf16"), ("torch", "int8"), ("onnxruntime", "fp32"), ("torch", "int8-fast"))


@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_values_that_nothing_can_mean_still_give_numbers_to_everybody(run, log, model_dir, engine, precision):
    if not runs_here(precision):
        pytest.skip("this processor has no AVX-512 VNNI")
    user = log["user_id"][0]
    mine = pl.col("user_id") == user
    strange = {"watch_duration": 1e25, "time_of_day": 1e29, "day_of_week": -1e29, "recommendation_position": 1e30}
    log.with_columns(
        pl.when(mine).then(pl.lit(value)).otherwise(pl.lit(1.0)).alias(name) for name, value in strange.items()
    ).write_parquet("strange.parquet")
    vectors = pl.DataFrame({"user_id": [user], "profile": [[1e20] * 200], "profile_vector": [[-1e20] * 256]})
    vectors.write_parquet("users.parquet")
    videos = {"video_id": log["video_id"].unique().sort()}
    embeddings = pl.DataFrame({**videos, "embedding": [[1e20] * 200] * len(videos["video_id"])})
    embeddings.write_parquet("videos.parquet")
    tables = ("--users", "users.parquet", "--videos", "videos.parquet", "--limit", 5)
    chosen = ("--model", model_dir, "--engine", engine, "--precision", precision, *tables)
    done = run("score", "strange.parquet", "recs.parquet", *chosen)
    assert done.code == 0, done.err
    assert len(pl.read_parquet("recs.parquet")) == 50
    assert run("inspect", "recs.parquet").code == 0


@pytest.mark.parametrize("decode", ["slate", "candidates"])
@pytest.mark.parametrize(("engine", "precision"), [ENGINES[0], ENGINES[1], ENGINES[3]])
def test_weights_that_overflow_are_an_error_that_names_users(run, log_file, tmp_path, engine, precision, decode):
    config = weights.PRESETS["tiny"]
    huge = weights.initial_weights(config, 3)
    huge["encoder.layers.0.self_attn.in_proj_weight"] *= np.float32(1e38)
    weights.save(tmp_path / "huge", config, huge, trained=True, card="for tests\n")
    chosen = ("--model", "huge", "--engine", engine, "--precision", precision, "--decode", decode, "--limit", 5)
    done = run("score", log_file, "recs.parquet", *chosen)
    assert done.code == 5, (done.code, done.err)
    assert "returned no finite scores for" in done.err
    assert "(user_id 10" in done.err
    assert not (tmp_path / "recs.parquet").exists()


@pytest.mark.parametrize("layout", ["long", "nested"])
def test_an_output_without_a_row_is_not_published(run, log, tmp_path, layout):
    few = log.filter(pl.col("video_id") < log["video_id"].min() + 2).unique(["user_id", "video_id"])
    few = few.filter(pl.len().over("user_id") == 2)
    few.write_parquet("few.parquet")
    config = weights.PRESETS["tiny"]
    weights.save(tmp_path / "m", config, weights.initial_weights(config, 3), trained=True, card="for tests\n")
    chosen = ("--model", "m", "--engine", "onnxruntime", "--layout", layout)
    done = run("score", "few.parquet", "recs.parquet", *chosen)
    assert done.code == 6, (done.code, done.err)
    assert "none of the" in done.err
    assert not (tmp_path / "recs.parquet").exists()
    again = run("score", "few.parquet", "recs.parquet", *chosen)
    assert again.code == 6, "its parts are there, and still without a row"
    assert run("score", "few.parquet", "recs.parquet", *chosen, "--include-seen").code in (0, 2)
    assert run("score", "few.parquet", "all.parquet", *chosen, "--include-seen").code == 0, "what the error says"


def test_a_catalog_without_rows_is_a_fault_of_the_model(run, log_file, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "m")
    pl.read_parquet("m/catalog.parquet").head(0).write_parquet("m/catalog.parquet")
    done = run("score", log_file, "recs.parquet", "--model", "m")
    assert (done.code, "catalog.parquet: the catalog has no rows" in done.err) == (4, True), done.err
