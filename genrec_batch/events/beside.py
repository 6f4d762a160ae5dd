"""The tables beside the log, and the users who are scored because of them.

Owns: the order in which side tables are read, and which users a run has. Must not know: events, histories, the model's
weights. In: options, and the log's side of every join. Out: `Beside`, `Users`, and given candidates as tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec_batch.core import layout
from genrec_batch.core.arrays import Ragged, SideTable
from genrec_batch.core.errors import ConfigError, InputError, NothingToScoreError
from genrec_batch.core.options import HistoryConfig, ScoreConfig
from genrec_batch.events import histories, rule_tables, side_tables
from genrec_batch.events.by_user import Users
from genrec_batch.events.joins import Joins, Side
from genrec_batch.events.survey import Survey
from genrec_batch.events.table_rows import TableRules
from genrec_batch.io import read
from genrec_batch.model.catalog import Catalog
from genrec_batch.model.weights import Model
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG


@dataclass(frozen=True, kw_only=True)
class Beside:
    """The tables beside the log as they were read, with ids of the log's own types."""

    users: pl.DataFrame | None
    listed: pl.Series | None  # the ids of `--users`, who are scored
    only: pl.Series | None  # the ids of `--users-only`
    videos: SideTable | None
    video_rows: pl.DataFrame | None  # of `--videos` as they were read
    video_ids: pl.Series | None
    catalog_videos: pl.DataFrame | None  # columns of `--videos`, row i is token i + 2, null where the table has no row
    uploaded: pl.DataFrame | None  # see `rule_tables.uploaded`
    given: pl.DataFrame | None

    @property
    def user_ids(self) -> pl.Series | None:
        """Ids of the users' table, in the order of its rows."""
        return None if self.users is None else self.users["user_id"]

    @staticmethod
    def read(
        config: HistoryConfig,
        joins: Joins,
        catalog: Catalog,
        model: Model,
        inputs: dict[str, read.Source],
        rules: TableRules,
        stages: Stages,
    ) -> Beside:
        """Read the tables of users, videos, candidates and features, and add them to the inputs."""
        with stages.time("tables"), console.busy("reading the tables of users, videos and candidates"):
            users = side_tables.read_users(config.users, config.schema, joins, inputs, rules)
            videos = side_tables.read_videos(config.videos, config.schema, joins, inputs, rules)
            rules.check_dated(given=config.users is not None or config.videos is not None)
            given = config.candidates if isinstance(config, ScoreConfig) else None
            candidates = side_tables.read_candidates(given, joins, catalog, inputs, rules)
            extra = model.config.features - layout.FEATURES
            return Beside(
                users=side_tables.with_extra_features(users, config.extra_features, extra, joins, inputs, rules),
                only=side_tables.read_users_only(config.users_only, joins, inputs, rules),
                listed=None if users is None else users["user_id"],
                videos=None if videos is None else side_tables.videos_table(videos, f"--videos {config.videos}"),
                video_rows=videos,
                video_ids=None if videos is None else videos["video_id"],
                uploaded=_uploaded(config, videos) if isinstance(config, ScoreConfig) else None,
                catalog_videos=None if videos is None else side_tables.by_token(videos, catalog),
                given=candidates,
            )


def _uploaded(config: ScoreConfig, videos: pl.DataFrame | None) -> pl.DataFrame | None:
    return rule_tables.uploaded(videos, config.max_age_of(), f"--videos {config.videos}")


def named_rows(config: HistoryConfig, videos: pl.DataFrame | None) -> pl.DataFrame | None:
    """Return video_id and the columns that rows of videos beyond the catalog need too, of all rows of `--videos`.

    These are the columns of `--carry`, and with `--fallback` those of `--max-per`; None where nothing asks for them.
    """
    if videos is None or not isinstance(config, ScoreConfig):
        return None
    carried = set() if config.carry is None else {entry.column for entry in config.carried()}
    named = carried | (set(config.caps()) if config.fallback is not None else set())
    return videos.select(name for name in videos.columns if name in {"video_id", *named}) if named else None


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What further models of a run are joined with: what was found and read beside the log."""

    found: Survey
    joins: Joins
    beside: Beside
    promoted: pl.DataFrame | None  # `--promote`, see `promoted.read_promoted`


def users_to_score(found: Survey, beside: Beside, config: HistoryConfig, joins: Joins) -> Users:
    """Return the users to score: all of the log and the tables, or those that were asked for, the first `--limit`.

    Raises:
        ConfigError: a user who was asked for by name is in no input.
        InputError, GateError: none or too few of `--users-only` are in an input.
        NothingToScoreError: `--users-only` names nobody.
    """
    chosen = side_tables.chosen_users(config.user, found.users.schema["user_id"], config.user_flag)
    given = None if beside.given is None else beside.given["user_id"]
    wanted = given if chosen is None else chosen
    counts_N = found.users["count"].to_numpy().astype(np.int64)
    if beside.listed is None and wanted is None and beside.only is None:  # the survey has them as they are wanted
        ids = found.users["user_id"] if config.limit is None else found.users["user_id"].head(config.limit)
        return Users(ids=ids, events_N=counts_N[: len(ids)])
    ids = histories.all_ids(found.users["user_id"], beside.listed, given)
    if wanted is not None:
        ids = ids.filter(ids.is_in(wanted.implode()))
    if beside.only is not None:
        ids = _only(ids, beside.only, joins, f"--users-only {config.users_only}")
    ids = ids if config.limit is None else ids.head(config.limit)
    absent = None if chosen is None else chosen.filter(~chosen.is_in(ids.implode()))
    if absent is not None and len(absent):
        raise ConfigError(f"{config.user_flag} {absent[0]}: neither in {joins.where} nor in --users or --candidates")
    row_N = histories.rows_of(ids, found.users["user_id"])
    events_N = np.where(row_N >= 0, counts_N[row_N], 0) if len(counts_N) else np.zeros(len(ids), np.int64)
    return Users(ids=ids, events_N=events_N)


def _only(ids: pl.Series, only: pl.Series, joins: Joins, name: str) -> pl.Series:
    if not len(only):
        raise NothingToScoreError(f"{name}: no rows, so nobody to score")
    joins.users_only(Side(name=name, ids=only), ids)
    chosen = ids.filter(ids.is_in(only.implode()))
    if not len(chosen):
        raise NothingToScoreError(f"{name}: none of its {len(only):,} users is in an input, so nobody to score")
    return chosen


def given_candidates(
    given: pl.DataFrame | None, ids: pl.Series, catalog: Catalog, config: HistoryConfig
) -> Ragged | None:
    """Return given candidates as tokens, a row for each user, None where none are given."""
    tokens, unknown = side_tables.candidate_tokens(given, ids, catalog)
    if tokens is not None and not len(tokens.values):
        path = config.candidates if isinstance(config, ScoreConfig) else None
        raise InputError(
            f"--candidates {path}: none of the videos of these {len(ids):,} users is in the model's catalog; give "
            "videos that the model was trained with"
        )
    if unknown:
        LOG.warning("%s given candidates are not in the catalog and were left out", f"{unknown:,}")
    return tokens
