"""`verify`: two engines over the same users of a log, and gates on how far they agree.

Owns: which users, which two engines, the report. Must not know: how engines compute. Also behind `score
--verify-sample`, before anything is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch import parity
from genrec_batch.batching import Part
from genrec_batch.config import ScoreConfig, VerifyConfig
from genrec_batch.engines import Engine
from genrec_batch.generate import Decoding, recommend_all
from genrec_batch.job import Job, prepare, read_log
from genrec_batch.parity import Parity
from genrec_batch.profiling import Stages
from genrec_batch.selection import decoding_of, reference_engine, sample_rows, select


def verify(config: VerifyConfig, source: str) -> tuple[dict[str, Any], Parity]:
    """Run the engine of the options and the reference over a sample of a log's users.

    Returns: the report, and the figures that the gates are about.

    Raises:
        GenrecError: see its subclasses.
    """
    stages = Stages()
    events, facts, log = read_log(source, config, stages)
    job = prepare(
        config, events, stages, path=source, facts=facts, inputs={"events": log}, candidates=config.candidates
    )
    decoding = decoding_of(config, job.model)
    rows = sample_rows(job.histories.lengths_N, most=config.sample)
    small = Part.of(job, rows[:: max(1, len(rows) // 32)], config)
    with stages.time("engine"):
        chosen = select(
            job.model,
            small.batch(np.arange(len(small.histories))),
            decoding,
            name=config.engine,
            device=config.device,
            precision=config.precision if config.precision != "auto" else "fp32",
        )
        reference = reference_engine(job.model, name=config.against, precision=config.against_precision)
    found = measured(config, job, decoding, rows, chosen.engine, reference)
    report = {
        "status": "ok",
        "command": "verify",
        "engine": _said(chosen.engine),
        "against": _said(reference),
        **found.as_dict(),
        "seconds": round(stages.elapsed_s, 3),
    }
    return report, found


def measured(config: ScoreConfig, job: Job, decoding: Decoding, rows: Any, engine: Engine, reference: Engine) -> Parity:
    """Return how far two engines agree over the job's rows."""
    part = Part.of(job, rows, config)
    spans = part.spans(256)
    ours, theirs = (
        parity.joined(
            [parity.best(r, decoding.top_k) if decoding.mode == "candidates" or part.candidates is not None else r
             for r in recommend_all(each, (part.batch(span) for span in spans), decoding)]
        )
        for each in (engine, reference)
    )  # fmt: skip
    return parity.compare(ours, theirs)


def _said(engine: Engine) -> str:
    return f"{engine.name} in {engine.precision} on {engine.device}"
