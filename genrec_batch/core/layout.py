"""The 1024 feature slots: which number means what. The only file with slot numbers.

Owns: names, ranges and category lists of the layout, and its fingerprint. Must not know: how a value is computed
(`features/`), what reads it (the model).
"""

from __future__ import annotations

import hashlib

FEATURES = 1024
HASHED = 200  # slots of a profile or a video embedding
WINDOWS = (1, 5, 20, None)  # newest events of a rate; None means all kept events
STATISTIC_WINDOWS = (5, 20, None)  # newest events of a statistic
MOMENTS = ("mean", "std", "min", "max", "median")

WATCH_DURATION = slice(0, 20)
WATCH_PERCENTAGE = slice(20, 40)
FLAGS = slice(40, 60)
HOUR = slice(60, 70)
WEEKDAY = slice(70, 80)
DEVICE = slice(100, 200)
NETWORK = slice(200, 300)
SOURCE = slice(300, 398)
POSITION = slice(400, 500)
DURATION_STATISTICS = slice(500, 515)
PERCENTAGE_STATISTICS = slice(515, 530)
RATES = slice(530, 560)
GAPS = slice(560, 565)
HOURS = slice(565, 589)
WEEKDAYS = slice(589, 596)
WEEKEND, HOLIDAY, TOTAL_WATCH, KEPT_EVENTS = 596, 597, 598, 599
PROFILE = slice(600, 800)
VIDEOS = slice(800, 1000)
SEQUENCE = slice(1000, 1020)

CATEGORIES: dict[str, tuple[str, ...]] = {  # one-hot columns; place 0 is any value that is not in the list
    "device_type": ("unknown", "mobile", "tablet", "desktop", "tv"),
    "network_type": ("unknown", "wifi", "4g", "5g", "3g"),
    "recommendation_source": ("unknown", "home", "search", "following", "hashtag", "trending", "nearby"),
}
ONE_HOTS = {"device_type": DEVICE, "network_type": NETWORK, "recommendation_source": SOURCE}
FLAG_COLUMNS = ("is_liked", "is_favorited", "is_shared", "is_commented", "is_followed_creator")
RATE_COLUMNS = (
    "watch_complete",
    "rewatch_count",  # share above 0
    "skip_duration",  # share above 0
    *FLAG_COLUMNS,
    "is_blocked_creator",
    "is_reported",
)
SEQUENCE_NAMES = (
    "kept_share_of_max_events",
    "log1p_all_events",
    "distinct_share_of_kept_videos",
    "std_duration",
    "std_percentage",
    "log1p_sessions",
    "log1p_events_per_session",
    "log1p_hours_oldest_to_newest",
    "log1p_hours_newest_to_as_of",
    "cold_start",
    "unknown_video_share",
    "newest_session_share",
    "distinct_creators_share",
    "distinct_categories_share",
    "category_entropy",
    "commonest_category_share",
    "mean_log1p_position",
    "complete_share",
    "mean_percentage_newest_5_minus_all",
    "mean_duration_newest_5_minus_all",
)

LIMITS: dict[str, tuple[float, float]] = {  # of what a column can mean; a value beyond counts as the nearest limit
    "watch_duration": (-1e6, 1e6),  # seconds, eleven days; 0..1000 in the slots of single events
    "time_of_day": (0.0, 24.0),
    "day_of_week": (0.0, 7.0),
}
VECTOR_LIMIT = 1e6  # of a number in a vector that somebody else computed

LIKE_RATE_ALL = FLAGS.start + WINDOWS.index(None)
MEAN_PERCENTAGE_ALL = PERCENTAGE_STATISTICS.start + STATISTIC_WINDOWS.index(None) * len(MOMENTS)
DISTINCT_SHARE = SEQUENCE.start + 2
RECENCY = SEQUENCE.start + SEQUENCE_NAMES.index("log1p_hours_newest_to_as_of")  # moves with as-of, for every user


def names() -> list[str]:
    """Return the 1024 slot names in order; reserved slots are named `reserved_<slot>`."""
    return [name for _, _, name in describe()]


def describe() -> list[tuple[int, str, str]]:
    """Return (slot, block, name) of every slot, in order."""
    rows = [(slot, "reserved", f"reserved_{slot}") for slot in range(FEATURES)]
    for block, slots, slot_names in _blocks():
        assert len(slot_names) == slots.stop - slots.start, block
        for slot, name in zip(range(slots.start, slots.stop), slot_names, strict=True):
            rows[slot] = (slot, block, name)
    return rows


def _blocks() -> list[tuple[str, slice, list[str]]]:
    def newest(name: str, slots: slice) -> list[str]:
        return [f"{name}_r{r}" for r in range(slots.stop - slots.start)]

    def over(columns: tuple[str, ...], windows: tuple[int | None, ...]) -> list[str]:
        return [f"{column}_rate_{_window(window)}" for column in columns for window in windows]

    def moments(name: str) -> list[str]:
        return [f"{name}_{moment}_{_window(window)}" for window in STATISTIC_WINDOWS for moment in MOMENTS]

    blocks = [
        ("watch duration", WATCH_DURATION, newest("watch_duration_s_over_100", WATCH_DURATION)),
        ("watch percentage", WATCH_PERCENTAGE, newest("watch_percentage", WATCH_PERCENTAGE)),
        ("interaction flags", FLAGS, over(FLAG_COLUMNS, WINDOWS)),
        ("time", HOUR, newest("hour_over_24", HOUR)),
        ("time", WEEKDAY, newest("weekday_over_7", WEEKDAY)),
        ("recommendation position", POSITION, newest("position_log", POSITION)),
        ("statistics", DURATION_STATISTICS, moments("duration")),
        ("statistics", PERCENTAGE_STATISTICS, moments("percentage")),
        ("statistics", RATES, [name.replace("_rate_", "_share_") for name in over(RATE_COLUMNS, STATISTIC_WINDOWS)]),
        ("statistics", GAPS, [f"gap_log1p_s_{moment}" for moment in MOMENTS]),
        ("statistics", HOURS, [f"hour_{hour}_share" for hour in range(24)]),
        ("statistics", WEEKDAYS, [f"weekday_{day}_share" for day in range(7)]),
        (
            "statistics",
            slice(WEEKEND, KEPT_EVENTS + 1),
            ["weekend_share", "holiday_share", "log1p_total_watch_s", "log1p_kept_events"],
        ),
        ("user profile", PROFILE, [f"profile_{i}" for i in range(HASHED)]),
        ("videos", VIDEOS, [f"video_{i}" for i in range(HASHED)]),
        ("sequence", SEQUENCE, list(SEQUENCE_NAMES)),
    ]
    for column, slots in ONE_HOTS.items():
        values = CATEGORIES[column]
        events = (slots.stop - slots.start) // len(values)
        labels = [f"{column}_{value}_r{r}" for r in range(events) for value in values]
        blocks.append((column.replace("_", " "), slots, labels))
    return blocks


def _window(events: int | None) -> str:
    return "all" if events is None else f"newest_{events}"


def fingerprint() -> str:
    """Return the sha256 of the layout as 64 hex digits; equal fingerprints mean the same features."""
    return hashlib.sha256("\n".join(names()).encode()).hexdigest()
