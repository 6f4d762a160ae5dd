"""The results of arms: what their engines recommended to a shard's users becomes one part of the output.

Owns: a part's rows in the order of its users, whatever their arms, and what is counted by arm. Must not know: engines,
how users are divided. In: a shard whose users are back from all engines. Out: an `OutputPart`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from genrec_batch.core.arrays import I32, I64, MODEL, POPULAR, SOURCES, U8
from genrec_batch.scoring import arm_counts
from genrec_batch.scoring.results import OutputPart, RankedRows, Results
from genrec_batch.scoring.rows import UserColumns
from genrec_batch.scoring.shard import ShardRun


@dataclass(frozen=True, kw_only=True)
class ArmShard:
    """Those of a shard's users whom one arm is scored for."""

    rows: I64  # their places in the shard
    run: ShardRun


@dataclass(frozen=True, kw_only=True)
class SplitShard:
    """A shard's users, divided: those of each published arm, and those whom each shadow is scored for."""

    number: int
    ids: pl.Series
    bucket_N: I32
    arm_N: I64  # place of each user's published arm
    own: list[tuple[int, ArmShard]]  # published arms that have users here, by place
    shadows: list[tuple[int, ArmShard]]  # shadows that are scored for users here, by place among all arms


@dataclass(frozen=True, kw_only=True)
class ArmResults:
    """How the rankings of arms become rows, the same way for all shards of a run."""

    names: Sequence[str]
    results: Sequence[Results]
    covered: Mapping[str, U8]  # by arm, which videos were recommended so far, and which not as a fallback, [2, V]

    def part(self, shard: SplitShard) -> OutputPart:
        """Return a shard's part of the output: the rows of all published arms in the order of their users."""
        ranked = {place: self._rows(place, each.run) for place, each in shard.own}
        counts = arm_counts.together(
            {self.names[place]: (len(each.run.ids), ranked[place]) for place, each in shard.own}
        )
        items = _together([found.items for found in ranked.values()])
        for place, each in shard.shadows:
            found = self._rows(place, each.run)
            counts |= arm_counts.of_shadow(self.names[place], found, items, each.run.ids)
        first = self.results[0]
        users = UserColumns.joined(
            [(each.rows, each.run.users) for _, each in shard.own],
            pl.Series(self.names).gather(shard.arm_N),
            shard.bucket_N,
        )
        with first.stages.time("shape", rows=len(items)):
            table = first.shape.table(items, shard.ids, users, shard.number * first.config.shard_users)
        prints = [found.fingerprints for found in ranked.values()]
        sample = next((text for each in prints if (text := each.schema.metadata)), None)  # of the first arm
        order_N = np.argsort(np.concatenate([each.rows for _, each in shard.own]))
        return OutputPart(
            number=shard.number,
            users=len(shard.ids),
            items=len(items),
            table=table,
            counts=counts,
            fingerprints=pa.concat_tables(prints).take(order_N).replace_schema_metadata(sample),
        )

    def _rows(self, place: int, run: ShardRun) -> RankedRows:
        results = self.results[place]
        found = results.rows(run)
        items = found.items
        by_arm = items if "source" not in items.columns else items.filter(pl.col("source") != SOURCES[POPULAR])
        for covered_V, rows in zip(self.covered[self.names[place]], (items, by_arm), strict=True):
            covered_V[results.catalog.tokens(rows["video_id"].unique()).to_numpy()] = True
        return found


def _together(items: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return the rows of several arms in the order of one output; arms without rules have what their rows would say."""
    names = max((each.columns for each in items), key=len)
    whole = pl.concat(items, how="diagonal").sort("user_id", "rank").select(names)
    plain = {"source": SOURCES[MODEL], "propensity": 1.0}
    return whole.with_columns(pl.col(name).fill_null(plain[name]) for name in names if name in plain)
