"""Rows end to end in one engine: the plugin's kernels as NumPy twins, on `fakes.cuda`, against the network.

Also tests `shapes`.
"""

import dataclasses

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.arrays import Masks
from genrec_batch.engines import driver, registry
from genrec_batch.engines.decode import Decoding, recommend
from genrec_batch.engines.tensorrt.builder import wrap
from genrec_batch.engines.tensorrt.plugin.library import Toolchain
from genrec_batch.engines.tensorrt.shapes import LENGTHS, Packing, ShapeRule
from genrec_batch.model import weights
from genrec_batch.model.weights import ModelConfig, preset
from tests.engines.tensorrt.test_engine import ENGINE, PLUGIN_SIZES, STEPS, batch_of, build, check, gpu, masked, tiny
from tests.fakes.tensorrt import FakeTensorRt

__all__ = ["build", "gpu"]  # fixtures
from tests.logs import catalog_of


@pytest.fixture
def plugged(build, monkeypatch):
    monkeypatch.setattr(f"{ENGINE}.toolchain", lambda: Toolchain(compiler="g++", include=()))
    monkeypatch.setattr(f"{ENGINE}.load", lambda *_, **__: None)

    def make(model, *, expected=True, **options):
        engine = build(model, precision="fp16", batch_size=64, **options)
        if expected:
            engine.expect(longest=8, mean=5.0, steps=STEPS)
        return engine

    make.builds = build.library.api.builds
    return make


def test_rows_end_to_end_are_the_network_without_a_cache(plugged):
    model = tiny(PLUGIN_SIZES).with_catalog(80)
    engine = plugged(model)
    batches = [batch_of(model.config, rows, seed, side=True) for seed, rows in enumerate((5, 1, 7))]
    for batch, ranked in zip(batches, engine.slate(batches, STEPS), strict=True):
        check(model, batch, ranked, tolerance=2e-2)


def test_masks_in_rows_end_to_end(plugged):
    model = tiny(PLUGIN_SIZES).with_catalog(110)
    engine = plugged(model)
    one, other = (batch_of(model.config, rows, seed) for seed, rows in enumerate((5, 3)))
    batches = [masked(model.config, one, 5), other, masked(model.config, other, 1)]
    for batch, ranked in zip(batches, engine.slate(batches, STEPS), strict=True):
        check(model, batch, ranked, tolerance=2e-2)
        if batch.masks is not None:
            assert not batch.masks.banned_BC(ranked.tokens_BK).any()
    assert plugged.builds == ["prefill", "decode"] * 2
    nothing = Masks.of(np.ones((1, model.config.vocabulary), np.bool_), np.zeros(3))
    (ranked,) = engine.slate([dataclasses.replace(other, masks=nothing)], STEPS)
    assert not ranked.tokens_BK.any()
    assert np.isneginf(ranked.log_prob_BK).all()


@pytest.mark.parametrize("way", [Decoding(top_k=STEPS, beam_width=3), Decoding(mode="candidates", num_candidates=9)])
def test_masks_in_the_graphs_beside_the_kernels(plugged, way):
    model = tiny(PLUGIN_SIZES)
    batch = masked(model.config, batch_of(model.config, 5), 5)
    ranked = recommend(plugged(model), batch, way)
    assert ranked.tokens_BK.all()
    assert not batch.masks.banned_BC(ranked.tokens_BK).any()


def test_all_lengths_share_one_prefill_and_one_decode(plugged):
    model = tiny(PLUGIN_SIZES)
    engine = plugged(model)
    batches = [batch_of(model.config, 6, seed, width) for seed, width in enumerate((1, 3, 8, 6))]
    batches[1] = dataclasses.replace(batches[1], lengths_B=np.zeros(6, np.int32))
    found = list(engine.slate(batches, STEPS))
    assert plugged.builds == ["prefill", "decode"]
    alone = plugged(model, expected=False)
    for batch, packed, padded in zip(batches, found, alone.slate(batches, STEPS), strict=True):
        np.testing.assert_array_equal(packed.tokens_BK, padded.tokens_BK)
        np.testing.assert_allclose(packed.heads_BKH, padded.heads_BKH, atol=2e-3)
        assert len(packed.tokens_BK) == len(batch)


def test_the_same_memory_serves_a_short_batch_after_a_long_one(plugged):
    """What the batch before left in its places, rows and banned columns is not read."""
    model = tiny(PLUGIN_SIZES)
    long, short = batch_of(model.config, 30, 1, 8), batch_of(model.config, 3, 2, 4)
    again = list(plugged(model).slate([long, long, long, short, short], STEPS))
    (alone,) = plugged(model).slate([short], STEPS)
    for ranked in again[3:]:
        np.testing.assert_array_equal(ranked.tokens_BK, alone.tokens_BK)
        np.testing.assert_array_equal(ranked.heads_BKH, alone.heads_BKH)


def test_more_positions_than_expected_take_a_larger_engine(plugged):
    model = tiny(PLUGIN_SIZES)
    engine = plugged(model)
    full = batch_of(model.config, 64)
    full = dataclasses.replace(full, lengths_B=np.full(64, 8, np.int32), tokens_BS=np.maximum(full.tokens_BS, 1))
    assert engine.room(64) < 64 * 9
    (ranked,) = engine.slate([full], 1)
    check(model, full, dataclasses.replace(ranked, **{
        name: getattr(ranked, name)[:, :1] for name in ("tokens_BK", "log_prob_BK", "heads_BKH")
    }), tolerance=2e-2)  # fmt: skip


def test_other_ways_of_decoding_keep_rows_apart(plugged):
    model = tiny(PLUGIN_SIZES)
    engine = plugged(model)
    batch = batch_of(model.config, 4)
    state = engine.prefill(batch, steps=STEPS)
    for _ in range(STEPS):
        engine.decode(state)
    check(model, batch, engine.collect(state), tolerance=2e-2)


@pytest.mark.parametrize(
    "decoding",
    [Decoding(top_k=3, beam_width=3), Decoding(mode="candidates", num_candidates=20), Decoding(top_k=STEPS)],
    ids=["beam", "candidates", "slate"],
)
def test_every_way_of_decoding_gives_what_plain_engines_give(plugged, build, monkeypatch, decoding):
    model = tiny(PLUGIN_SIZES).with_catalog(80)
    batch = batch_of(model.config, 5, side=True)
    mine = recommend(plugged(model), batch, decoding)
    monkeypatch.undo()
    monkeypatch.setattr(driver, "load_runtime", lambda: build.gpu)
    plain = build(model, precision="fp32")
    theirs = recommend(plain, batch, decoding)
    assert (mine.tokens_BK == theirs.tokens_BK).mean() > 0.9
    same = mine.tokens_BK == theirs.tokens_BK
    np.testing.assert_allclose(mine.log_prob_BK[same], theirs.log_prob_BK[same], atol=2e-2)
    np.testing.assert_allclose(mine.heads_BKH[same], theirs.heads_BKH[same], atol=2e-2)


def test_without_the_kernels_or_with_histories_beyond_them_rows_are_padded(build, plugged):
    engine = build(tiny(PLUGIN_SIZES), precision="fp32")
    engine.expect(longest=8, mean=5.0, steps=STEPS)
    assert engine.room(64) == 0
    assert engine.computed(np.array([3])) == engine.rows * 9
    long = plugged(tiny(dataclasses.replace(PLUGIN_SIZES, positions=300)), lengths=(8, 250))
    assert long.computed(np.array([3])) == long.room(64) > 0
    for longest in (200, 5000):
        long.expect(longest=longest, mean=5.0, steps=STEPS)
        assert long.room(64) == 0


@pytest.mark.parametrize("mean", [1.0, 5.5, 12.0, 27.5, 50.0, 51.0])
def test_the_room_is_at_most_what_mean_rows_take_and_little_less(mean):
    rule = ShapeRule(preset("reference"), 2048, LENGTHS, Packing(longest=50, mean=mean))
    assert mean * 2048 / 1.13 <= rule.places <= mean * 2048
    assert rule.places % 64 == 0


def test_a_mean_that_wanders_a_little_mostly_keeps_the_engine():
    means = np.linspace(20, 30, 101)
    rooms = [ShapeRule(preset("reference"), 2048, LENGTHS, Packing(longest=50, mean=mean)).places for mean in means]
    assert len(set(rooms)) <= 5


def test_a_shape_is_built_for_every_number_of_seen_videos():
    rule = ShapeRule(preset("reference"), 64, LENGTHS, Packing(longest=50, mean=9.0))
    assert [shape.seen for shape in rule.runs(steps=10, seen_limit=3000)] == [1024, 2048, 4096]
    assert [shape.seen for shape in rule.runs(steps=10, seen_limit=1000)] == [1024]


@pytest.mark.usefixtures("gpu")
def test_the_memory_of_the_engines_own_gpu_is_read_on_any_thread():
    device, used = driver.Device("cuda"), []
    device.use = lambda: used.append(1)
    device.free_bytes()
    device.total_bytes()
    assert used == [1, 1]


def test_one_user_always_fits():
    assert ShapeRule(preset("reference"), 64, LENGTHS, Packing(longest=127, mean=1.0)).places >= 128


def test_a_whole_job_with_the_kernels_gives_what_onnxruntime_gives(run, log, log_file, gpu, monkeypatch, tmp_path):
    """`score --engine tensorrt`: batches cut by positions, one prefill and one decode for the run, padding told."""
    library = wrap("tensorrt", FakeTensorRt(gpu))
    monkeypatch.setattr("genrec_batch.engines.tensorrt.builder.load_library", lambda _name=None: library)
    monkeypatch.setattr(f"{ENGINE}.toolchain", lambda: Toolchain(compiler="g++", include=()))
    monkeypatch.setattr(f"{ENGINE}.load", lambda *_, **__: None)
    monkeypatch.setattr(registry.Entry, "module", lambda self: self.modules[0])
    monkeypatch.setenv("GENREC_BATCH_CACHE", str(tmp_path / "cache"))
    config = ModelConfig(vocabulary=1_000, width=512, ffn=64, layers=2, positions=64)
    weights.save(tmp_path / "m", config, weights.initial_weights(config, 3), trained=True, card="for tests\n")
    catalog_of(log, vocabulary=config.vocabulary).write(tmp_path / "m" / "catalog.parquet")
    given = ("--model", tmp_path / "m", "--max-events", "20", "--top-k", "3")
    asked = ("--engine", "tensorrt", "--precision", "fp16", "--batch-size", "64")
    mine = run("score", log_file, tmp_path / "mine.parquet", *given, *asked)
    assert mine.code == 0, mine.err
    assert library.api.builds == ["prefill", "decode"]
    theirs = run(
        "score", log_file, tmp_path / "theirs.parquet", *given, "--engine", "onnxruntime", "--precision", "fp32"
    )
    left, right = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("mine", "theirs"))
    assert left["user_id"].equals(right["user_id"])
    assert (left["video_id"] == right["video_id"]).mean() > 0.95
    assert mine.summary["scored_users"] == theirs.summary["scored_users"]
    assert 0 < mine.summary["padding_share"] < 0.5
