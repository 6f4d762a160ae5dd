"""The videos that a server knows: tokens by id and ids by token, and the rows of `--videos`.

Owns: the look-up of single ids, which a dictionary does in less than a microsecond. Must not know: requests, engines,
lists. In: a model's catalog, and the table of videos of its repository. Out: tokens, rows, ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrec_batch.core.arrays import FIRST_ITEM, I32, UNKNOWN, SideTable
from genrec_batch.core.errors import InputError
from genrec_batch.events import side_tables
from genrec_batch.model.catalog import Catalog

Id = int | str


@dataclass(frozen=True, kw_only=True)
class Videos:
    """V videos of the catalog, and R rows of the table, if there is one."""

    token_of: dict[Id, int]
    id_V: npt.NDArray[Any]  # of each token; of padding and unknown: 0, or an empty text
    columns: pl.DataFrame  # of the table in the order of tokens, without columns where there is no table
    table: SideTable | None = None
    row_of: dict[Id, int] = field(default_factory=dict)

    @staticmethod
    def of(catalog: Catalog, table: pl.DataFrame | None) -> Videos:
        """Return the videos of a catalog, and of a table with one row for each id."""
        ids = catalog.items["video_id"].to_list()
        integers = catalog.id_type.is_integer()
        numbers = np.uint64 if catalog.id_type.is_unsigned_integer() else np.int64
        spare: list[Any] = [0 if integers else ""] * FIRST_ITEM
        return Videos(
            token_of={video: token for token, video in enumerate(ids, FIRST_ITEM)},
            id_V=np.array([*spare, *ids], numbers if integers else np.object_),
            columns=pl.DataFrame(height=len(catalog)) if table is None else side_tables.by_token(table, catalog),
            table=None if table is None else side_tables.videos_table(table),
            row_of={} if table is None else {video: row for row, video in enumerate(table["video_id"].to_list())},
        )

    @staticmethod
    def read(catalog: Catalog, path: Path) -> Videos:
        """Return the videos of a catalog, and of the table at a path if there is one."""
        return Videos.of(catalog, pl.read_parquet(path) if path.is_file() else None)

    @property
    def integers(self) -> bool:
        """Whether ids are whole numbers, not texts."""
        return self.id_V.dtype != np.object_

    def check(self, ids: Sequence[Any], name: str) -> None:
        """Raise InputError, naming the field, where ids are not of the catalog's type, so that none would be known."""
        kind = int if self.integers else str
        if set(map(type, ids)) <= {kind}:
            return
        odd = next(each for each in ids if type(each) is not kind)
        wanted = "whole numbers" if self.integers else "strings"
        raise InputError(f"{name}: {odd!r:.40} is no id of this model's catalog, whose ids are {wanted}")

    def tokens(self, ids: Sequence[Id]) -> I32:
        """Return the token of each id, 1 for one that is not in the catalog."""
        known = self.token_of
        return np.array([known.get(each, UNKNOWN) for each in ids], np.int32)

    def rows(self, ids: Sequence[Id]) -> I32:
        """Return the row of each id in the table, -1 where it has none."""
        if self.table is None:
            return np.full(len(ids), -1, np.int32)
        known = self.row_of
        return np.array([known.get(each, -1) for each in ids], np.int32)
