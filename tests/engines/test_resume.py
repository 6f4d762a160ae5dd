"""`protocol`: engines that go on from a prefix choose what a whole prefill chooses (`onnx/resumed`, `onnx/state`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from genrec_batch.core.arrays import Batch, Masks
from genrec_batch.engines.decode import Decoding, recommend
from genrec_batch.engines.registry import open_engine
from genrec_batch.model import weights

LENGTHS = np.array([20, 3, 7, 20, 1, 0, 12, 9, 15], np.int32)
NEW = (2, 7)  # rows that have no prefix
ROWS, LONGEST = len(LENGTHS), 20
DECODINGS = (
    Decoding(top_k=5),
    Decoding(top_k=4, beam_width=3),
    Decoding(mode="candidates", num_candidates=30),
)


@pytest.fixture(scope="module", params=["onnxruntime", "torch"])
def engine(request):
    return open_engine(weights.demo_model(weights.PRESETS["tiny"]), name=request.param, device="cpu", precision="fp32")


def batch_of(lengths_B, **fields):
    """Return a batch of the oldest events of the same histories."""
    config, random = weights.PRESETS["tiny"], np.random.default_rng(3)
    tokens_BS = random.integers(1, config.vocabulary, (ROWS, LONGEST), np.int32)
    dense_BF = random.normal(size=(ROWS, config.features)).astype(np.float32)
    seen_BX = tokens_BS.copy()
    tokens_BS[np.arange(LONGEST) >= lengths_B[:, None]] = 0
    return Batch(dense_BF=dense_BF, tokens_BS=tokens_BS, lengths_B=lengths_B, seen_BX=seen_BX, **fields)


def resumed(engine, batch, decoding, prefixes):
    """Return what is recommended to rows that go on, whose features are not looked at."""
    there_B = np.array([each is not None for each in prefixes])
    dense_BF = np.where(there_B[:, None], np.float32(7), batch.dense_BF)

    def prefill(batch, **options):
        return engine.resume(batch, prefixes, **options)

    return recommend(engine, replace(batch, dense_BF=dense_BF), decoding, prefill)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
@pytest.mark.parametrize("behind_B", [np.zeros(ROWS, int), np.ones(ROWS, int), np.arange(ROWS) % 4], ids=str)
def test_a_resumed_row_gets_what_a_whole_prefill_gives(engine, decoding, masked, behind_B):
    masks = None
    if masked:
        banned_MV = np.random.default_rng(5).random((3, weights.PRESETS["tiny"].vocabulary)) < 0.5
        masks = Masks.of(banned_MV, np.arange(ROWS) % 3)
    earlier = batch_of(np.maximum(LENGTHS - behind_B, 0).astype(np.int32))
    kept = engine.kept(engine.prefill(earlier, steps=1), range(ROWS))
    assert [each.length for each in kept] == earlier.lengths_B.tolist()
    prefixes = [None if row in NEW or kept[row].length == 0 else kept[row] for row in range(ROWS)]
    batch = batch_of(LENGTHS, masks=masks)
    expected, found = recommend(engine, batch, decoding), resumed(engine, batch, decoding, prefixes)
    np.testing.assert_array_equal(found.tokens_BK, expected.tokens_BK)
    np.testing.assert_allclose(found.log_prob_BK, expected.log_prob_BK, atol=1e-5)
    np.testing.assert_allclose(found.heads_BKH, expected.heads_BKH, atol=1e-5)


def test_a_prefix_that_was_resumed_is_gone_on_with_again_and_never_changes(engine):
    lengths_B = np.full(ROWS, 12, np.int32)
    (first,) = engine.kept(engine.prefill(batch_of(lengths_B), steps=1), [4])
    before = [np.asarray(part).tolist() for part in first.cache]
    prefixes = [first if row == 4 else None for row in range(ROWS)]
    (second,) = engine.kept(engine.resume(batch_of(lengths_B + 3), prefixes, steps=1), [4])
    assert (second.length, second.nbytes) == (15, first.nbytes * 16 // 13)
    prefixes[4] = second
    batch = batch_of(lengths_B + 4)
    expected, found = recommend(engine, batch, DECODINGS[0]), resumed(engine, batch, DECODINGS[0], prefixes)
    np.testing.assert_array_equal(found.tokens_BK, expected.tokens_BK)
    np.testing.assert_allclose(found.log_prob_BK, expected.log_prob_BK, atol=1e-5)
    for part, copy in zip(first.cache, before, strict=True):
        assert np.asarray(part).tolist() == copy
