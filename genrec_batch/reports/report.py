"""The report as data: its form, its version, and the files that hold it.

Owns: the top of the JSON document (`report.schema.json` describes all of it), and what a file's ending means. Must not
know: how a section's facts came about. A change that a reader of this version would not understand is the next version;
version 2 divides the model run into parts (`within`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genrec_batch import __version__
from genrec_batch.core.errors import ConfigError
from genrec_batch.io.durable import check_local, missing_folder
from genrec_batch.model.weights import ModelConfig
from genrec_batch.reports import ceilings, page, run_facts
from genrec_batch.reports.trace import whole_file
from genrec_batch.runtime.clock import Stages

SCHEMA, SCHEMA_VERSION = "genrec-batch/report", 2


def document(kind: str, command: str, **parts: Any) -> dict[str, Any]:
    """Return a report: its form, version, time and machine, and the parts that were made; the others are None.

    `kind` is "profile" or "run"; parts are `ceilings`, `model`, `presets`, `data`, `engines`, `run`.
    """
    empty = dict.fromkeys(("ceilings", "model", "presets", "data", "engines", "run"))
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "machine": ceilings.machine(),
        **empty,
        **parts,
    }


def check_path(path: str | None, flag: str, endings: tuple[str, ...]) -> None:
    """Raise ConfigError if a report cannot be written to a path, before any work is done."""
    if path is None:
        return
    place = Path(path)
    check_local(place, flag)
    if place.suffix not in endings:
        raise ConfigError(f"{flag} {path}: a name that ends in {' or '.join(endings)}")
    if not place.parent.is_dir():
        raise ConfigError(f"{flag} {path}: {missing_folder(place.parent)}")
    if place.is_dir():
        raise ConfigError(f"{flag} {path}: is a directory; name a file in it")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag} {path}: the folder {place.parent} may not be written by this user")


def write(report: Mapping[str, Any], path: Path, flag: str) -> None:
    """Write a report as one HTML page (.html) or as JSON (.json), whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    text = json.dumps(report, indent=1) + "\n" if path.suffix == ".json" else page.render(report)
    whole_file(path, flag, text)


def write_run(stages: Stages, summary: Mapping[str, Any], path: Path, *, config: ModelConfig | None = None) -> None:
    """Write the run part of a report for a run that just ended (`score --report`), HTML or JSON by the file's ending.

    The machine's ceilings are not measured: a nightly run should not spend seconds on them; `profile` does.

    Raises:
        ConfigError: it cannot be written.
    """
    facts = run_facts.describe(stages, summary, elapsed_s=float(summary["seconds"]), config=config)
    write(document("run", "score", run=facts), path, "--report")


def brief(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return one line for schedulers: the best rate of each engine, the rate of the run, and what bounds it."""
    engines, run = report["engines"], report["run"]
    rates = {
        f"{e['engine']} {e['precision']}": max((p["users_per_s"] for p in e["points"]), default=None)
        for e in engines["engines"]
    }
    return {
        "status": "ok",
        "command": "profile",
        "version": report["version"],
        "best_users_per_s": rates,
        "run_users_per_s": run and run["users_per_s"],
        "verdict": run and run["verdict"],
    }
