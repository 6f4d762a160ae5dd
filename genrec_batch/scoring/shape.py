"""The shape of an output: which columns its rows have, in which order, and in which layout they are stored.

Owns: the long, the nested and the wide layout, and `--columns`. Must not know: how rows are computed, where they go.
In: a row for each recommendation, and the columns of users. Out: a table as it is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from genrec_batch.core.arrays import I64
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.core.output_options import ITEM_COLUMNS, wide_name
from genrec_batch.events.dataset import Dataset
from genrec_batch.model.catalog import Catalog
from genrec_batch.scoring.carry import Carried
from genrec_batch.scoring.rows import PER_USER, UserColumns


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How rows become a table, the same way for all shards of a run."""

    layout: str
    top_k: int
    columns: tuple[str, ...] | None  # None: all
    partition_by: str | None
    carried: Carried

    @staticmethod
    def of(config: ScoreConfig, carried: Carried) -> Shape:
        """Return the shape that the options ask for."""
        return Shape(
            layout=config.layout,
            top_k=config.top_k,
            columns=config.chosen(),
            partition_by=config.partition_by,
            carried=carried,
        )

    def form(self) -> str:
        """Return what the output's metadata says of its columns, as JSON."""
        return json.dumps({"items": [*ITEM_COLUMNS, *self.carried.videos.columns], "layout": self.layout})

    def needs(self) -> list[str] | None:
        """Return the columns of a recommendation that are written and not carried, None for all that there are."""
        return None if self.columns is None else [name for name in self.columns if name in ITEM_COLUMNS]

    def items(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return a row for each recommendation with the carried columns of its video."""
        return pl.concat([rows, self.carried.of_videos(rows["video_id"])], how="horizontal")

    def table(self, items: pl.DataFrame, ids: pl.Series, users: UserColumns, start: int) -> pa.Table:
        """Return the table of N users.

        Args:
            items: user_id, rank, video_id and further columns of each recommendation, by user and rank; see `items`.
            ids: of the N users, rising.
            users: their columns.
            start: their first row among all users of the run.

        Raises:
            ConfigError: a column of `--columns` or `--partition-by` is not there.
        """
        own = pl.concat([users.frame(ids), self.carried.of_users(start, len(ids))], how="horizontal")
        names = self._names(items.columns, own.columns)
        shaped = {"long": self._long, "nested": self._nested, "wide": self._wide}[self.layout](items, own, names)
        return shaped.to_arrow(compat_level=pl.CompatLevel.oldest())

    def _names(self, items: Sequence[str], users: Sequence[str]) -> list[str]:
        own = [name for name in items if name not in self.carried.names]
        there = [*own, *(name for name in PER_USER if name in users), *self.carried.names]
        if self.layout == "wide":
            there.remove("rank")
        names = there if self.columns is None else list(self.columns)
        for name in names:
            if name not in there:
                raise ConfigError(f"--columns: {name!r} is a column of runs with rules or arms only; leave it out")
        if self.partition_by is not None:
            if self.partition_by not in names:
                known = ", ".join(names)
                raise ConfigError(f"--partition-by {self.partition_by}: the output has no such column; it has {known}")
            if self.layout != "long" and self.partition_by not in users:
                raise ConfigError(
                    f"--partition-by {self.partition_by}: in --layout {self.layout} a row holds a user's whole list; "
                    "name a column of the user, or take --layout long"
                )
        return names

    def _long(self, items: pl.DataFrame, users: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
        mine = [name for name in names if name in users.columns and name != "user_id"]
        place_R = pl.Series(_places(items["user_id"], users["user_id"]))
        return items.with_columns(users[name].gather(place_R) for name in mine).select(names)

    def _nested(self, items: pl.DataFrame, users: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
        listed = [name for name in names if name in items.columns and name != "user_id"]
        lists = items.select("user_id", *listed).group_by("user_id", maintain_order=True).all()
        joined = users.join(lists, on="user_id", how="left", maintain_order="left")
        return joined.with_columns(pl.col(listed).fill_null([])).select(names)

    def _wide(self, items: pl.DataFrame, users: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
        at_NK = np.full((len(users), self.top_k), -1, np.int64)
        at_NK[_places(items["user_id"], users["user_id"]), items["rank"].to_numpy() - 1] = np.arange(len(items))
        ranks = [pl.Series(at_N).set(pl.Series(at_N < 0), None) for at_N in at_NK.T]
        columns: list[pl.Series] = []
        for name in names:
            if name in users.columns:
                columns.append(users[name])
            else:
                columns += [items[name].gather(at).alias(wide_name(name, k)) for k, at in enumerate(ranks, start=1)]
        return pl.DataFrame(columns)


def _places(ids_R: pl.Series, ids_N: pl.Series) -> I64:
    """Return the place of each of R neighbouring ids among N rising ids."""
    if not len(ids_R):
        return np.zeros(0, np.int64)
    distinct = ids_R.unique(maintain_order=True)
    place_U = ids_N.search_sorted(distinct, "left").to_numpy().astype(np.int64)
    place_R: I64 = place_U[ids_R.rle_id().to_numpy()]
    return place_R


def shape_of(config: ScoreConfig, dataset: Dataset, catalog: Catalog) -> Shape:
    """Return the shape of a run's output; the catalog has every video that may be recommended.

    Raises:
        ConfigError: see `Carried.of`.
    """
    return Shape.of(config, Carried.of(config, dataset, catalog))
