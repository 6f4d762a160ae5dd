"""Ranking metrics compared with `ir-measures`, and with slow twins where it has none."""

from __future__ import annotations

import itertools

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, R, Success, nDCG

from genrec_batch.core.arrays import Ragged
from genrec_batch.evaluation import metrics, targets

KS = (1, 5, 10, 20)
VIDEOS, ROWS = 60, 200


@pytest.fixture(scope="module")
def random():
    return np.random.default_rng(5)


@pytest.fixture(scope="module")
def lists(random):
    """Lists of up to 20 different tokens; some end early, one is empty."""
    tokens_MK = np.stack([2 + random.permutation(VIDEOS)[:20] for _ in range(ROWS)]).astype(np.int32)
    tokens_MK[np.arange(20) >= random.integers(1, 40, ROWS)[:, None]] = 0
    tokens_MK[3] = 0
    return tokens_MK


@pytest.fixture(scope="module", params=[1, 10])
def wanted(request, random):
    """The next events of each row: repeats, and some videos beyond the catalog (token 1)."""
    lengths = random.integers(1, 15, ROWS)
    code = random.integers(2, VIDEOS + 12, lengths.sum())
    token = np.where(code < VIDEOS + 2, code, 1).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    found = targets.next_videos(Ragged(offsets_N1=offsets, values=token), code, request.param)
    distinct = [set(code[a:b][: request.param].tolist()) for a, b in itertools.pairwise(offsets)]
    return found, distinct


def test_targets_are_the_distinct_videos_of_the_next_events(wanted):
    found, distinct = wanted
    assert found.distinct_M.tolist() == [len(videos) for videos in distinct]
    for row, videos in enumerate(distinct):
        mine = found.tokens.values[found.tokens.offsets_N1[row] : found.tokens.offsets_N1[row + 1]]
        assert sorted(mine) == sorted(video for video in videos if video < VIDEOS + 2)


def test_accuracy_is_what_ir_measures_says(lists, wanted):
    found, distinct = wanted
    ours = metrics.accuracy(lists, found, KS)
    qrels = {str(row): {str(video): 1 for video in videos} for row, videos in enumerate(distinct)}
    run = {
        str(row): {str(token): float(100 - place) for place, token in enumerate(tokens) if token}
        for row, tokens in enumerate(lists.tolist())
    }
    theirs = {"hr": Success, "ndcg": nDCG, "mrr": RR, "recall": R}
    for k, (name, measure) in itertools.product(KS, theirs.items()):
        expected = np.zeros(ROWS)
        for each in ir_measures.iter_calc([measure @ k], qrels, run):
            expected[int(each.query_id)] = each.value
        np.testing.assert_allclose(ours[f"{name}@{k}"], expected, atol=1e-9, err_msg=f"{name}@{k}")


def test_lists_shorter_than_k_have_nothing_behind_their_end(lists, wanted):
    found, _ = wanted
    short, whole = metrics.accuracy(lists[:, :5], found, KS), metrics.accuracy(lists, found, KS)
    np.testing.assert_array_equal(short["hr@5"], whole["hr@5"])
    np.testing.assert_array_equal(short["hr@20"], whole["hr@5"])
    np.testing.assert_array_equal(short["recall@10"], whole["recall@5"])


def test_novelty_and_diversity_are_means_over_a_list(lists, random):
    views = random.integers(0, 50, VIDEOS + 2)
    views[:2] = 0
    vectors = random.standard_normal((VIDEOS + 2, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    ours = metrics.beyond_accuracy(lists, metrics.Videos(views_V=views, vector_VD=vectors), KS)
    share = (views + 1) / (views + 1)[2:].sum()
    for row, k in itertools.product((0, 3, 17, 50), KS):
        tokens = [t for t in lists[row, :k] if t]
        novelty = np.mean([-np.log2(share[t]) for t in tokens]) if tokens else np.nan
        pairs = [1 - vectors[a] @ vectors[b] for a, b in itertools.combinations(tokens, 2)]
        diversity = np.mean(pairs) if pairs else np.nan
        np.testing.assert_allclose(ours[f"novelty@{k}"][row], novelty, rtol=1e-6)
        np.testing.assert_allclose(ours[f"diversity@{k}"][row], diversity, rtol=1e-4, atol=1e-5)


def test_coverage_is_the_share_of_videos_that_anybody_gets():
    lists = np.array([[2, 3, 0], [2, 4, 5]], np.int32)
    assert metrics.coverage(lists, 12, (1, 2, 10)) == {"coverage@1": 0.1, "coverage@2": 0.3, "coverage@10": 0.4}


def test_the_tail_has_a_fifth_of_the_views():
    views = np.array([0, 0, 50, 30, 10, 5, 5, 0])
    assert targets.tail_of(views).nonzero()[0].tolist() == [0, 1, 4, 5, 6, 7]


def test_rows_are_grouped_by_their_next_video():
    found = targets.groups(
        np.array([2, 4, 1, 3], np.int32),
        cold_M=np.array([True, False, False, False]),
        seen=Ragged(offsets_N1=np.array([0, 0, 2, 3, 4]), values=np.array([4, 2, 1, 2], np.int32)),
        views_V=np.array([0, 0, 70, 25, 5]),
    )
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "cold start": [True, False, False, False],
        "tail video": [False, True, False, False],
        "seen before": [False, True, False, False],
        "beyond the catalog": [False, False, True, False],
    }
