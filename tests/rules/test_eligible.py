"""`eligible` and `universe`: the bit maps of random rules, compared with plain sets."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_batch.core.errors import GateError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.events.rule_tables import Listed, RuleTables
from genrec_batch.model.catalog import Catalog
from genrec_batch.rules import eligible as eligible_module
from genrec_batch.rules.eligible import SHORT_LIST, Eligible
from genrec_batch.rules.universe import Universe
from tests.twins.rules import Rules

VOCABULARY, DAY_US = 77, 86_400 * 10**6
IN_CATALOG, BEYOND = [100 + number for number in range(40)], [900, 901, 902]
USERS = list(range(1, 9))
video_ids = st.sampled_from([*IN_CATALOG, *BEYOND, 5000])
video_sets = st.frozensets(video_ids, max_size=60)
own_sets = st.dictionaries(st.sampled_from([*USERS, 99]), st.frozensets(video_ids, min_size=1, max_size=20), max_size=6)


def universe_of(beyond=BEYOND):
    items = pl.DataFrame({"video_id": IN_CATALOG[::-1]}).with_columns(count=pl.lit(1, pl.UInt64))
    ids = pl.Series("video_id", beyond, pl.Int64)
    return Universe(catalog=Catalog(items=items), vocabulary=VOCABULARY, beyond=ids)


def listed(kind, videos):
    return Listed(
        kind=kind, path="t", rows=pl.DataFrame({"video_id": sorted(videos)}, {"video_id": pl.Int64}), left_out=0
    )


def own(kind, lists):
    rows = [(user, video) for user, videos in lists.items() for video in sorted(videos)]
    frame = pl.DataFrame(rows, {"user_id": pl.Int64, "video_id": pl.Int64}, orient="row")
    return Listed(kind=kind, path="t", rows=frame, left_out=0)


class OfList:
    """An earlier output in memory."""

    name = "--exclude-recommended t"

    def __init__(self, lists):
        rows = sorted((user, video) for user, videos in lists.items() for video in videos)
        self.frame = pl.DataFrame(rows, {"user_id": pl.Int64, "video_id": pl.Int64}, orient="row")

    def rows_of(self, ids):
        return self.frame.filter(pl.col("user_id").is_between(ids[0], ids[-1]))


def rules_of(rules, universe, **options):
    tables = RuleTables(
        listed=(
            *(listed("exclude", each) for each in rules.exclude),
            *(listed("only", each) for each in rules.only),
            *(own("exclude", each) for each in rules.exclude_own),
            *(own("only", each) for each in rules.only_own),
        ),
        earlier=tuple(OfList(each) for each in rules.recommended),
    )
    return Eligible.of(tables, ScoreConfig(**options), universe, pl.Series("user_id", USERS), 0)


@st.composite
def rule_sets(draw):
    def some(sets):
        return tuple(draw(st.lists(sets, max_size=2)))

    return Rules(
        exclude=some(video_sets),
        only=some(video_sets.filter(bool)),
        exclude_own=some(own_sets),
        only_own=some(own_sets),
        recommended=some(own_sets),
    )


@settings(max_examples=150, deadline=None)
@given(
    rules=rule_sets(),
    places=st.permutations(range(len(USERS))).flatmap(lambda p: st.integers(1, 8).map(lambda n: p[:n])),
)
def test_a_user_may_get_what_no_rule_removes(rules, places):
    universe = universe_of()
    try:
        eligible = rules_of(rules, universe)
    except GateError:
        everybody = Rules(exclude=rules.exclude, only=rules.only)
        assert not everybody.eligible(0, {*IN_CATALOG, *BEYOND})
        return
    ids = [*IN_CATALOG, *BEYOND]
    tokens_V = universe.tokens(pl.Series(ids))
    masks = eligible.masks(np.array(places))
    removed_NV = masks.banned_BC(np.broadcast_to(tokens_V, (len(places), len(ids))))
    for removed_V, place in zip(removed_NV, places, strict=True):
        user = USERS[place]
        assert {i for i, r in zip(ids, removed_V, strict=True) if not r} == rules.eligible(user, set(ids))
        named = {name.split()[0][2:]: set() for name, _ in eligible.removed_from(place)}
        for name, removed_U in eligible.removed_from(place):
            named[name.split()[0][2:]] |= {i for i, r in zip(ids, removed_U[tokens_V], strict=True) if r}
        for kind, videos in named.items():
            assert videos == {video for video in ids if kind in rules.removed_by(user, video)}
    assert len(masks.banned_MW) <= len(places) + 1
    in_model = tokens_V[: len(IN_CATALOG)]
    for short in (0, 3, SHORT_LIST):  # own lists as bit maps, some, and all beside them
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(eligible_module, "SHORT_LIST", short)
            model = eligible.model_masks(np.array(places))
        assert model.banned_MW.shape[1] == -(-VOCABULARY // 32)
        assert model.own.lengths_N.max(initial=0) <= short
        assert (model.banned_BC(np.tile(in_model, (len(places), 1))) == removed_NV[:, : len(IN_CATALOG)]).all()


def test_users_who_obey_the_same_rules_share_a_bit_map():
    rules = Rules(exclude=(frozenset(IN_CATALOG[:3]),), exclude_own=({2: frozenset([110])},))
    masks = rules_of(rules, universe_of()).masks(np.arange(len(USERS)))
    assert (len(masks.banned_MW), masks.mask_B.tolist()) == (2, [0, 1, 0, 0, 0, 0, 0, 0])


def test_short_lists_of_a_users_own_need_no_bit_map():
    rules = Rules(exclude_own=({2: frozenset([110, 104])},), recommended=({3: frozenset([104, 101, 104])},))
    masks = rules_of(rules, universe_of()).model_masks(np.arange(len(USERS)))
    assert masks.bit_maps() is None
    assert masks.own.lengths_N.tolist() == [0, 2, 2, 0, 0, 0, 0, 0]


def test_rules_that_leave_nothing_end_the_run_and_are_named():
    rules = Rules(exclude=(frozenset(IN_CATALOG),))
    with pytest.raises(GateError, match="--exclude t: no video of the catalog is left for anybody"):
        rules_of(rules, universe_of(beyond=[]))


def test_a_video_in_both_kinds_of_tables_is_excluded_and_counted():
    rules = Rules(
        exclude=(frozenset([100, 101]),),
        only=(frozenset([101, 102, 103]),),
        exclude_own=({3: frozenset([102])},),
        only_own=({3: frozenset([102, 103]), 4: frozenset([103])},),
    )
    eligible = rules_of(rules, universe_of(beyond=[]))
    facts = eligible.facts()
    assert (facts["eligible_videos"], facts["contradicting_rows"]) == (2, 2)
    assert facts["rules"]["--exclude t"] == {"users": 1, "rows": 1}
    assert facts["rules"]["--only t"] == {"users": 2, "rows": 3, "users_without_rows": 6}
    masks = eligible.masks(np.array([2]))
    left = [i for i in IN_CATALOG if not masks.banned_BC(eligible.universe.tokens(pl.Series([i]))[None])[0, 0]]
    assert left == [103]


@pytest.mark.parametrize(("age", "left"), [("2d", [102, 103, 104]), ("1h", [103, 104])])
def test_a_video_without_a_time_is_never_young_enough(age, left):
    as_of_us, known = 100 * DAY_US, [100, 101, 102, 103, 104]
    times = [None, as_of_us - 3 * DAY_US, as_of_us - 2 * DAY_US, as_of_us, as_of_us + DAY_US]
    uploaded = pl.DataFrame({"video_id": known, "us": times})
    config = ScoreConfig(videos="v", max_age=age)
    eligible = Eligible.of(
        RuleTables(uploaded=uploaded), config, universe_of([]), pl.Series("user_id", USERS), as_of_us
    )
    found = ~eligible.common_U[eligible.universe.tokens(pl.Series(IN_CATALOG))]
    assert [video for video, here in zip(IN_CATALOG, found, strict=True) if here] == left


def test_the_universe_numbers_videos_of_the_catalog_as_the_model_does():
    universe = universe_of()
    ids = pl.Series([IN_CATALOG[-1], IN_CATALOG[0], 900, 902, 5000])
    assert universe.tokens(ids).tolist() == [2, 41, 96, 98, 1]
    assert universe.shown().ids(pl.Series(universe.tokens(ids))).to_list() == [139, 100, 900, 902, None]
    assert universe.videos_U.sum() == 43
    assert universe_of([]).shown() is not None


def test_ids_of_another_integer_type_are_the_same_videos():
    universe = universe_of()
    narrow = Universe(catalog=universe.catalog, vocabulary=VOCABULARY, beyond=pl.Series([], dtype=pl.Int8))
    assert narrow.tokens(pl.Series([100, 101], dtype=pl.Int8)).tolist() == [41, 40]
