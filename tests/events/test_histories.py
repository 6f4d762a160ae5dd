"""Which events are kept, in which order, who is scored, and what counts as seen; against the row-wise twin."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings

from genrec_batch.core.arrays import Histories
from tests.histories import build, normalize
from tests.logs import START, Log, busy_log, catalog_of, epoch_us, events_frame, log_of, logs, side_frame
from tests.twins import features as reference

EXAMPLES = settings(max_examples=250, deadline=None, derandomize=True)


def minutes(count: float) -> datetime:
    return START + timedelta(minutes=count)


def view(user: Any, video: Any, at: float, **columns: Any) -> dict[str, Any]:
    return {"user_id": user, "video_id": video, "timestamp": minutes(at), **columns}


def built(log: Log, frame: pl.DataFrame | None = None) -> tuple[list[Any], Histories, list[Any]]:
    """Return user ids, their histories, and the catalog's ids in token order."""
    events = normalize(events_frame(log.events, log.columns) if frame is None else frame)
    catalog = catalog_of(events, vocabulary=log.vocabulary, as_of_us=log.as_of_us)
    ids, histories = build(
        events,
        catalog=catalog,
        as_of_us=log.as_of_us,
        max_events=log.max_events,
        seen_limit=log.seen_limit,
        users=None if log.users is None else side_frame(log.users, events.schema["user_id"], "user_id"),
        videos=None if log.videos is None else side_frame(log.videos, events.schema["video_id"], "video_id"),
    )
    return ids.to_list(), histories, catalog.items["video_id"].to_list()


def twins(log: Log) -> tuple[dict[Any, reference.History], dict[Any, int]]:
    tokens = reference.catalog(log.events, log.as_of, log.vocabulary)
    past = reference.histories(
        log.events, as_of=log.as_of, catalog=tokens, max_events=log.max_events, seen_limit=log.seen_limit
    )
    return past, tokens


def kept(histories: Histories, values: Any, row: int) -> list[Any]:
    return list(values[histories.offsets_N1[row] : histories.offsets_N1[row + 1]].tolist())


def seen(histories: Histories, row: int) -> list[int]:
    offsets = histories.seen.offsets_N1
    return sorted(set(histories.seen.values[offsets[row] : offsets[row + 1]].tolist()) - {1})  # 1: never chosen anyway


def tokens_by_user(log: Log, frame: pl.DataFrame | None = None) -> dict[Any, list[int]]:
    ids, histories, _ = built(log, frame)
    return {user: kept(histories, histories.tokens_E, row) for row, user in enumerate(ids)}


def videos_by_user(log: Log) -> dict[Any, list[Any]]:
    ids, histories, items = built(log)
    return {user: [items[t - 2] for t in kept(histories, histories.tokens_E, row)] for row, user in enumerate(ids)}


def assert_same(log: Log) -> None:
    """Compare everything that `Histories` says with the twin, user by user."""
    ids, histories, items = built(log)
    past, tokens = twins(log)
    listed = [row["user_id"] for row in log.users or []]
    assert ids == sorted({*past, *listed}), "users: everybody with an event up to as-of or in the users table, by id"
    assert items == sorted(tokens, key=lambda video: tokens[video]), "catalog"
    assert set(histories.as_of_us_N.tolist()) <= {log.as_of_us}
    table = [row["video_id"] for row in log.videos or []]
    for row, user in enumerate(ids):
        twin = past.get(user, reference.History(events=[], tokens=[], total_events=0, seen=[]))
        assert kept(histories, histories.tokens_E, row) == twin.tokens, f"tokens of user {user!r}"
        times = [epoch_us(event["timestamp"]) for event in twin.events]
        assert kept(histories, histories.time_us_E, row) == times, f"times of user {user!r}"
        assert histories.total_events_N[row] == twin.total_events, f"total events of user {user!r}"
        assert seen(histories, row) == sorted(twin.seen), f"seen tokens of user {user!r}"
        assert histories.user_row_N[row] == (listed.index(user) if user in listed else -1)
        rows = [table.index(event["video_id"]) if event["video_id"] in table else -1 for event in twin.events]
        assert kept(histories, histories.video_row_E, row) == rows, f"videos table rows of user {user!r}"
        codes = kept(histories, histories.video_code_E, row)
        same = [[a == b for a in codes] for b in codes]
        videos = [event["video_id"] for event in twin.events]
        assert same == [[a == b for a in videos] for b in videos], f"video codes of user {user!r}"


@EXAMPLES
@given(log=logs())
def test_histories_equal_the_row_wise_twin(log: Log) -> None:
    assert_same(log)


@pytest.mark.parametrize("seen_limit", [10, 1000])
@pytest.mark.parametrize("max_events", [1, 50, 2000])
def test_a_user_with_thousands_of_events(max_events: int, seen_limit: int) -> None:
    users = [3000, 1, 51, 50, 49]
    assert_same(busy_log(seed=4, events_per_user=users, max_events=max_events, seen_limit=seen_limit, vocabulary=200))


def test_the_newest_events_are_kept_oldest_first() -> None:
    log = log_of([view(1, "c", 3), view(1, "a", 1), view(1, "d", 4), view(1, "b", 2)], max_events=3)
    assert videos_by_user(log) == {1: ["b", "c", "d"]}


def test_equal_timestamps_stand_in_input_order() -> None:
    rows = [view(1, "b", 5), view(1, "a", 5), view(1, "c", 5), view(1, "d", 0)]
    assert videos_by_user(log_of(rows)) == {1: ["d", "b", "a", "c"]}
    assert videos_by_user(log_of(rows, max_events=2)) == {1: ["a", "c"]}
    assert videos_by_user(log_of(rows[::-1], max_events=2)) == {1: ["a", "b"]}


def test_events_after_as_of_do_not_exist() -> None:
    rows = [view(1, "a", 0), view(1, "b", 10), view(1, "z", 11), view(2, "z", 11), view(3, "a", 2)]
    log = log_of(rows, as_of=minutes(10))
    ids, histories, items = built(log)
    assert ids == [1, 3], "user 2 has only events after as-of"
    assert items == ["a", "b"], "an event at as-of counts, one after it does not"
    assert histories.total_events_N.tolist() == [2, 1]
    assert videos_by_user(log) == {1: ["a", "b"], 3: ["a"]}


def test_total_counts_all_events_up_to_as_of() -> None:
    log = log_of([view(1, video, video) for video in range(9)], as_of=minutes(6), max_events=2)
    _, histories, _ = built(log)
    assert histories.total_events_N.tolist() == [7]
    assert histories.lengths_N.tolist() == [2]


def test_row_order_does_not_matter_without_ties() -> None:
    log = busy_log(seed=8, events_per_user=[40, 3, 70])
    distinct = [{**row, "timestamp": START + timedelta(seconds=7 * i)} for i, row in enumerate(log.events)]
    log = log_of(distinct)
    frame = events_frame(log.events, log.columns)
    expected = tokens_by_user(log)
    for seed in range(3):
        assert tokens_by_user(log, frame.sample(fraction=1.0, shuffle=True, seed=seed)) == expected
    assert tokens_by_user(log, pl.concat([frame[90:], frame[:90]], rechunk=False)) == expected
    assert tokens_by_user(log, frame.sort("video_id")) == expected


def test_seen_reaches_beyond_the_kept_events() -> None:
    log = log_of([view(1, video, at) for at, video in enumerate("abcabd")], max_events=2)
    _, histories, items = built(log)
    assert [items[token - 2] for token in seen(histories, 0)] == ["a", "b", "c", "d"]
    assert histories.lengths_N.tolist() == [2]


def test_seen_takes_the_newest_distinct_videos() -> None:
    log = log_of([view(1, video, at) for at, video in enumerate("abcca")], seen_limit=2)
    _, histories, items = built(log)
    assert [items[token - 2] for token in seen(histories, 0)] == ["a", "c"]


def test_seen_leaves_unknown_videos_out() -> None:
    log = log_of([view(1, "a", 0), view(1, "a", 1), view(1, "b", 2)], vocabulary=3)
    _, histories, items = built(log)
    assert items == ["a"]
    assert seen(histories, 0) == [2]
    assert kept(histories, histories.tokens_E, 0) == [2, 2, 1]


def test_an_unknown_video_takes_a_place_of_the_seen_limit() -> None:
    log = log_of([view(1, "a", 0), view(1, "a", 1), view(1, "b", 2)], vocabulary=3, seen_limit=1)
    _, histories, _ = built(log)
    assert seen(histories, 0) == [], "the newest distinct video is b, which is unknown"


def test_two_unknown_videos_are_two_videos() -> None:
    log = log_of([view(1, video, at) for at, video in enumerate("aabcc")], vocabulary=3)
    _, histories, _ = built(log)
    assert kept(histories, histories.tokens_E, 0) == [2, 2, 1, 1, 1]
    assert len(set(kept(histories, histories.video_code_E, 0))) == 3


def test_a_user_of_the_table_without_events_is_cold() -> None:
    log = log_of([view(5, 1, 0)], users=[{"user_id": 9}, {"user_id": 5}, {"user_id": 2}])
    ids, histories, _ = built(log)
    assert ids == [2, 5, 9]
    assert histories.lengths_N.tolist() == [0, 1, 0]
    assert histories.total_events_N.tolist() == [0, 1, 0]
    assert histories.seen.lengths_N.tolist() == [0, 1, 0]
    assert histories.user_row_N.tolist() == [2, 1, 0]


def test_users_are_sorted_as_what_they_are() -> None:
    assert built(log_of([view(10, 1, 0), view(9, 1, 0)]))[0] == [9, 10]
    assert built(log_of([view("10", 1, 0), view("9", 1, 0)]))[0] == ["10", "9"]


def test_rows_without_an_id_or_a_time_are_nobody() -> None:
    whole = [view(1, 1, 0), view(2, 2, 1)]
    log = log_of(whole)
    broken = [{**view(1, 3, 2), name: None} for name in ("user_id", "video_id", "timestamp")]
    assert tokens_by_user(log, events_frame([*broken, *whole], log.columns)) == tokens_by_user(log)


def test_catalog_orders_equal_counts_by_id() -> None:
    rows = [view(1, video, at) for at, video in enumerate([10, 9, 9, 8, 8, 7])]
    assert built(log_of(rows))[2] == [8, 9, 7, 10]
    assert built(log_of(rows, vocabulary=5))[2] == [8, 9, 7]
    text = [{**row, "video_id": str(row["video_id"])} for row in rows]
    assert built(log_of(text))[2] == ["8", "9", "10", "7"]
