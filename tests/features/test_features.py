"""All 1024 features of `from_log` and `from_videos`, by `segments`, against the row-wise twin and by hand.

Also tests `features`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings

from genrec_batch import features
from genrec_batch.core import layout
from genrec_batch.core.arrays import Histories, SideTable
from genrec_batch.events.side_tables import users_table, videos_table
from tests.histories import build, normalize
from tests.logs import START, Log, Row, busy_log, catalog_of, events_frame, floats, log_of, logs, side_frame
from tests.twins import features as reference

EXAMPLES = settings(max_examples=500, deadline=None, derandomize=True)
ABSOLUTE, RELATIVE = 2e-4, 1e-4  # float32 sums against exact ones

Vectors = dict[Any, list[float]]


@dataclass(frozen=True, kw_only=True)
class Built:
    """What `features.compute` reads of a log, by the package's own host path."""

    ids: pl.Series
    histories: Histories
    users: SideTable | None
    videos: SideTable | None
    max_events: int

    def features(self, kernel: features.Kernel = "numpy") -> Any:
        return features.compute(self.histories, self.users, self.videos, max_events=self.max_events, kernel=kernel)


def built(log: Log) -> Built:
    events = normalize(events_frame(log.events, log.columns))
    users = None if log.users is None else side_frame(log.users, events.schema["user_id"], "user_id")
    videos = None if log.videos is None else side_frame(log.videos, events.schema["video_id"], "video_id")
    ids, histories = build(
        events,
        catalog=catalog_of(events, vocabulary=log.vocabulary, as_of_us=log.as_of_us),
        as_of_us=log.as_of_us,
        max_events=log.max_events,
        seen_limit=log.seen_limit,
        users=users,
        videos=videos,
    )
    return Built(
        ids=ids,
        histories=histories,
        users=None if users is None else users_table(users),
        videos=None if videos is None else videos_table(videos),
        max_events=log.max_events,
    )


def of_package(log: Log, kernel: features.Kernel = "numpy") -> Vectors:
    """Return each user's features by the package's whole host path."""
    of_log = built(log)
    dense_NF = of_log.features(kernel)
    assert dense_NF.dtype == np.float32
    assert dense_NF.shape == (len(of_log.ids), 1024)
    return dict(zip(of_log.ids.to_list(), dense_NF.tolist(), strict=True))


def of_twin(log: Log) -> Vectors:
    """Return each user's features, one row at a time."""
    catalog = reference.catalog(log.events, log.as_of, log.vocabulary)
    past = reference.histories(log.events, as_of=log.as_of, catalog=catalog, max_events=log.max_events)
    users_rows = {row["user_id"]: row for row in log.users or []}
    video_rows = {row["video_id"]: row for row in log.videos or []}
    nothing = reference.History(events=[], tokens=[], total_events=0, seen=[])
    return {
        user: reference.features(
            past.get(user, nothing),
            as_of=log.as_of,
            max_events=log.max_events,
            columns=log.columns,
            users_row=users_rows.get(user),
            video_rows=video_rows,
        )
        for user in sorted({*past, *users_rows})
    }


def differences(got: list[float], expected: list[float]) -> list[str]:
    """Return a line for each slot that differs by more than float32 explains."""
    names = layout.names()
    return [
        f"slot {slot} {names[slot]}: {a:.7g}, expected {b:.7g}"
        for slot, (a, b) in enumerate(zip(got, expected, strict=True))
        if not abs(a - b) <= ABSOLUTE + RELATIVE * abs(b)
    ]


def assert_same(log: Log) -> None:
    got, expected = of_package(log), of_twin(log)
    assert list(got) == list(expected), "the same users in the same order"
    for user, vector in got.items():
        faults = differences(vector, expected[user])
        assert not faults, f"user {user!r}, {len(faults)} slots:\n  " + "\n  ".join(faults[:20])


@EXAMPLES
@given(log=logs())
def test_features_equal_the_row_wise_twin(log: Log) -> None:
    assert_same(log)


@pytest.mark.parametrize("max_events", [1, 50, 64, 2000])
def test_users_with_one_and_with_thousands_of_events(max_events: int) -> None:
    assert_same(busy_log(seed=3, events_per_user=[2500, 1, 2, 5, 20, 21, 64, 65, 130], max_events=max_events))


@pytest.mark.parametrize("listed", [True, False], ids=["lists", "hashed"])
def test_side_tables_over_a_busy_log(listed: bool) -> None:
    log = busy_log(seed=5, events_per_user=[300, 40, 7], videos=60)
    users: list[Row] = [{"user_id": user, "age": 20 + user, "vip": user % 2 == 0} for user in (2, 0, 7)]
    videos: list[Row] = [
        {"video_id": video, "author_id": video % 9, "category": f"c{video % 4}", "length_s": 9.5 * video}
        for video in range(0, 60, 2)
    ]
    if listed:
        users = [{**row, "profile": floats(200, seed=i)} for i, row in enumerate(users)]
        videos = [{**row, "embedding": floats(200, seed=i)} for i, row in enumerate(videos)]
    assert_same(log_of(log.events, users=users, videos=videos))


def test_busy_logs_reach_every_slot_but_the_reserved() -> None:
    log = busy_log(seed=11, events_per_user=[105] * 80 + [2] * 8, max_events=105)
    users = [{"user_id": 3, "profile": floats(200, seed=1)}]
    videos = [{"video_id": v, "embedding": floats(200, seed=v), "category": v % 2, "author_id": v} for v in range(9)]
    cold = {**log.events[0], "user_id": 99, "video_id": -1}
    vectors = of_twin(log_of([*log.events, cold], users=users, videos=videos, max_events=105, vocabulary=300))
    reached = [slot for slot, values in enumerate(zip(*vectors.values(), strict=True)) if any(values)]
    assert reached == [slot for slot, name in enumerate(layout.names()) if not name.startswith("reserved")]


@pytest.mark.parametrize("missing", ["watch_percentage", "session_id", "time_of_day", "day_of_week", "is_weekend"])
def test_a_log_without_a_column(missing: str) -> None:
    log = busy_log(seed=6, events_per_user=[60, 3])
    assert_same(log_of([{k: v for k, v in row.items() if k != missing} for row in log.events]))


def test_a_log_with_the_three_required_columns_only() -> None:
    log = busy_log(seed=7, events_per_user=[60, 3])
    assert_same(log_of([{k: row[k] for k in ("user_id", "video_id", "timestamp")} for row in log.events]))


def test_a_user_does_not_depend_on_the_others() -> None:
    log = busy_log(seed=9, events_per_user=[70, 3, 1, 33, 50, 8])
    together = of_package(log)
    for user in range(6):
        alone = [row for row in log.events if row["user_id"] == user]
        same_catalog = [{**row, "user_id": 99} for row in log.events if row["user_id"] != user]
        assert of_package(log_of([*alone, *same_catalog], as_of=log.as_of))[user] == together[user]


# By hand, for the twin and for the package alike

both = pytest.mark.parametrize("compute", [of_twin, of_package], ids=["twin", "package"])


def view(at: datetime, video: Any = 1, **columns: Any) -> dict[str, Any]:
    return {"user_id": 1, "video_id": video, "timestamp": at, **columns}


def assert_slots(vector: list[float], expected: dict[int, float]) -> None:
    got = [vector[slot] for slot in expected]
    names = layout.names()
    faults = [
        f"slot {slot} {names[slot]}: {a:.7g}, expected {b:.7g}"
        for (slot, b), a in zip(expected.items(), got, strict=True)
        if not math.isclose(a, b, rel_tol=2e-6, abs_tol=2e-6)
    ]
    assert not faults, "\n".join(faults)


@both
def test_one_event_by_hand(compute: Any) -> None:
    saturday = datetime(2026, 3, 7, 18, 30, tzinfo=timezone.utc)
    event = view(
        saturday,
        watch_duration=250.0,
        watch_percentage=0.5,
        watch_complete=True,
        rewatch_count=2,
        skip_duration=0.0,
        is_liked=True,
        is_favorited=None,
        is_shared=False,
        device_type="tablet",
        network_type="satellite",
        recommendation_source="nearby",
        recommendation_position=100,
        session_id="s",
    )
    log = log_of([event], as_of=saturday + timedelta(hours=3))
    expected = {
        0: 2.5,  # seconds / 100
        20: 0.5,
        **dict.fromkeys(range(40, 44), 1.0),  # liked over each window
        60: 0.7708333,  # 18.5 / 24
        70: 0.7142857,  # 5 / 7
        102: 1.0,  # unknown, mobile, tablet
        200: 1.0,  # unknown
        306: 1.0,  # nearby is the last of seven
        400: 1.0,  # ln 101 / ln 101
        **{slot + 5 * w: 2.5 for w in range(3) for slot in (500, 502, 503, 504)},
        **{slot + 5 * w: 0.5 for w in range(3) for slot in (515, 517, 518, 519)},
        **dict.fromkeys(range(530, 536), 1.0),  # complete, rewatch
        **dict.fromkeys(range(539, 542), 1.0),  # like
        583: 1.0,  # 565 + 18
        594: 1.0,  # 589 + 5
        596: 1.0,  # weekend
        598: 5.5254529,  # ln 251
        599: 0.6931472,
        1000: 0.02,
        1001: 0.6931472,
        1002: 1.0,
        1005: 0.6931472,
        1006: 0.6931472,
        1008: 1.3862944,  # ln(1 + 3 hours)
        1011: 1.0,
        1016: 4.6151205,  # ln 101
        1017: 1.0,
    }
    vector = compute(log)[1]
    assert_slots(vector, expected)
    assert {slot for slot, value in enumerate(vector) if value != 0} == set(expected)


@both
def test_windows_deviations_and_medians_by_hand(compute: Any) -> None:
    seconds = [700.0, None, 100.0, 200.0, -60.0, 600.0]  # oldest first
    shares = [9.0, 0.5, None, 1.0, -2.0, 0.5]
    liked = [True, None, False, True, None, None]
    rows = [
        view(START + timedelta(hours=i), video=i, watch_duration=d, watch_percentage=p, is_liked=l)
        for i, (d, p, l) in enumerate(zip(seconds, shares, liked, strict=True))
    ]
    vector = compute(log_of(rows, max_events=8))[1]
    assert_slots(vector, dict(enumerate([6.0, 0.0, 2.0, 1.0, 0.0, 7.0])))
    assert_slots(vector, dict(enumerate([0.5, 0.0, 1.0, 0.0, 0.5, 3.0], 20)))
    assert_slots(vector, {40: 0.0, 41: 0.5, 42: 0.6666667, 43: 0.6666667})
    # newest 5: 6, -0.6, 2, 1; all: and 7
    assert_slots(vector, dict(enumerate([2.1, 2.4351591, -0.6, 6.0, 1.5], 500)))
    assert_slots(vector, dict(enumerate([3.08, 2.9301195, -0.6, 7.0, 2.0], 510)))
    # newest 5: 0.5, 0, 1, 0.5; all: and 3
    assert_slots(vector, dict(enumerate([0.5, 0.3535534, 0.0, 1.0, 0.5], 515)))
    assert_slots(vector, dict(enumerate([1.0, 1.0488088, 0.0, 3.0, 0.5], 525)))
    # five gaps of an hour: ln 3601
    assert_slots(vector, dict(enumerate([8.1889668, 0.0, 8.1889668, 8.1889668, 8.1889668], 560)))
    assert_slots(vector, {598: 7.3401868})  # ln(1 + 1540)
    assert_slots(vector, {1000: 0.75, 1003: 2.9301195, 1004: 1.0488088, 1018: -0.5, 1019: -0.98})


@both
def test_only_a_gap_over_half_an_hour_starts_a_session(compute: Any) -> None:
    at = [0.0, 1800.0, 3600.000001, 3700.0, 5500.0]
    vector = compute(log_of([view(START + timedelta(seconds=s)) for s in at]))[1]
    assert_slots(vector, {1005: 1.0986123, 1006: 1.2527630, 1011: 0.6})  # two sessions: 2 and 3 events


@both
def test_sessions_are_distinct_ids_where_the_log_has_them(compute: Any) -> None:
    ids = [7, 8, None, 7, 9, 7]
    vector = compute(log_of([view(START + timedelta(days=i), session_id=s) for i, s in enumerate(ids)]))[1]
    assert_slots(vector, {1005: 1.3862944, 1006: 1.0986123, 1011: 0.5})
    vector = compute(log_of([view(START, session_id=7), view(START + timedelta(days=1), session_id=None)]))[1]
    assert_slots(vector, {1005: 0.6931472, 1006: 1.0986123, 1011: 0.0})
    vector = compute(log_of([view(START, session_id=None)]))[1]
    assert_slots(vector, {1005: 0.0, 1006: 0.0, 1011: 0.0})


@both
def test_videos_are_weighted_by_watch_percentage(compute: Any) -> None:
    videos = [{"video_id": v, "embedding": [float(v)] * 199 + [1.0]} for v in (1, 2, 3)]

    def mean_of(*watched: tuple[int, float | None]) -> list[float]:
        rows = [view(START, video, watch_percentage=share) for video, share in watched]
        vector: list[float] = compute(log_of(rows, videos=videos))[1]
        return [vector[800], vector[999]]

    assert mean_of((1, 0.5), (2, None)) == pytest.approx([2.5 / 1.5, 1.0])
    assert mean_of((1, 9.0), (3, 1.0)) == pytest.approx([6 / 4, 1.0]), "percentages end at 3"
    assert mean_of((1, 0.0), (3, -1.0)) == pytest.approx([2.0, 1.0]), "all weights 0: plain mean"
    assert mean_of((4, 1.0), (3, 0.25)) == pytest.approx([3.0, 1.0]), "a video that the table lacks does not count"
    assert mean_of((4, 1.0)) == [0.0, 0.0]


@both
def test_creators_and_categories(compute: Any) -> None:
    kinds = {1: ("a", 10), 2: ("a", 11), 3: ("b", 10), 4: (None, None)}
    videos = [{"video_id": v, "category": c, "creator_id": w} for v, (c, w) in kinds.items()]
    rows = [view(START + timedelta(seconds=i), v) for i, v in enumerate([1, 2, 1, 3, 4, 5])]
    vector = compute(log_of(rows, videos=videos))[1]
    # of six events, four have a category: a three times, b once
    assert_slots(vector, {1012: 2 / 6, 1013: 2 / 6, 1014: 0.8112781, 1015: 0.75})
    assert_slots(compute(log_of(rows[:3], videos=videos))[1], {1013: 1 / 3, 1014: 0.0, 1015: 1.0})


@both
def test_hashed_columns_by_hand(compute: Any) -> None:
    row = {"user_id": 1, "vip": True, "level": -7, "city": "Zürich", "device_id": 5, "nick": None, "tags": ["a"]}
    vector = compute(log_of([view(START)], users=[row]))[1]
    expected = {
        763: -1.0,  # xxh64("vip=true") = 0x9c10562bc69d0cc3: bit 63 is 1, mod 200 is 163
        735: -2.0794415,  # xxh64("level") = 0x77f21cd17334677f: bit 63 is 0, mod 200 is 135; -ln 8
        668: -1.0,  # xxh64("city=Zürich") = 0xbe7ecae0e591460c: bit 63 is 1, mod 200 is 68
    }
    assert_slots(vector, expected)
    assert {slot for slot in range(600, 800) if vector[slot] != 0} == set(expected)


@both
def test_unknown_videos_and_cold_users(compute: Any) -> None:
    rows = [view(START + timedelta(seconds=i), video) for i, video in enumerate([5, 5, 5, 6, 7])]
    stranger = {"user_id": 2, "video_id": 9, "timestamp": START}
    users = [{"user_id": 3, "profile": [0.5] * 200}, {"user_id": 4, "profile": None}]
    vectors = compute(log_of([*rows, stranger], vocabulary=3, users=users))
    assert_slots(vectors[1], {1002: 0.6, 1009: 0.0, 1010: 0.4})
    assert_slots(vectors[2], {1009: 1.0, 1010: 1.0, 1000: 0.02})
    assert [slot for slot, value in enumerate(vectors[3]) if value != 0] == [*range(600, 800), 1009]
    assert [slot for slot, value in enumerate(vectors[4]) if value != 0] == [1009]


@both
def test_total_counts_the_events_that_are_not_kept(compute: Any) -> None:
    rows = [view(START + timedelta(seconds=i), i) for i in range(9)]
    assert_slots(compute(log_of(rows, max_events=4))[1], {599: 1.6094379, 1000: 1.0, 1001: 2.3025851})


@both
def test_an_hour_column_may_hold_nulls_and_fractions(compute: Any) -> None:
    hours = [None, 23.99, 24.0, 6.5]
    rows = [view(START + timedelta(minutes=i), time_of_day=hour) for i, hour in enumerate(hours)]
    vector = compute(log_of(rows))[1]
    assert_slots(vector, {60: 6.5 / 24, 61: 1.0, 62: 23.99 / 24, 63: 0.0})
    assert_slots(vector, {565: 1 / 3, 571: 1 / 3, 588: 1 / 3, 587: 0.0})
