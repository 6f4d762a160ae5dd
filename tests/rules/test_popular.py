"""`popular`: lists that are filled, compared with a loop over videos; random lists, seen videos, rules and groups."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_batch.core.arrays import Masks, Ragged, offsets_of
from genrec_batch.events.views import Groups, Views
from genrec_batch.model.catalog import Catalog
from genrec_batch.rules import popular as module
from genrec_batch.rules.popular import Caps, Popular, beyond_catalog
from genrec_batch.rules.universe import Universe
from tests.twins import popular as twin

CATALOG = [100, 101, 102, 103, 104, 105]
NEW = [900, 901]
USERS = [1, 2, 3, 4]
video_ids = st.sampled_from([*CATALOG, *NEW])


def universe():
    items = pl.DataFrame({"video_id": CATALOG}).with_columns(count=pl.lit(1, pl.UInt64))
    return Universe(catalog=Catalog(items=items), vocabulary=40, beyond=pl.Series("video_id", NEW, pl.Int64))


def counts_of(views, keys):
    frame = pl.DataFrame(views, {"group": pl.Int32, "video_id": pl.Int64}, orient="row")
    return frame.group_by(keys).agg(count=pl.len().cast(pl.UInt64))


def shape_of(video):
    return None if video % 3 == 0 else video % 3


def within(listed, colors, caps):
    """Return whether a list obeys caps."""
    seen = {"color": [colors[video] for video in listed], "shape": [shape_of(video) for video in listed]}
    return all(
        seen[name].count(value) <= cap for name, cap in caps.items() for value in seen[name] if value is not None
    )


@st.composite
def cases(draw):
    views = draw(st.lists(st.tuples(st.integers(-1, 1), video_ids), min_size=1, max_size=40))
    top_k = draw(st.integers(1, 5))
    users = [
        {
            "group": draw(st.integers(-1, 1)),
            "given": draw(st.lists(st.sampled_from(CATALOG), unique=True, max_size=top_k)),
            "cold": draw(st.booleans()),
            "banned": draw(st.frozensets(video_ids, max_size=4)),
            "seen": draw(st.lists(video_ids, max_size=4)),
            "promoted": draw(st.frozensets(st.sampled_from(CATALOG), max_size=4)),
        }
        for _ in USERS
    ]
    colors = {video: draw(st.sampled_from([None, "red", "blue", "green"])) for video in [*CATALOG, *NEW]}
    caps = draw(st.sampled_from([None, {"color": 1}, {"color": 2, "shape": 1}, {"color": 9, "shape": 2}]))
    for user in users if caps else ():  # a list obeys caps before it is filled
        user["given"] = [v for at, v in enumerate(user["given"]) if within(user["given"][: at + 1], colors, caps)]
    return (
        views,
        top_k,
        users,
        (colors, caps),
        draw(st.frozensets(video_ids, max_size=3)),
        draw(st.integers(1, 1 << 22)),
    )


@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_lists_are_filled_with_the_most_viewed_videos_that_a_user_may_get(case):
    views, top_k, users, (colors, caps), for_all, looked_at = case
    every = universe()
    number = {video: int(every.tokens(pl.Series([video]))[0]) for video in [*CATALOG, *NEW]}
    values = [None if user["group"] < 0 else "ab"[user["group"]] for user in users]
    groups = Groups.of(pl.DataFrame({"user_id": [*USERS, 98, 99], "by": [*values, "a", "b"]}), "by")
    found = Views(
        overall=counts_of(views, ["video_id"]),
        by_group=counts_of([view for view in views if view[0] >= 0], ["group", "video_id"]),
        groups=groups,
    )
    removed_U = np.zeros(len(every), np.bool_)
    removed_U[[number[video] for video in for_all]] = True
    table = pl.DataFrame({"video_id": list(colors), "color": list(colors.values())})
    table = table.with_columns(shape=pl.col("video_id").map_elements(shape_of, pl.Int64))
    capped = None if caps is None else Caps.of(caps, table, every)
    popular = Popular.of(found, every, removed_U, pl.Series("user_id", USERS), capped)
    banned_MV = np.tile(removed_U, (len(USERS), 1))
    for row, user in enumerate(users):
        banned_MV[row, [number[video] for video in user["banned"]]] = True
    tokens_RK = np.zeros((len(USERS), top_k), np.int32)
    for row, user in enumerate(users):
        tokens_RK[row, : len(user["given"])] = [number[video] for video in user["given"]]
    seen = Ragged(
        offsets_N1=offsets_of(np.array([len(user["seen"]) for user in users])),
        values=np.array([number[video] for user in users for video in user["seen"]], np.int32),
    )
    held_RK = tokens_RK.copy()
    for row, user in enumerate(users):
        stays = [video for video in user["given"] if not user["cold"] or video in user["promoted"]]
        held_RK[row][~np.isin(held_RK[row], [number[video] for video in stays])] = 0
    places_R = np.arange(len(USERS))
    kept, module.LOOKED_AT = module.LOOKED_AT, looked_at
    try:
        filled_RK, from_RK = popular.filled(
            held_RK, tokens_RK, places_R, Masks.of(banned_MV, np.arange(len(USERS))), [seen]
        )
    finally:
        module.LOOKED_AT = kept
    for row, user in enumerate(users):
        lists = [twin.ranked(video for group, video in views if group == user["group"])] if user["group"] >= 0 else []
        lists.append(twin.ranked(video for _, video in views))
        removed = {*for_all, *user["banned"], *user["seen"]}
        wanted = twin.filled(
            user["given"], lists, lambda video, out=removed: video not in out, top_k, cold=user["cold"],
            promoted=user["promoted"],
            within_caps=lambda listed: caps is None or within(listed, colors, caps),
        )  # fmt: skip
        tokens = [token for token in filled_RK[row].tolist() if token]
        assert tokens == [number[video] for video, _ in wanted]
        for place, (video, source) in enumerate(wanted):
            assert from_RK[row, place] == (user["given"].index(video) if source == "model" else -1)


def test_the_most_viewed_videos_beyond_the_catalog_come_first(monkeypatch):
    monkeypatch.setattr(module, "BEYOND", 2)
    overall = pl.DataFrame({"video_id": [7, 100, 8, 9], "count": [2, 9, 3, 3]})
    found = Views(overall=overall, by_group=None, groups=None)
    assert beyond_catalog(found, universe().catalog, pl.Int64()).to_list() == [8, 9]
