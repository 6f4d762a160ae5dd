"""The columns of the log and of the tables beside it: views as rows of the events contract, users and videos.

Owns: names and types of the columns, traits of users that do not steer what is watched (country, device, age, ...), the
reactions to a video, the circumstances of a view, where a real log has nulls, and how faults appear. Must not know:
files, the order of the rows, how views are made. In: a config, views. Out: Arrow and Polars tables.
Shapes: E events, U users, V videos.

Nulls: old versions of the app do not log `rewatch_count` and `is_favorited`; a TV has no buttons for comments and
shares; the network is sometimes unknown; a view from a search or a followed creator has no position; on the log's last
day it is not known whether a user returned within 24 hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from genrec_batch.core.arrays import F64, I32, I64
from genrec_batch.demo.synthetic.views import FAULTS, Views
from genrec_batch.demo.synthetic.world import (
    CATEGORIES,
    CREATOR_VIDEOS,
    DAY_MS,
    EVENT_BITS,
    SESSION_BITS,
    U16,
    U64,
    SampleConfig,
    World,
    bits,
    chance,
    choices,
    key,
    quarters,
)

I8 = npt.NDArray[np.int8]
Mask = npt.NDArray[np.bool_]

NULL = -1  # code of an unknown value

COUNTRIES = ("GB", "FR", "ES", "DE", "PT", "IE", "NG", "MA")  # all with a clock near UTC
LANGUAGES = ("en", "fr", "es", "de", "pt", "ar")
LANGUAGE_OF = np.array((0, 1, 2, 3, 4, 0, 0, 5), np.int8)  # by country
AGE_GROUPS = ("13-17", "18-24", "25-34", "35-44", "45-54", "55+")
GENDERS = ("female", "male", "other")
DEVICES = ("mobile", "tablet", "desktop", "tv")
SYSTEMS = ("android", "ios", "windows", "macos")
SYSTEM_OF = np.array(((0, 0, 1), (0, 1, 1), (2, 2, 3), (0, 0, 0)), np.int8)  # by device and a third of the draws
VERSIONS = ("6.9.2", "7.0.1", "7.1.0", "7.2.3")  # of the app, oldest first
LEVELS = 10
NETWORKS = ("wifi", "4g", "5g", "3g", "ethernet")  # the feature layout does not know the last one: "unknown" there
NETWORK_WEIGHTS = {
    "mobile": (52, 22, 22, 4, 0),
    "tablet": (85, 9, 5, 1, 0),
    "desktop": (55, 0, 0, 0, 45),
    "tv": (75, 0, 0, 0, 25),
}
UNKNOWN_NETWORK = chance(0.02)
SOURCES = ("home", "following", "trending", "search", "hashtag", "nearby")
SOURCE_WEIGHTS = (62, 13, 10, 8, 5, 2)
RANKED = np.array((True, False, True, False, True, True))  # sources that are ranked lists, with a position
HOLIDAYS = ((1, 1), (5, 1), (12, 25))  # month, day
SKIPPED, FINISHED = 0.25, 0.95  # watched shares

LIKING = np.outer((0.01, 0.03, 0.06, 0.12), (0.1, 0.6, 1.5)).ravel()  # by fondness 0..3, then skipped, partly, finished
DISLIKE = np.outer((0.004, 0.0012, 0.0008, 0.0004), (2.0, 0.2, 0.05)).ravel()
REACTIONS: dict[str, F64] = {  # probability by 3 x fondness + how far it was watched
    "is_liked": LIKING,
    "is_favorited": 0.30 * LIKING,
    "is_shared": 0.15 * LIKING,
    "is_commented": 0.20 * LIKING,
    "is_followed_creator": 0.08 * LIKING,
    "is_blocked_creator": DISLIKE,
    "is_reported": 0.25 * DISLIKE,
}
ENGAGED = ("is_liked", "is_favorited", "is_shared", "is_commented", "is_followed_creator")
PURCHASE, VIP_PURCHASE = (np.array([chance(f * p) for f in (1, 2, 3, 5)], np.uint16) for p in (0.002, 0.01))

STRING, FLAG = pa.dictionary(pa.int8(), pa.string()), pa.bool_()
SCHEMA = pa.schema(
    {
        "user_id": pa.int64(),
        "video_id": pa.int64(),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "session_id": pa.int64(),
        "watch_duration": pa.float32(),
        "watch_percentage": pa.float32(),
        "watch_complete": FLAG,
        "rewatch_count": pa.int8(),
        "skip_duration": pa.float32(),
        **dict.fromkeys(REACTIONS, FLAG),
        "is_holiday": FLAG,
        "device_type": STRING,
        "os_type": STRING,
        "network_type": STRING,
        "language": STRING,
        "app_version": STRING,
        "user_level": pa.int8(),
        "user_vip": FLAG,
        "recommendation_source": STRING,
        "recommendation_position": pa.int16(),
        "engagement_label": FLAG,
        "retention_label": FLAG,
        "monetization_label": FLAG,
    }
)


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Codes of some users' traits, one row each: indices of the tuples above, or NULL."""

    country_U: I8
    language_U: I8
    age_group_U: I8  # NULL for 8%
    gender_U: I8  # NULL for 12%
    device_U: I8
    system_U: I8
    version_U: I8
    vip_U: npt.NDArray[np.bool_]
    registration_days_U: I32  # before the log's first day
    level_U: I8  # 1..10


class Population:
    """Draws the traits of users."""

    def __init__(self, seed: int) -> None:
        self._keys = [key(seed, purpose) for purpose in (20, 21, 22)]
        self._country = choices((30, 18, 14, 14, 6, 4, 10, 4), 12).astype(np.int8)
        self._age = _with_null((8, 30, 28, 14, 8, 4), 0.08)
        self._gender = _with_null((44, 42, 2), 0.12)
        self._device = choices((86, 7, 5, 2), 12).astype(np.int8)
        self._version = choices((6, 14, 25, 55), 12).astype(np.int8)

    def traits(self, users_U: I64) -> Traits:
        """Return the traits of some users (numbered from 0)."""
        hashes: list[U64] = [bits(stream, users_U) for stream in self._keys]
        country_draw, abroad, age, gender = quarters(hashes[0])
        device_draw, system, version, vip = quarters(hashes[1])
        since, level, _, _ = quarters(hashes[2])
        country, device = self._country[country_draw >> 4], self._device[device_draw >> 4]
        days = (since.astype(np.int32) * (since >> 4)) >> 17  # 0..2047, more of them recent
        return Traits(
            country_U=country,
            language_U=np.where(abroad < chance(0.08), np.int8(0), LANGUAGE_OF[country]),
            age_group_U=self._age[age >> 4],
            gender_U=self._gender[gender >> 4],
            device_U=device,
            system_U=SYSTEM_OF[device, (system.astype(np.int32) * 3) >> 16],
            version_U=self._version[version >> 4],
            vip_U=vip < chance(0.06),
            registration_days_U=days,
            level_U=np.minimum(LEVELS, 1 + days // 256 + (level >> 14)).astype(np.int8),
        )


def _with_null(weights: Sequence[float], null: float) -> I8:
    """Return a table of 4096 codes, each as often as its weight; a share of `null` is NULL."""
    scaled = np.array([*weights, 0.0]) / sum(weights) * (1 - null)
    scaled[-1] = null
    table = choices(scaled, 12).astype(np.int8)
    return np.where(table == len(weights), np.int8(NULL), table)


def _named(codes: I8, names: Sequence[str]) -> pl.Series:
    """Return a string column from codes; NULL becomes null."""
    return pl.Series([*names, None], dtype=pl.String).gather(np.where(codes == NULL, len(names), codes))


def users_frame(config: SampleConfig, *, without_events: int = 0) -> pl.DataFrame:
    """Return the `--users` table: one row per user of the log, then `without_events` users that the log lacks.

    Columns: user_id, country, language, age_group and gender (null where unknown), registration_days (before the log's
    first day), user_level, user_vip.
    """
    users_U = np.arange(config.users + without_events)
    traits = Population(config.seed).traits(users_U)
    return pl.DataFrame(
        {
            "user_id": users_U + 1,
            "country": _named(traits.country_U, COUNTRIES),
            "language": _named(traits.language_U, LANGUAGES),
            "age_group": _named(traits.age_group_U, AGE_GROUPS),
            "gender": _named(traits.gender_U, GENDERS),
            "registration_days": traits.registration_days_U,
            "user_level": traits.level_U,
            "user_vip": traits.vip_U,
        }
    )


def videos_frame(config: SampleConfig) -> pl.DataFrame:
    """Return the `--videos` table: one row per video, seen or not, sorted by video_id.

    Columns: video_id, creator_id (null for 1%), category, duration_s, language, age_days (since publication, on the
    log's first day).
    """
    world = World(config)
    videos_V = np.arange(config.videos)
    category_V = np.searchsorted(world.category_starts, videos_V, side="right") - 1
    sizes_C = -(-np.diff(world.category_starts) // CREATOR_VIDEOS)
    before_C = np.cumsum(sizes_C) - sizes_C
    creator_V = before_C[category_V] + (videos_V - world.category_starts[category_V]) // CREATOR_VIDEOS
    creator_ids = 5_000 + np.argsort(bits(key(config.seed, 23), np.arange(sizes_C.sum())))
    age, language, unknown, _ = quarters(bits(key(config.seed, 24), videos_V))
    spoken = LANGUAGE_OF[choices((30, 18, 14, 14, 6, 4, 10, 4), 12)[language >> 4]]
    frame = pl.DataFrame(
        {
            "video_id": world.video_ids_V,
            "creator_id": creator_ids[creator_V],
            "category": _named(category_V.astype(np.int8), CATEGORIES),
            "duration_s": (world.length_ds_V / 10).astype(np.float32),
            "language": _named(spoken, LANGUAGES),
            "age_days": (age.astype(np.int32) * (age >> 4)) >> 19,  # 0..511
        }
    )
    known = pl.Series(unknown >= chance(0.01))
    return frame.with_columns(creator_id=pl.when(known).then("creator_id")).sort("video_id")


class Log:
    """Turns views into rows. A row depends only on its view and the config."""

    def __init__(self, world: World) -> None:
        self.world = world
        seed = world.config.seed
        self._population = Population(seed)
        self._keys = [key(seed, purpose) for purpose in (30, 31, 32, 33)]
        self._source = choices(SOURCE_WEIGHTS, 12).astype(np.int8)
        self._networks = np.stack([choices(NETWORK_WEIGHTS[name], 12) for name in DEVICES]).astype(np.int8)
        self._thresholds = {name: np.array([chance(p) for p in table], np.uint16) for name, table in REACTIONS.items()}
        days = np.datetime64(world.config.start, "D") + np.arange(world.config.days + 2)
        self._holidays = np.array([(day.month, day.day) in HOLIDAYS for day in days.astype(object)])

    def table(self, views: Views) -> pa.Table:
        """Return the rows of some views, in their order, with the types of SCHEMA."""
        traits = self._population.traits(views.users_E)
        counter_E = (views.users_E << EVENT_BITS) | views.numbers_E
        first, second, third = (bits(stream, counter_E) for stream in self._keys[:3])
        source_draw, purchase_draw, _, _ = quarters(third)
        columns = self._identity(views) | self._watching(views, traits)
        columns |= self._reactions(views, traits, (*quarters(first), *quarters(second)))
        columns |= self._circumstances(views, traits, self._source[source_draw >> 4])
        columns |= self._labels(views, traits, purchase_draw, columns)
        return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)

    def _identity(self, views: Views) -> dict[str, pa.Array]:
        which = np.where(views.faults_E == _code("null_ids"), views.numbers_E % 3, NULL)
        return {
            "user_id": _values(views.users_E + 1, which == 0),
            "video_id": _values(self.world.video_ids_V[views.videos_E], which == 1),
            "timestamp": _values(views.time_ms_E * 1000, which == 2).cast(SCHEMA.field("timestamp").type),
            "session_id": _values(((views.users_E + 1) << SESSION_BITS) | views.sessions_E),
        }

    def _watching(self, views: Views, traits: Traits) -> dict[str, pa.Array]:
        length_ds = self.world.length_ds_V[views.videos_E]
        share = _watched(views, length_ds)
        unknown = views.faults_E == _code("null_values")
        zero = views.faults_E == _code("zero_durations")
        watch_s = np.where(zero, 0, views.watch_ds_E).astype(np.float32) / np.float32(10)
        left_s = np.where(share < SKIPPED, length_ds - views.watch_ds_E, 0).astype(np.float32) / np.float32(10)
        return {
            "watch_duration": _values(watch_s, unknown),
            "watch_percentage": _values(share, unknown | zero),
            "watch_complete": _values(share >= FINISHED, unknown | zero),
            "rewatch_count": _values(np.maximum(share - 1, 0).astype(np.int8), unknown | (traits.version_U == 0)),
            "skip_duration": _values(left_s, unknown | zero),
        }

    def _reactions(self, views: Views, traits: Traits, draws: Sequence[U16]) -> dict[str, pa.Array]:
        share = _watched(views, self.world.length_ds_V[views.videos_E])
        how = views.fondness_E * np.uint8(3) + (share >= SKIPPED).astype(np.uint8) + (share >= FINISHED)
        unknown = views.faults_E == _code("null_values")
        silent = {
            "is_favorited": traits.version_U <= 1,
            "is_shared": traits.device_U == DEVICES.index("tv"),
            "is_commented": traits.device_U == DEVICES.index("tv"),
        }
        return {
            name: _values(draw < threshold[how], unknown | silent[name] if name in silent else unknown)
            for (name, threshold), draw in zip(self._thresholds.items(), draws, strict=False)  # one draw is left over
        }

    def _circumstances(self, views: Views, traits: Traits, source_E: I8) -> dict[str, pa.Array]:
        session = bits(self._keys[3], (views.users_E << SESSION_BITS) | views.sessions_E)
        network_draw, unknown_draw, _, _ = quarters(session)
        network = self._networks[traits.device_U, network_draw >> 4]
        network[unknown_draw < UNKNOWN_NETWORK] = NULL
        day_E = (views.time_ms_E - self.world.first_ms) // DAY_MS
        return {
            "is_holiday": _values(self._holidays[day_E]),
            "device_type": _names(traits.device_U, DEVICES),
            "os_type": _names(traits.system_U, SYSTEMS),
            "network_type": _names(network, NETWORKS),
            "language": _names(traits.language_U, LANGUAGES),
            "app_version": _names(traits.version_U, VERSIONS),
            "user_level": _values(traits.level_U),
            "user_vip": _values(traits.vip_U),
            "recommendation_source": _names(source_E, SOURCES),
            "recommendation_position": _values((views.places_E + 1).astype(np.int16), ~RANKED[source_E]),
        }

    def _labels(
        self, views: Views, traits: Traits, purchase_draw: U16, reactions: dict[str, pa.Array]
    ) -> dict[str, pa.Array]:
        """Engagement: a positive reaction. Retention: the next session begins within 24 h. Monetization: a purchase."""
        engaged = np.logical_or.reduce(
            [reactions[name].fill_null(False).to_numpy(zero_copy_only=False) for name in ENGAGED]
        )
        undecided = ~views.returns_E & (views.time_ms_E > self.world.end_ms - DAY_MS)
        threshold = np.where(traits.vip_U, VIP_PURCHASE[views.fondness_E], PURCHASE[views.fondness_E])
        return {
            "engagement_label": _values(engaged, views.faults_E == _code("null_values")),
            "retention_label": _values(views.returns_E, undecided),
            "monetization_label": _values(purchase_draw < threshold),
        }


def _code(fault: str) -> int:
    return 1 + FAULTS.index(fault)


def _watched(views: Views, length_ds: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Return the watched share of each view's video, 1.0 for all of it, [E]."""
    return np.divide(views.watch_ds_E, length_ds, dtype=np.float32)


def _values(values: npt.NDArray[np.generic], null: Mask | None = None) -> pa.Array:
    return pa.array(values, mask=null)


def _names(codes: I8, names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes == NULL), pa.array(names))
