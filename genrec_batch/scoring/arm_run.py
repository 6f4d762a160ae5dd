"""One arm of an experiment: the model and the engine that its users go through, and errors that name it.

Owns: what decides its rows, and what a summary says of it. Must not know: the other arms, who is in it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from genrec_batch.core.arm_options import Arm
from genrec_batch.core.errors import DeviceMemoryError, GenrecError, ModelError
from genrec_batch.runtime import console
from genrec_batch.scoring.model_run import Scoring

# how errors and logs about a run's model begin, where no directory or version is named
OF_THE_MODEL = ("--model ", "model: ", "untrained weights: ", "--include-seen: ", "--max-events ", "--timezone ")


@dataclass(frozen=True, kw_only=True)
class ArmRun:
    """An arm, and the engine that its users go through."""

    arm: Arm
    scoring: Scoring

    def identity(self, buckets: tuple[int, int]) -> dict[str, Any]:
        """Return what decides its rows, and whose lists they are."""
        dataset, engine = self.scoring.dataset, self.scoring.engine
        return {
            "buckets": list(buckets),
            "shadow": self.arm.shadow,
            "model": dataset.model.fingerprint,
            "catalog": dataset.catalog.fingerprint(),
            "catalog_videos": len(dataset.catalog),
            "engine": engine.name,
            "precision": engine.precision,
            "arithmetic": engine.arithmetic,
            "decode": self.scoring.feed.decoding.mode,
            "own": {name: getattr(self.scoring.config, name) for name in self.arm.own},
        }

    def facts(self, buckets: tuple[int, int]) -> dict[str, Any]:
        """Return what the summary says of it beside its counts."""
        dataset, report = self.scoring.dataset, self.scoring.report()
        version = dataset.model.version
        matches: Any = dataset.facts["matches"]
        return {
            "weight": self.arm.percent,
            "shadow": self.arm.shadow,
            "buckets": list(buckets),
            "model": dataset.model.fingerprint[:16],
            **({} if version is None else {"registry": version.facts()}),
            "trained": dataset.model.trained,
            "own": dict(self.arm.own),
            "decode": self.scoring.feed.decoding.mode,
            **{
                name: report[name]
                for name in ("engine", "device", "precision", "scored_users", "servers")
                if name in report
            },
            "catalog_videos": len(dataset.catalog),
            "catalog": matches.get("catalog", {}),
        }


@contextmanager
def of_arm(arm: Arm, *beginnings: str) -> Generator[None, None, None]:
    """Let errors and logs of an arm name it: all, or errors about its model and what begins so."""
    try:
        with console.about(f"--arm {arm.name}: ", beginnings or ("",)):
            yield
    except GenrecError as error:
        if beginnings and not (isinstance(error, ModelError) or str(error).startswith(beginnings)):
            raise
        text = f"--arm {arm.name}: {error}"
        if isinstance(error, DeviceMemoryError):
            text += "; the engines of all arms are on one device: lower --batch-size, or score fewer arms in one run"
        error.args = (text,)
        raise
