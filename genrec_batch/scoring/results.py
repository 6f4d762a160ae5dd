"""Results: what the engine recommended to a shard's users becomes one part of the output.

Owns: a part's rows, scored or kept from an earlier output, and its counts. Must not know: engines, batches, where parts
are written. In: a shard whose users are all back from the engine. Out: an `OutputPart`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from genrec_batch.core.arrays import POPULAR, U8
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.decode import blend
from genrec_batch.model.catalog import Catalog
from genrec_batch.rules.compose import Composed
from genrec_batch.rules.ranking import Ranking
from genrec_batch.runtime.clock import Stages
from genrec_batch.scoring import shortfalls
from genrec_batch.scoring.composing import Composing
from genrec_batch.scoring.composing import counts as counts_of
from genrec_batch.scoring.filling import Filling
from genrec_batch.scoring.previous import Previous, merged
from genrec_batch.scoring.rows import recommendations
from genrec_batch.scoring.shape import Shape
from genrec_batch.scoring.shard import ShardRun


@dataclass(frozen=True, kw_only=True)
class OutputPart:
    """One part of an output, ready to be written."""

    number: int
    users: int
    items: int  # recommendations in the table, in whatever layout
    table: pa.Table
    counts: dict[str, int]
    fingerprints: pa.Table | None = None


@dataclass(frozen=True, kw_only=True)
class RankedRows:
    """A row for each recommendation to the users of a shard, or of one arm in it, and what is known of these users."""

    items: pl.DataFrame  # with carried columns of videos, by user and rank
    counts: dict[str, int]
    fingerprints: pa.Table


@dataclass(frozen=True, kw_only=True)
class Results:
    """How rankings become rows, the same way for all shards of a run."""

    config: ScoreConfig
    catalog: Catalog
    video_type: pl.DataType  # of the log's own ids
    stages: Stages
    shape: Shape
    filling: Filling | None = None  # what fills lists that have room
    composing: Composing | None = None  # where rules compose lists
    previous: Previous | None = None  # whose rows are kept for users who are not scored

    def part(self, shard: ShardRun) -> OutputPart:
        """Return a shard's part of the output."""
        found = self.rows(shard)
        with self.stages.time("shape", rows=len(found.items)):
            table = self.shape.table(found.items, shard.ids, shard.users, shard.number * self.config.shard_users)
        return OutputPart(
            number=shard.number,
            users=len(shard.ids),
            items=len(found.items),
            table=table,
            counts=found.counts,
            fingerprints=found.fingerprints,
        )

    def rows(self, shard: ShardRun) -> RankedRows:
        """Return the rows of a shard's users: those just ranked, and those kept from the earlier output."""
        with self.stages.time("rows", rows=len(shard)):
            ranking, composed = self._ranking(shard)
            ranking, filled_S = self._filled(shard, ranking)
            said = counts_of(ranking, composed, shard.promoted) if self.composing is not None else {}
            rows, items_S = self._rows(shard, ranking), (ranking.tokens_NK > 0).sum(axis=1)
        items_N = np.zeros(len(shard.ids), np.int64)
        items_N[slice(None) if shard.rows_S is None else shard.rows_S] = items_S
        counts, prints = {**shard.counts, **said}, shard.prints
        if filled_S is not None:
            counts |= {"popular_users": int(filled_S.sum()), "popular_rows": int(np.sum(ranking.source_NK == POPULAR))}
            prints = prints.without(np.flatnonzero(filled_S) if shard.rows_S is None else shard.rows_S[filled_S])
        if self.config.previous is not None:
            kept = shard.kept_rows
            counts["carried_users"] = len(kept)
            if self.previous is not None and len(kept):
                also = () if shard.sampled is None else shard.sampled.columns
                names = dict.fromkeys([*rows.columns, *(name for name in also if name in self.previous.form.names)])
                earlier, items_N[kept] = self.previous.rows_of(shard.ids.gather(kept), list(names))
                if shard.sampled is not None:
                    shard.sampled.carry(shard.ids, earlier, kept)
                rows = merged(rows, earlier)
        counts["short_users"] = int((items_N < shard.wanted_N).sum())
        why_N = shard.available.reasons(items_N, self.config.top_k)
        with self.stages.time("shape", rows=len(rows)):
            items = self.shape.items(rows)
        beside = prints.table(shard.ids, shortfalls.column(why_N))
        return RankedRows(
            items=items,
            counts={**counts, **shortfalls.counted(why_N)},
            fingerprints=beside.replace_schema_metadata(shard.sample()),
        )

    def _ranking(self, shard: ShardRun) -> tuple[Ranking, list[Composed]]:
        """Return the lists of the S scored users, and how rules composed them, batch by batch."""
        weights, composing = self.config.blend(), self.composing
        if composing is None:
            ranking = Ranking.empty(len(shard), self.config.top_k)
            for rows_B, ranked in shard.answers:
                ranking.put(rows_B, ranked, blend(ranked, weights))
            return self._sampled(shard, ranking), []
        ranking, found = composing.room(len(shard)), []
        keys_S, promoted_SK = composing.keys(shard.scored_ids), shard.promoted_SK
        with self.stages.time("compose", rows=len(shard)):
            for rows_B, ranked in shard.answers:
                promoted_BK = None if promoted_SK is None else promoted_SK[rows_B]
                score_BP = blend(ranked, weights)
                found.append(composing.put(ranking, rows_B, ranked, score_BP, promoted_BK, keys_S[rows_B]))
        return self._sampled(shard, ranking), found

    def _sampled(self, shard: ShardRun, ranking: Ranking) -> Ranking:
        """Return the lists once the scores of sampled users are taken from them."""
        if shard.sampled is not None:
            shard.sampled.rank(ranking, shard.rows_S)
        return ranking

    def _filled(self, shard: ShardRun, ranking: Ranking) -> tuple[Ranking, U8 | None]:
        """Return the lists of the S scored users with popular videos, and whose have some; None without a fallback."""
        if self.filling is None or shard.filled is None:
            return ranking, None
        return self.filling.filled(ranking, shard.filled)

    def _rows(self, shard: ShardRun, ranking: Ranking) -> pl.DataFrame:
        """Return the rows of the S scored users in id order."""
        rows = recommendations(shard.scored_ids, ranking, catalog=self.catalog, video_type=self.video_type)
        needs = self.shape.needs()
        chosen = (
            rows.columns if needs is None else [name for name in rows.columns if name in ("user_id", "rank", *needs)]
        )
        return rows.select(chosen)
