"""The videos that rules speak of: those of the model's catalog, and those beyond it that a fallback may recommend.

Owns: their numbers. Must not know: rules, users. A video of the catalog has the model's own token; one beyond it has a
number above the model's vocabulary, from a multiple of 32 on, so that the first words of a bit map are the model's.

U is the number of tokens of this universe, W its words of 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from genrec_batch.core.arrays import FIRST_ITEM, I32, MASK_BITS, U8, UNKNOWN
from genrec_batch.events.ids import IdIndex
from genrec_batch.model.catalog import Catalog


@dataclass(frozen=True, kw_only=True)
class Universe:
    """The catalog of a model with `vocabulary` tokens, and further videos, distinct and in none of its rows."""

    catalog: Catalog
    vocabulary: int
    beyond: pl.Series  # of the log's own type

    @property
    def model_words(self) -> int:
        """Words of a bit map that are the model's."""
        return -(-self.vocabulary // MASK_BITS)

    @property
    def first_beyond(self) -> int:
        """Number of the first video beyond the catalog."""
        return self.model_words * MASK_BITS

    def __len__(self) -> int:
        return self.first_beyond + len(self.beyond)

    @cached_property
    def videos_U(self) -> U8:
        """Which numbers are videos: not padding, not the unknown token, not a spare token of the model, [U]."""
        videos_U = np.zeros(len(self), np.bool_)
        videos_U[FIRST_ITEM : FIRST_ITEM + len(self.catalog)] = True
        videos_U[self.first_beyond :] = True
        return videos_U

    @cached_property
    def _numbers(self) -> tuple[IdIndex, I32]:
        """The row of each id, and the number of each row, for ids of the log's own type."""
        ids = self.catalog.items["video_id"].cast(
            self.beyond.dtype, strict=False
        )  # an id that does not fit is no log's
        tokens = np.arange(FIRST_ITEM, FIRST_ITEM + len(self.catalog), dtype=np.int32)[ids.is_not_null().to_numpy()]
        further = np.arange(self.first_beyond, len(self), dtype=np.int32)
        every = pl.concat([ids.drop_nulls(), self.beyond.alias(ids.name)])
        return IdIndex(every), np.concatenate([tokens, further, np.array([UNKNOWN], np.int32)])

    def tokens(self, ids: pl.Series) -> I32:
        """Return the number of each video, 1 for one that is not in the universe, [len(ids)]."""
        index, number_R = self._numbers
        tokens: I32 = number_R[index.rows(ids)]  # row -1 is the last number
        return tokens

    def shown(self) -> Catalog:
        """Return a catalog that has the id of every number, for the rows of an output."""
        if not len(self.beyond):
            return self.catalog
        spare = pl.DataFrame(
            {name: [None] * (self.first_beyond - FIRST_ITEM - len(self.catalog)) for name in ("video_id", "count")},
            schema=self.catalog.items.schema,
        )
        further = pl.DataFrame({"video_id": self.beyond.cast(self.catalog.id_type)}).with_columns(
            count=pl.lit(0, pl.UInt64)
        )
        return Catalog(items=pl.concat([self.catalog.items, spare, further.select("video_id", "count")]))
