"""`--carry`: columns of `--videos` and `--users` beside the recommendations.

Owns: which table has a carried column, and its values for videos and users. Must not know: how rows look. In: options
and a data set. Out: `Carried`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec_batch.core.arrays import FIRST_ITEM, I32
from genrec_batch.core.errors import ConfigError, nearest
from genrec_batch.core.options import ScoreConfig
from genrec_batch.core.output_options import TABLES, Carry
from genrec_batch.events import side_tables
from genrec_batch.events.dataset import Dataset
from genrec_batch.io import hive
from genrec_batch.model.catalog import Catalog


@dataclass(frozen=True, kw_only=True)
class Carried:
    """The carried columns under their names in the output, in the order of `--carry`; null where a table has no row."""

    names: tuple[str, ...]
    videos: pl.DataFrame  # row i is of token i + 2 of the catalog
    users: pl.DataFrame
    user_row_N: I32  # row of `users` of each user of the run, -1 without one
    catalog: Catalog

    @staticmethod
    def of(config: ScoreConfig, dataset: Dataset, catalog: Catalog) -> Carried:
        """Find the columns of `--carry`; the catalog has every video that may be recommended.

        Raises:
            ConfigError: neither table has a column, or both have it, or it has too many values for `--partition-by`.
        """
        users = dataset.tables.users
        frames = {
            "videos": pl.DataFrame() if dataset.catalog_videos is None else dataset.catalog_videos,
            "users": pl.DataFrame() if users is None else users.drop(side_tables.EXTRA, strict=False),
        }
        found = _found(config.carried(), frames)
        if len(catalog) > len(dataset.catalog) and dataset.named_videos is not None:  # a fallback's, beyond the model
            frames["videos"] = side_tables.by_token(dataset.named_videos, catalog)
        carried = _carried(found, frames, dataset.users.table_row_N, catalog)
        if config.partition_by in carried.names:
            _check_partition(config.partition_by, carried)
        return carried

    @staticmethod
    def types(config: ScoreConfig) -> Carried:
        """Return the carried columns with their types and no rows, without a log.

        Raises:
            ConfigError: see `of`.
            InputError: a table cannot be read.
        """
        paths = {"videos": config.videos, "users": config.users}
        frames = {table: side_tables.no_rows(f"--{table}", path, config.schema) for table, path in paths.items()}
        none = Catalog(items=pl.DataFrame(schema={"video_id": pl.Int64, "count": pl.UInt64}))
        return _carried(_found(config.carried(), frames), frames, np.zeros(0, np.int32), none)

    def of_videos(self, video_ids: pl.Series) -> pl.DataFrame:
        """Return the columns of R videos."""
        if not self.videos.width:
            return self.videos
        tokens = self.catalog.tokens(video_ids).cast(pl.Int64)
        return self.videos[(tokens - FIRST_ITEM).set(tokens < FIRST_ITEM, None)]

    def of_users(self, start: int, count: int) -> pl.DataFrame:
        """Return the columns of the users of the run from row `start` on."""
        if not self.users.width:
            return self.users
        rows = pl.Series(self.user_row_N[start : start + count], dtype=pl.Int64)
        return self.users[rows.set(rows < 0, None)]


def _carried(
    found: Sequence[tuple[Carry, str]], frames: Mapping[str, pl.DataFrame], user_row_N: I32, catalog: Catalog
) -> Carried:
    videos, users = (
        frames[table].select(_plain(frames[table], entry) for entry, there in found if there == table)
        for table in TABLES
    )
    names = tuple(entry.name for entry, _ in found)
    return Carried(names=names, videos=videos, users=users, user_row_N=user_row_N, catalog=catalog)


def _found(entries: Sequence[Carry], frames: Mapping[str, pl.DataFrame]) -> list[tuple[Carry, str]]:
    """Return each entry with the table that has it.

    Raises:
        ConfigError: none has it, or both have.
    """
    found, columns = [], {table: frame.columns for table, frame in frames.items()}
    for entry in entries:
        tables = [entry.table] if entry.table else TABLES
        there = [table for table in tables if entry.column in columns[table]]
        if len(there) > 1:
            raise ConfigError(
                f"--carry {entry.column}: --videos and --users have a column of that name; write videos.{entry.column} "
                f"or users.{entry.column}"
            )
        if not there:
            known = [name for table in tables for name in columns[table]]
            raise ConfigError(
                f"--carry {entry.column}: no such column in {' or '.join(f'--{table}' for table in tables)}."
                f"{nearest(entry.column, known)} They have: {', '.join(known[:40])}"
            )
        found.append((entry, there[0]))
    return found


def _plain(frame: pl.DataFrame, entry: Carry) -> pl.Expr:
    """Return a column under its new name; categories, which differ from part to part, are text."""
    column = pl.col(entry.column)
    if isinstance(frame.schema[entry.column], (pl.Categorical, pl.Enum)):
        column = column.cast(pl.String)
    return column.alias(entry.name)


def _check_partition(name: str, carried: Carried) -> None:
    frame = carried.videos if name in carried.videos.columns else carried.users
    hive.check_kind(name, frame.schema[name])
    hive.check_count(name, frame[name].n_unique())
