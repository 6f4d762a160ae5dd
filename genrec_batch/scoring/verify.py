"""`verify`: two engines over the same users of a log, and gates on how far they agree.

Owns: which users, which two engines, the report. Must not know: how engines are compared or compute.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

from genrec_batch.core.verify_options import VerifyConfig
from genrec_batch.engines.choose import decoding_of, reference_engine, sample_rows
from genrec_batch.engines.parity import Parity
from genrec_batch.engines.protocol import Engine
from genrec_batch.events.dataset import Dataset
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages
from genrec_batch.scoring.engine import agreement, selected
from genrec_batch.scoring.rules import Ruling


def verified(config: VerifyConfig, source: str) -> tuple[dict[str, Any], Parity]:
    """Run the engine of the options and the reference over a sample of the first shard's users.

    Returns: the report, and the figures that the gates are about.

    Raises:
        GenrecError: see its subclasses.
    """
    stages = Stages()
    dataset = Dataset.open(source, config, stages)
    with closing(dataset.users):
        first = dataset.users.first_shard()
    vectorizer = Ruling.of(config, dataset).vectorizer(config, dataset)
    with stages.time("engine"):
        chosen = selected(config, dataset, vectorizer)
        reference = reference_engine(dataset.model, name=config.against, precision=config.against_precision)
    inputs = vectorizer.inputs(first, 0, sample_rows(first.lengths_N, most=config.sample))
    found = agreement(inputs, decoding_of(config, dataset.model), chosen.engine, reference)
    report = {
        "status": "ok",
        "command": "verify",
        "engine": _described(chosen.engine),
        "engine_why": chosen.why,
        "against": _described(reference),
        **found.as_dict(),
        "seconds": round(stages.elapsed_s, 3),
        "warnings": console.warned(),
    }
    return report, found


def _described(engine: Engine) -> str:
    return f"{engine.name} in {engine.precision} on {engine.device}"
