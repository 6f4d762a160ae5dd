"""The option about drift: how far a run's inputs and scores may move before its output is not published.

Owns: its sentence and its check. Must not know: what is compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from genrec_batch.core.declare import option
from genrec_batch.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DriftOptions:
    """What `score` makes of drift."""

    max_drift: float | None = option(
        "Largest population stability index of any input or score against the model's training and the output of "
        "--previous, such as 0.25; more is exit code 6 before anything is published. Default: a warning from 0.25 on.",
        panel="Output",
        identity="none",
    )

    def check_drift(self) -> None:
        """Raise ConfigError for a limit that is no index."""
        if self.max_drift is not None and not (math.isfinite(self.max_drift) and self.max_drift >= 0):
            raise ConfigError(f"--max-drift {self.max_drift}: a number from 0 on, such as 0.25")
