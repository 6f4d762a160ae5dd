"""Features: from histories to the 1024 numbers that the model reads at position 0.

Owns: the formula of every slot of `layout.py`. Must not know: files, Polars, the model. No loop over users or events:
users of like history length (powers of two) stand in matrices [n, L] of their newest events, r = 0 the newest. L
depends on a user's own length alone, so a row never depends on its neighbours. `tests/reference.py` computes the same
row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genrec_batch import layout
from genrec_batch.arrays import F32, F64, FIRST_ITEM, I64, U8, UNKNOWN, Histories, SideTable

CELLS = 1 << 15  # events of one matrix: small enough for the cache
SESSION_GAP_S = 1800.0
HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
PERCENTAGE_LIMIT = 3.0


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of n users' newest L events: `values` is 0 where `there` is False (null, or beyond the history)."""

    values: F64  # [n, L]
    there: U8  # [n, L]

    def map(self, values: F64) -> Column:
        """Return other values that are null in the same places."""
        return Column(values=np.where(self.there, values, 0.0), there=self.there)

    def newest(self, events: int | None) -> Column:
        """Return the newest events only; None for all."""
        return Column(values=self.values[:, :events], there=self.there[:, :events])

    def counts(self) -> F64:
        """Return the number of values that are there, [n]."""
        counted: F64 = self.there.sum(axis=1).astype(np.float64)
        return counted

    def mean(self) -> F64:
        """Return the mean of what is there, 0 where nothing is, [n]."""
        return _ratio(self.values.sum(axis=1), self.counts())

    def std(self) -> F64:
        """Return the population deviation, 0 where nothing is there, [n]."""
        centred = np.where(self.there, self.values - self.mean()[:, None], 0.0)
        return np.sqrt(_ratio((centred * centred).sum(axis=1), self.counts()))

    def moments(self) -> F64:
        """Return mean, deviation, minimum, maximum and median, [n, 5], 0 where nothing is there."""
        counts = self.counts().astype(np.int64)
        ordered = np.sort(np.where(self.there, self.values, np.inf), axis=1)
        row, last = np.arange(len(counts)), np.maximum(counts - 1, 0)
        low, high = ordered[:, 0], ordered[row, last]
        median = (ordered[row, last // 2] + ordered[row, np.minimum(counts // 2, last)]) / 2
        stacked = np.stack([self.mean(), self.std(), low, high, median], axis=1)
        return np.where(counts[:, None] > 0, stacked, 0.0)


@dataclass(frozen=True, kw_only=True)
class Block:
    """The newest L events of n users: where they stand in the flat arrays, newest first."""

    histories: Histories
    rows: I64  # [n] users
    events: I64  # [n, L] places in the flat arrays (0 beyond the history)
    real: U8  # [n, L]
    lengths: I64  # [n]

    def column(self, name: str) -> Column | None:
        """Return a column of the log, None where the log has none."""
        flat = self.histories.numbers.get(name)
        return None if flat is None else self.of(flat)

    def of(self, flat_E: F64) -> Column:
        """Return the values of a flat array, NaN being null."""
        values = flat_E[self.events]
        there = self.real & ~np.isnan(values)
        return Column(values=np.where(there, values, 0.0), there=there)

    def times_us(self) -> I64:
        """Return the events' times, epoch us, [n, L]."""
        return self.histories.time_us_E[self.events]


def compute(
    histories: Histories, users: SideTable | None, videos: SideTable | None, *, max_events: int, out: F32 | None = None
) -> F32:
    """Return the 1024 features of N users, float32 [N, 1024]; `out` is filled and returned where it is given."""
    dense_NF = np.zeros((len(histories), layout.FEATURES), np.float32) if out is None else out
    dense_NF[:] = 0
    dense_NF[:, layout.SEQUENCE.start + 1] = np.log1p(histories.total_events_N)
    dense_NF[:, layout.SEQUENCE.start + 9] = 1
    if users is not None:
        there_N = histories.user_row_N >= 0
        dense_NF[there_N, layout.PROFILE] = users.hashed_R200[histories.user_row_N[there_N]]
    for block in _blocks(histories):
        slots = np.zeros((len(block.rows), layout.FEATURES))
        slots[:, layout.PROFILE] = dense_NF[block.rows, layout.PROFILE]
        _events(block, slots)
        _statistics(block, slots)
        _sequence(block, slots, videos, max_events)
        if videos is not None:
            slots[:, layout.VIDEOS] = _video_mean(block, videos)
        dense_NF[block.rows] = slots
    return dense_NF


def _blocks(histories: Histories) -> Iterator[Block]:
    lengths_N = histories.lengths_N
    classes_N = np.where(lengths_N > 0, np.ceil(np.log2(np.maximum(lengths_N, 1))).astype(np.int64), -1)
    for exponent in np.unique(classes_N[classes_N >= 0]):
        width, members = 1 << int(exponent), np.flatnonzero(classes_N == exponent)
        for first in range(0, len(members), max(1, CELLS // width)):
            rows = members[first : first + max(1, CELLS // width)]
            lengths = lengths_N[rows]
            age = np.arange(width)
            real = age[None, :] < lengths[:, None]
            events = np.where(real, histories.offsets_N1[rows + 1][:, None] - 1 - age[None, :], 0)
            yield Block(histories=histories, rows=rows, events=events, real=real, lengths=lengths)


def _ratio(numerator: F64, denominator: F64) -> F64:
    """Return the quotient, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=np.float64), where=denominator != 0)


def _duration(block: Block) -> Column | None:
    seconds = block.column("watch_duration")
    return None if seconds is None else seconds.map(seconds.values / 100)


def _percentage(block: Block) -> Column | None:
    raw = block.column("watch_percentage")
    return None if raw is None else raw.map(np.clip(raw.values, 0, PERCENTAGE_LIMIT))


def _hour(block: Block) -> Column:
    given = block.column("time_of_day")
    return given or Column(values=np.where(block.real, (block.times_us() % DAY_US) / HOUR_US, 0.0), there=block.real)


def _derived_weekday(block: Block) -> Column:
    """Return the weekday of the timestamp, Monday 0 (1970-01-01 was a Thursday)."""
    return Column(values=np.where(block.real, (block.times_us() // DAY_US + 3) % 7, 0.0), there=block.real)


def _place(slots: F64, span: slice, column: Column | None) -> None:
    """Put the newest events of a column into a span of slots, r = 0 first."""
    if column is not None:
        events = min(column.values.shape[1], span.stop - span.start)
        slots[:, span.start : span.start + events] = column.values[:, :events]


def _events(block: Block, slots: F64) -> None:
    duration, percentage = _duration(block), _percentage(block)
    _place(slots, layout.WATCH_DURATION, duration and duration.map(np.clip(duration.values, 0, 10)))
    _place(slots, layout.WATCH_PERCENTAGE, percentage)
    hour, weekday = _hour(block), block.column("day_of_week") or _derived_weekday(block)
    _place(slots, layout.HOUR, hour.map(hour.values / 24))
    _place(slots, layout.WEEKDAY, weekday.map(weekday.values / 7))
    position = block.column("recommendation_position")
    _place(slots, layout.POSITION, position and position.map(_log_position(position) / np.log(101)))
    for name, span in layout.ONE_HOTS.items():
        codes = block.histories.categories.get(name)
        if codes is not None:
            values = len(layout.CATEGORIES[name])
            newest = min(block.events.shape[1], (span.stop - span.start) // values)
            coded = np.where(block.real, codes[block.events], -1)[:, :newest]
            user, age = np.nonzero(coded >= 0)
            slots[user, span.start + age * values + coded[user, age]] = 1
    for place, name in enumerate(layout.FLAG_COLUMNS):
        flag = block.column(name)
        if flag is not None:
            first = layout.FLAGS.start + place * len(layout.WINDOWS)
            for offset, window in enumerate(layout.WINDOWS):
                slots[:, first + offset] = flag.newest(window).mean()


def _log_position(position: Column) -> F64:
    return np.log1p(np.maximum(position.values, 0))


def _statistics(block: Block, slots: F64) -> None:
    for span, column in (
        (layout.DURATION_STATISTICS, _duration(block)),
        (layout.PERCENTAGE_STATISTICS, _percentage(block)),
    ):
        if column is not None:
            moments = [column.newest(events).moments() for events in layout.SPANS]
            slots[:, span] = np.concatenate(moments, axis=1)
    for place, name in enumerate(layout.RATE_COLUMNS):
        column = block.column(name)
        if column is not None:
            happened = column.map((column.values > 0).astype(np.float64))
            first = layout.RATES.start + place * len(layout.SPANS)
            for offset, events in enumerate(layout.SPANS):
                slots[:, first + offset] = happened.newest(events).mean()
    slots[:, layout.GAPS] = _log_gaps(block).moments()
    weekday = block.column("day_of_week") or _derived_weekday(block)
    slots[:, layout.HOURS] = _shares(_hour(block), 24)
    slots[:, layout.WEEKDAYS] = _shares(weekday, 7)
    derived = _derived_weekday(block)
    weekend = block.column("is_weekend") or derived.map((derived.values >= 5).astype(np.float64))
    slots[:, layout.WEEKEND] = weekend.mean()
    holiday, watched = block.column("is_holiday"), block.column("watch_duration")
    if holiday is not None:
        slots[:, layout.HOLIDAY] = holiday.mean()
    if watched is not None:
        slots[:, layout.TOTAL_WATCH] = np.log1p(np.maximum(watched.values.sum(axis=1), 0))
    slots[:, layout.KEPT_EVENTS] = np.log1p(block.lengths)


def _gaps_s(block: Block) -> Column:
    """Return the seconds between each event and the next older one, [n, L - 1] (at least one column)."""
    if block.events.shape[1] == 1:
        return Column(values=np.zeros((len(block.rows), 1)), there=np.zeros((len(block.rows), 1), np.bool_))
    times_us, there = block.times_us(), block.real[:, 1:]
    return Column(values=np.where(there, (times_us[:, :-1] - times_us[:, 1:]) / 1e6, 0.0), there=there)


def _log_gaps(block: Block) -> Column:
    gaps = _gaps_s(block)
    return gaps.map(np.log1p(gaps.values))


def _shares(column: Column, values: int) -> F64:
    """Return the share of each whole value among what is there, [n, values]."""
    user, age = np.nonzero(column.there)
    whole = np.mod(np.floor(column.values[user, age]), values).astype(np.int64)
    users = len(column.values)
    counts = np.bincount(user * values + whole, minlength=users * values).reshape(users, values).astype(np.float64)
    return _ratio(counts, np.broadcast_to(column.counts()[:, None], counts.shape))


def _sequence(block: Block, slots: F64, videos: SideTable | None, max_events: int) -> None:
    first, kept = layout.SEQUENCE.start, block.lengths.astype(np.float64)
    tokens = np.where(block.real, block.histories.tokens_E[block.events], 0)
    times_us = block.times_us()
    oldest_us = times_us[np.arange(len(kept)), block.lengths - 1]
    sessions, newest_session = _sessions(block)
    slots[:, first + 0] = kept / max_events
    slots[:, first + 1] = np.log1p(block.histories.total_events_N[block.rows])
    slots[:, first + 2] = _groups(block, block.histories.video_code_E)[0] / kept
    slots[:, first + 5] = np.log1p(sessions)
    slots[:, first + 6] = np.log1p(_ratio(kept, sessions))
    slots[:, first + 7] = np.log1p((times_us[:, 0] - oldest_us) / HOUR_US)
    slots[:, first + 8] = np.log1p(np.maximum(block.histories.as_of_us - times_us[:, 0], 0) / HOUR_US)
    slots[:, first + 9] = ~(tokens >= FIRST_ITEM).any(axis=1)
    slots[:, first + 10] = (tokens == UNKNOWN).sum(axis=1) / kept
    slots[:, first + 11] = newest_session / kept
    duration, percentage = _duration(block), _percentage(block)
    if duration is not None:
        slots[:, first + 3] = duration.std()
        slots[:, first + 19] = duration.newest(5).mean() - duration.mean()
    if percentage is not None:
        slots[:, first + 4] = percentage.std()
        slots[:, first + 18] = percentage.newest(5).mean() - percentage.mean()
    position, complete = block.column("recommendation_position"), block.column("watch_complete")
    if position is not None:
        slots[:, first + 16] = position.map(_log_position(position)).mean()
    if complete is not None:
        slots[:, first + 17] = complete.mean()
    if videos is not None:
        creators = _groups(block, _of_video(block.histories, videos.creator_R))
        categories = _groups(block, _of_video(block.histories, videos.category_R))
        slots[:, first + 12] = creators[0] / kept
        slots[:, first + 13] = categories[0] / kept
        slots[:, first + 14], slots[:, first + 15] = categories[1], categories[2]


def _of_video(histories: Histories, codes_R: np.ndarray[tuple[int], np.dtype[np.int32]]) -> I64:
    """Return a code of the videos table for each event, -1 where there is none, [E]."""
    row_E = histories.video_row_E
    if not len(codes_R):
        return np.full(len(row_E), -1, np.int64)
    return np.where(row_E >= 0, codes_R[np.maximum(row_E, 0)], -1).astype(np.int64)


def _sessions(block: Block) -> tuple[F64, F64]:
    """Return each user's sessions among the kept events, and the events of the newest one, [n] each."""
    codes_E = block.histories.session_E
    if codes_E is not None:
        codes = np.where(block.real, codes_E[block.events], -1)
        newest = np.where(codes[:, 0] >= 0, (codes == codes[:, :1]).sum(axis=1), 0)
        return _groups(block, codes_E)[0], newest.astype(np.float64)
    gaps = _gaps_s(block)
    breaks = gaps.there & (gaps.values > SESSION_GAP_S)
    newest = np.where(breaks.any(axis=1), breaks.argmax(axis=1) + 1, block.lengths)
    return 1.0 + breaks.sum(axis=1), newest.astype(np.float64)


def _groups(block: Block, codes_E: np.ndarray[tuple[int], np.dtype[np.signedinteger]]) -> tuple[F64, F64, F64]:
    """Return distinct codes, entropy over ln(distinct) (0 for one), and the commonest code's share, [n] each.

    Codes below 0 are null and left out (Shannon 1948's entropy, natural logarithm).
    """
    users = len(block.rows)
    codes = np.sort(np.where(block.real, codes_E[block.events], -1), axis=1)
    starts = codes >= 0
    starts[:, 1:] &= codes[:, 1:] != codes[:, :-1]
    user_G, place_G = np.nonzero(starts)
    there_n = (codes >= 0).sum(axis=1)
    distinct_n = np.bincount(user_G, minlength=users).astype(np.float64)
    last_G = np.append(user_G[1:] != user_G[:-1], True) if len(user_G) else np.zeros(0, np.bool_)
    ends_G = np.where(last_G, codes.shape[1], np.append(place_G[1:], 0))
    share_G = (ends_G - place_G) / np.maximum(there_n[user_G], 1)
    entropy_n: F64 = np.bincount(user_G, -share_G * np.log(share_G), users).astype(np.float64)
    entropy_n = np.where(distinct_n > 1, entropy_n / np.log(np.maximum(distinct_n, 2)), 0.0)
    commonest_n: F64 = np.zeros(users)
    np.maximum.at(commonest_n, user_G, share_G)
    return distinct_n, entropy_n, commonest_n


def _video_mean(block: Block, videos: SideTable) -> F64:
    """Return the percentage-weighted mean of the videos' floats over the videos that the table has, [n, 200]."""
    row = np.where(block.real, block.histories.video_row_E[block.events], -1)
    known = (row >= 0) & videos.has_hashed_R[np.maximum(row, 0)]
    percentage = _percentage(block)
    weight = known.astype(np.float64)
    if percentage is not None:
        weight = np.where(known, np.where(percentage.there, percentage.values, 1.0), 0.0)
    weight = np.where((weight.sum(axis=1) > 0)[:, None], weight, known)
    return _weighted_mean(weight, videos.hashed_R200, row)


def _weighted_mean(weight: F64, floats_RD: F32, row: I64) -> F64:
    """Return the weighted mean of the rows' floats, [n, D]; 0 where all weights are 0."""
    size = floats_RD.shape[1]
    mean = np.zeros((len(weight), size))
    share = _ratio(weight, np.broadcast_to(weight.sum(axis=1)[:, None], weight.shape)).astype(np.float32)
    step = max(1, (1 << 20) // (weight.shape[1] * size))
    for first in range(0, len(weight), step):
        part = slice(first, first + step)
        gathered = floats_RD[np.maximum(row[part], 0)]
        mean[part] = np.matmul(share[part, None, :], gathered)[:, 0, :]
    return mean


def profile_vectors(histories: Histories, users: SideTable) -> tuple[F32, U8] | None:
    """Return the users' own vectors [N, 256] and who has one [N]; None where the table has no such column."""
    if users.dense_RD is None or users.has_dense_R is None:
        return None
    row_N = np.maximum(histories.user_row_N, 0)
    has_N = (histories.user_row_N >= 0) & users.has_dense_R[row_N]
    return np.where(has_N[:, None], users.dense_RD[row_N], np.float32(0)), has_N


def video_vectors(histories: Histories, videos: SideTable) -> tuple[F32, U8] | None:
    """Return the mean of the kept videos' own vectors [N, 512] and who has any [N]; None without such a column."""
    if videos.dense_RD is None or videos.has_dense_R is None:
        return None
    pooled_NV = np.zeros((len(histories), videos.dense_RD.shape[1]), np.float32)
    has_N = np.zeros(len(histories), np.bool_)
    for block in _blocks(histories):
        row = np.where(block.real, block.histories.video_row_E[block.events], -1)
        known = (row >= 0) & videos.has_dense_R[np.maximum(row, 0)]
        pooled_NV[block.rows] = _weighted_mean(known.astype(np.float64), videos.dense_RD, row)
        has_N[block.rows] = known.any(axis=1)
    return pooled_NV, has_N


def feature_scores(dense_NF: F32) -> F32:
    """Return like rate, mean watch percentage and distinct share of the kept histories, float32 [N, 3]."""
    return dense_NF[:, [layout.LIKE_RATE_ALL, layout.MEAN_PERCENTAGE_ALL, layout.DISTINCT_SHARE]]
