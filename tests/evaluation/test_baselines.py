"""Baselines and the choice of the best compared with slow twins.

Also tests `cooccurrence`, `ranking` and `targets`.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.arrays import Ragged
from genrec_batch.evaluation import baselines, cooccurrence, metrics, ranking, targets
from genrec_batch.evaluation.baselines import Past

DAY_US = 86_400_000_000
TOKENS = 40


def ragged(rows):
    return Ragged(
        offsets_N1=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        values=np.array([token for row in rows for token in row], np.int32),
    )


@pytest.fixture(scope="module")
def users():
    """Histories of 0 to 30 events; token 1 is a video beyond the catalog."""
    random = np.random.default_rng(3)
    weights = 1 / np.arange(1, TOKENS)
    rows = [
        (1 + random.choice(TOKENS - 1, length, p=weights / weights.sum())).tolist()
        for length in random.integers(0, 30, 50)
    ]
    rows[4] = []
    return rows


@pytest.fixture(scope="module")
def past(users):
    random = np.random.default_rng(4)
    times = np.concatenate([np.sort(random.integers(0, 20 * DAY_US, len(row))) for row in users])
    rows = np.arange(0, 50, 2)
    return Past(
        histories=ragged(users),
        time_us_E=times,
        until_us=20 * DAY_US,
        rows_M=rows,
        seen=ragged(users).take(rows),
        tokens=TOKENS,
    )


def named(past, count=10):
    return dict(baselines.lists(past, count))


def expected(score_of, past, users, count=10):
    """What sorting every video by hand gives, the more popular first among equals."""
    views = past.views_V
    made = np.zeros((len(past.rows_M), count), np.int32)
    for place, user in enumerate(past.rows_M):
        seen = set(users[user]) if past.seen is not None else set()
        left = [token for token in range(2, TOKENS) if token not in seen]
        left.sort(key=lambda token: (-score_of(user, token), -views[token], token))
        made[place, : len(left[:count])] = left[:count]
    return made


def pair_sums(users):
    sums = np.zeros((TOKENS, TOKENS))
    for row in users:
        for i, j in itertools.combinations(range(len(row)), 2):
            if j - i <= 10 and row[i] >= 2 and row[j] >= 2:
                sums[row[i], row[j]] += 1 / (j - i)
                sums[row[j], row[i]] += 1 / (j - i)
    return sums


def test_popularity_counts_views_of_a_window(past, users):
    days = {"popularity": None, "popularity, 7 days": 7, "popularity, 1 day": 1}
    tokens = past.histories.values
    for name, count in days.items():
        inside = np.ones(len(tokens), bool) if count is None else past.time_us_E >= (20 - count) * DAY_US
        views = np.bincount(tokens[inside], minlength=TOKENS)
        np.testing.assert_array_equal(named(past)[name], expected(lambda _, t, v=views: v[t], past, users))


def test_transitions_count_what_follows_the_last_video(past, users):
    def follows(user, token):
        last = users[user][-1] if users[user] else 0
        return sum(a == last >= 2 and b == token for row in users for a, b in itertools.pairwise(row))

    np.testing.assert_array_equal(named(past)["last-item transitions"], expected(follows, past, users))


def test_co_occurrence_is_the_decayed_cosine_of_the_newest_ten(past, users):
    sums, views = pair_sums(users), np.maximum(past.views_V, 1)
    cosine = sums / np.sqrt(views[:, None] * views[None, :])
    np.testing.assert_allclose(past.co_views.weight_WW, cosine, rtol=1e-5)

    def score(user, token):
        newest = users[user][::-1][:10]
        return sum(0.8**r * cosine[item, token] for r, item in enumerate(newest))

    found, wanted = named(past)["co-occurrence"], expected(score, past, users)
    scores = [[score(u, t) if t else 0 for t in row] for u, row in zip(past.rows_M, found, strict=True)]
    best = [[score(u, t) if t else 0 for t in row] for u, row in zip(past.rows_M, wanted, strict=True)]
    np.testing.assert_allclose(scores, best, rtol=1e-5)  # sums in another order may swap equal ones
    last_day = np.bincount(past.histories.values[past.time_us_E >= 19 * DAY_US], minlength=TOKENS) ** 0.7
    wanted = expected(lambda u, t: round(score(u, t) * last_day[t], 6), past, users)
    assert (named(past)["co-occurrence x popularity, 1 day"] == wanted).mean() > 0.9


def test_repeat_last_is_there_only_where_seen_videos_may_be_recommended(past, users):
    assert "repeat last" not in named(past)
    allowed = dataclasses.replace(past, seen=None)
    for row, user in zip(named(allowed)["repeat last"], past.rows_M, strict=True):
        own = [token for token in dict.fromkeys(users[user][::-1]) if token >= 2][:10]
        assert row[: len(own)].tolist() == own


def test_a_log_without_a_clock_has_no_popularity_of_days(past):
    names = list(named(dataclasses.replace(past, time_us_E=None)))
    assert names == ["popularity", "last-item transitions", "co-occurrence"]


def test_a_row_without_history_gets_what_is_popular(past):
    [place] = np.flatnonzero(past.rows_M == 4)
    found = named(past)
    for name in ("last-item transitions", "co-occurrence"):
        np.testing.assert_array_equal(found[name][place], found["popularity"][place])


def test_seen_videos_are_never_recommended_and_no_video_twice(past, users):
    for tokens_MK in named(past, count=35).values():
        for row, user in zip(tokens_MK, past.rows_M, strict=True):
            left = row[row > 0].tolist()
            assert len(set(left)) == len(left) == min(35, len(set(range(2, TOKENS)) - set(users[user])))
            assert not set(left) & set(users[user])
            assert not row[len(left) :].any()


def test_equal_scores_go_by_priority_whatever_the_chunks(monkeypatch):
    random = np.random.default_rng(6)
    scores = random.integers(0, 4, (300, 50)).astype(np.float32)
    priority = random.permutation(50)
    wanted = np.array([sorted(range(2, 50), key=lambda t: (-row[t], priority[t]))[:7] for row in scores])
    for size in (1 << 21, 4000):
        monkeypatch.setattr(ranking, "CHUNK_BYTES", size)
        found = ranking.best(lambda a, b: scores[a:b], 300, count=7, priority_V=priority, banned=None)
        np.testing.assert_array_equal(found, wanted)


def test_a_catalog_beyond_the_matrix_counts_its_most_viewed_videos(past, monkeypatch):
    whole = past.co_views.weight_WW
    monkeypatch.setattr(cooccurrence, "MOST_TOKENS", 20)
    some = cooccurrence.count(past.histories, past.views_V)
    np.testing.assert_array_equal(some.weight_WW, whole[:20, :20])
    newest = cooccurrence.newest(past.histories, past.rows_M, 10)
    assert some.scores(newest).shape == (len(past.rows_M), TOKENS)
    assert not some.scores(newest)[:, 20:].any()


def test_vectors_keep_the_cosines_of_the_rows(past):
    vectors, rows = past.co_views.vectors(), past.co_views.weight_WW
    lengths = np.linalg.norm(rows, axis=1)
    there = np.flatnonzero(lengths)
    cosine = rows[there] @ rows[there].T / np.outer(lengths[there], lengths[there])
    assert np.abs(vectors[there] @ vectors[there].T - cosine).mean() < 0.15


def test_the_real_log_gives_the_known_figures(kuairand):
    before, day, from_log = [pl.col("date") < 20220430, pl.col("date") == 20220430, ["user_id", "video_id"]]
    log = pl.read_parquet(kuairand / "events.parquet")
    history = pl.concat(
        [pl.read_parquet(kuairand / "history.parquet").select(from_log), log.filter(before).select(from_log)]
    )
    catalog = history.group_by("video_id").len().sort(["len", "video_id"], descending=[True, False])
    catalog = catalog.select("video_id").with_row_index("token", offset=2)
    ids = pl.concat([history["user_id"], log["user_id"]]).unique().sort()

    def rows(events):
        events = events.join(catalog, on="video_id", how="left", maintain_order="left").sort(
            "user_id", maintain_order=True
        )
        counts = np.bincount(ids.search_sorted(events["user_id"]).to_numpy(), minlength=len(ids))
        return Ragged(
            offsets_N1=np.concatenate([[0], np.cumsum(counts)]),
            values=events["token"].cast(pl.Int32).fill_null(1).to_numpy(),
        ), events["video_id"].to_numpy()

    (past_rows, _), (next_rows, code) = rows(history), rows(log.filter(day))
    tested = np.flatnonzero(next_rows.lengths_N)
    wanted = targets.next_videos(next_rows.take(tested), code, 1)
    past = Past(
        histories=past_rows,
        time_us_E=None,
        until_us=0,
        rows_M=tested,
        seen=past_rows.take(tested),
        tokens=len(catalog) + 2,
    )
    found = {name: metrics.accuracy(each, wanted, (10,)) for name, each in named(past).items()}
    assert len(tested) == 10_129
    assert found["popularity"]["ndcg@10"].mean() == pytest.approx(0.0185, abs=5e-4)
    assert found["co-occurrence"]["ndcg@10"].mean() == pytest.approx(0.0378, abs=5e-4)
    assert found["co-occurrence"]["hr@10"].mean() == pytest.approx(0.0755, abs=1e-3)
