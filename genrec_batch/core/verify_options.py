"""The options of `verify`: those of `score`, and what to compare with.

Owns: their sentences, defaults and checks. Must not know: how engines are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from genrec_batch.core.declare import check_at_least, option
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import PRECISIONS, ScoreConfig
from genrec_batch.core.servers import check_here


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(ScoreConfig):
    """The options of `verify`: those of `score`, and what to compare with."""

    sample: int = option("Users to compare, spread over all history lengths.", 1024, panel="Engine")
    against: str = option(
        "Engine to compare with, on the CPU; auto is torch, else onnxruntime.",
        "auto",
        panel="Engine",
        choices=("auto", "onnxruntime", "torch"),
    )
    against_precision: str = option("Number format of that engine.", "fp32", panel="Engine", choices=PRECISIONS[1:])
    min_top1: float = option(
        "Smallest share of users with the same first video; less is exit code 6.", 0.0, panel="Engine"
    )
    max_difference: float | None = option(
        "Largest difference in log_prob or in any head; more is exit code 6.", panel="Engine"
    )
    evaluate: bool = option(
        "Also measure how much NDCG each engine and precision of the device loses.",
        default=False,
        panel="Engine",
        flags="--evaluate",
    )
    test_from: str | None = option(
        "With --evaluate: test on the events from this moment on, instead of each user's newest event.",
        panel="Engine",
    )
    max_quality_loss: float | None = option(
        "With --evaluate: largest share of NDCG that an engine may lose, such as 0.01; more is exit code 6.",
        panel="Engine",
    )

    def __post_init__(self) -> None:
        self.check_one_model("verify")
        super().__post_init__()
        self.check_one_process("verify")
        check_at_least(self, sample=1)
        if self.evaluate:
            check_here(self.engine, "--evaluate, which measures those of the device,")
        for name in ("test_from", "max_quality_loss"):
            if getattr(self, name) is not None and not self.evaluate:
                raise ConfigError(f"--{name.replace('_', '-')} goes with --evaluate")
