"""Every way of decoding on a real GPU, compared with ONNX Runtime in fp32 on the CPU."""

import dataclasses

import numpy as np
import pytest

from genrec_batch.core.arrays import Batch, Masks, Ranked
from genrec_batch.core.errors import EngineError
from genrec_batch.engines import driver
from genrec_batch.engines.decode import Decoding, recommend, recommend_all
from genrec_batch.engines.onnx.engine import OnnxRuntimeEngine
from genrec_batch.engines.parity import top_overlap
from genrec_batch.engines.plan_cache import EngineCache
from genrec_batch.engines.tensorrt.engine import TensorRtEngine
from genrec_batch.engines.tensorrt.plugin import library
from genrec_batch.model.weights import ModelConfig, demo_model, initial_weights

pytestmark = pytest.mark.gpu

# Wide enough for the plugin's kernels; the catalog is smaller than the vocabulary.
MODEL = demo_model(ModelConfig(vocabulary=400, width=512, ffn=128, layers=2, positions=64)).with_catalog(350)
WAYS = {
    "slate": (Decoding(top_k=5), False),
    "beam": (Decoding(top_k=4, beam_width=3), False),
    "candidates": (Decoding(mode="candidates", num_candidates=20), False),
    "given": (Decoding(top_k=5), True),
}
ENGINES = ("tensorrt fp32", "tensorrt fp16", "tensorrt plugin", "onnxruntime fp32", "onnxruntime fp16")


def sharp(model):
    """Weights whose attention is sharp enough that a wrong mask changes the items."""
    weights = initial_weights(model.config, 3)
    weights |= {name: value * 3 for name, value in weights.items() if name.endswith("in_proj_weight")}
    return dataclasses.replace(model, weights=weights)


MASKS = ("none", "one for all", "of each user")


def masks_of(kind, rows):
    """Masks that leave some users fewer items than they ask for, and one user none."""
    random, vocabulary = np.random.default_rng(9), MODEL.config.vocabulary
    if kind == "none":
        return None
    if kind == "one for all":
        return Masks.of(random.random((1, vocabulary)) < 0.7, np.zeros(rows))
    banned_BV = random.random((rows, vocabulary)) < np.linspace(0.5, 1, rows)[:, None]
    return Masks.of(banned_BV, np.arange(rows))


def users(*, given, seed=0, rows=37, width=16, masks="none"):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, width + 1, rows).astype(np.int32)
    tokens = random.integers(1, MODEL.tokens, (rows, width)).astype(np.int32)
    tokens[np.arange(width) >= lengths[:, None]] = 0
    profiles, has = random.standard_normal((rows, MODEL.config.profile)).astype(np.float32), np.arange(rows) % 2 == 0
    return Batch(
        dense_BF=random.standard_normal((rows, MODEL.config.features)).astype(np.float32),
        tokens_BS=tokens,
        lengths_B=lengths,
        seen_BX=np.pad(tokens, ((0, 0), (0, 2))),
        candidates_BC=random.integers(0, MODEL.tokens, (rows, 12)).astype(np.int32) if given else None,
        profile_BP=np.where(has[:, None], profiles, np.float32(0)),
        has_profile_B=has,
        masks=masks_of(masks, rows),
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Open an engine on the GPU by a word of ENGINES; each is opened once."""
    kept, model = {}, sharp(MODEL)

    def make(word):
        name, kind = word.split()
        if name == "onnxruntime":
            return OnnxRuntimeEngine(model, device="cuda", precision=kind)
        tools = library.toolchain()
        if kind == "plugin" and isinstance(tools, str):
            pytest.skip(tools)
        precision = "fp16" if kind == "plugin" else kind
        cache = EngineCache(tmp_path_factory.mktemp("cache") / "engines")
        options = {"precision": precision, "batch_size": 64, "lengths": (16, 32), "cache": cache}
        with pytest.MonkeyPatch.context() as patch:
            if kind != "plugin":
                patch.delenv(library.VARIABLE, raising=False)
            engine = TensorRtEngine(model, **options)
        assert engine.plugin == (kind == "plugin"), engine.variant
        return engine

    def get(word):
        if word not in kept:
            pytest.importorskip("tensorrt" if word.startswith("tensorrt") else "onnxruntime")
            try:
                driver.Device("cuda")
                kept[word] = make(word)
            except EngineError as error:
                pytest.skip(str(error))
        return kept[word]

    return get


@pytest.fixture(scope="module")
def expected():
    engine = OnnxRuntimeEngine(sharp(MODEL), device="cpu", precision="fp32")
    return {
        (way, masks): recommend(engine, users(given=given, masks=masks), decoding)
        for way, (decoding, given) in WAYS.items()
        for masks in MASKS
    }


def by_token(ranked):
    order = np.argsort(ranked.tokens_BK, axis=1)
    return Ranked(
        tokens_BK=np.take_along_axis(ranked.tokens_BK, order, 1),
        log_prob_BK=np.take_along_axis(ranked.log_prob_BK, order, 1),
        heads_BKH=np.take_along_axis(ranked.heads_BKH, order[:, :, None], 1),
    )


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("word", ENGINES)
def test_a_gpu_recommends_what_the_cpu_does(opened, expected, word, way, masks):
    decoding, given = WAYS[way]
    batch, theirs = users(given=given, masks=masks), expected[way, masks]
    (mine,) = recommend_all(opened(word), [batch], decoding)
    np.testing.assert_array_equal((mine.tokens_BK > 0).sum(1), (theirs.tokens_BK > 0).sum(1))
    if batch.masks is not None:
        assert not (batch.masks.banned_BC(mine.tokens_BK) & (mine.tokens_BK > 0)).any()
    exact = word.endswith("fp32")
    overlap = top_overlap(mine.tokens_BK, theirs.tokens_BK)
    assert overlap == 1 if exact else overlap > 0.9
    if way == "candidates":  # close ones may change places without any effect on the others
        mine, theirs = by_token(mine), by_token(theirs)
        same = mine.tokens_BK == theirs.tokens_BK
    else:
        same = (mine.tokens_BK == theirs.tokens_BK).cumprod(axis=1).astype(bool)
    real = theirs.tokens_BK > 0
    same &= real
    assert same.sum() > (0.99 if exact else 0.5) * real.sum()
    tolerance = 1e-3 if exact else 5e-2
    np.testing.assert_allclose(mine.log_prob_BK[same], theirs.log_prob_BK[same], atol=tolerance)
    np.testing.assert_allclose(mine.heads_BKH[same], theirs.heads_BKH[same], atol=tolerance)


@pytest.mark.parametrize("word", ENGINES)
def test_ten_times_the_same(opened, word):
    engine = opened(word)
    first = recommend(engine, users(given=False), Decoding(top_k=5))
    for _ in range(10):
        np.testing.assert_array_equal(
            recommend(engine, users(given=False), Decoding(top_k=5)).tokens_BK, first.tokens_BK
        )
