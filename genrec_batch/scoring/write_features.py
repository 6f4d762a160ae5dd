"""`features`: what the model would read of each user, as a table.

Owns: the columns of that table. Must not know: how features are computed, engines, files.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from genrec_batch.core.arrays import F32, Histories
from genrec_batch.core.options import HistoryConfig
from genrec_batch.events.user_histories import Group, Shard
from genrec_batch.features.batches import Vectorizer, workers
from genrec_batch.runtime import console, threads
from genrec_batch.runtime.clock import Stages
from genrec_batch.scoring.lineage import Run
from genrec_batch.scoring.results import OutputPart
from genrec_batch.scoring.writing import here, opened, write


def write_features(config: HistoryConfig, source: str, target: str) -> dict[str, Any]:
    """Write user_id, features, tokens (newest last) and history_length of each user; return the run's summary.

    Raises:
        GenrecError: see its subclasses; each carries the exit code of its kind.
    """
    stages = Stages()
    with opened(config, source, target, stages) as dataset:
        vectorizer = Vectorizer.of(dataset)

        def made(shard: Shard) -> OutputPart:
            with stages.time("features", rows=len(shard)):
                dense_NF = vectorizer.inputs(shard.histories, shard.start).dense_NF
            ids = dataset.users.ids.slice(shard.start, len(shard))
            cold = int(shard.histories.cold_start_N().sum())
            return OutputPart(
                number=shard.number,
                users=len(shard),
                items=len(shard),
                table=_table(ids, dense_NF, shard.histories),
                counts={"cold_start_users": cold},
            )

        def parts(groups: list[Group], advance: console.Advance) -> Generator[Callable[[], OutputPart], None, None]:
            shards = dataset.users.shards(groups)
            for part in threads.ordered(made, shards, workers=workers(threads.cores()), name="features"):
                advance(part.users)
                yield lambda part=part: part  # type: ignore[misc]

        run = Run.of("features", config, dataset, stages, engine=None)
        return write(run, target, here(dataset.users, parts, stages), report=dict, scope=None)


def _table(ids: pl.Series, dense_NF: F32, histories: Histories) -> pa.Table:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(dense_NF.reshape(-1)), dense_NF.shape[1])
    offsets = pa.array(histories.offsets_N1.astype(np.int32))
    columns = {
        "user_id": ids.to_arrow(compat_level=pl.CompatLevel.oldest()),
        "features": flat.cast(pa.list_(pa.float32())),
        "tokens": pa.ListArray.from_arrays(offsets, pa.array(histories.tokens_E)),
        "history_length": pa.array(histories.lengths_N.astype(np.int32)),
    }
    return pa.table(columns)
