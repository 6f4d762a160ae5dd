"""The feature slots that depend on the log only: what happened, when, on what, and how a session went.

Owns: the formulas of all slots below 600 and of 1000-1019, except those of `from_videos` and the users table. Must not
know: files, Polars, other users. All arrays are flat, oldest event first; G users of one chunk, all with events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genrec_batch.core import layout
from genrec_batch.core.arrays import F32, F64, FIRST_ITEM, I64, U8, UNKNOWN, Histories
from genrec_batch.features.segments import Segments, distinct, moments, ratio, window_counts

SESSION_GAP_US = 1_800_000_000
HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
PERCENTAGE_LIMIT, DURATION_LIMIT = 3.0, 10.0
LOG_POSITION_UNIT = float(np.float32(np.log(101)))
LARGEST = np.finfo(np.float32).max
ALL = layout.WINDOWS.index(None)  # place of "all kept events" among the windows


@dataclass(frozen=True, kw_only=True)
class Column:
    """One number per event: `values_E` is 0 where `there_E` is False (null)."""

    values_E: F64
    there_E: U8


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The histories of some users, the segments of the G users with events, and columns that several blocks read."""

    histories: Histories
    segments: Segments

    def column(self, name: str) -> Column | None:
        """Return a column of the log, None where the log lacks it."""
        raw_E = self.histories.numbers.get(name)
        if raw_E is None:
            return None
        there_E = raw_E == raw_E  # noqa: PLR0124 - False for NaN only, in half the time of isnan
        return Column(values_E=raw_E if there_E.all() else np.where(there_E, raw_E, 0.0), there_E=there_E)

    @cached_property
    def everywhere_E(self) -> U8:
        """A mask that is True for every event."""
        return np.ones(len(self.histories.time_us_E), np.bool_)

    @cached_property
    def duration(self) -> Column | None:
        """Watched seconds / 100."""
        seconds = self.column("watch_duration")
        return seconds and Column(values_E=seconds.values_E * 0.01, there_E=seconds.there_E)

    @cached_property
    def percentage(self) -> Column | None:
        """Watched share of the video, clipped to 0..3."""
        raw = self.column("watch_percentage")
        return raw and Column(values_E=np.clip(raw.values_E, 0, PERCENTAGE_LIMIT), there_E=raw.there_E)

    @cached_property
    def log_position(self) -> Column | None:
        """ln(1 + position) as float32; positions below 0 count as 0."""
        raw = self.column("recommendation_position")
        if raw is None:
            return None
        position_E = np.clip(raw.values_E, 0, LARGEST).astype(np.float32)
        return Column(values_E=np.log1p(position_E).astype(np.float64), there_E=raw.there_E)

    @cached_property
    def log_gap_E(self) -> F64:
        """ln(1 + seconds since the same user's previous event) as float32; 0 for the oldest."""
        gap_s_E = self.gap_us_E.astype(np.float32) * np.float32(1e-6)
        log_gap_E: F64 = np.log1p(gap_s_E).astype(np.float64)
        return log_gap_E

    @cached_property
    def day_E(self) -> I64:
        """Days since 1970-01-01 UTC."""
        return self.histories.time_us_E // DAY_US

    @cached_property
    def hour(self) -> Column:
        """`time_of_day`, else the UTC hour of the timestamp with its minutes and seconds."""
        since_midnight_us = self.histories.time_us_E - self.day_E * DAY_US
        return self.column("time_of_day") or Column(values_E=since_midnight_us / HOUR_US, there_E=self.everywhere_E)

    @cached_property
    def derived_weekday_E(self) -> F64:
        """Weekday of the timestamp, Monday 0 (1970-01-01 was a Thursday)."""
        day_E = self.day_E + 3
        return (day_E - day_E // 7 * 7).astype(np.float64)

    @cached_property
    def weekday(self) -> Column:
        """`day_of_week`, else the weekday of the timestamp."""
        return self.column("day_of_week") or Column(values_E=self.derived_weekday_E, there_E=self.everywhere_E)

    @cached_property
    def gap_us_E(self) -> I64:
        """Microseconds since the same user's previous event, 0 for the oldest."""
        gap_us_E = np.zeros(len(self.histories.time_us_E), np.int64)
        np.subtract(self.histories.time_us_E[1:], self.histories.time_us_E[:-1], out=gap_us_E[1:])
        gap_us_E[self.segments.starts_G] = 0
        return gap_us_E

    @cached_property
    def newest_GL(self) -> tuple[I64, U8 | None]:
        """Places of the newest events, newest first, [G, at most 100], and which of them exist (None: all)."""
        lengths_G1 = self.segments.lengths_G[:, None]
        age_L = np.arange(min(layout.POSITION.stop - layout.POSITION.start, int(lengths_G1.max())))
        places_GL = self.segments.ends_G[:, None] - 1 - age_L
        if self.segments.width is not None:
            return places_GL, None
        return np.maximum(places_GL, self.segments.starts_G[:, None]), age_L < lengths_G1

    def newest(self, count: int) -> tuple[I64, U8 | None]:
        """Return the first `count` columns of `newest_GL`, or as many as there are."""
        places_GL, real_GL = self.newest_GL
        if real_GL is None or int(self.segments.lengths_G.min()) >= count:
            return places_GL[:, :count], None
        return places_GL[:, :count], real_GL[:, :count]

    @cached_property
    def counts(self) -> WindowCounts:
        """How often each mask is set in each window."""
        return _window_counts_of(self)


@dataclass(frozen=True, kw_only=True)
class WindowCounts:
    """Counts of masks by name, F64 [W, G] each, for the windows of `layout.WINDOWS`."""

    set_WG: Mapping[str, F64]
    there_WG: Mapping[str, F64]

    def rates_WG(self, name: str) -> F64 | None:
        """Return the rate of a column over its non-null values, None where the log lacks the column."""
        return ratio(self.set_WG[name], self.there_WG[name]) if name in self.set_WG else None

    def rate_of_all(self, name: str) -> F64:
        """Return the rate of a column over all kept events, 0 where the log lacks the column, [G]."""
        if name not in self.set_WG:
            return np.zeros(len(self.set_WG["known video"][ALL]))
        return ratio(self.set_WG[name][ALL], self.there_WG[name][ALL])


def _window_counts_of(chunk: Chunk) -> WindowCounts:
    masks: dict[str, U8] = {}
    nulls: dict[str, U8] = {}
    for name in (*layout.RATE_COLUMNS, "is_weekend", "is_holiday"):
        flag_E, raw_E = chunk.histories.flags.get(name), chunk.histories.numbers.get(name)
        if flag_E is not None:
            masks[name], nulls[name] = flag_E > 0, flag_E < 0
        elif raw_E is not None:
            masks[name], nulls[name] = raw_E > 0, raw_E != raw_E  # noqa: PLR0124 - True for NaN only
        if name in nulls and not nulls[name].any():
            del nulls[name]
    if "is_weekend" not in masks:
        masks["is_weekend"] = chunk.derived_weekday_E >= 5
    masks["unknown video"] = chunk.histories.tokens_E == UNKNOWN
    masks["known video"] = chunk.histories.tokens_E >= FIRST_ITEM
    masks["session break"] = chunk.gap_us_E > SESSION_GAP_US
    stacked_CE = np.stack([*masks.values(), *nulls.values()])
    counts_CWG = window_counts(stacked_CE, chunk.segments, layout.WINDOWS)
    set_WG = dict(zip(masks, counts_CWG, strict=False))
    null_WG = dict(zip(nulls, counts_CWG[len(masks) :], strict=False))
    lengths_G = chunk.segments.lengths_G
    all_WG = np.stack([lengths_G if w is None else np.minimum(lengths_G, w) for w in layout.WINDOWS]).astype(np.float64)
    there_WG = {name: all_WG - null_WG[name] if name in null_WG else all_WG for name in masks}
    return WindowCounts(set_WG=set_WG, there_WG=there_WG)


def _modulo(whole_E: F64, divisor: int) -> F64:
    """Return whole numbers modulo a divisor; exact, and fast where they are in range already."""
    return whole_E if whole_E.min() >= 0 and whole_E.max() < divisor else np.mod(whole_E, divisor)


def fill(dense_GF: F32, chunk: Chunk, *, max_events: int) -> None:
    """Fill the slots of G users that depend on the log, float32 [G, 1024], zero before."""
    _fill_by_event(dense_GF, chunk)
    _fill_one_hots(dense_GF, chunk)
    windows = len(layout.WINDOWS)
    for place, name in enumerate(layout.FLAG_COLUMNS):
        rates_WG = chunk.counts.rates_WG(name)
        if rates_WG is not None:
            first = layout.FLAGS.start + place * windows
            dense_GF[:, first : first + windows] = rates_WG.T
    moments_5SG = _moments(chunk)
    _fill_statistics(dense_GF, chunk, moments_5SG)
    _fill_sequence(dense_GF, chunk, moments_5SG, max_events)


def _fill_by_event(dense_GF: F32, chunk: Chunk) -> None:
    for slots, column, divisor, limit in (
        (layout.WATCH_DURATION, chunk.duration, 1.0, DURATION_LIMIT),
        (layout.WATCH_PERCENTAGE, chunk.percentage, 1.0, None),
        (layout.HOUR, chunk.hour, 24.0, None),
        (layout.WEEKDAY, chunk.weekday, 7.0, None),
        (layout.POSITION, chunk.log_position, LOG_POSITION_UNIT, None),
    ):
        if column is not None:
            places_GL, real_GL = chunk.newest(slots.stop - slots.start)
            values_GL = column.values_E.take(places_GL)
            if limit is not None:
                np.clip(values_GL, 0, limit, out=values_GL)
            if real_GL is not None:
                values_GL *= real_GL
            values_GL /= divisor
            dense_GF[:, slots.start : slots.start + places_GL.shape[1]] = values_GL


def _fill_one_hots(dense_GF: F32, chunk: Chunk) -> None:
    for name, slots in layout.ONE_HOTS.items():
        codes_E = chunk.histories.categories.get(name)
        if codes_E is not None:
            values = len(layout.CATEGORIES[name])
            places_GL, real_GL = chunk.newest((slots.stop - slots.start) // values)
            codes_GL = codes_E.take(places_GL)
            hot_GL = codes_GL >= 0 if real_GL is None else (codes_GL >= 0) & real_GL
            first_GL = np.arange(len(dense_GF))[:, None] * layout.FEATURES + slots.start
            slots_GL = first_GL + np.arange(places_GL.shape[1]) * values + codes_GL
            dense_GF.reshape(-1)[slots_GL[hot_GL]] = 1


def _moments(chunk: Chunk) -> F64:
    """Return the moments of duration and percentage over each window, and of log gaps, [5, 2 x windows + 1, G].

    In the order of slots: duration over each window, percentage over each window, gaps.
    """
    absent = Column(values_E=np.zeros(len(chunk.everywhere_E)), there_E=~chunk.everywhere_E)
    columns = (chunk.duration or absent, chunk.percentage or absent)
    gap_there_E = chunk.everywhere_E.copy()
    gap_there_E[chunk.segments.starts_G] = False
    values, there, segments = [], [], []
    for window in layout.STATISTIC_WINDOWS:
        place_M, newest = chunk.segments.newest(window)
        values += [c.values_E if newest is chunk.segments else c.values_E.take(place_M) for c in columns]
        there += [c.there_E if newest is chunk.segments else c.there_E.take(place_M) for c in columns]
        segments += [newest, newest]
    found = moments([*values, chunk.log_gap_E], [*there, gap_there_E], [*segments, chunk.segments])
    found_5SG = found.reshape(len(layout.MOMENTS), -1, len(chunk.segments))
    return found_5SG[:, [*range(0, len(values), 2), *range(1, len(values), 2), -1]]


def _fill_statistics(dense_GF: F32, chunk: Chunk, moments_5SG: F64) -> None:
    """Fill slots 500-599, as rows of one slot each that are transposed at the end."""
    windows, start, users = len(layout.STATISTIC_WINDOWS), layout.DURATION_STATISTICS.start, len(chunk.segments)
    by_slot_KG = np.zeros((layout.KEPT_EVENTS + 1 - start, users), np.float32)
    moments_KG = moments_5SG.transpose(1, 0, 2).reshape(-1, users)  # window by window, as the slots are
    by_slot_KG[: layout.PERCENTAGE_STATISTICS.stop - start] = moments_KG[: -len(layout.MOMENTS)]
    by_slot_KG[layout.GAPS.start - start : layout.GAPS.stop - start] = moments_KG[-len(layout.MOMENTS) :]
    for place, name in enumerate(layout.RATE_COLUMNS):
        rates_WG = chunk.counts.rates_WG(name)
        if rates_WG is not None:
            first = layout.RATES.start + place * windows - start
            by_slot_KG[first : first + windows] = rates_WG[-windows:]
    by_slot_KG[layout.WEEKEND - start] = chunk.counts.rate_of_all("is_weekend")
    by_slot_KG[layout.HOLIDAY - start] = chunk.counts.rate_of_all("is_holiday")
    if chunk.duration is not None:
        watched_s_G = chunk.segments.sums(chunk.duration.values_E) * 100
        by_slot_KG[layout.TOTAL_WATCH - start] = np.log1p(np.maximum(watched_s_G, 0))
    by_slot_KG[layout.KEPT_EVENTS - start] = np.log1p(chunk.segments.lengths_G)
    dense_GF[:, start : layout.KEPT_EVENTS + 1] = by_slot_KG.T
    dense_GF[:, layout.HOURS] = _shares(chunk.hour, chunk, 24)
    dense_GF[:, layout.WEEKDAYS] = _shares(chunk.weekday, chunk, 7)


def _shares(column: Column, chunk: Chunk, bins: int) -> F64:
    """Return the share of each whole number, modulo `bins`, among the values that are there, [G, bins]."""
    bin_E = _modulo(np.floor(column.values_E), bins).astype(np.int64)
    bin_E += chunk.segments.owners_E * bins
    if not column.there_E.all():
        bin_E = bin_E[column.there_E]
    counts_GH = np.bincount(bin_E, minlength=len(chunk.segments) * bins).reshape(-1, bins)
    shares_GH: F64 = counts_GH / np.maximum(counts_GH.sum(axis=1, keepdims=True), 1)
    return shares_GH


def _fill_sequence(dense_GF: F32, chunk: Chunk, moments_5SG: F64, max_events: int) -> None:
    """Fill slots 1000-1019, except those that need the videos table."""
    kept_G, time_us_E, segments = chunk.segments.lengths_G, chunk.histories.time_us_E, chunk.segments
    newest_us_G = time_us_E[segments.ends_G - 1]
    as_of_us_G = chunk.histories.as_of_us_N[chunk.histories.lengths_N > 0]
    sessions_G, newest_session_G = _sessions(chunk)
    mean_SG, std_SG = moments_5SG[0], moments_5SG[1]
    windows = len(layout.STATISTIC_WINDOWS)
    values: dict[str, F64] = {
        "kept_share_of_max_events": kept_G / max_events,
        "distinct_share_of_kept_videos": distinct(chunk.histories.video_code_E, segments)[0] / kept_G,
        "std_duration": std_SG[windows - 1],
        "std_percentage": std_SG[2 * windows - 1],
        "log1p_sessions": np.log1p(sessions_G),
        "log1p_events_per_session": np.log1p(np.where(sessions_G > 0, kept_G / np.maximum(sessions_G, 1), 0)),
        "log1p_hours_oldest_to_newest": np.log1p((newest_us_G - time_us_E[segments.starts_G]) / HOUR_US),
        "log1p_hours_newest_to_as_of": np.log1p(np.maximum(as_of_us_G - newest_us_G, 0) / HOUR_US),
        "cold_start": (chunk.counts.set_WG["known video"][ALL] == 0).astype(np.float64),
        "unknown_video_share": chunk.counts.set_WG["unknown video"][ALL] / kept_G,
        "newest_session_share": newest_session_G / kept_G,
        "complete_share": chunk.counts.rate_of_all("watch_complete"),
        "mean_percentage_newest_5_minus_all": mean_SG[windows] - mean_SG[2 * windows - 1],
        "mean_duration_newest_5_minus_all": mean_SG[0] - mean_SG[windows - 1],
    }
    if chunk.log_position is not None:
        there_G = segments.counts(chunk.log_position.there_E)
        values["mean_log1p_position"] = segments.sums(chunk.log_position.values_E) / np.maximum(there_G, 1)
    by_slot_KG = np.zeros((len(layout.SEQUENCE_NAMES), len(segments)), np.float32)
    for name, values_G in values.items():
        by_slot_KG[layout.SEQUENCE_NAMES.index(name)] = values_G
    dense_GF[:, layout.SEQUENCE] = by_slot_KG.T


def _sessions(chunk: Chunk) -> tuple[I64, I64]:
    """Return the number of sessions among the kept events, and of events in the newest session, [G] each.

    By `session_id` where the log has it (a null id is in no session); else a gap of over half an hour begins a session.
    """
    segments, session_E = chunk.segments, chunk.histories.session_E
    if session_E is not None:
        newest_G = session_E[segments.ends_G - 1]
        same_E = session_E == np.repeat(newest_G, segments.lengths_G)
        return distinct(session_E.astype(np.int32), segments)[0], np.where(newest_G >= 0, segments.counts(same_E), 0)
    breaks_G = chunk.counts.set_WG["session break"][ALL]
    begin_E = np.where(chunk.gap_us_E > SESSION_GAP_US, np.arange(len(chunk.gap_us_E)), 0)
    begin_G = np.maximum(np.maximum.reduceat(begin_E, segments.starts_G), segments.starts_G)
    return breaks_G.astype(np.int64) + 1, segments.ends_G - begin_G
