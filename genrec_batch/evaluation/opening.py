"""A model and a log made ready for a test: rows, and what the engine reads of each.

Owns: the order in which they are read, the split, and the choice of the engine. Must not know: metrics, baselines. In:
options and a log. Out: `Opened`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from genrec_batch.core import layout
from genrec_batch.core.arrays import FIRST_ITEM, I64
from genrec_batch.core.errors import ConfigError, ModelError
from genrec_batch.engines.choose import Selection, sample_rows, select
from genrec_batch.engines.feed import Feed
from genrec_batch.evaluation import tested_rows
from genrec_batch.evaluation.model_lists import Inputs
from genrec_batch.evaluation.options import EvaluateConfig
from genrec_batch.evaluation.tested_rows import Rows
from genrec_batch.events import splits
from genrec_batch.events.dataset import catalog_for, open_model, warn_about
from genrec_batch.events.splits import Cuts
from genrec_batch.events.survey import Survey
from genrec_batch.events.whole import WholeLog, read_whole
from genrec_batch.model.catalog import Catalog
from genrec_batch.model.weights import Model
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Everything that a model is tested on."""

    log: WholeLog
    model: Model
    rows: Rows
    inputs: Inputs

    def take(self, rows_B: I64) -> Opened:
        """Return the same with some of the rows."""
        return replace(
            self,
            rows=self.rows.take(rows_B),
            inputs=replace(self.inputs, histories=self.inputs.histories.take(rows_B)),
        )


def open_test(config: EvaluateConfig, source: str, stages: Stages) -> Opened:
    """Read the model and the log, and split it.

    Raises:
        ConfigError, InputError, GateError, ModelError, RetryError: see each input.
    """
    score = config.as_score()
    with stages.time("model"), console.busy("reading the model"):
        model = open_model(score)
    score.check_positions(model.config.positions)
    warn_about(model, score)

    def catalog_of(found: Survey, video_type: pl.DataType) -> Catalog:  # noqa: ARG001 (the survey has it, too)
        return catalog_for(model, found, f"EVENTS {source}")

    with stages.watched(config.stall_limit):
        log = read_whole(
            source, catalog_of, stages,
            users=config.users, extra_features=config.extra_features,
            extra_wanted=model.config.features - layout.FEATURES, videos=config.videos,
            schema_name=config.schema, as_of_us=score.as_of_us(), since=config.since, timezone=config.timezone,
            dedupe=config.dedupe, dedupe_by=config.dedupe_by,
            max_rejects=config.max_rejects, min_match=config.min_match, positive=config.positive,
            newest=config.side_tables_newest, rejects=config.rejects,
        )  # fmt: skip
    model = model.with_catalog(len(log.catalog))
    rows = tested_rows.rows_of(
        log.events, _cuts(config, log, source),
        tokens=model.tokens, max_events=config.max_events, seen_limit=config.seen_limit,
        include_seen=config.include_seen,
    )  # fmt: skip
    if (rows.first_M() < FIRST_ITEM).all():
        raise ModelError(
            f"--model {config.model}: no video that one of the {len(rows):,} users of EVENTS {source} watched next "
            "is in its catalog; give the model that belongs to this log"
        )
    inputs = Inputs(
        histories=rows.histories, users=log.users, videos=log.videos,
        max_events=config.max_events, include_seen=config.include_seen,
    )  # fmt: skip
    return Opened(log=log, model=model, rows=rows, inputs=inputs)


def _cuts(config: EvaluateConfig, log: WholeLog, source: str) -> Cuts:
    moment_us = config.moment_us()
    if moment_us is not None:
        cuts = splits.from_moment(log.events, moment_us, f"--test-from {config.test_from}")
    else:
        cuts = splits.leave_out(log.events, config.leave_out)
    if config.limit is not None:
        cuts = cuts.take(np.flatnonzero(cuts.user_N < config.limit))
        if not len(cuts):
            raise ConfigError(f"--limit {config.limit}: none of these users of EVENTS {source} has an event to test on")
    return cuts


def choose_engine(config: EvaluateConfig, opened: Opened) -> Selection:
    """Choose the engine as `score` does, by some of the test's own rows.

    Raises:
        EngineError: what was asked for is not there.
    """
    lengths_M = opened.inputs.histories.lengths_N
    rows_S = sample_rows(lengths_M)
    mode = "slate" if "slate" in config.modes() else "candidates"
    return select(
        opened.model,
        opened.inputs.of_rows(rows_S).batch(np.arange(len(rows_S))),
        config.decoding(mode, opened.model.tokens),
        name=config.engine,
        device=config.device,
        precision=config.precision,
        batch_size=config.batch_size,
        longest=config.max_events,
        mean=float(lengths_M.mean()),
    )


def feed(config: EvaluateConfig, opened: Opened, selection: Selection, mode: str, stages: Stages) -> Feed:
    """Return the engine ready for lists of the longest length."""
    decoding = config.decoding(mode, opened.model.tokens)
    return Feed(engine=selection.engine, decoding=decoding, stages=stages, batch_users=selection.batch_users)
