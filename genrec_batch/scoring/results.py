"""Results: what the engine recommended to a shard's users becomes one part of the output.

Owns: a part's rows, scored or kept from an earlier output, and its counts. Must not know: engines, batches, where parts
are written. In: a shard whose users are all back from the engine. Out: an `OutputPart`.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.decode import blend
from genrec_batch.model.catalog import Catalog
from genrec_batch.runtime.clock import Stages
from genrec_batch.scoring.previous import Previous, merged
from genrec_batch.scoring.rows import Ranking, recommendations
from genrec_batch.scoring.shard import ShardRun


@dataclass(frozen=True, kw_only=True)
class OutputPart:
    """One part of an output, ready to be written."""

    number: int
    users: int
    items: int  # recommendations in the table, in the long and in the nested form
    table: pa.Table
    counts: dict[str, int]
    fingerprints: pa.Table | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """How rankings become rows, the same way for all shards of a run."""

    config: ScoreConfig
    catalog: Catalog
    video_type: pl.DataType  # of the log's own ids
    stages: Stages
    previous: Previous | None = None  # whose rows are kept for users who are not scored

    def part(self, shard: ShardRun) -> OutputPart:
        """Return a shard's part of the output: the rows just ranked, and those kept from the earlier output."""
        with self.stages.time("rows", rows=len(shard)):
            table, items, short = self._ranked(shard)
        counts = {**shard.counts, "short_users": short}
        if self.config.previous is not None:
            kept = shard.kept_rows
            counts["carried_users"] = len(kept)
            if self.previous is not None and len(kept):
                rows, items_N = self.previous.rows_of(shard.ids.gather(kept))
                table = merged(table, rows)
                items += int(items_N.sum())
                counts["short_users"] += int((items_N < shard.wanted_N[kept]).sum())
        return OutputPart(
            number=shard.number,
            users=len(shard.ids),
            items=items,
            table=table,
            counts=counts,
            fingerprints=shard.prints.table(shard.ids),
        )

    def _ranked(self, shard: ShardRun) -> tuple[pa.Table, int, int]:
        """Return the rows of the scored users in id order, their items, and how many users get too few."""
        ranking, weights = Ranking.empty(len(shard), self.config.top_k), self.config.blend()
        for rows_B, ranked in shard.answers:
            ranking.put(rows_B, ranked, blend(ranked, weights))
        wanted_S = shard.wanted_N if shard.rows_S is None else shard.wanted_N[shard.rows_S]
        table = recommendations(
            shard.scored_ids,
            ranking,
            shard.users,
            catalog=self.catalog,
            video_type=self.video_type,
            nested=self.config.layout == "nested",
        )
        items_S = (ranking.tokens_NK > 0).sum(axis=1)
        return table, int(items_S.sum()), int((items_S < wanted_S).sum())
