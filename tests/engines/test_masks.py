"""Masks in every engine that runs without a GPU and in every way of decoding, compared with a mask in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from genrec_batch.core.arrays import Batch, Masks
from genrec_batch.core.errors import DeviceMemoryError
from genrec_batch.engines import driver, numbers
from genrec_batch.engines.cuda.engine import TorchCudaEngine
from genrec_batch.engines.decode import Decoding, recommend, recommend_all
from genrec_batch.engines.feed import Feed
from genrec_batch.engines.onnx import export
from genrec_batch.engines.onnx.engine import OnnxRuntimeEngine
from genrec_batch.engines.plan_cache import EngineCache
from genrec_batch.engines.tensorrt.builder import wrap
from genrec_batch.engines.tensorrt.engine import TensorRtEngine
from genrec_batch.engines.tensorrt.plugin.library import VARIABLE
from genrec_batch.engines.torch.device import fast_int8
from genrec_batch.engines.torch.engine import TorchEngine
from genrec_batch.model.weights import ModelConfig, demo_model, initial_weights
from genrec_batch.runtime.clock import Stages
from tests.fakes.cuda import FakeRuntime
from tests.fakes.tensorrt import FakeTensorRt
from tests.twins import kernels as plain_kernels
from tests.twins.decoding import NumpyDecoding

CONFIG = ModelConfig(vocabulary=75, width=32, ffn=48, layers=2, positions=40, heads=2, features=24, profile=8, video=8)
K = 4
WAYS = {
    "slate": Decoding(top_k=K),
    "beam": Decoding(top_k=K, beam_width=3),
    "candidates": Decoding(mode="candidates", num_candidates=9),
    "given": Decoding(top_k=K),
}
TOLERANCE = {
    "torch fp32": 1e-4,
    "tensorrt": 1e-4,
    "cuda": 1e-4,
    "onnxruntime": 1e-4,
    "torch bf16": 0.3,
    "torch int8": 0.3,
    "torch int8-fast": 0.5,
}
ENGINES = tuple(TOLERANCE)


def sharp(config):
    """A model whose catalog is smaller than its vocabulary and whose items differ in their log-probabilities."""
    weights = initial_weights(config, 3)
    weights |= {name: value * 3 for name, value in weights.items() if name.endswith("in_proj_weight")}
    weights["output_projection.weight"] = weights["output_projection.weight"] * 10
    return replace(demo_model(config), weights=weights).with_catalog(68)


MODEL = sharp(CONFIG)
TWIN = NumpyDecoding(MODEL)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Open an engine by a word of ENGINES, once."""
    kept, patch = {}, pytest.MonkeyPatch()

    def make(word):
        if word.startswith("torch"):
            precision = word.split()[1]
            if precision != "fp32" and not fast_int8():
                pytest.skip("this processor has no fast 8-bit products")
            return TorchEngine(MODEL, precision=precision)
        if word == "onnxruntime":
            return OnnxRuntimeEngine(MODEL, device="cpu", precision="fp32", threads=1)
        if word == "cuda":
            return TorchCudaEngine(MODEL, device="cpu", precision="fp32", kernels=plain_kernels)
        gpu = FakeRuntime()
        patch.setattr(driver, "load_runtime", lambda: gpu)
        patch.delenv(VARIABLE, raising=False)
        library, cache = wrap("tensorrt", FakeTensorRt(gpu)), EngineCache(tmp_path_factory.mktemp("plans") / "cache")
        options = {"precision": "fp32", "batch_size": 4, "lengths": (8, 16)}
        return TensorRtEngine(MODEL, cache=cache, library=library, **options)

    def get(word):
        if word not in kept:
            kept[word] = make(word)
        return kept[word]

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield get
    torch.set_num_threads(threads)
    patch.undo()


def users(rows=7, *, seed=0, given=False):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 9, rows).astype(np.int32)
    lengths[:3] = 0, 8, 1
    tokens = random.integers(1, MODEL.tokens, (rows, 8)).astype(np.int32)
    tokens[np.arange(8) >= lengths[:, None]] = 0
    return Batch(
        dense_BF=random.standard_normal((rows, CONFIG.features)).astype(np.float32),
        tokens_BS=tokens,
        lengths_B=lengths,
        seen_BX=np.pad(tokens, ((0, 0), (0, 1))),
        candidates_BC=random.integers(0, MODEL.tokens, (rows, 12)).astype(np.int32) if given else None,
    )


def rules(kind, rows):
    """Masks of each kind that a run may have."""
    random, vocabulary = np.random.default_rng(5), CONFIG.vocabulary
    everybody, nobody = np.zeros(rows, np.int32), np.zeros((1, vocabulary), np.bool_)
    if kind == "one for all":
        return Masks.of(random.random((1, vocabulary)) < 0.5, everybody)
    if kind == "of groups":
        return Masks.of(random.random((3, vocabulary)) < 0.7, np.arange(rows) % 3)
    if kind == "of each user":
        return Masks.of(random.random((rows, vocabulary)) < 0.9, np.arange(rows)[::-1])
    if kind == "everything":
        return Masks.of(np.concatenate([~nobody, nobody]), np.arange(rows) % 2)
    few = ~nobody.repeat(rows, 0)  # all but K - 1 items that the user has not seen
    for row in range(rows):
        few[row, random.choice(np.flatnonzero(TWIN.allowed(users(rows), row)), K - 1, replace=False)] = False
    return Masks.of(few, np.arange(rows))


FILES = ("prefill.onnx", "decode.onnx", "score.onnx", "export.json")  # nothing about masks, so old exports go on
KINDS = ("one for all", "of groups", "of each user", "everything", "all but K - 1")


def expected(way, batch, row):
    if way == "slate":
        return TWIN.slate(batch, row, K)
    if way == "beam":
        return TWIN.listed(batch, row, TWIN.beam(batch, row, K, WAYS["beam"].beam_width))
    return TWIN.given(batch, row) if way == "given" else TWIN.candidates(batch, row, WAYS["candidates"].num_candidates)


def check_row(word, way, batch, ranked, row):
    tolerance = TOLERANCE[word]
    tokens = [token for token in ranked.tokens_BK[row].tolist() if token]
    items, log_prob, heads = expected(way, batch, row)
    assert not ranked.tokens_BK[row, len(tokens) :].any(), "token 0 is only at the end"
    assert np.isneginf(ranked.log_prob_BK[row, len(tokens) :]).all()
    assert not ranked.heads_BKH[row, len(tokens) :].any()
    assert TWIN.allowed(batch, row)[tokens].all()
    assert len(set(tokens)) == len(tokens) == len(items)
    if tolerance < 1e-3:
        assert tokens == items
    else:  # close items may change places
        items, log_prob, heads = (TWIN.alone if way in ("given", "candidates") else TWIN.listed)(batch, row, tokens)
    np.testing.assert_allclose(ranked.log_prob_BK[row, : len(tokens)], log_prob, atol=tolerance)
    np.testing.assert_allclose(ranked.heads_BKH[row, : len(tokens)], np.array(heads).reshape(-1, 4), atol=tolerance / 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("word", ENGINES)
def test_a_masked_list_is_that_of_the_twin(opened, word, way, kind):
    batch = users(given=way == "given")
    batch = replace(batch, masks=rules(kind, len(batch)))
    (ranked,) = recommend_all(opened(word), [batch], WAYS[way])
    for row in range(len(batch)):
        check_row(word, way, batch, ranked, row)
    numbers.check(batch, ranked, tokens=MODEL.tokens)  # a list that a mask cut short is no fault


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("word", ENGINES)
def test_a_mask_and_the_same_items_as_seen_give_the_same_rows(opened, word, way):
    batch = users(given=way == "given")
    random = np.random.default_rng(2)
    seen_BX = np.stack([random.permutation(np.arange(2, MODEL.tokens))[:30] for _ in range(len(batch))]).astype(
        np.int32
    )
    banned_BV = np.zeros((len(batch), CONFIG.vocabulary), np.bool_)
    np.put_along_axis(banned_BV, seen_BX, True, axis=1)
    masked = replace(
        batch, seen_BX=np.zeros((len(batch), 1), np.int32), masks=Masks.of(banned_BV, np.arange(len(batch)))
    )
    (one,) = recommend_all(opened(word), [masked], WAYS[way])
    (other,) = recommend_all(opened(word), [replace(batch, seen_BX=seen_BX)], WAYS[way])
    np.testing.assert_array_equal(one.tokens_BK, other.tokens_BK)
    np.testing.assert_allclose(one.log_prob_BK, other.log_prob_BK, atol=1e-6)
    np.testing.assert_allclose(one.heads_BKH, other.heads_BKH, atol=1e-6)


@pytest.mark.parametrize("word", ENGINES)
def test_batches_with_and_without_masks_do_not_mix(opened, word):
    plain, masked = users(), replace(users(), masks=rules("of each user", 7))
    other = replace(users(5, seed=1), masks=rules("one for all", 5))
    engine, way = opened(word), WAYS["slate"]
    alone = [recommend(engine, batch, way).tokens_BK.tolist() for batch in (plain, masked, other)]
    assert alone[0] != alone[1]
    together = [
        ranked.tokens_BK.tolist() for ranked in recommend_all(engine, [masked, plain, other, plain, masked], way)
    ]
    assert together == [alone[1], alone[0], alone[2], alone[0], alone[1]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("word", ENGINES)
def test_a_batch_that_is_cut_has_the_rows_of_the_whole_one(opened, word, way):
    batch = users(9, given=way == "given")
    batch = replace(batch, masks=rules("of each user", len(batch)))
    whole = recommend(opened(word), batch, WAYS[way])
    feed = Feed(engine=opened(word), decoding=WAYS[way], stages=Stages(), batch_users=4, tokens=MODEL.tokens)
    parts = list(feed.recommend([("a batch", batch)]))
    assert [(rows.start, rows.stop) for _, rows, _ in parts] == [(0, 4), (4, 8), (8, 9)]
    for _, rows, ranked in parts:
        np.testing.assert_array_equal(ranked.tokens_BK, whole.tokens_BK[rows])


@pytest.mark.parametrize("word", ENGINES)
def test_a_batch_that_does_not_fit_is_halved_with_its_masks(opened, word, monkeypatch):
    engine, batch = opened(word), replace(users(8), masks=rules("of each user", 8))
    whole = recommend(engine, batch, WAYS["beam"])
    prefill = engine.prefill

    def full(part, **options):
        if len(part) > 3:
            raise DeviceMemoryError("the device is full")
        return prefill(part, **options)

    monkeypatch.setattr(engine, "prefill", full)
    monkeypatch.setattr(engine, "resize", lambda _: None)
    feed = Feed(engine=engine, decoding=WAYS["beam"], stages=Stages(), batch_users=8, tokens=MODEL.tokens)
    found = np.concatenate([ranked.tokens_BK for _, _, ranked in feed.recommend([("a batch", batch)])])
    assert feed.batch_users == 2
    np.testing.assert_array_equal(found, whole.tokens_BK)


def test_an_export_made_before_there_were_masks_obeys_them(opened, tmp_path):
    export.export(MODEL, tmp_path, precision="fp32")
    engine = OnnxRuntimeEngine(replace(MODEL, directory=tmp_path), device="cpu", precision="fp32", threads=1)
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {*FILES}
    batch = replace(users(), masks=rules("of groups", 7))
    for way in ("slate", "beam", "candidates"):
        found, alike = (recommend(each, batch, WAYS[way]) for each in (engine, opened("onnxruntime")))
        np.testing.assert_array_equal(found.tokens_BK, alike.tokens_BK)
