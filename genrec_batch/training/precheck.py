"""The check of precision that the first `score` with a new model would make, made where the model is trained.

Owns: with which options of `score`, and on which users of the training. Must not know: how engines are compared, where
the outcome is kept. In: the saved model and the training's events. Out: what the summary says of the check.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from genrec_batch.core.errors import GenrecError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.checked import Terms
from genrec_batch.engines.choose import SAMPLE_USERS, decoding_of, device_of, sample_rows, select
from genrec_batch.model.weights import load
from genrec_batch.runtime.console import LOG
from genrec_batch.training.distribution import inputs_at_the_end
from genrec_batch.training.inputs import Events
from genrec_batch.training.options import TrainConfig

SHARED = (
    "users", "videos", "extra_features", "schema", "timezone", "dedupe", "dedupe_by", "side_tables_newest",
    "max_events",
)  # fmt: skip


def checked(out: Path, options: TrainConfig, events: Events, videos: int) -> dict[str, Any]:
    """Check the precision that `score` takes on this machine's CPU, given the options that a training has too.

    With a GPU nothing is checked, since an engine would have to be built for it. A check that fails costs the first run
    its own check, and the model nothing.
    """
    config = ScoreConfig(**{name: getattr(options, name) for name in SHARED})
    if device_of(config.device, config.engine) != "cpu":
        return {}
    try:
        model = load(out).with_catalog(videos)
        inputs = replace(inputs_at_the_end(events), include_seen=config.include_seen)
        selection = select(
            model,
            inputs.batch(sample_rows(inputs.histories.lengths_N, most=SAMPLE_USERS)),
            decoding_of(config, model),
            name=config.engine,
            device=config.device,
            precision=config.precision,
            terms=Terms.of(config),
        )
    except GenrecError as error:
        LOG.warning("--precision auto is checked when the model first scores, not now: %s", error)
        return {}
    return selection.facts()
