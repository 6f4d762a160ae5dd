"""The compiled features: the parts of a log through the kernels, with NumPy's logarithms between them.

Owns: what a kernel is given, and in which order. Must not know: files, Polars, a formula. `kernel_columns.py` reads a
part's columns, `kernel_users.py` and `kernel_groups.py` write its rows; `compute` gives the bits of the NumPy twin in
`__init__.py`. Logarithms are NumPy's for the same reason, taken of a whole part at once. Needs numba; loaded by name.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from genrec_batch import layout
from genrec_batch.arrays import F32, F64, I32, I64, U8, Histories, SideTable
from genrec_batch.features import kernel_columns, kernel_groups, kernel_users
from genrec_batch.features.events import DURATION_LIMIT, PERCENTAGE_LIMIT, SESSION_GAP_US
from genrec_batch.features.segments import ENTROPY_SCALE, PART_EVENTS, PART_USERS, size_terms

assert (layout.WINDOWS, layout.SPANS) == ((1, 5, 20, None), (5, 20, None)), "the kernels count over these"
assert layout.MOMENTS == ("mean", "std", "min", "max", "median"), "the kernels write them in this order"
COLUMNS = (
    *layout.RATE_COLUMNS, "is_weekend", "is_holiday",
    "watch_duration", "watch_percentage", "time_of_day", "day_of_week", "recommendation_position",
)  # fmt: skip
POSITION_ROW, GAP_ROW = 4, 5  # of the values that a part holds per event


class Fields(NamedTuple):
    """Places in `COLUMNS`, in an event's marks, and the limits of formulas: what the kernels agree on."""

    max_events: int
    as_of_us: int
    flags: int = COLUMNS.index("watch_duration")  # the columns before it are counted
    weekend: int = COLUMNS.index("is_weekend")
    holiday: int = COLUMNS.index("is_holiday")
    duration: int = COLUMNS.index("watch_duration")
    percentage: int = COLUMNS.index("watch_percentage")
    hour: int = COLUMNS.index("time_of_day")
    weekday: int = COLUMNS.index("day_of_week")
    position: int = COLUMNS.index("recommendation_position")
    unknown: int = 12  # of what is set, after the columns that are counted
    known: int = 13
    duration_null: int = 12  # of nulls
    percentage_null: int = 13
    position_null: int = 14
    session_gap_us: int = SESSION_GAP_US
    duration_limit: float = DURATION_LIMIT
    percentage_limit: float = PERCENTAGE_LIMIT
    position_unit: float = float(np.log(101))


def _sequence(name: str) -> int:
    return layout.SEQUENCE.start + layout.SEQUENCE_NAMES.index(name)


def _length(span: slice) -> int:
    return int(span.stop - span.start)


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
    percentage_change: int = _sequence("mean_percentage_newest_5_minus_all")
    duration_change: int = _sequence("mean_duration_newest_5_minus_all")


LOGARITHMS = np.array([  # slots of ln(1 + x), in the order that `kernel_users.fill` leaves the x
    _sequence("log1p_all_events"), layout.KEPT_EVENTS, layout.TOTAL_WATCH, _sequence("log1p_sessions"),
    _sequence("log1p_events_per_session"), _sequence("log1p_hours_oldest_to_newest"),
    _sequence("log1p_hours_newest_to_as_of"),
])  # fmt: skip
VARIETY = np.array([
    _sequence("distinct_creators_share"), _sequence("distinct_categories_share"), _sequence("category_entropy"),
    _sequence("commonest_category_share"),
])  # fmt: skip
ONE_HOTS = np.array([
    (span.start, len(layout.CATEGORIES[name]), _length(span) // len(layout.CATEGORIES[name]))
    for name, span in layout.ONE_HOTS.items()
])  # fmt: skip


class Filler:
    """Fills the features of one part after the other, to the bits that the NumPy twin gives.

    Holds what all parts of a call have in common: the inputs as the kernels take them, and room to work in.
    """

    def __init__(
        self, histories: Histories, users: SideTable | None, videos: SideTable | None, *, max_events: int
    ) -> None:
        self.users, self.videos = users, videos
        self.at, self.slots = Fields(max_events=max_events, as_of_us=histories.as_of_us), Slots()
        nothing, no_codes = np.zeros(0), np.zeros(0, np.int8)
        self.numbers = tuple(given(histories.numbers.get(name, nothing), np.float64) for name in COLUMNS)
        self.codes = tuple(given(histories.categories.get(name, no_codes), np.int8) for name in layout.ONE_HOTS)
        self.offsets_N1 = given(histories.offsets_N1, np.int64)
        self.time_us_E = given(histories.time_us_E, np.int64)
        self.tokens_E = given(histories.tokens_E, np.int32)
        self.video_code_E = given(histories.video_code_E, np.int32)
        self.video_row_E = given(histories.video_row_E, np.int32)
        self.session_E = histories.session_E
        self.total_events_N = given(histories.total_events_N, np.int64)
        self.user_row_N = given(histories.user_row_N, np.int32)
        self.longest = int(np.diff(self.offsets_N1).max(initial=0))
        most = max(PART_EVENTS, self.longest)
        self.marks_4M, self.values_7M = np.empty((4, most), np.int64), np.empty((7, most))
        self.bins_2M, self.keys_3M = np.empty((2, most), np.int8), np.empty((3, most), np.int32)
        self.distinct_N, self.newest_N = np.empty(PART_USERS, np.int64), np.empty(PART_USERS, np.int64)
        self.sessions_2N, self.logarithms_7N = np.empty((2, PART_USERS), np.int64), np.empty((7, PART_USERS))
        self.scratch_X, self.whole_X = np.empty(64), np.empty(512, np.int64)
        self.sorting_X = np.empty(self.longest * kernel_users.WIDE + 25 * kernel_users.NARROW + 4, np.int32)
        self.seen_2H = np.zeros((2, 1 << (4 * self.longest).bit_length()), np.uint64)
        self.stamp = 1  # of the next user's codes in `seen_2H`
        if videos is not None:
            self._open_videos(videos, histories.numbers.get("watch_percentage", nothing))

    def _open_videos(self, videos: SideTable, percentage_E: F64) -> None:
        codes_R2 = np.full((len(videos.category_R) + 1, 2), -1, np.int32)
        codes_R2[:-1, 0], codes_R2[:-1, 1] = videos.creator_R, videos.category_R
        self.codes_R2 = given(codes_R2, np.int32)
        self.logarithms_X, self.steps_X = (given(x, x.dtype) for x in size_terms(self.longest))
        self.sizes_H = np.zeros(self.seen_2H.shape[1], np.int64)
        self.percentage_E = given(percentage_E, np.float64)
        self.table_RD, self.has_R = given(videos.hashed_R200, np.float32), given(videos.has_hashed_R, np.bool_)
        self.rows_X, self.weights_X = np.empty(self.longest, np.int32), np.empty(self.longest, np.float32)
        self.known_N = np.empty(PART_USERS, np.int64)

    def fill(self, start: int, stop: int, dense_NF: F32) -> None:
        """Fill the features of the users start..stop of a part, float32 [stop - start, 1024]."""
        first, last = int(self.offsets_N1[start]), int(self.offsets_N1[stop])
        self._take_logarithms(start, stop, first, last)
        kernel_columns.scan(
            self.at, self.numbers, self.time_us_E, self.tokens_E, first, last,
            self.marks_4M, self.values_7M, self.bins_2M, self.keys_3M,
        )  # fmt: skip
        self._distinct(self.video_code_E, self.offsets_N1, start, stop, self.distinct_N)
        sessions_2N = self.sessions_2N[:, :0]
        if self.session_E is not None:
            sessions_2N = self.sessions_2N
            here_N1 = self.offsets_N1[start : stop + 1] - first
            codes_M = given(self.session_E[first:last].astype(np.int32), np.int32)
            self._distinct(codes_M, given(here_N1, np.int64), 0, stop - start, sessions_2N[0], sessions_2N[1])
        kernel_users.fill(
            self.at, self.slots, ONE_HOTS, self.codes, self.offsets_N1, start, stop, self.time_us_E,
            self.marks_4M, self.values_7M, self.bins_2M, self.keys_3M, self.distinct_N, sessions_2N,
            self.total_events_N, dense_NF, self.logarithms_7N, self.scratch_X, self.sorting_X, self.whole_X,
        )  # fmt: skip
        kernel_groups.finish(LOGARITHMS, np.log1p(self.logarithms_7N[:, : stop - start]), dense_NF)
        if self.users is not None:
            table_RD = given(self.users.hashed_R200, np.float32)
            kernel_groups.copy_rows(table_RD, self.user_row_N[start:stop], layout.PROFILE.start, dense_NF)
        if self.videos is not None:
            self._fill_videos(start, stop, dense_NF)

    def _take_logarithms(self, start: int, stop: int, first: int, last: int) -> None:
        gap, position = self.values_7M[GAP_ROW][: last - first], self.values_7M[POSITION_ROW][: last - first]
        if last > first:
            gap[0] = 0
            np.subtract(self.time_us_E[first + 1 : last], self.time_us_E[first : last - 1], out=gap[1:])
            begins = self.offsets_N1[start:stop] - first
            gap[begins[begins < last - first]] = 0  # users without events behind the last one
            gap /= 1e6
            np.log1p(gap, out=gap)
        raw_E = self.numbers[COLUMNS.index("recommendation_position")]
        if len(raw_E):
            np.maximum(raw_E[first:last], 0, out=position)
            np.log1p(position, out=position)

    def _distinct(
        self, codes_E: I32, offsets_N1: I64, start: int, stop: int, distinct_N: I64, newest_N: I64 | None = None
    ) -> None:
        newest_N = self.newest_N if newest_N is None else newest_N
        kernel_groups.distinct(codes_E, offsets_N1, start, stop, self.stamp, self.seen_2H[0], distinct_N, newest_N)
        self.stamp += stop - start

    def _fill_videos(self, start: int, stop: int, dense_NF: F32) -> None:
        kernel_groups.groups(
            VARIETY, self.codes_R2, self.video_row_E, self.offsets_N1, start, stop, self.stamp, self.logarithms_X,
            self.steps_X, ENTROPY_SCALE, self.seen_2H, self.sizes_H, dense_NF,
        )  # fmt: skip
        self.stamp += stop - start
        kernel_groups.weighted_means(
            self.table_RD, self.has_R, self.video_row_E, self.percentage_E, PERCENTAGE_LIMIT, self.offsets_N1, start,
            stop, self.rows_X, self.weights_X, layout.VIDEOS.start, dense_NF, self.known_N,
        )  # fmt: skip


def video_means(table_RD: F32, has_R: U8, histories: Histories) -> tuple[F32, U8]:
    """Return the plain mean of the kept videos' table rows [N, D] and who has any [N]."""
    means_ND = np.zeros((len(histories), table_RD.shape[1]), np.float32)
    count_N = np.zeros(len(histories), np.int64)
    longest = int(histories.lengths_N.max(initial=0))
    kernel_groups.weighted_means(
        given(table_RD, np.float32), given(has_R, np.bool_), given(histories.video_row_E, np.int32),
        given(np.zeros(0), np.float64), PERCENTAGE_LIMIT, given(histories.offsets_N1, np.int64), 0, len(histories),
        np.empty(longest, np.int32), np.empty(longest, np.float32), 0, means_ND, count_N,
    )  # fmt: skip
    return means_ND, count_N > 0


def given(array: Any, dtype: Any) -> Any:
    """Return an input as every kernel takes it: contiguous, of its one type, not to be written to."""
    view = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view
