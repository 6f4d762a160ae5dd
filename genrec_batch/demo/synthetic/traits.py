"""Who the users are and what the videos are about: the `--users` and `--videos` tables of a pretend app.

Owns: traits that do not steer what is watched (country, device, age, ...) and the two side tables. Must not know: the
events or the order of the log.
Shapes: U users asked for, V videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from genrec_batch.core.arrays import I32, I64
from genrec_batch.demo.synthetic.draws import U64, bits, chance, choices, key, quarters
from genrec_batch.demo.synthetic.world import CATEGORIES, CREATOR_VIDEOS, SampleConfig, World

I8 = npt.NDArray[np.int8]
NULL = -1  # code of a value that the log or table does not know

COUNTRIES = ("GB", "FR", "ES", "DE", "PT", "IE", "NG", "MA")  # one clock, near UTC, fits them all
LANGUAGES = ("en", "fr", "es", "de", "pt", "ar")
LANGUAGE_OF = np.array((0, 1, 2, 3, 4, 0, 0, 5), np.int8)  # by country
AGE_GROUPS = ("13-17", "18-24", "25-34", "35-44", "45-54", "55+")
GENDERS = ("female", "male", "other")
DEVICES = ("mobile", "tablet", "desktop", "tv")
SYSTEMS = ("android", "ios", "windows", "macos")
SYSTEM_OF = np.array(((0, 0, 1), (0, 1, 1), (2, 2, 3), (0, 0, 0)), np.int8)  # by device and a third of the draws
VERSIONS = ("6.9.2", "7.0.1", "7.1.0", "7.2.3")  # of the app, oldest first
LEVELS = 10


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Codes of some users' traits, a row each: places in the tuples above, or NULL."""

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
    """Tells the traits of users."""

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
    """Return a table of 4096 codes by weight, of which the share `null` is NULL."""
    scaled = np.array([*weights, 0.0]) / sum(weights) * (1 - null)
    scaled[-1] = null
    table = choices(scaled, 12).astype(np.int8)
    return np.where(table == len(weights), np.int8(NULL), table)


def named(codes: I8, names: Sequence[str]) -> pl.Series:
    """Return a string column from codes; NULL becomes null."""
    return pl.Series([*names, None], dtype=pl.String).gather(np.where(codes == NULL, len(names), codes))


def users_frame(config: SampleConfig, *, without_events: int = 0) -> pl.DataFrame:
    """Return the `--users` table: one row per user of the log, then `without_events` users who are not in it.

    Columns: user_id, country, language, age_group and gender (null where unknown), registration_days (before the log's
    first day), user_level, user_vip.
    """
    users_U = np.arange(config.users + without_events)
    traits = Population(config.seed).traits(users_U)
    return pl.DataFrame(
        {
            "user_id": users_U + 1,
            "country": named(traits.country_U, COUNTRIES),
            "language": named(traits.language_U, LANGUAGES),
            "age_group": named(traits.age_group_U, AGE_GROUPS),
            "gender": named(traits.gender_U, GENDERS),
            "registration_days": traits.registration_days_U,
            "user_level": traits.level_U,
            "user_vip": traits.vip_U,
        }
    )


def videos_frame(config: SampleConfig) -> pl.DataFrame:
    """Return the `--videos` table: one row per video, seen or not, by video_id.

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
            "category": named(category_V.astype(np.int8), CATEGORIES),
            "duration_s": (world.length_ds_V / 10).astype(np.float32),
            "language": named(spoken, LANGUAGES),
            "age_days": (age.astype(np.int32) * (age >> 4)) >> 19,  # 0..511
        }
    )
    known = pl.Series(unknown >= chance(0.01))
    return frame.with_columns(creator_id=pl.when(known).then("creator_id")).sort("video_id")
