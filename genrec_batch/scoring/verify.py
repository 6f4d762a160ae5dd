"""`verify`: two engines over the same users of a log, and gates on how far they agree.

Owns: which users, which two engines, the report. Must not know: how engines compute. Also behind `score
--verify-sample`, before anything is written.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np

from genrec_batch.core.arrays import Ranked
from genrec_batch.core.options import ScoreConfig, VerifyConfig
from genrec_batch.engines import parity
from genrec_batch.engines.choose import decoding_of, reference_engine, sample_rows, select
from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.engines.parity import Parity
from genrec_batch.engines.protocol import Engine
from genrec_batch.events.by_user import spill_folder
from genrec_batch.events.dataset import Job, prepare, read_log
from genrec_batch.features.batches import Part
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages


def verify(config: VerifyConfig, source: str) -> tuple[dict[str, Any], Parity]:
    """Run the engine of the options and the reference over a sample of the first part of a log's users.

    Returns: the report, and the figures that the gates are about.

    Raises:
        GenrecError: see its subclasses.
    """
    stages = Stages()
    log, opened = read_log(source, config, stages)
    spill_to = spill_folder(config.spill_dir, None)
    inputs = {"events": opened}
    with ExitStack() as stack:
        job = prepare(config, log, stages, path=source, inputs=inputs, spill_to=spill_to, candidates=config.candidates)
        stack.callback(job.store.close)
        first = job.first_shard()
    decoding = decoding_of(config, job.model)
    rows = sample_rows(first.lengths_N, most=config.sample)
    tried = sample_rows(first.lengths_N)  # as `score` does, so that `auto` takes what it takes there
    with stages.time("engine"):
        chosen = select(
            job.model,
            Part.of(job, first, 0, config, tried).batch(np.arange(len(tried))),
            decoding,
            name=config.engine,
            device=config.device,
            precision=config.precision,
            batch_size=config.batch_size,
            longest=config.max_events,
            mean=job.mean_events,
        )
        reference = reference_engine(job.model, name=config.against, precision=config.against_precision)
    found = measured(config, job, decoding, rows, chosen.engine, reference)
    report = {
        "status": "ok",
        "command": "verify",
        "engine": _said(chosen.engine),
        "engine_why": chosen.why,
        "against": _said(reference),
        **found.as_dict(),
        "seconds": round(stages.elapsed_s, 3),
    }
    return report, found


def measured(config: ScoreConfig, job: Job, decoding: Decoding, rows: Any, engine: Engine, reference: Engine) -> Parity:
    """Return how far two engines agree over the job's rows."""
    part = Part.of(job, job.first_shard(), 0, config, rows)
    spans = part.spans(256)
    candidates = decoding.mode == "candidates" or part.candidates is not None

    def answers(each: Engine, advance: console.Advance) -> Ranked:
        found = []
        for ranked in recommend_all(each, (part.batch(span) for span in spans), decoding):
            found.append(parity.best(ranked, decoding.top_k) if candidates else ranked)
            advance(len(ranked.tokens_BK))
        return parity.joined(found)

    with console.progress("both engines", 2 * len(rows), "users") as advance:
        return parity.compare(answers(engine, advance), answers(reference, advance))


def _said(engine: Engine) -> str:
    return f"{engine.name} in {engine.precision} on {engine.device}"
