"""Small logs for tests: Hypothesis strategies that look for trouble, and seeded makers where size is the point.

Owns: rows as dicts (what `reference` reads) and the same rows as Polars frames (what the package reads). Must not know:
how a history or a feature is computed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Any

import polars as pl
from hypothesis import strategies as st

from genrec_batch.model.catalog import Catalog

Row = dict[str, Any]

START = datetime(2026, 3, 6, 22, 15, 40, 250_000, tzinfo=timezone.utc)  # a Friday, so that the weekend comes soon
FLAGS = [
    "watch_complete",
    "is_liked",
    "is_favorited",
    "is_shared",
    "is_commented",
    "is_followed_creator",
    "is_blocked_creator",
    "is_reported",
    "is_weekend",
    "is_holiday",
]
TYPES: dict[str, Any] = {
    "timestamp": pl.Datetime("us", "UTC"),
    "watch_duration": pl.Float64,
    "watch_percentage": pl.Float64,
    "rewatch_count": pl.Int64,
    "skip_duration": pl.Float64,
    **dict.fromkeys(FLAGS, pl.Boolean),
    "time_of_day": pl.Float64,
    "day_of_week": pl.Int8,
    "device_type": pl.String,
    "network_type": pl.String,
    "recommendation_source": pl.String,
    "recommendation_position": pl.Int64,
}
OPTIONAL = ("session_id", *(name for name in TYPES if name != "timestamp"))
INTEGER_IDS = (10, 9, -3, 0, 2**40, 77, 500, 501, 8, 12)
STRING_IDS = ("10", "9", "b", "B", "é", "", "a b", "ß", "東", "~")  # in another order than as numbers or without case


@dataclass(frozen=True, kw_only=True, repr=False)
class Log:
    """A log with its side tables and what to make of it; rows are in input order."""

    events: list[Row]
    columns: frozenset[str]  # of the log; a row may lack one of them, which is null
    as_of: datetime
    users: list[Row] | None = None
    videos: list[Row] | None = None
    max_events: int = 50
    seen_limit: int = 1000
    vocabulary: int = 10_000

    @property
    def as_of_us(self) -> int:
        """As-of in epoch us."""
        return epoch_us(self.as_of)

    def __repr__(self) -> str:
        """Show the rows one a line, without their long lists and nulls: what a failing example is read for."""
        text = (
            f"Log({self.as_of=!s}, {self.max_events=}, {self.seen_limit=}, {self.vocabulary=}, {sorted(self.columns)}"
        )
        for table, rows in (("events", self.events), ("users", self.users), ("videos", self.videos)):
            text += f"\n{table}: {'none' if rows is None else len(rows)}"
            for row in (rows or [])[:40]:
                text += f"\n  {', '.join(f'{k}={_short(v)}' for k, v in row.items() if v is not None)}"
        return text.replace("self.", "") + ")"


def _short(value: Any) -> str:
    return f"<{len(value)} floats>" if isinstance(value, list) and len(value) > 9 else str(value)


def epoch_us(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)


def log_of(events: Sequence[Row], **options: Any) -> Log:
    """Return hand-written rows as a log with every column that any row names, as of its last timestamp."""
    last = max(event["timestamp"] for event in events)
    columns = frozenset(name for event in events for name in event)
    return Log(**{"events": list(events), "columns": columns, "as_of": last, **options})


def events_frame(events: Sequence[Row], columns: Iterable[str]) -> pl.DataFrame:
    """Return the rows as a frame with exactly these columns."""
    series = []
    for name in sorted(columns):
        values = [event.get(name) for event in events]
        strings = any(isinstance(value, str) for value in values)
        series.append(pl.Series(name, values, dtype=TYPES.get(name, pl.String if strings else pl.Int64)))
    return pl.DataFrame(series)


def side_frame(rows: Sequence[Row], ids: pl.DataType, key: str) -> pl.DataFrame:
    """Return a users or videos table with its key in the log's own id type."""
    return pl.DataFrame(list(rows), schema_overrides={key: ids}, infer_schema_length=None)


# The edges of each column, and beside them an ordinary range; nulls come on top.

NAN, INFINITY = float("nan"), float("inf")
OUT_OF_LIST = ("watch", "Mobile", "unknown", "")
EDGES: dict[str, tuple[Any, ...]] = {
    "watch_duration": (0.0, -5.0, 37.25, 1000.0, 1e9, NAN, INFINITY),
    "watch_percentage": (0.0, 0.0, -0.5, 1.0, 3.0, 7.5, 1e9, NAN),
    "rewatch_count": (0, 0, 1, 4, -1),
    "skip_duration": (0.0, 2.5, 0.25, -1.0, NAN),
    **dict.fromkeys(FLAGS, (True, False)),
    "time_of_day": (0.0, 6.5, 12.0, 23.0, 23.99, 24.0, -1.0),
    "day_of_week": (0, 3, 5, 6),
    "device_type": ("mobile", "tablet", "desktop", "tv", *OUT_OF_LIST),
    "network_type": ("wifi", "4g", "5g", "3g", *OUT_OF_LIST),
    "recommendation_source": ("home", "search", "following", "hashtag", "trending", "nearby", *OUT_OF_LIST),
    "recommendation_position": (-4, 0, 1, 7, 100, 10**6),
}
RANGES = {"watch_duration": (0.0, 300.0), "watch_percentage": (0.0, 2.0), "time_of_day": (0.0, 24.0)}
GAPS = (
    timedelta(0),
    timedelta(0),
    timedelta(microseconds=1),
    timedelta(seconds=40),
    timedelta(minutes=30),
    timedelta(minutes=30, microseconds=1),
    timedelta(hours=5),
    timedelta(days=2, hours=9),
)
SIDE = st.sampled_from([True, True, False])  # is there such a table?


def columns_of_log() -> st.SearchStrategy[frozenset[str]]:
    """Draw the optional columns: all, none, or some."""
    some = st.frozensets(st.sampled_from(OPTIONAL))
    return st.one_of(st.just(frozenset(OPTIONAL)), some.map(frozenset(OPTIONAL).difference), some)


@st.composite
def logs(draw: st.DrawFn, *, max_rows: int = 60) -> Log:
    """Draw a log: few users, few videos, many ties, nulls and edges, and perhaps side tables.

    Hypothesis draws what kind of log it is; the values come from one drawn seed, since thousands of drawn values would
    mostly be equal.
    """
    ids: tuple[Any, ...] = draw(st.sampled_from([INTEGER_IDS, STRING_IDS]))
    users, videos = ids[: draw(st.integers(1, 4))], ids[: draw(st.integers(1, len(ids)))]
    optional = draw(columns_of_log())
    nulls = draw(st.sampled_from([0.0, 0.2, 0.7]))
    count = draw(st.integers(1, max_rows))
    numbers = random.Random(draw(st.integers(0, 2**32)))
    times = [START]
    while len(times) < count:
        times.append(times[-1] + numbers.choice(GAPS))
    shuffled = numbers.sample(times, count)
    rows = [
        {
            "user_id": numbers.choice(users),
            "video_id": numbers.choice(videos),
            "timestamp": time,
            **{name: value_of(numbers, name, ids, nulls) for name in sorted(optional)},
        }
        for time in shuffled
    ]
    return Log(
        events=rows,
        columns=frozenset(rows[0]),
        as_of=draw(st.sampled_from([times[-1], times[-1] + timedelta(hours=30), times[count // 2]])),
        users=draw(side_tables("user_id", (*users, ids[-1]))) if draw(SIDE) else None,
        videos=draw(side_tables("video_id", ids)) if draw(SIDE) else None,
        max_events=draw(st.sampled_from([50, 1, 3, 20, 200])),
        seen_limit=draw(st.sampled_from([1000, 1, 2, 5])),
        vocabulary=draw(st.sampled_from([1000, 3, 6])),
    )


def value_of(numbers: random.Random, column: str, ids: Sequence[Any], nulls: float) -> Any:
    """Return null, an edge of the column, or something from its ordinary range."""
    if numbers.random() < nulls:
        return None
    if column == "session_id":
        return numbers.choice(ids[:3])
    if column in RANGES and numbers.random() < 0.5:
        return numbers.uniform(*RANGES[column])
    return numbers.choice(EDGES[column])


SIDE_EDGES: dict[str, tuple[Any, ...]] = {
    "level": (None, 0, 3, -12, 10**9),
    "income": (None, 0.0, -2.5, 1e12, NAN, INFINITY),
    "vip": (None, True, False),
    "city": (None, "", "Zürich", "東京", "a=b"),
    "joined": (None, date(2025, 12, 31)),
    "tags": (None, [], ["x", "y"]),
    "account_id": (None, 5, 6),
    "id": (None, 1),
}
VIDEO_EDGES: dict[str, tuple[Any, ...]] = {
    "category": (None, "cats", "dogs", "Dogs", "food"),
    "creator_id": (None, 1, 2, 3),
    "author_id": (None, "x", "y"),
}


@st.composite
def side_tables(draw: st.DrawFn, key: str, ids: tuple[Any, ...]) -> list[Row]:
    """Draw a table of some ids in any order: with a list of 200 floats, or with columns to be hashed."""
    numbers = random.Random(draw(st.integers(0, 2**32)))
    listed = draw(st.booleans())
    columns = sorted(draw(st.frozensets(st.sampled_from(sorted(SIDE_EDGES)))))
    if key == "video_id":
        columns += draw(st.sampled_from([["category", "creator_id"], ["category", "author_id"], ["category"], []]))
    distinct = sorted(set(ids))
    rows: list[Row] = []
    for id_ in numbers.sample(distinct, numbers.randint(1, len(distinct))):
        row = {key: id_, **{name: numbers.choice((SIDE_EDGES | VIDEO_EDGES)[name]) for name in columns}}
        if listed:
            row["profile" if key == "user_id" else "embedding"] = floats(200, seed=numbers.randrange(100))
        rows.append(row)
    return rows


def floats(count: int, *, seed: int) -> list[float]:
    """Return seeded floats of both signs."""
    numbers = random.Random(seed)
    return [numbers.gauss(0, 2) for _ in range(count)]


def busy_log(*, seed: int, events_per_user: Sequence[int], videos: int = 400, **options: Any) -> Log:
    """Return a seeded log with every column, shuffled: user i has `events_per_user[i]` events, a fifth of them ties."""
    numbers = random.Random(seed)
    events = []
    for user, count in enumerate(events_per_user):
        time = START
        for _ in range(count):
            time += numbers.choice([timedelta(0), timedelta(seconds=numbers.expovariate(1 / 900))])
            events.append(busy_row(numbers, user, time, videos))
    numbers.shuffle(events)
    return log_of(events, **options)


def busy_row(numbers: random.Random, user: int, time: datetime, videos: int) -> Row:
    """Return a view with plausible values, about one in seven of the optional ones null."""
    row: Row = {
        "watch_duration": numbers.lognormvariate(3, 1),
        "watch_percentage": numbers.random() * 1.5,
        "rewatch_count": numbers.choice([0, 0, 0, 1, 2]),
        "skip_duration": numbers.choice([0.0, 3.0]),
        "session_id": numbers.randrange(40),
        "time_of_day": float(numbers.randrange(24)),
        "day_of_week": numbers.randrange(7),
        "device_type": numbers.choice(["mobile", "tablet", "desktop", "tv", "fridge"]),
        "network_type": numbers.choice(["wifi", "4g", "5g", "3g", "2g"]),
        "recommendation_source": numbers.choice(["home", "search", "following", "hashtag", "trending", "nearby", "x"]),
        "recommendation_position": numbers.randrange(60),
        **{name: numbers.random() < 0.3 for name in FLAGS},
    }
    row = {name: None if numbers.random() < 0.15 else value for name, value in row.items()}
    video = int(videos * numbers.random() ** 3)  # a few videos are watched much more than the rest
    return {"user_id": user, "video_id": video, "timestamp": time, **row}


def catalog_of(events: pl.LazyFrame | pl.DataFrame, *, vocabulary: int, as_of_us: int | None = None) -> Catalog:
    """Return the catalog of events up to as-of (epoch us, None for all)."""
    events = events.lazy()
    if as_of_us is not None:
        events = events.filter(pl.col("timestamp").dt.epoch("us") <= as_of_us)
    counted = events.select("video_id").group_by("video_id").agg(count=pl.len().cast(pl.UInt64)).collect()
    return Catalog.from_counts(counted, vocabulary=vocabulary)
