"""The engine of a run: chosen, tried on some of the run's own users, and compared with fp32 where that is asked for.

Owns: on which users an engine is tried, and the checks before a run begins. Must not know: how engines are chosen or
compute, files. In: options and a data set. Out: a `Selection`.
"""

from __future__ import annotations

import numpy as np

from genrec_batch.core.arrays import Ranked
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines import batch_size, parity
from genrec_batch.engines.checked import Terms
from genrec_batch.engines.choose import (
    Opening,
    Selection,
    decoding_of,
    device_of,
    reference_engine,
    sample_rows,
    select,
)
from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.engines.feed import batch_rows
from genrec_batch.engines.parity import Parity
from genrec_batch.engines.protocol import Engine
from genrec_batch.events.dataset import Dataset
from genrec_batch.features.batches import ModelInputs, Vectorizer
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG

COMPARED_USERS = 256  # of a batch while two engines are compared
MANY_BEAMS = 16  # from which on a run warns of their cost


def open_engine(
    config: ScoreConfig, dataset: Dataset, vectorizer: Vectorizer, stages: Stages, ahead: Opening | None = None
) -> Selection:
    """Open the engine of a run and check it; `ahead` is a head start.

    Raises:
        ConfigError: the beams of one user do not fit the machine.
        EngineError: the engine, device or precision of the options is not available.
        GateError: `--verify-sample` found that it does not agree with fp32.
    """
    decoding = decoding_of(config, dataset.model)
    if decoding.beam_width > 1:
        _check_beams(config, dataset, decoding)
    with stages.time("engine"):
        selection = selected(config, dataset, vectorizer, ahead)
    LOG.info("engine: %s", selection.why)
    if selection.check is not None and not selection.checked_before:
        LOG.info("its precision was checked now: %s", selection.check.why)
    if config.verify_sample:
        with stages.time("verify"):
            first = dataset.users.first_shard()
            inputs = vectorizer.inputs(first, 0, sample_rows(first.lengths_N, most=config.verify_sample))
            found = agreement(inputs, decoding, selection.engine, reference_engine(dataset.model))
        LOG.info("verified over %d users: %s", found.users, found.as_dict())
        found.check(min_topk_overlap=config.min_topk_overlap, min_top1=0.0, max_difference=None)
    return selection


def selected(config: ScoreConfig, dataset: Dataset, vectorizer: Vectorizer, ahead: Opening | None = None) -> Selection:
    """Return the engine of the options, chosen by users of the first shard.

    Raises:
        EngineError: the engine, device or precision of the options is not available.
    """
    first = dataset.users.first_shard()
    rows = sample_rows(first.lengths_N)
    return select(
        dataset.model,
        vectorizer.inputs(first, 0, rows).batch(np.arange(len(rows))),
        decoding_of(config, dataset.model),
        name=config.engine,
        device=config.device,
        precision=config.precision,
        batch_size=config.batch_size,
        longest=config.max_events,
        mean=dataset.users.mean_events,
        ahead=ahead,
        terms=Terms.of(config),
    )


def agreement(inputs: ModelInputs, decoding: Decoding, engine: Engine, reference: Engine) -> Parity:
    """Return how far two engines agree over the same users."""
    batches = batch_rows(inputs.histories.lengths_N, COMPARED_USERS)
    candidates = decoding.mode == "candidates" or inputs.candidates is not None

    def answers(each: Engine, advance: console.Advance) -> Ranked:
        found = []
        for ranked in recommend_all(each, (inputs.batch(rows_B) for rows_B in batches), decoding):
            found.append(parity.best(ranked, decoding.top_k) if candidates else ranked)
            advance(len(ranked.tokens_BK))
        return parity.joined(found)

    with console.progress("both engines", 2 * len(inputs.histories), "users") as advance:
        return parity.compare(answers(engine, advance), answers(reference, advance))


def _check_beams(config: ScoreConfig, dataset: Dataset, decoding: Decoding) -> None:
    """Warn of the cost of many beams, and refuse beams of one user that do not fit the machine."""
    longest = int(dataset.users.lengths_N.max(initial=0))
    if device_of(config.device, config.engine) == "cpu":
        batch_size.check_memory(dataset.model.config, longest, decoding)
    if decoding.beam_width >= MANY_BEAMS:
        LOG.warning(
            "--beam-width %d: %s slates are decoded for each user, so each decode step reads %s times the rows of "
            "--beam-width 1, in time and in memory",
            config.beam_width, f"{decoding.beam_width:,}", f"{decoding.beam_width:,}",
        )  # fmt: skip
