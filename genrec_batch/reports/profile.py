"""`profile`: the model, the data, the engines and a real run, measured on this machine.

Owns: the order of the measurements. Must not know: how each is made, or how it is shown. After the ceilings comes the
run, in a process of its own, so that nothing else is in its memory; engines come last.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from genrec_batch.core.arrays import Batch
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.choose import decoding_of, device_of, sample_rows
from genrec_batch.events.dataset import UNTRAINED, Dataset, open_model
from genrec_batch.io import find
from genrec_batch.model import registry, weights
from genrec_batch.model.weights import Model
from genrec_batch.reports import ceilings, data_facts, engine_facts, model_facts, report, run_facts, separate, trace
from genrec_batch.reports.options import ProfileConfig
from genrec_batch.runtime import console
from genrec_batch.scoring.rules import Ruling

COMPARED_USERS = 256  # of the log, for the overlap with fp32


def profiled(config: ProfileConfig) -> dict[str, Any]:
    """Measure what the options ask for and return the report (`report.document`).

    Raises:
        GenrecError: see its subclasses.
    """
    _check_data(config.data)
    device = device_of(config.device, config.engine)
    wanted = engine_facts.choices(_listed(config.engines), device)
    compared = {name: weights.preset(name) for name in _listed(config.compare)}
    config = dataclasses.replace(config, model=registry.pinned(config.model, config.registry))  # for both processes
    model = open_model(config)
    config.check_positions(model.config.positions)
    with tempfile.TemporaryDirectory(prefix="genrec-batch-profile-") as folder:
        with console.progress("ceilings of this machine", ceilings.STEPS, "measurements") as advance:
            found = ceilings.measure(model.config, Path(folder), advance)
        ran = _run(config, Path(folder)) if config.data else None
    data, real, run = None, None, None
    if ran is not None:
        dataset = _dataset(config, model)
        with closing(dataset.users):
            real = _sample(config, dataset)
            data = data_facts.describe(dataset)
        model = dataset.model
        run = _run_facts(config, ran, model, found, dataset.inputs["events"].bytes)
    elif not model.trained:
        console.LOG.warning(UNTRAINED)
    trial = engine_facts.Trial(
        model=model,
        wanted=wanted,
        device=device,
        must=bool(config.engines),
        sizes=config.sizes(device),
        events=config.max_events,
        decoding=decoding_of(config, model),
        seconds=config.seconds,
    )
    with console.progress("engines", len(trial.sizes) * len(wanted), "measurements") as advance:
        engines = engine_facts.measure(trial, real=real, ceilings=found, advance=advance)
    shapes = {"events": config.max_events, "top_k": config.top_k}
    presets = model_facts.side_by_side({_name(config): model.config, **compared}, **shapes) if compared else None
    return report.document(
        "profile",
        "profile",
        ceilings=found,
        model=_model_facts(config, model, shapes),
        presets=presets,
        data=data,
        engines=engines,
        run=run,
    )


def _name(config: ProfileConfig) -> str:
    return config.model or "reference preset"


def _model_facts(config: ProfileConfig, model: Model, shapes: dict[str, int]) -> dict[str, Any]:
    return {
        "name": _name(config),
        "fingerprint": model.fingerprint,
        "trained": model.trained,
        **model_facts.describe(model.config, **shapes),
    }


def _listed(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the entries of an option that may be repeated or be a list with commas."""
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


def _check_data(data: str | None) -> None:
    """Raise InputError if the log is missing, before a minute is spent on measuring."""
    if data is not None and "://" not in data:
        find.files(data, "--data")


def _run(config: ProfileConfig, folder: Path) -> separate.Ran:
    assert config.data is not None
    plain = ScoreConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(ScoreConfig)})
    ran = separate.score(plain, config.data, str(folder / "recommendations.parquet"))
    if config.trace:
        trace.write(ran.stages(), Path(config.trace))
    return ran


def _run_facts(
    config: ProfileConfig, ran: separate.Ran, loaded: Model, found: dict[str, Any], input_bytes: int | None
) -> dict[str, Any]:
    decoding = decoding_of(config, loaded)
    slates = decoding.mode == "slate"
    return run_facts.describe(
        ran.stages(),
        ran.summary,
        elapsed_s=ran.elapsed_s,
        config=loaded.config,
        ceilings=found,
        input_bytes=input_bytes,
        top_k=decoding.top_k if slates else 1,
        beams=decoding.beam_width if slates else decoding.num_candidates,
    )


def _dataset(config: ProfileConfig, loaded: Model) -> Dataset:
    """Open the log as a run does; the run has logged all warnings."""
    assert config.data is not None
    level = console.LOG.level
    console.LOG.setLevel(logging.ERROR)
    try:
        return Dataset.open(config.data, config, model=loaded)
    finally:
        console.LOG.setLevel(level)


def _sample(config: ProfileConfig, dataset: Dataset) -> Batch:
    first = dataset.users.first_shard()
    rows = sample_rows(first.lengths_N, most=COMPARED_USERS)
    vectorizer = Ruling.of(config, dataset).vectorizer(config, dataset)
    return vectorizer.inputs(first, 0, rows).batch(np.arange(len(rows)))
