"""The options about checking an engine before a run: compared with fp32, and by which gate.

Owns: their sentences and their checks. Must not know: how engines are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from genrec_batch.core.declare import check_share, option
from genrec_batch.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How `score` checks what it computes with."""

    verify_sample: int = option(
        "Users to compare with fp32 before anything is written; 0 for none.", 0, panel="Engine", identity="none"
    )
    min_topk_overlap: float = option(
        "Smallest share of the top K in common with the reference; less is exit code 6.",
        0.98,
        panel="Engine",
        identity="none",
    )
    recheck: bool = option(
        "Whether --precision auto compares with fp32 again where an earlier run of the same model, machine, libraries "
        "and options has done so.",
        default=False,
        panel="Engine",
        flags="--recheck",
        identity="none",
    )

    def check_checks(self) -> None:
        """Raise ConfigError for a number of users or a share that is none."""
        if self.verify_sample < 0:
            raise ConfigError(f"--verify-sample {self.verify_sample}: a number of users, 0 for none")
        check_share(self, "min_topk_overlap")
