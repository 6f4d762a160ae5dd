"""One run of a command: what decides the bytes of its output, and the summary on the last line of stdout.

Owns: the identity, the metadata and the summary of a run. Must not know: how a run is carried out. In: options, a data
set, an engine, the run's clock. Out: plain dictionaries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from genrec_batch import __version__
from genrec_batch.core import layout
from genrec_batch.core.declare import recorded, values
from genrec_batch.core.options import HistoryConfig, ScoreConfig
from genrec_batch.engines.choose import mode_of
from genrec_batch.events import schema_file
from genrec_batch.events.dataset import Dataset
from genrec_batch.io.identity import run_id
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages, peak_rss_mib
from genrec_batch.scoring.about import EngineFacts


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a command over a data set."""

    command: str
    config: HistoryConfig
    dataset: Dataset
    stages: Stages
    identity: dict[str, Any]  # what decides the bytes of the output: no clock, machine or path

    @staticmethod
    def of(
        command: str,
        config: HistoryConfig,
        dataset: Dataset,
        stages: Stages,
        engine: EngineFacts | None,
        previous: str | None = None,
        further: Mapping[str, Any] | None = None,
    ) -> Run:
        """Return a run with its identity: version, fingerprints, engine, options, inputs.

        `previous` is the run of the earlier output, which decides bytes where its rows may be of an earlier as-of;
        `further` is what decides them beside what every run has.
        """
        identity = {
            "version": __version__,
            "model": dataset.model.fingerprint,
            "catalog": dataset.catalog.fingerprint(),
            "layout": layout.fingerprint(),
            "engine": engine.name if engine else "none",
            "device": engine.device if engine else "none",
            "precision": engine.precision if engine else "none",
            "arithmetic": engine.arithmetic if engine else "",
            "config": values(config, "rows", "bytes") | _decoding(config, dataset),
            "schema": {**asdict(schema_file.column_names(config.schema)), "name": ""},
            "input": {name: {**source.snapshot(), "path": ""} for name, source in dataset.inputs.items()},
            **(further or {}),
        }
        if isinstance(config, ScoreConfig) and config.carry_for is not None:
            identity["previous"] = previous or "none"
        return Run(command=command, config=config, dataset=dataset, stages=stages, identity=identity)

    def metadata(self) -> dict[str, str]:
        """Return what the output's metadata says of the run: its identity, with paths."""
        described = {
            **self.identity,
            "config": recorded(self.config) | _decoding(self.config, self.dataset),
            "input": {name: source.snapshot() for name, source in self.dataset.inputs.items()},
            "users": str(len(self.dataset.users)),
            "as_of": self.dataset.facts["as_of"],
            **self._version(),
        }
        return {f"genrec.{key}": value if isinstance(value, str) else _json(value) for key, value in described.items()}

    def summary(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was read, which users were scored, by what, and how long it took; `report` is the engine's."""
        model_s, duplicates = self.stages.seconds.get("model run", 0.0), self.dataset.users.duplicates
        return {
            "status": "ok",
            "command": self.command,
            "version": __version__,
            "run_id": run_id(self.identity),
            "model": self.dataset.model.fingerprint[:16],
            **self._version(),
            "trained": self.dataset.model.trained,
            **self.dataset.facts,
            **({} if duplicates is None else {"duplicates_dropped": sum(duplicates.dropped.values())}),
            **report,
            "seconds": round(self.stages.elapsed_s, 3),
            "users_per_s": report.get("users_per_s")
            or (round(report["scored_users"] / model_s, 1) if model_s else None),
            "stages_s": {name: round(seconds, 3) for name, seconds in self.stages.seconds.items()},
            "processor_s": round(self.stages.processor_s, 3),
            "peak_rss_mib": round(peak_rss_mib(), 1),
            "warnings": console.warned(),
        }

    def _version(self) -> dict[str, Any]:
        """Return which version of a registry the model is: it decides no byte of the rows, the fingerprint does."""
        version = self.dataset.model.version
        return {} if version is None else {"registry": version.facts()}


def _decoding(config: HistoryConfig, dataset: Dataset) -> dict[str, str]:
    """Return what `--decode auto` means for the model of the run: that decides the rows."""
    if not isinstance(config, ScoreConfig):
        return {}
    return {"decode": mode_of(config.list_decode, config.beam_width, dataset.model)}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
