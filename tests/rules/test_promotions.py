"""`promotions`: who gets which promoted video, and where, against a loop over users."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from genrec_batch.core.arrays import Masks, Ragged, offsets_of
from genrec_batch.rules.promotions import Promotions

VOCABULARY = 40


def table_of(rows, users=None):
    frame = pl.DataFrame(rows, schema={"token": pl.Int32, "rank": pl.Int32}, orient="row")
    return frame if users is None else frame.with_columns(user_id=pl.Series(users, dtype=pl.Int64))


def promoted(rows, *, top_k=10, share=0.2, users=None, ids=(7, 8), seen=None, banned=None, start=0):
    ids = pl.Series(ids)
    found = Promotions.of(table_of(rows, users), ids, top_k=top_k, share=share, vocabulary=VOCABULARY)
    count = len(ids) - start
    ragged = None
    if seen is not None:
        lengths = np.array([len(each) for each in seen])
        values = np.array([token for each in seen for token in each], np.int32)
        ragged = Ragged(offsets_N1=offsets_of(lengths), values=values)
    masks = None
    if banned is not None:
        maps = np.zeros((count, VOCABULARY), np.bool_)
        for user, tokens in enumerate(banned):
            maps[user, list(tokens)] = True
        masks = Masks.of(maps, np.arange(count))
    return found.promoted(np.arange(start, len(ids)), ragged, masks)


def test_a_share_of_the_list_is_spread_evenly_and_places_are_kept():
    assert promoted([(2, None), (3, None), (4, None)]).tokens_NK[0].tolist() == [0, 0, 2, 0, 0, 0, 0, 3, 0, 0]
    assert promoted([(2, None)]).tokens_NK[0].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 0]
    assert promoted([(9, 3), (2, None), (3, None)]).tokens_NK[0].tolist() == [0, 0, 9, 2, 0, 0, 0, 3, 0, 0]
    assert promoted([(2, None)] * 1, share=0.04).tokens_NK.any() == np.False_
    assert promoted([(2, None), (3, None), (4, None)], top_k=2, share=1.0).tokens_NK[0].tolist() == [2, 3]


def test_the_next_video_takes_the_turn_of_one_that_is_seen_or_excluded():
    found = promoted([(2, None), (3, None), (4, None)], seen=[[2, 30], []], banned=[[], [3]])
    assert [row[row > 0].tolist() for row in found.tokens_NK] == [[3, 4], [2, 4]]
    assert (found.seen, found.excluded) == (1, 1)
    assert promoted([(2, 1)], seen=[[2], [2]], banned=[[2], []]).excluded == 1
    assert promoted([(2, 1)], seen=[[2], [2]], banned=[[2], []]).seen == 1


@some.composite
def cases(draw):
    users = draw(some.integers(1, 4))
    top_k = draw(some.integers(1, 7))
    tokens = some.integers(2, 12)
    per_user = draw(some.booleans())
    rows, owners = [], []
    for user in range(users if per_user else 1):
        mine = draw(some.lists(tokens, max_size=7, unique=True))
        ranks = draw(some.permutations(range(1, top_k + 1)))[: draw(some.integers(0, 3))]
        for at, token in enumerate(mine):
            rows.append((token, ranks[at] if at < len(ranks) else None))
            owners.append(100 + user)
    seen = [draw(some.lists(tokens, max_size=5)) for _ in range(users)]
    banned = [draw(some.sets(tokens, max_size=5)) for _ in range(users)]
    return users, top_k, draw(some.sampled_from([0.0, 0.2, 0.5, 1.0])), rows, owners if per_user else None, seen, banned


@settings(max_examples=200, deadline=None)
@given(cases())
def test_random_tables_promote_what_a_loop_promotes(case):
    users, top_k, share, rows, owners, seen, banned = case
    ids = list(range(100, 100 + users))
    found = promoted(rows, top_k=top_k, share=share, users=owners, ids=ids, seen=seen, banned=banned)
    for user, shown in enumerate(found.tokens_NK.tolist()):
        mine = [row for at, row in enumerate(rows) if owners is None or owners[at] == 100 + user]
        mine = [(token, rank) for token, rank in mine if token not in seen[user] and token not in banned[user]]
        fixed = {rank - 1: token for token, rank in mine if rank}
        free = [place for place in range(top_k) if place not in fixed]
        others = [token for token, rank in mine if not rank][: min(int(share * top_k + 0.5), len(free))]
        for at, token in enumerate(others):
            fixed[free[(2 * at + 1) * len(free) // (2 * len(others))]] = token
        assert shown == [fixed.get(place, 0) for place in range(top_k)]


def test_users_of_a_later_shard_get_their_own():
    rows, users = [(2, 1), (3, 1), (4, 1)], [7, 9, 11]
    whole = promoted(rows, users=users, ids=[7, 8, 9, 10])
    assert whole.tokens_NK[:, 0].tolist() == [2, 0, 3, 0]
    later = promoted(rows, users=users, ids=[7, 8, 9, 10], start=2, seen=[[], []])
    assert later.tokens_NK[:, 0].tolist() == [3, 0]


@pytest.mark.parametrize("users", [None, [7, 7, 7]])
def test_nobody_is_promoted_to_no_user(users):
    table = table_of([(2, None), (3, 1), (4, None)], users)
    found = Promotions.of(table, pl.Series([7]), top_k=3, share=1.0, vocabulary=VOCABULARY)
    assert found.promoted(np.arange(0), None, None).tokens_NK.shape == (0, 3)
