"""The Python API: `score` as one call, and a picklable map over tables of events.

Owns: `score` and `Scorer`. Must not know: how any step does its work. For Ray Data, Spark's `mapInArrow` or a notebook;
the table given to a `Scorer` must hold all events of its users.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from genrec_batch.core.errors import InputError, NothingToScoreError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.choose import Selection
from genrec_batch.events.dataset import Dataset, open_model
from genrec_batch.events.log import EventLog
from genrec_batch.io import forked
from genrec_batch.io.read import Source
from genrec_batch.model import registry
from genrec_batch.model.weights import Model
from genrec_batch.runtime import console, progress
from genrec_batch.runtime.clock import Stages
from genrec_batch.scoring import pipeline
from genrec_batch.scoring.carry import Carried
from genrec_batch.scoring.model_run import Scoring
from genrec_batch.scoring.rows import no_recommendations
from genrec_batch.scoring.shape import Shape


def score(input: str | Path, output: str | Path, **options: Any) -> dict[str, Any]:  # noqa: A002 (the command's own name for it)
    """Score a log as `genrec-batch score` does; options are those of the command with underscores.

    Returns: the run's summary.

    Raises:
        GenrecError: see its subclasses; each carries the exit code of its kind.
    """
    console.forget_warnings()
    config = ScoreConfig(**options)
    with progress.watched(config.stall_limit):
        return pipeline.score(config, os.fspath(input), os.fspath(output))


class Scorer:
    """Maps a table of events to an Arrow table of recommendations; picklable, opens its model on first use.

    `Scorer(model="model/", top_k=20)(events)`. A table is a pyarrow Table or RecordBatch, a Polars or pandas DataFrame,
    or any other object that has the Arrow PyCapsule interface. Options are those of `genrec-batch score`; without
    `--as-of`, each table is scored as of its own last timestamp, and without a catalog in the model, with its own
    catalog.
    """

    def __init__(self, **options: Any) -> None:
        config = ScoreConfig(**options)
        config.check_one_model("a Scorer")
        config.check_one_process("a Scorer")
        self.config = replace(config, model=registry.pinned(config.model, config.registry))  # for every process
        self.config.check_target(None)
        self._opened: tuple[Model, int, Selection] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "_opened": None}

    def __call__(self, events: Any) -> pa.Table:
        """Return the recommendations of every user of `events`, sorted by user_id and rank; no rows for no user.

        Raises:
            InputError, GateError: the table does not fit the contract, or too many of its rows are unusable.
            TypeError: no table.
        """
        forked.check()
        frame = _frame(events)
        if frame.is_empty():
            return self._no_rows(frame)
        loaded, tokens, selection = self._opened or (open_model(self.config), 0, None)
        stages = Stages()
        try:
            dataset = Dataset.open(frame, self.config, stages, model=loaded)
        except NothingToScoreError:  # no event up to as-of, in a block of a larger log
            return self._no_rows(frame)
        same_catalog = tokens == dataset.model.tokens  # an engine never chooses a token beyond its catalog
        scoring = Scoring.of(self.config, dataset, stages, selection if same_catalog else None)
        self._opened = (loaded, dataset.model.tokens, scoring.selection)
        results = scoring.results()
        return pa.concat_tables([results.part(shard).table for shard in scoring.ranked(scoring.shards())])

    def _no_rows(self, frame: pl.DataFrame) -> pa.Table:
        """Return an empty table with the columns and types that users of such events would get."""
        none = frame.clear()
        types = EventLog.of(Source.of(none.lazy(), 0), self.config.schema, "the table").required(0).schema
        user_type, video_type = types["user_id"], types["video_id"]
        composes, explores = self.config.composes, self.config.explore > 0
        sources = composes or self.config.has_sources
        rows, users = no_recommendations(user_type, video_type, sources=sources, propensity=explores)
        shape = Shape.of(self.config, Carried.types(self.config))
        return shape.table(shape.items(rows), pl.Series("user_id", [], user_type), users, 0)


def _frame(events: Any) -> pl.DataFrame:
    if isinstance(events, pl.LazyFrame):
        events = events.collect()
    if not any(hasattr(events, f"__arrow_c_{kind}__") for kind in ("stream", "array")):
        raise TypeError(
            "a Scorer takes a table of events: a pyarrow Table or RecordBatch, or a Polars or pandas DataFrame, not "
            f"{type(events).__name__}"
        )
    try:
        return pl.DataFrame(events)
    except (pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise InputError(f"the table cannot be read as Arrow: {error}") from error
