"""The compiled features: four passes over each chunk of users, with NumPy's logarithms between them.

Owns: the arguments of the kernels, and their order. Must not know: files, Polars, a formula. `pass1_columns` reads the
columns of a chunk, `pass2_users` and `pass3_order` compute each user's values, `pass4_rows` writes the rows. All give
the bits of the NumPy twin; for that reason logarithms are NumPy's, computed for a whole chunk at once. Needs numba;
loaded by name.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from genrec_batch.core import layout
from genrec_batch.core.arrays import F32, I32, U8, Histories, SideTable
from genrec_batch.features.from_log import DURATION_LIMIT, LOG_POSITION_UNIT, PERCENTAGE_LIMIT, SESSION_GAP_US
from genrec_batch.features.numba import pass1_columns, pass2_users, pass3_order, pass4_rows
from genrec_batch.features.segments import CACHE_LINE, CHUNK_USERS, ENTROPY_SCALE, size_terms

assert (layout.WINDOWS, layout.STATISTIC_WINDOWS) == ((1, 5, 20, None), (5, 20, None)), "the kernels count over these"
assert layout.MOMENTS == ("mean", "std", "min", "max", "median"), "the kernels write them in this order"
COLUMNS = (
    *layout.RATE_COLUMNS, "is_weekend", "is_holiday",
    "watch_duration", "watch_percentage", "time_of_day", "day_of_week", "recommendation_position",
)  # fmt: skip
CHUNK_EVENTS = 1 << 15  # calling the kernels costs as much as ten users
REACH = 64  # values behind the last of a chunk that a kernel may read and ignores


class Fields(NamedTuple):
    """Places in `COLUMNS`, fields of an event's bits, and the limits of formulas: what all kernels share."""

    max_events: int
    flags: int = COLUMNS.index("watch_duration")  # the columns before it are counted
    weekend: int = COLUMNS.index("is_weekend")
    holiday: int = COLUMNS.index("is_holiday")
    duration: int = COLUMNS.index("watch_duration")
    percentage: int = COLUMNS.index("watch_percentage")
    hour: int = COLUMNS.index("time_of_day")
    weekday: int = COLUMNS.index("day_of_week")
    position: int = COLUMNS.index("recommendation_position")
    tokened: int = 12  # of what is set, after the counted columns: any token, also that of an unknown video
    known: int = 13
    session_break: int = 14
    duration_null: int = 12  # of nulls
    percentage_null: int = 13
    position_null: int = 14
    session_gap_us: int = SESSION_GAP_US
    duration_limit: float = DURATION_LIMIT
    percentage_limit: float = PERCENTAGE_LIMIT
    position_unit: float = LOG_POSITION_UNIT


class Facts(NamedTuple):
    """Places among the values computed for a user; first the moments of duration and percentage, in slot order."""

    gaps: int = 30
    variety: int = 35  # creators, categories, entropy, the commonest one's share
    change: int = 39  # of duration, of percentage
    mean_position: int = 41
    distinct_share: int = 42
    newest_session: int = 43
    unknown_share: int = 44
    cold_start: int = 45


def _sequence(name: str) -> int:
    return layout.SEQUENCE.start + layout.SEQUENCE_NAMES.index(name)


def _length(slots: slice) -> int:
    return int(slots.stop - slots.start)


class Slots(NamedTuple):
    """First slots of blocks and their lengths, from the layout."""

    durations: int = layout.WATCH_DURATION.start
    percentages: int = layout.WATCH_PERCENTAGE.start
    newest_values: int = _length(layout.WATCH_DURATION)
    newest_hours: int = layout.HOUR.start
    newest_weekdays: int = layout.WEEKDAY.start
    newest_times: int = _length(layout.HOUR)
    positions: int = layout.POSITION.start
    newest_positions: int = _length(layout.POSITION)
    flags: int = layout.FLAGS.start
    flag_columns: int = len(layout.FLAG_COLUMNS)
    first_flag: int = layout.RATE_COLUMNS.index(layout.FLAG_COLUMNS[0])
    rates: int = layout.RATES.start
    rate_columns: int = len(layout.RATE_COLUMNS)
    statistics: int = layout.DURATION_STATISTICS.start
    gaps: int = layout.GAPS.start
    hours: int = layout.HOURS.start
    weekdays: int = layout.WEEKDAYS.start
    weekend: int = layout.WEEKEND
    holiday: int = layout.HOLIDAY
    kept_share: int = _sequence("kept_share_of_max_events")
    distinct_share: int = _sequence("distinct_share_of_kept_videos")
    duration_deviation: int = _sequence("std_duration")
    percentage_deviation: int = _sequence("std_percentage")
    cold_start: int = _sequence("cold_start")
    unknown_share: int = _sequence("unknown_video_share")
    newest_session: int = _sequence("newest_session_share")
    mean_position: int = _sequence("mean_log1p_position")
    complete_share: int = _sequence("complete_share")
    profile: int = layout.PROFILE.start
    videos: int = layout.VIDEOS.start
    variety: int = _sequence("distinct_creators_share")
    percentage_change: int = _sequence("mean_percentage_newest_5_minus_all")
    duration_change: int = _sequence("mean_duration_newest_5_minus_all")


LOGARITHMS = np.array([  # slots of ln(1 + x), in the order in which `pass2_users.summarize` writes the x
    _sequence("log1p_all_events"), layout.KEPT_EVENTS, layout.TOTAL_WATCH, _sequence("log1p_sessions"),
    _sequence("log1p_events_per_session"), _sequence("log1p_hours_oldest_to_newest"),
    _sequence("log1p_hours_newest_to_as_of"),
])  # fmt: skip
ONE_HOTS = np.array([
    (slots.start, len(layout.CATEGORIES[name]), _length(slots) // len(layout.CATEGORIES[name]))
    for name, slots in layout.ONE_HOTS.items()
])  # fmt: skip


class Filler:
    """Fills the features of one chunk of users after the other, to the same bits as the NumPy twin.

    Holds what all chunks of a call share: the inputs as the kernels take them, and their scratch arrays.
    """

    def __init__(
        self, histories: Histories, users: SideTable | None, videos: SideTable | None, *, max_events: int
    ) -> None:
        self.at, self.slots = Fields(max_events=max_events), Slots()
        nothing, no_codes, no_rows = np.zeros(0), np.zeros(0, np.int8), np.zeros((0, layout.HASHED))
        self.numbers = tuple(given(histories.numbers.get(name, nothing), np.float64) for name in COLUMNS)
        self.flags = tuple(given(histories.flags.get(name, no_codes), np.int8) for name in COLUMNS[: self.at.flags])
        self.codes = tuple(given(histories.categories.get(name, no_codes), np.int8) for name in layout.ONE_HOTS)
        self.offsets_N1 = given(histories.offsets_N1, np.int64)
        self.time_us_E = given(histories.time_us_E, np.int64)
        self.tokens_E = given(histories.tokens_E, np.int32)
        self.video_code_E = given(histories.video_code_E, np.int32)
        self.video_row_E = given(histories.video_row_E, np.int32)
        self.session_E = given(np.zeros(0) if histories.session_E is None else histories.session_E, np.int64)
        self.total_events_N = given(histories.total_events_N, np.int64)
        self.as_of_us_N = given(histories.as_of_us_N, np.int64)
        self.user_row_N = given(histories.user_row_N, np.int32)
        self.percentage_E = self.numbers[COLUMNS.index("watch_percentage")]
        longest = int(np.diff(self.offsets_N1).max(initial=0))
        most = max(CHUNK_EVENTS, longest) + REACH
        self.bits_W32, self.bins_3M = room((most // 64 + 3, 32), np.uint64), room((3, most), np.int8)
        self.values_2M, self.keys_6M = room((2, most), np.float64), room((6, most), np.int32)
        self.logs_2M = room((2, most), np.float32)  # of gaps and positions
        if not len(self.numbers[self.at.position]):
            self.logs_2M[1] = 0
        self.rates_N64, self.facts_N64 = (room((CHUNK_USERS, 64), np.float32) for _ in range(2))
        self.logarithms_7N = np.empty((7, CHUNK_USERS))
        self.sorting_X = room((pass3_order.sorted_at_once(longest),), np.int32)
        self.padded_64, self.counts_32 = room((64,), np.float64), room((32,), np.float32)
        self.counts_432, self.there_N6 = room((4, 32), np.int64), room((CHUNK_USERS, 6), np.int64)
        self.whole_X, self.small_X = room((48,), np.int64), room((112,), np.int32)
        self.profile_RD = given(no_rows if users is None else users.hashed_R200, np.float32)
        self.videos_RD = given(no_rows if videos is None else videos.hashed_R200, np.float32)
        self.has_R = given(np.zeros(0) if videos is None else videos.has_hashed_R, np.bool_)
        self.codes_R2 = given(np.zeros((0, 2)) if videos is None else _codes(videos), np.int32)
        self.rows_X, self.weights_X = np.empty(longest, np.int32), np.empty(longest, np.float32)
        self.logarithms_X, self.steps_X = (given(x, x.dtype) for x in size_terms(longest))
        self.row_F = room((layout.FEATURES,), np.float32)

    def fill(self, start: int, stop: int, dense_NF: F32) -> None:
        """Fill the features of the users start..stop, at most `CHUNK_EVENTS` events, [stop - start, 1024]."""
        count, fact = int(self.offsets_N1[stop] - self.offsets_N1[start]), Facts()
        pass1_columns.scan(
            self.at, self.numbers, self.flags, self.time_us_E, self.tokens_E, self.offsets_N1, start, stop,
            self.bits_W32, self.values_2M, self.keys_6M, self.bins_3M, self.logs_2M, self.padded_64,
        )  # fmt: skip
        for logs in self.logs_2M[: 2 if len(self.numbers[self.at.position]) else 1]:
            np.log1p(logs[:count], out=logs[:count])
        pass2_users.summarize(
            self.at, fact, self.offsets_N1, start, stop, self.time_us_E, self.bits_W32, self.values_2M, self.keys_6M,
            self.logs_2M, self.total_events_N, self.as_of_us_N, self.rates_N64, self.facts_N64, self.there_N6,
            self.logarithms_7N, self.counts_432,
        )  # fmt: skip
        pass3_order.order(
            fact, self.offsets_N1, start, stop, self.keys_6M, self.logs_2M[0].view(np.int32), self.video_code_E,
            self.session_E, self.video_row_E, self.codes_R2, self.logarithms_X, self.steps_X, ENTROPY_SCALE,
            self.there_N6, self.facts_N64, self.logarithms_7N, self.sorting_X, self.whole_X, self.small_X,
        )  # fmt: skip
        taken = self.logarithms_7N[:, : stop - start]
        np.log1p(taken, out=taken)
        pass4_rows.place(
            self.at, fact, self.slots, ONE_HOTS, self.codes, self.numbers[self.at.hour],
            self.numbers[self.at.weekday], self.offsets_N1, start, stop, self.time_us_E, self.values_2M, self.logs_2M,
            self.bins_3M, self.rates_N64, self.facts_N64, LOGARITHMS, self.logarithms_7N, self.profile_RD,
            self.user_row_N, self.videos_RD, self.has_R, self.video_row_E, self.percentage_E, self.rows_X,
            self.weights_X, self.counts_32, self.row_F, dense_NF.reshape(-1),
        )  # fmt: skip


def _codes(videos: SideTable) -> I32:
    """Return creator and category of each row of the videos table, then a row of -1 for no video, [R + 1, 2]."""
    return np.stack([np.append(codes_R, np.int32(-1)) for codes_R in (videos.creator_R, videos.category_R)], axis=1)


def video_means(table_RD: F32, has_R: U8, histories: Histories) -> tuple[F32, U8]:
    """Return the plain mean of the kept videos' table rows [N, D], and which users have any [N]."""
    means_ND = np.zeros((len(histories), table_RD.shape[1]), np.float32)
    count_N = np.zeros(len(histories), np.int64)
    longest = int(histories.lengths_N.max(initial=0))
    pass4_rows.video_means(
        given(table_RD, np.float32), given(has_R, np.bool_), given(histories.video_row_E, np.int32),
        given(histories.offsets_N1, np.int64), np.empty(longest, np.int32), np.empty(longest, np.float32), means_ND,
        count_N,
    )  # fmt: skip
    return means_ND, count_N > 0


def given(array: Any, dtype: Any) -> Any:
    """Return an input as every kernel takes it: contiguous, of one type, read-only."""
    view = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view


def room(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return a scratch array aligned to a cache line: a vector of 64 bytes across two lines costs twice as much."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + CACHE_LINE, np.uint8)
    first = -raw.ctypes.data % CACHE_LINE
    return raw[first : first + size].view(dtype).reshape(shape)
