"""The invented app: its random draws, its people, its videos and its clock, all pure functions of a `SampleConfig`.

Owns: the hash that all draws come from, the config, what is fixed about a user, a video and a session, and the tables
behind that. Must not know: files, chunks, the order of the rows, what happens inside a session (`views`). It keeps
state per video and per category only; what is fixed about a user is computed from the user's number on demand.
Shapes: E counters, U users, Z sessions, V videos, C categories.

A draw needs no generator: it is a hash of the seed, a purpose and a counter. The same counter gives the same bits
wherever, whenever and in whatever chunk the draw is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from functools import cached_property
from statistics import NormalDist
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import F64, I32, I64
from genrec_batch.core.errors import ConfigError

U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
Order = Literal["time", "user", "shuffled"]

CATEGORIES = (
    "animals", "art", "beauty", "cars", "comedy", "cooking", "dance", "education", "family", "fashion", "fitness",
    "football", "gaming", "gardening", "home", "music", "news", "outdoors", "photography", "reading", "science",
    "skits", "technology", "travel",
)  # fmt: skip
CREATOR_VIDEOS = 8  # videos of one creator, neighbours in popularity within their category
SPREAD, LENGTH_BITS = 1.0, 14  # sigma of the lognormal history lengths; bits of their quantile table
SHORTEST_SESSION, SESSION_CHOICES = 4, 13  # a user's mean session is 4..16 events long
HOUR_WEIGHTS = (5, 3, 2, 1, 1, 1, 2, 4, 6, 6, 6, 7, 9, 9, 7, 7, 7, 9, 11, 13, 15, 16, 13, 9)  # sessions begun, UTC
STAYED, JOINED = round(0.70 * 65536), round(0.85 * 65536)  # 70% are on the app all the time, 15% join, 15% leave
DAY_MS = 86_400_000
SESSION_BITS, EVENT_BITS = 20, 24  # of a counter, for a user's sessions and events
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(seed: int, purpose: int) -> U64:
    """Return the 64-bit start of one stream of draws, [1], mixed from the seed and the purpose by `SeedSequence`."""
    start: U64 = np.random.SeedSequence(seed, spawn_key=(purpose,)).generate_state(1, np.uint64).view(np.uint64)
    return start


def bits(stream: U64, counter_E: I64) -> U64:
    """Return 64 random bits per counter, [E]: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), random access."""
    x = counter_E.astype(np.uint64)
    x *= GOLDEN
    x += stream
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def quarters(bits_E: U64) -> tuple[U16, U16, U16, U16]:
    """Return the four independent 16-bit draws of each hash, lowest bits first, as views [E]."""
    parts = bits_E.view(np.uint16).reshape(-1, 4)
    return parts[:, 0], parts[:, 1], parts[:, 2], parts[:, 3]


def halves(bits_E: U64) -> tuple[U32, U32]:
    """Return the two independent 32-bit draws of each hash, lowest bits first, as views [E]."""
    parts = bits_E.view(np.uint32).reshape(-1, 2)
    return parts[:, 0], parts[:, 1]


def chance(probability: float) -> np.uint16:
    """Return the threshold that a 16-bit draw is below with this probability (0..1, to 1/65536)."""
    return np.uint16(min(round(probability * 65536), 65535))


def choices(weights: Sequence[float] | F64, size_bits: int) -> I32:
    """Return a table of 2**size_bits indices of `weights`, ascending, each as often as its share of the weights."""
    cumulative = np.cumsum(np.asarray(weights, np.float64))
    middle = (np.arange(1 << size_bits) + 0.5) / (1 << size_bits) * cumulative[-1]
    indices: I32 = np.searchsorted(cumulative, middle, side="right").astype(np.int32)
    return indices


def zipf(items: int, size_bits: int) -> I32:
    """Return a table of 2**size_bits ranks 0..items-1; rank r has a share in proportion to 1 / (r + 1) (Zipf 1949)."""
    return choices(1.0 / np.arange(1, items + 1), size_bits)


def lognormal(median: float, sigma: float, size_bits: int) -> F64:
    """Return the 2**size_bits mid-quantiles of a lognormal distribution, ascending."""
    size = 1 << size_bits
    inverse = NormalDist().inv_cdf
    return median * np.exp(sigma * np.array([inverse((i + 0.5) / size) for i in range(size)]))


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The log to make. Every field changes the rows, except `order`, which only arranges them."""

    users: int  # people, each with at least one event, numbered from 1
    events_per_user: float  # mean length of a history without duplicates; lengths are lognormal, at least 1
    seed: int  # 0 or more
    videos: int = 20_000  # videos on the app; some may never be seen
    dirt: float = 0.0  # share of events with a fault, 0..1; the five kinds of fault are equally frequent
    days: int = 28  # length of the log
    start: date = date(2026, 4, 20)  # its first day, UTC
    order: Order = "time"  # by timestamp, grouped by user, or neither

    def __post_init__(self) -> None:
        limits = (
            ("--users", self.users, 1, 2**31 - 1),
            ("--events-per-user", self.events_per_user, 1, 50_000),
            ("--seed", self.seed, 0, 2**63 - 1),
            ("--videos", self.videos, len(CATEGORIES), 2**24),
            ("--dirt", self.dirt, 0, 1),
            ("--days", self.days, 1, 3650),
        )
        faults = [
            f"{flag} {value} is not in {low}..{high}" for flag, value, low, high in limits if not low <= value <= high
        ]
        if self.order not in get_args(Order):
            faults.append(f"--order {self.order!r} is not one of {', '.join(get_args(Order))}")
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, kw_only=True)
class People:
    """What is fixed about some users, one row each."""

    events_U: I64  # length of the history
    sessions_U: I64
    joined_U: F64  # start of the time on the app, as a share of the log
    stay_U: F64  # length of the time on the app, as a share of the log
    favourites_U3: npt.NDArray[np.uint8]  # categories, the favourite first; may coincide
    loyalty_U: U16  # decides to which creator of each category the user is loyal


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """When some sessions begin and which of their user's events they hold, one row each."""

    users_Z: I64  # from 0
    numbers_Z: I64  # from 0 within the user
    start_ms_Z: I64  # epoch ms
    first_event_Z: I64  # number of the first event within the user's history
    events_Z: I64  # may be 0
    returns_Z: npt.NDArray[np.bool_]  # the user's next session begins within 24 h
    people: People  # the sessions' users


class World:
    """The tables behind a `SampleConfig`, and what they say about users, videos and sessions."""

    def __init__(self, config: SampleConfig) -> None:
        self.config = config
        self.first_ms = _midnight_ms(config.start)
        self.end_ms = self.first_ms + config.days * DAY_MS
        self._people, self._lengths = key(config.seed, 0), key(config.seed, 1)
        self._tastes, self._sessions = key(config.seed, 2), key(config.seed, 3)

    @cached_property
    def category_starts(self) -> I64:
        """First video of each category and the end, [C + 1]: categories are ranges of (almost) equal size."""
        return np.arange(len(CATEGORIES) + 1) * self.config.videos // len(CATEGORIES)

    @cached_property
    def category_table(self) -> I32:
        """Categories, each as often as it is popular, [4096]: Zipf; the seed decides which is popular."""
        by_popularity_C = np.argsort(bits(key(self.config.seed, 4), np.arange(len(CATEGORIES))))
        return by_popularity_C.astype(np.int32)[zipf(len(CATEGORIES), 12)]

    @cached_property
    def rank_table(self) -> I32:
        """Ranks of videos within a category, each as often as it is drawn, [a power of 2]."""
        largest = -(-self.config.videos // len(CATEGORIES))
        return zipf(largest, max(16, min(24, largest.bit_length() + 4)))

    @cached_property
    def creator_table(self) -> I32:
        """Ranks of creators within a category, each as often as users are loyal to it, [65536]."""
        return zipf(-(-self.config.videos // (len(CATEGORIES) * CREATOR_VIDEOS)), 16)

    @cached_property
    def length_ds_V(self) -> I32:
        """Length of each video in tenths of a second, [V]: lognormal around 18 s, 4..180 s."""
        table = np.clip(np.rint(10 * lognormal(18.0, 0.8, 12)), 40, 1800).astype(np.int32)
        lengths: I32 = table[bits(key(self.config.seed, 5), np.arange(self.config.videos)) >> np.uint64(52)]
        return lengths

    @cached_property
    def video_ids_V(self) -> I64:
        """Public id of each video, [V]: its place in a shuffled list, so that an id says nothing about popularity."""
        order = np.argsort(bits(key(self.config.seed, 6), np.arange(self.config.videos)))
        return 100_000 + order.astype(np.int64)

    @cached_property
    def length_table(self) -> F64:
        """Quantiles of history lengths before rounding, ascending; their mean is that of the config."""
        shape = lognormal(1.0, SPREAD, LENGTH_BITS)
        low, high = 0.0, 2.0 * self.config.events_per_user
        for _ in range(60):  # bisection: rounding up to 1 raises the mean of short histories
            middle = (low + high) / 2
            low, high = (
                (middle, high) if np.maximum(middle * shape, 1).mean() < self.config.events_per_user else (low, middle)
            )
        return np.maximum(low * shape, 1.0)

    @cached_property
    def _hours(self) -> tuple[F64, F64]:
        cumulative = np.cumsum(np.array((0, *HOUR_WEIGHTS), np.float64))
        return cumulative / cumulative[-1], np.arange(25) / 24

    def people(self, users_U: I64) -> People:
        """Return what is fixed about the given users (numbered from 0).

        Lengths are quantiles at a Weyl sequence (user times the golden ratio, modulo 1; Niederreiter 1978), so that
        even few users have the config's mean.
        """
        place, batch, window, _ = quarters(bits(self._people, users_U))
        events_U, sessions_U = self._sizes(users_U, place, batch)
        likes = quarters(bits(self._tastes, users_U))
        part = (window % 4096) / 4096
        return People(
            events_U=events_U,
            sessions_U=sessions_U,
            joined_U=np.where((window >= STAYED) & (window < JOINED), 0.9 * part, 0.0),
            stay_U=np.where(window < STAYED, 1.0, np.where(window < JOINED, 1 - 0.9 * part, 0.1 + 0.9 * part)),
            favourites_U3=np.stack([self.category_table[like >> 4] for like in likes[:3]], axis=1).astype(np.uint8),
            loyalty_U=likes[3],
        )

    def session_counts(self, users_U: I64) -> I64:
        """Return the number of sessions of the given users (numbered from 0), [U]: `people().sessions_U` alone."""
        place, batch, _, _ = quarters(bits(self._people, users_U))
        return self._sizes(users_U, place, batch)[1]

    def _sizes(self, users_U: I64, place_U: U16, batch_U: U16) -> tuple[I64, I64]:
        """Return the numbers of events and sessions of users, from their draws, [U] each."""
        weyl = users_U.astype(np.uint64) * GOLDEN + self._lengths
        exact = self.length_table[(weyl >> np.uint64(64 - LENGTH_BITS)).astype(np.int64)]
        events_U = np.floor(exact + place_U / 65536).astype(np.int64)
        mean_session = SHORTEST_SESSION + (batch_U.astype(np.int64) * SESSION_CHOICES >> 16)
        return events_U, np.maximum(1, (events_U + mean_session // 2) // mean_session)

    def sessions(self, users_Z: I64, numbers_Z: I64) -> Sessions:
        """Return some sessions, given their users (from 0) and their numbers within the user (from 0).

        A user's time on the app is divided into equal periods, one per session. The session begins at a random moment
        of its period, and each day's clock is stretched by the popularity of the hours. The history is divided among
        the sessions at random.
        """
        people = self.people(users_Z)
        this, following = (self._places(people, users_Z, numbers_Z + i) for i in (0, 1))
        last = numbers_Z + 1 == people.sessions_U
        first_event = np.where(numbers_Z == 0, 0, this[1])
        return Sessions(
            users_Z=users_Z,
            numbers_Z=numbers_Z,
            start_ms_Z=this[0],
            first_event_Z=first_event,
            events_Z=np.where(last, people.events_U, following[1]) - first_event,
            returns_Z=~last & (following[0] - this[0] <= DAY_MS),
            people=people,
        )

    def starts_ms(self, users_Z: I64, numbers_Z: I64) -> I64:
        """Return when some sessions begin, epoch ms, [Z]; it never falls with the number within a user."""
        return self._places(self.people(users_Z), users_Z, numbers_Z)[0]

    def _places(self, people: People, users_Z: I64, numbers_Z: I64) -> tuple[I64, I64]:
        drawn = bits(self._sessions, (users_Z << SESSION_BITS) | numbers_Z)
        when, where = halves(drawn)
        share = people.joined_U + people.stay_U * (numbers_Z + when / 2**32) / people.sessions_U
        days = share * self.config.days
        day = np.floor(days)
        start = self.first_ms + ((day + np.interp(days - day, *self._hours)) * DAY_MS).astype(np.int64)
        cut = ((numbers_Z << 16) - (1 << 15) + (where >> np.uint32(16))) * people.events_U  # up to half a share off
        return start, cut // (people.sessions_U << 16)

    def user_groups(self, rows: int) -> Iterator[I64]:
        """Yield all users (from 0) in groups that have about `rows` events each."""
        size = max(1, int(rows / self.config.events_per_user))
        for first in range(0, self.config.users, size):
            yield np.arange(first, min(first + size, self.config.users))


def _midnight_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp()) * 1000
