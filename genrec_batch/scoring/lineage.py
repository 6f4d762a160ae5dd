"""What a run says of itself: what decides its bytes, and the summary that the last line of stdout is.

Owns: the lineage and the summary. Must not know: how a run is carried out. In: options, a data set, the run's clock.
Out: plain dictionaries.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from genrec_batch import __version__
from genrec_batch.core import layout
from genrec_batch.core.declare import values
from genrec_batch.core.options import HistoryConfig
from genrec_batch.engines.protocol import Engine
from genrec_batch.events import schema
from genrec_batch.events.dataset import Dataset
from genrec_batch.io import output
from genrec_batch.runtime.clock import Stages, peak_rss_mib


def of(config: HistoryConfig, dataset: Dataset, engine: Engine | None) -> dict[str, Any]:
    """Return what decides a run's bytes: version, fingerprints, engine, options, inputs. No clock, machine or path."""
    return {
        "version": __version__,
        "model": dataset.model.fingerprint,
        "catalog": dataset.catalog.fingerprint(),
        "layout": layout.fingerprint(),
        "engine": engine.name if engine else "none",
        "device": engine.device.partition(":")[0] if engine else "none",
        "precision": engine.precision if engine else "none",
        "arithmetic": engine.arithmetic if engine else "",
        "config": values(config, "rows", "bytes"),
        "schema": {**asdict(schema.column_names(config.schema)), "name": ""},
        "input": {name: {**source.snapshot(), "path": ""} for name, source in dataset.inputs.items()},
    }


def summary(
    command: str, dataset: Dataset, stages: Stages, identity: dict[str, Any], report: dict[str, Any]
) -> dict[str, Any]:
    """Return the run's summary: what was read, who was scored, by what, how long it took."""
    model_s = stages.seconds.get("model run", 0.0)
    return {
        "status": "ok",
        "command": command,
        "version": __version__,
        "run_id": output.run_id(identity),
        "model": dataset.model.fingerprint[:16],
        "trained": dataset.model.trained,
        **dataset.facts,
        **report,
        "seconds": round(stages.elapsed_s, 3),
        "users_per_s": round(report["scored_users"] / model_s, 1) if model_s else None,
        "stages_s": {name: round(seconds, 3) for name, seconds in stages.seconds.items()},
        "peak_rss_mib": round(peak_rss_mib(), 1),
        "warnings": dataset.warnings,
    }
