"""The slow, obvious twin of history building and of the 1024 features: one row, one user, one slot at a time.

Owns: a second reading of the contract, in plain Python. Must not know: the package, its slot numbers, NumPy or Polars,
so that a mistake has to be made twice, in two shapes, to pass. Events go in as dicts, lists of floats come out.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import xxhash

Row = Mapping[str, Any]
Value = float | None  # None is null

UNKNOWN = 1
FIRST_ITEM = 2
DEVICES = ("mobile", "tablet", "desktop", "tv")
NETWORKS = ("wifi", "4g", "5g", "3g")
SOURCES = ("home", "search", "following", "hashtag", "trending", "nearby")
RECENT_FLAGS = ("is_liked", "is_favorited", "is_shared", "is_commented", "is_followed_creator")
ALL_FLAGS = (*RECENT_FLAGS, "is_blocked_creator", "is_reported")
SESSION_GAP = timedelta(minutes=30)
HOUR = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class History:
    """One user's past up to as-of; `events` and `tokens` oldest first, `seen` newest first, each video once."""

    events: list[Row]
    tokens: list[int]
    total_events: int
    seen: list[int]


# Catalog and histories


def catalog(events: Sequence[Row], as_of: datetime, vocabulary: int) -> dict[Any, int]:
    """Return the token of every video that has one: the most viewed first, equal counts by ascending id."""
    counts = Counter(event["video_id"] for event in events if event["timestamp"] <= as_of)
    by_id = sorted(counts)
    by_count = sorted(by_id, key=lambda video: -counts[video])  # stable: ids stay ascending within a count
    return {video: FIRST_ITEM + place for place, video in enumerate(by_count[: vocabulary - FIRST_ITEM])}


def histories(
    events: Sequence[Row],
    *,
    as_of: datetime,
    catalog: Mapping[Any, int],
    max_events: int = 50,
    seen_limit: int = 1000,
) -> dict[Any, History]:
    """Return every user who has an event up to as-of."""
    of_user: dict[Any, list[tuple[datetime, int]]] = {}
    for place, event in enumerate(events):
        if event["timestamp"] <= as_of:
            of_user.setdefault(event["user_id"], []).append((event["timestamp"], place))
    result = {}
    for user, keys in of_user.items():
        past = [events[place] for _, place in sorted(keys)]
        kept = past[-max_events:]
        videos = list(dict.fromkeys(event["video_id"] for event in reversed(past)))[:seen_limit]
        result[user] = History(
            events=kept,
            tokens=[catalog.get(event["video_id"], UNKNOWN) for event in kept],
            total_events=len(past),
            seen=[catalog[video] for video in videos if video in catalog],
        )
    return result


def number(event: Row, column: str, columns: AbstractSet[str]) -> Value:
    """Return a column as a float; None where the log lacks it, or it is null, NaN or infinite."""
    value = event.get(column) if column in columns else None
    if value is None or not math.isfinite(value):
        return None
    low, high = {"watch_duration": (-1e6, 1e6), "time_of_day": (0, 24), "day_of_week": (0, 7)}.get(
        column, (-math.inf, math.inf)
    )
    return min(max(float(value), low), high)


def percentage(event: Row, columns: AbstractSet[str]) -> Value:
    share = number(event, "watch_percentage", columns)
    return None if share is None else min(max(share, 0.0), 3.0)


def hour_of(event: Row, columns: AbstractSet[str]) -> Value:
    if "time_of_day" in columns:
        return number(event, "time_of_day", columns)
    time = event["timestamp"]
    return float(time.hour + time.minute / 60 + time.second / 3600)


def weekday_of(event: Row, columns: AbstractSet[str]) -> Value:
    if "day_of_week" in columns:
        return number(event, "day_of_week", columns)
    return float(event["timestamp"].weekday())


def weekend_of(event: Row, columns: AbstractSet[str]) -> Value:
    if "is_weekend" in columns:
        return number(event, "is_weekend", columns)
    return float(event["timestamp"].weekday() >= 5)


def flag(event: Row, column: str, columns: AbstractSet[str]) -> Value:
    """Return 1, 0 or None; a count or a duration is set when it is above 0."""
    value = number(event, column, columns)
    return None if value is None else float(value > 0)


def position_of(event: Row, columns: AbstractSet[str]) -> Value:
    place = number(event, "recommendation_position", columns)
    return None if place is None else max(place, 0.0)


def known(values: Sequence[Value]) -> list[float]:
    return [value for value in values if value is not None]


def mean(values: Sequence[Value]) -> float:
    """Return the mean of what is not null, 0 where nothing is; of flags, that is their rate."""
    some = known(values)
    return math.fsum(some) / len(some) if some else 0.0


def deviation(values: Sequence[Value]) -> float:
    some = known(values)
    return statistics.pstdev(some) if some else 0.0


def five_numbers(values: Sequence[Value]) -> list[float]:
    """Return mean, population deviation, minimum, maximum and median."""
    some = known(values)
    if not some:
        return [0.0] * 5
    return [mean(some), deviation(some), min(some), max(some), statistics.median(some)]


# Hashed columns


def hashed(row: Row) -> list[float]:
    """Return a row's columns in 200 signed sums (feature hashing, Weinberger et al. 2009)."""
    slots = [0.0] * 200
    for column, value in row.items():
        if column == "id" or column.endswith("_id") or value is None or isinstance(value, (list, dict)):
            continue
        if isinstance(value, bool):
            text, amount = f"{column}={'true' if value else 'false'}", 1.0
        elif isinstance(value, datetime):
            text, amount = f"{column}={value.isoformat(timespec='microseconds')}", 1.0
        elif isinstance(value, (int, float, Decimal)):
            if not math.isfinite(value):
                continue
            text, amount = column, math.copysign(math.log1p(abs(float(value))), value)
        else:
            text, amount = f"{column}={value}", 1.0  # a date prints as ISO 8601
        code = xxhash.xxh64_intdigest(text.encode(), seed=0)
        slots[code % 200] += amount if code < 2**63 else -amount
    return slots


def profile_block(row: Row | None) -> list[float]:
    if row is None:
        return [0.0] * 200
    if "profile" in row:
        return [0.0] * 200 if row["profile"] is None else [float(x) for x in row["profile"]]
    return hashed(row)


def video_block(newest: Sequence[Row], columns: AbstractSet[str], video_rows: Mapping[Any, Row]) -> list[float]:
    """Return the watch-percentage-weighted mean of the videos that the table has."""
    weights, vectors = [], []
    for event in newest:
        row = video_rows.get(event["video_id"])
        if row is None:
            continue
        vector = row["embedding"] if "embedding" in row else hashed(row)
        if vector is None:
            continue
        watched = percentage(event, columns)
        weights.append(1.0 if watched is None else watched)
        vectors.append(vector)
    if not vectors:
        return [0.0] * 200
    if math.fsum(weights) == 0:
        weights = [1.0] * len(vectors)
    return [math.fsum(w * v[i] for w, v in zip(weights, vectors, strict=True)) / math.fsum(weights) for i in range(200)]


# The layout


def features(
    history: History,
    *,
    as_of: datetime,
    max_events: int,
    columns: AbstractSet[str],
    users_row: Row | None,
    video_rows: Mapping[Any, Row],
) -> list[float]:
    """Return all 1024 features of one user; `columns` says which columns the log has, nulls aside."""
    slots = [0.0] * 1024
    slots[600:800] = profile_block(users_row)
    slots[1001] = math.log1p(history.total_events)
    slots[1009] = float(not any(token >= FIRST_ITEM for token in history.tokens))
    newest = history.events[::-1]
    if newest:
        recent_slots(slots, newest, columns)
        slots[500:560] = watch_statistics(newest, columns)
        slots[560:600] = time_statistics(newest, columns)
        slots[800:1000] = video_block(newest, columns, video_rows)
        sequence_slots(slots, history, newest, columns, as_of=as_of, max_events=max_events)
        slots[1012:1016] = variety(newest, video_rows)
    return slots


def recent_slots(slots: list[float], newest: Sequence[Row], columns: AbstractSet[str]) -> None:
    """Fill 0-499, where r counts back from the newest event."""
    for r, event in enumerate(newest[:20]):
        seconds = number(event, "watch_duration", columns)
        slots[r] = 0.0 if seconds is None else min(max(seconds / 100, 0.0), 10.0)
        slots[20 + r] = percentage(event, columns) or 0.0
        slots[100 + 5 * r : 105 + 5 * r] = one_hot(event, "device_type", DEVICES, columns)
        slots[200 + 5 * r : 205 + 5 * r] = one_hot(event, "network_type", NETWORKS, columns)
    for f, column in enumerate(RECENT_FLAGS):
        for w, window in enumerate((1, 5, 20, len(newest))):
            slots[40 + 4 * f + w] = mean([flag(event, column, columns) for event in newest[:window]])
    for r, event in enumerate(newest[:10]):
        slots[60 + r] = (hour_of(event, columns) or 0.0) / 24
        slots[70 + r] = (weekday_of(event, columns) or 0.0) / 7
    for r, event in enumerate(newest[:14]):
        slots[300 + 7 * r : 307 + 7 * r] = one_hot(event, "recommendation_source", SOURCES, columns)
    for r, event in enumerate(newest[:100]):
        slots[400 + r] = math.log1p(position_of(event, columns) or 0.0) / math.log(101)


def one_hot(event: Row, column: str, values: Sequence[str], columns: AbstractSet[str]) -> list[float]:
    """Return (unknown, *values) with a 1 for the event's value; all 0 for null."""
    value = event.get(column) if column in columns else None
    return [float(value is not None and value not in values), *(float(value == each) for each in values)]


def watch_statistics(newest: Sequence[Row], columns: AbstractSet[str]) -> list[float]:
    """Return 500-559: five numbers of duration and percentage, then ten rates, each over 5, 20 and all."""
    windows = (newest[:5], newest[:20], newest)
    result = []
    for window in windows:
        result += five_numbers(hundreds_of_seconds(window, columns))
    for window in windows:
        result += five_numbers([percentage(event, columns) for event in window])
    for column in ("watch_complete", "rewatch_count", "skip_duration", *ALL_FLAGS):
        result += [mean([flag(event, column, columns) for event in window]) for window in windows]
    return result


def hundreds_of_seconds(window: Sequence[Row], columns: AbstractSet[str]) -> list[Value]:
    seconds = [number(event, "watch_duration", columns) for event in window]
    return [None if s is None else s / 100 for s in seconds]


def time_statistics(newest: Sequence[Row], columns: AbstractSet[str]) -> list[float]:
    """Return 560-599: gaps, the shares of each hour and weekday, weekends, holidays, totals."""
    gaps = [(later["timestamp"] - event["timestamp"]).total_seconds() for later, event in pairwise(newest)]
    hours = known([hour_of(event, columns) for event in newest])
    weekdays = known([weekday_of(event, columns) for event in newest])
    watched = math.fsum(known([number(event, "watch_duration", columns) for event in newest]))
    return [
        *five_numbers([math.log1p(gap) for gap in gaps]),
        *(mean([float(math.floor(hour) % 24 == h) for hour in hours]) for h in range(24)),
        *(mean([float(weekday == d) for weekday in weekdays]) for d in range(7)),
        mean([weekend_of(event, columns) for event in newest]),
        mean([flag(event, "is_holiday", columns) for event in newest]),
        math.log1p(max(watched, 0.0)),
        math.log1p(len(newest)),
    ]


def sequence_slots(
    slots: list[float],
    history: History,
    newest: Sequence[Row],
    columns: AbstractSet[str],
    *,
    as_of: datetime,
    max_events: int,
) -> None:
    """Fill 1000-1019 but for the slots that the caller or `variety` fills."""
    kept = len(newest)
    durations = hundreds_of_seconds(newest, columns)
    shares = [percentage(event, columns) for event in newest]
    sessions, in_newest_session = sessions_of(newest, columns)
    positions = known([position_of(event, columns) for event in newest])
    slots[1000] = kept / max_events
    slots[1002] = len({event["video_id"] for event in newest}) / kept
    slots[1003] = deviation(durations)
    slots[1004] = deviation(shares)
    slots[1005] = math.log1p(sessions)
    slots[1006] = math.log1p(kept / sessions) if sessions else 0.0
    slots[1007] = math.log1p((newest[0]["timestamp"] - newest[-1]["timestamp"]) / HOUR)
    slots[1008] = math.log1p(max((as_of - newest[0]["timestamp"]) / HOUR, 0.0))
    slots[1010] = history.tokens.count(UNKNOWN) / kept
    slots[1011] = in_newest_session / kept
    slots[1016] = mean([math.log1p(position) for position in positions])
    slots[1017] = mean([flag(event, "watch_complete", columns) for event in newest])
    slots[1018] = mean(shares[:5]) - mean(shares)
    slots[1019] = mean(durations[:5]) - mean(durations)


def sessions_of(newest: Sequence[Row], columns: AbstractSet[str]) -> tuple[int, int]:
    """Return the number of sessions and how many kept events are in the newest event's."""
    if "session_id" in columns:
        ids = [event.get("session_id") for event in newest]
        counts = Counter(session for session in ids if session is not None)
        return len(counts), counts[ids[0]] if ids[0] is not None else 0
    starts = [
        i for i, (later, event) in enumerate(pairwise(newest)) if later["timestamp"] - event["timestamp"] > SESSION_GAP
    ]
    return len(starts) + 1, starts[0] + 1 if starts else len(newest)


def variety(newest: Sequence[Row], video_rows: Mapping[Any, Row]) -> list[float]:
    """Return 1012-1015: distinct creators and categories per kept event, entropy, the commonest category's share."""
    rows = [video_rows.get(event["video_id"], {}) for event in newest]
    creators = {row.get("creator_id", row.get("author_id")) for row in rows} - {None}
    counts = Counter(row["category"] for row in rows if row.get("category") is not None)
    total = counts.total()
    entropy = -math.fsum(n / total * math.log(n / total) for n in counts.values())
    return [
        len(creators) / len(newest),
        len(counts) / len(newest),
        entropy / math.log(len(counts)) if len(counts) > 1 else 0.0,
        max(counts.values()) / total if counts else 0.0,
    ]
