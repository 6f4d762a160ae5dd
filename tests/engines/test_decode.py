"""Decoding through the torch engine: slates, beams, candidates, given candidates, and the blended score.

Also tests `protocol`.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from genrec_batch.core.arrays import HEADS, Batch, Ranked
from genrec_batch.engines.decode import Decoding, blend, recommend
from genrec_batch.engines.torch.engine import TorchEngine
from genrec_batch.model import weights

CONFIG = weights.ModelConfig(vocabulary=60, width=32, ffn=48, layers=2, positions=40, heads=4)
FEW = weights.ModelConfig(vocabulary=7, width=16, ffn=16, layers=2, positions=20, heads=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Products this small wait longer for a second thread than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine():
    return TorchEngine(weights.demo_model(CONFIG))


@pytest.fixture(scope="module")
def few():
    return TorchEngine(weights.demo_model(FEW))


def make_batch(lengths, *, seed=0, config=CONFIG, seen=3):
    random = np.random.default_rng(seed)
    lengths_B = np.array(lengths, np.int32)
    width = max(1, int(lengths_B.max()))
    tokens_BS = random.integers(1, config.vocabulary, (len(lengths), width)).astype(np.int32)
    tokens_BS[np.arange(width) >= lengths_B[:, None]] = 0
    return Batch(
        dense_BF=random.standard_normal((len(lengths), config.features)).astype(np.float32),
        tokens_BS=tokens_BS,
        lengths_B=lengths_B,
        seen_BX=random.integers(0, config.vocabulary, (len(lengths), seen)).astype(np.int32),
    )


def single_scores(engine, batch, tokens_B):
    """Log-probability and heads of one item a row, read the way a slate reads its first."""
    state = engine.prefill(batch, steps=1)
    engine.decode(state, tokens_B)
    return engine.collect(state)


def forced_total(engine, batch, row, items):
    """The total log-probability of a list, decoded item by item."""
    alone = replace(
        batch,
        dense_BF=batch.dense_BF[row : row + 1],
        tokens_BS=batch.tokens_BS[row : row + 1],
        lengths_B=batch.lengths_B[row : row + 1],
        seen_BX=batch.seen_BX[row : row + 1],
    )
    state = engine.prefill(alone, steps=len(items))
    for item in items:
        engine.decode(state, np.array([item], np.int32))
    return float(engine.collect(state).log_prob_BK.sum(dtype=np.float64))


def test_a_slate_is_greedy_and_never_repeats(engine):
    batch = make_batch([5, 0, 9, 2])
    ranked = recommend(engine, batch, Decoding(top_k=8))
    assert ranked.tokens_BK.shape == (4, 8)
    for row, tokens_K in enumerate(ranked.tokens_BK.tolist()):
        assert len(set(tokens_K)) == 8
        assert not set(tokens_K) & {0, 1, *batch.seen_BX[row].tolist()}
        assert forced_total(engine, batch, row, tokens_K) == pytest.approx(ranked.log_prob_BK[row].sum(), abs=1e-4)


@pytest.mark.parametrize("width", [1, 3])
def test_more_than_is_left_ends_in_zeros(few, width):
    batch = make_batch([3, 0, 6], config=FEW, seen=2)
    ranked = recommend(few, batch, Decoding(top_k=7, beam_width=width))
    for row, tokens_K in enumerate(ranked.tokens_BK.tolist()):
        left = set(range(2, FEW.vocabulary)) - set(batch.seen_BX[row].tolist())
        assert set(tokens_K[: len(left)]) == left
        assert not any(tokens_K[len(left) :])
    empty = ranked.tokens_BK == 0
    assert np.isneginf(ranked.log_prob_BK[empty]).all()
    assert not ranked.heads_BKH[empty].any()


def test_a_beam_of_one_is_greedy(engine):
    batch = make_batch([5, 0, 9, 2])
    greedy = recommend(engine, batch, Decoding(top_k=5))
    one = recommend(engine, batch, Decoding(top_k=5, beam_width=1))
    np.testing.assert_array_equal(one.tokens_BK, greedy.tokens_BK)
    np.testing.assert_array_equal(one.heads_BKH, greedy.heads_BKH)


@pytest.mark.parametrize("width", [2, 4])
def test_a_beam_is_never_less_likely_than_greedy(engine, width):
    batch = make_batch(range(12), seed=width)
    greedy = recommend(engine, batch, Decoding(top_k=5)).log_prob_BK.sum(1)
    ranked = recommend(engine, batch, Decoding(top_k=5, beam_width=width))
    totals = ranked.log_prob_BK.sum(1)
    assert (totals >= greedy - 1e-5).all()
    assert (totals > greedy + 1e-4).any()
    for row, tokens_K in enumerate(ranked.tokens_BK.tolist()):
        assert len(set(tokens_K)) == 5
        assert not set(tokens_K) & {0, 1, *batch.seen_BX[row].tolist()}
        assert forced_total(engine, batch, row, tokens_K) == pytest.approx(totals[row], abs=1e-4)


def test_a_beam_as_wide_as_all_lists_finds_the_best_of_all(few):
    batch = make_batch([3, 0, 6], config=FEW, seen=1)
    ranked = recommend(few, batch, Decoding(top_k=3, beam_width=60))
    for row in range(3):
        left = sorted(set(range(2, FEW.vocabulary)) - set(batch.seen_BX[row].tolist()))
        lists = list(itertools.permutations(left, 3))
        totals = [forced_total(few, batch, row, items) for items in lists]
        assert tuple(ranked.tokens_BK[row].tolist()) == lists[int(np.argmax(totals))]
        assert ranked.log_prob_BK[row].sum() == pytest.approx(max(totals), abs=1e-4)


def test_candidates_are_the_best_of_one_look_each_scored_alone(engine):
    batch = make_batch([5, 0, 9, 2])
    ranked = recommend(engine, batch, Decoding(mode="candidates", top_k=3, num_candidates=12))
    assert ranked.tokens_BK.shape == (4, 12)
    assert (np.diff(ranked.log_prob_BK, axis=1) <= 0).all()
    for column in range(12):
        alone = single_scores(engine, batch, ranked.tokens_BK[:, column])
        np.testing.assert_allclose(ranked.log_prob_BK[:, column], alone.log_prob_BK[:, 0], atol=1e-5)
        np.testing.assert_allclose(ranked.heads_BKH[:, column], alone.heads_BKH[:, 0], atol=1e-5)
    np.testing.assert_array_equal(ranked.tokens_BK[:, 0], recommend(engine, batch, Decoding()).tokens_BK[:, 0])


def test_more_candidates_than_items_end_in_zeros(few):
    batch = make_batch([3, 0], config=FEW, seen=1)
    ranked = recommend(few, batch, Decoding(mode="candidates", num_candidates=7))
    for row, tokens_K in enumerate(ranked.tokens_BK.tolist()):
        left = set(range(2, FEW.vocabulary)) - set(batch.seen_BX[row].tolist())
        assert set(tokens_K[: len(left)]) == left
        assert not any(tokens_K[len(left) :])
        assert not ranked.heads_BKH[row, len(left) :].any()


def test_given_candidates_keep_their_order_and_lose_what_may_not_be_recommended(engine):
    given = np.array([[9, 20, 1, 9, 30, 0], [8, 7, 6, 5, 4, 3], [0, 0, 0, 0, 0, 0]], np.int32)
    seen = np.array([[30, 0], [7, 4], [5, 0]], np.int32)
    batch = replace(make_batch([4, 0, 2]), seen_BX=seen, candidates_BC=given)
    ranked = recommend(engine, batch, Decoding(top_k=2))
    assert ranked.tokens_BK.tolist() == [[9, 20, 0, 0, 0, 0], [8, 6, 5, 3, 0, 0], [0] * 6]
    empty = ranked.tokens_BK == 0
    assert np.isneginf(ranked.log_prob_BK[empty]).all()
    assert not ranked.heads_BKH[empty].any()
    bare = replace(batch, candidates_BC=None)
    for column in range(2):
        alone = single_scores(engine, bare, ranked.tokens_BK[:, column])
        np.testing.assert_allclose(ranked.log_prob_BK[:2, column], alone.log_prob_BK[:2, 0], atol=1e-5)
        np.testing.assert_allclose(ranked.heads_BKH[:2, column], alone.heads_BKH[:2, 0], atol=1e-5)


def test_given_candidates_that_were_seen_stay_where_nothing_counts_as_seen(engine):
    given = np.array([[9, 20, 30]], np.int32)
    batch = replace(make_batch([4]), seen_BX=np.zeros((1, 1), np.int32), candidates_BC=given)
    assert recommend(engine, batch, Decoding()).tokens_BK.tolist() == given.tolist()


@pytest.fixture
def ranked():
    return Ranked(
        tokens_BK=np.array([[5, 6, 0]], np.int32),
        log_prob_BK=np.array([[-1.0, -2.0, -np.inf]], np.float32),
        heads_BKH=np.array([[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], [0, 0, 0, 0]]], np.float32),
    )


def test_the_score_is_log_prob_by_default(ranked):
    np.testing.assert_array_equal(blend(ranked, None), ranked.log_prob_BK)


def test_weights_blend_heads_and_log_prob_linearly(ranked):
    score = blend(ranked, {"recommendation": 2.0, "monetization": -1.0, "log_prob": 0.5})
    np.testing.assert_allclose(score, [[0.2 - 0.4 - 0.5, 1.0 - 0.8 - 1.0, -np.inf]], atol=1e-6)
    assert score.dtype == np.float32


@pytest.mark.parametrize("column", range(4))
def test_each_head_has_its_own_name(ranked, column):
    np.testing.assert_allclose(blend(ranked, {HEADS[column]: 1.0})[0, :2], ranked.heads_BKH[0, :2, column])
    assert np.isneginf(blend(ranked, {HEADS[column]: 0.0})[0, 2])
