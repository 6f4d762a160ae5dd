"""`compose` and its kernels, `lists` and `lists_numba`: random rule sets against a twin in plain Python."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from genrec_batch.core.arrays import HEADS, SOURCES, Ranked
from genrec_batch.rules import compose as composing
from genrec_batch.rules import draws, lists
from genrec_batch.rules.compose import Composer
from genrec_batch.rules.lists import DPP, MMR, PLAIN, RIDGE, Rules
from tests.twins import compose as twin

numba = pytest.importorskip("numba", reason="the compiled kernel needs it")
VIDEOS = 40  # tokens 2..41
METHODS = {"mmr": MMR, "dpp": DPP, None: PLAIN}


def rules_of(*, caps=(), codes=None, vectors=None, groups=None, method=None, weight=0.0, explore=0.0):
    rows = VIDEOS + 2
    vectors = np.zeros((rows, 0), np.float32) if vectors is None else vectors
    length = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1))
    return Rules(
        caps_D=np.array(caps, np.int32),
        codes_VD=np.zeros((rows, 0), np.int32) if codes is None else codes,
        vectors_VE=vectors,
        one_over_V=np.divide(1.0, length, out=np.zeros(rows), where=length > 0),
        groups_VG=np.zeros((rows, 0), np.int32) if groups is None else groups,
        method=METHODS[method],
        weight=weight,
        explore=explore,
    )


def alike_by(rules):
    if rules.groups_VG.shape[1]:
        codes = rules.groups_VG
        return lambda a, b: float(np.mean((codes[a] == codes[b]) & (codes[a] >= 0)))
    unit = rules.vectors_VE.astype(np.float64) * rules.one_over_V[:, None]
    return lambda a, b: float(unit[a] @ unit[b])


def ranked_of(pools):
    """The pools of several users, each a list of (token, score), as an engine returns them."""
    width = max(1, *map(len, pools))
    tokens = np.zeros((len(pools), width), np.int32)
    scores = np.full((len(pools), width), -np.inf, np.float32)
    for row, pool in enumerate(pools):
        for at, (token, score) in enumerate(pool):
            tokens[row, at], scores[row, at] = token, score
    heads = np.full((*tokens.shape, len(HEADS)), 0.5, np.float32)
    return Ranked(tokens_BK=tokens, log_prob_BK=scores, heads_BKH=heads), scores


def rows_of(found, user):
    rows = []
    for place in np.flatnonzero(found.tokens_BK[user]):
        score = float(found.score_BK[user, place])
        rows.append(
            twin.Row(
                video=int(found.tokens_BK[user, place]),
                source=SOURCES[found.source_BK[user, place]],
                score=None if np.isnan(score) else score,
                propensity=1.0 if found.propensity_BK is None else float(found.propensity_BK[user, place]),
            )
        )
    return rows


def composed(pools, rules, *, top_k, promoted=None, boost=None, kernel="numpy", keys=None):
    ranked, scores = ranked_of(pools)
    places = np.zeros((len(pools), top_k), np.int32)
    for user, by_place in enumerate(promoted or []):
        for place, token in by_place.items():
            places[user, place] = token
    boost_V = np.zeros(0) if boost is None else boost
    keys = np.arange(len(pools), dtype=np.uint64) if keys is None else keys
    return Composer(top_k=top_k, rules=rules, boost_V=boost_V, kernel=kernel).compose(ranked, scores, places, keys)


@some.composite
def cases(draw):
    """Some users with pools, rules over 40 videos, and promoted videos."""
    seed = draw(some.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    columns = draw(some.integers(0, 2))
    codes = random.integers(-1, 6, (VIDEOS + 2, columns)).astype(np.int32)
    codes[:2] = -1
    groups = vectors = None
    method = draw(some.sampled_from([None, "mmr", "dpp"]))
    if method and draw(some.booleans()):
        groups = random.integers(-1, 4, (VIDEOS + 2, draw(some.integers(1, 2)))).astype(np.int32)
    elif method:
        vectors = random.integers(-300, 300, (VIDEOS + 2, 7)).astype(np.float32)
        vectors[random.random(VIDEOS + 2) < 0.1] = 0
    rules = rules_of(
        caps=draw(some.lists(some.integers(1, 3), min_size=columns, max_size=columns)),
        codes=codes,
        vectors=vectors,
        groups=groups,
        method=method,
        weight=draw(some.sampled_from([0.0517, 0.3137, 0.7071, 1.0])) if method else 0.0,
        explore=draw(some.sampled_from([0.0, 0.0513, 0.5, 1.0])),
    )
    top_k, users = draw(some.integers(1, 8)), draw(some.integers(1, 4))
    pools, promoted = [], []
    for _ in range(users):
        size = draw(some.integers(0, VIDEOS))
        scores = random.permutation(1000)[:size] / -64.0
        pools.append([(2 + int(v), float(s)) for v, s in zip(random.permutation(VIDEOS), scores, strict=False)])
        count = draw(some.integers(0, min(3, top_k)))
        videos = random.permutation(VIDEOS)[:count] + 2
        promoted.append(dict(zip(random.permutation(top_k)[:count].tolist(), videos.tolist(), strict=True)))
    boost = np.append([0, 0], random.integers(-8, 8, VIDEOS) / 128.0 + 1 / 1024) if draw(some.booleans()) else None
    return pools, rules, top_k, promoted, boost


@settings(max_examples=300, deadline=None)
@given(cases())
def test_random_rule_sets_compose_what_a_loop_over_places_composes(case):
    pools, rules, top_k, promoted, boost = case
    found = composed(pools, rules, top_k=top_k, promoted=promoted, boost=boost)
    drawn = draws.uniform(np.arange(len(pools), dtype=np.uint64), top_k, 2)
    for user, pool in enumerate(pools):
        slow, capped = twin.compose(
            twin.Case(
                top_k=top_k,
                pool=pool,
                boost={} if boost is None else dict(enumerate(boost.tolist())),
                caps=[
                    (int(most), {v: int(c) for v, c in enumerate(rules.codes_VD[:, column]) if c >= 0})
                    for column, most in enumerate(rules.caps_D)
                ],
                method=next(name for name, code in METHODS.items() if code == rules.method),
                weight=rules.weight,
                alike=alike_by(rules),
                promoted=promoted[user],
                explore=rules.explore,
                draws=[tuple(pair) for pair in drawn[user]],
            )
        )
        fast = rows_of(found, user)
        assert [(row.video, row.source) for row in fast] == [(row.video, row.source) for row in slow]
        assert [row.score is None for row in fast] == [row.score is None for row in slow]
        for a, b in zip(fast, slow, strict=True):
            assert a.score == pytest.approx(b.score, rel=1e-4, abs=1e-4) if a.score is not None else b.score is None
            assert a.propensity == pytest.approx(b.propensity, rel=1e-6)
        assert bool(found.capped_B[user]) == capped
        decided = [row.score for row in fast if row.score is not None]
        assert decided == sorted(decided, reverse=True), "the score rises with the rank"


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_compiled_kernel_has_the_same_bits(case):
    pools, rules, top_k, promoted, boost = case
    numpy = composed(pools, rules, top_k=top_k, promoted=promoted, boost=boost)
    compiled = composed(pools, rules, top_k=top_k, promoted=promoted, boost=boost, kernel="numba")
    for name, ours in vars(numpy).items():
        np.testing.assert_array_equal(ours, getattr(compiled, name), err_msg=name)


def test_more_users_than_the_numpy_kernel_takes_at_once_do_not_matter(monkeypatch):
    random = np.random.default_rng(3)
    pools = [[(2 + int(v), float(-at)) for at, v in enumerate(random.permutation(VIDEOS)[:20])] for _ in range(30)]
    codes = random.integers(0, 5, (VIDEOS + 2, 1)).astype(np.int32)
    rules = rules_of(caps=[2], codes=codes, explore=0.3)
    whole = composed(pools, rules, top_k=5)
    monkeypatch.setattr(lists, "CHUNK_USERS", 7)
    for name, ours in vars(composed(pools, rules, top_k=5)).items():
        np.testing.assert_array_equal(ours, getattr(whole, name), err_msg=name)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_pyversity_ranks_by_mmr_as_we_do(weight):
    pyversity = pytest.importorskip("pyversity", reason="the oracle of mmr and dpp")
    random = np.random.default_rng(11)
    for _ in range(20):
        vectors = np.rint(np.abs(random.normal(size=(VIDEOS + 2, 12))) * 400).astype(np.float32)
        score = np.sort(random.normal(size=VIDEOS))[::-1]
        rules = rules_of(vectors=vectors, method="mmr", weight=weight)
        found = composed([[(2 + v, s) for v, s in enumerate(score)]], rules, top_k=10)
        relevance = (score - score.min()) / np.ptp(score)
        theirs = pyversity.mmr(vectors[2:], relevance, k=10, diversity=weight)
        assert found.tokens_BK[0].tolist() == (theirs.indices + 2).tolist()
        np.testing.assert_allclose(found.score_BK[0], theirs.selection_scores, atol=1e-5)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_pyversity_ranks_by_dpp_as_we_do(weight):
    """Its quality is exp((1 - diversity) * scale * z-score); ours follows from the scale, and our own variance from a
    dimension of each video's own.
    """
    pyversity = pytest.importorskip("pyversity", reason="the oracle of mmr and dpp")
    random = np.random.default_rng(12)
    for _ in range(20):
        vectors = np.rint(random.normal(size=(VIDEOS + 2, 12)) * 400).astype(np.float32)
        score = np.sort(random.normal(size=VIDEOS))[::-1]
        rules = rules_of(vectors=vectors, method="dpp", weight=weight)
        found = composed([[(2 + v, s) for v, s in enumerate(score)]], rules, top_k=8)
        unit = vectors[2:] / np.linalg.norm(vectors[2:], axis=1, keepdims=True)
        own = np.hstack([np.sqrt(1 - RIDGE) * unit, np.sqrt(RIDGE) * np.eye(VIDEOS)])
        theirs = pyversity.dpp(own, score, k=8, diversity=weight, scale=score.std() / (2 * weight * np.ptp(score)))
        assert found.tokens_BK[0].tolist() == (theirs.indices + 2).tolist()


def test_likeness_beyond_the_angle_of_ninety_degrees_counts_as_none():
    """Else the second video of a list could have a higher score than the first."""
    vectors = np.zeros((VIDEOS + 2, 2), np.float32)
    vectors[2], vectors[3], vectors[4] = (100, 0), (-100, 0), (0, 100)
    rules = rules_of(vectors=vectors, method="mmr", weight=0.9)
    found = composed([[(2, 0.0), (3, -1.0), (4, -2.0)]], rules, top_k=3)
    assert found.tokens_BK[0].tolist() == [2, 3, 4]
    assert found.score_BK[0].tolist() == pytest.approx([0.1, 0.05, 0.0])


def test_one_score_for_all_videos_is_no_division_by_zero():
    for method in ("mmr", "dpp"):
        rules = rules_of(vectors=np.eye(VIDEOS + 2, dtype=np.float32), method=method, weight=0.5)
        found = composed([[(2, -1.5), (3, -1.5)], []], rules, top_k=3)
        assert found.tokens_BK.tolist() == [[2, 3, 0], [0, 0, 0]]
        assert np.isfinite(found.score_BK[0, :2]).all()


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_inverse_propensities_are_unbiased(kernel):
    """Over many users, 1 / propensity estimates what each video earns at each place it can be shown at: an average of
    the outcomes of all, with weights that add up to one video a place.
    """
    users, top_k = 40_000, 3
    codes = np.array([[-1], [-1], [0], [0], [1], [1], [2], [0]] + [[3]] * (VIDEOS - 6), np.int32)
    rules = rules_of(caps=[2], codes=codes, explore=0.4)
    pools = [[(2, 0.0), (3, -1.0), (4, -2.0), (5, -3.0), (6, -4.0), (7, -5.0)]] * users
    keys = draws.keys(pl.Series(range(users)), 7)
    found = composed(pools, rules, top_k=top_k, kernel=kernel, keys=keys)
    weight_BK = 1 / found.propensity_BK.astype(np.float64)
    outcome_V = np.random.default_rng(5).random(VIDEOS + 2)
    for place in range(top_k):
        shown_B = found.tokens_BK[:, place]
        before = {tuple(row) for row in found.tokens_BK[:, :place].tolist()}
        for prefix in before:
            same_B = (found.tokens_BK[:, :place] == np.array(prefix, np.int32)).all(axis=1)
            can = np.unique(shown_B[same_B])
            if same_B.sum() < 2000:
                continue
            estimate = (weight_BK[same_B, place] * outcome_V[shown_B[same_B]]).mean()
            spread = (weight_BK[same_B, place] * outcome_V[shown_B[same_B]]).std() / np.sqrt(same_B.sum())
            assert abs(estimate - outcome_V[can].sum()) < 5 * spread, (place, prefix)
            for video in can:
                mine_B = same_B & (shown_B == video)
                share, said = mine_B.sum() / same_B.sum(), found.propensity_BK[mine_B, place]
                assert (said == said[0]).all()
                assert abs(share - said[0]) < 5 * np.sqrt(said[0] / same_B.sum()), (place, prefix, video)
            said = [float(found.propensity_BK[same_B & (shown_B == video), place][0]) for video in can]
            assert sum(said) == pytest.approx(1.0)


def test_a_place_that_cannot_be_explored_says_so():
    rules = rules_of(explore=0.5)
    found = composed([[(2, 0.0), (3, -1.0)]] * 50, rules, top_k=2)
    assert (found.propensity_BK == 1).all()
    assert (found.tokens_BK == [[2, 3]]).all()


def test_numba_is_loaded_for_many_users_alone(monkeypatch):
    assert composing.kernel_name(10) == "numpy"
    assert composing.kernel_name(composing.COMPILED_FROM) == "numba"
    monkeypatch.setattr(composing.compiled, "find_spec", lambda _: None)
    composing._fastest.cache_clear()
    assert composing.kernel_name(composing.COMPILED_FROM) == "numpy"
    composing._fastest.cache_clear()
