"""What a run records of what its users go through, without the thing itself, which may be in another process.

Owns: these facts. Must not know: engines, arms, files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genrec_batch.engines.protocol import Engine


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What of an engine decides the bytes of an output."""

    name: str
    device: str  # its kind: cpu or cuda
    precision: str
    arithmetic: str

    @staticmethod
    def of(engine: Engine) -> EngineFacts:
        """Return the facts of an open engine."""
        return EngineFacts(
            name=engine.name,
            device=engine.device.partition(":")[0],
            precision=engine.precision,
            arithmetic=engine.arithmetic,
        )


@dataclass(frozen=True, kw_only=True)
class About:
    """What decides rows and bytes beside the options and the inputs."""

    engine: EngineFacts  # or that of the first arm
    identity: dict[str, Any]  # what decides rows beside what every run has
    scope: dict[str, Any]  # what decides rows of all users and is neither in the identity nor in the options
    form: str  # see `Shape.form`
    needs: list[str] | None  # see `Shape.needs`
