"""The options of `model build`: those of `score` that decide an engine's sizes, and where the engines will run.

Owns: their help texts and checks. Must not know: TensorRT, how anything is built. `core.options` describes how a field
becomes a flag.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from genrec_batch.core.declare import check_at_least, option
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.option_values import check_batch_size, check_device
from genrec_batch.core.options import PRECISIONS, RegistryConfig


@dataclass(frozen=True, kw_only=True)
class BuildConfig(RegistryConfig):
    """What `model build` takes: the options of `score` that decide an engine's sizes, and where it will run."""

    max_events: int = option("Newest events kept of each user.", 50, panel="Input")
    seen_limit: int = option("Newest distinct videos of each user that count as seen.", 1000, panel="Input")
    mean_events: float | None = option(
        "Mean kept events per user; engines that pack rows end to end are built for it, by default for full histories.",
        panel="Input",
    )
    profile_vectors: bool = option(
        "The run has profile_vector in --users.", default=False, panel="Input", flags="--profile-vectors"
    )
    video_vectors: bool = option(
        "The run has video_vector in --videos.", default=False, panel="Input", flags="--video-vectors"
    )
    top_k: int = option("Videos recommended to each user.", 10, panel="Decoding")
    decode: str = option("As in score.", "auto", panel="Decoding", choices=("auto", "slate", "candidates"))
    num_candidates: int = option("Videos that `--decode candidates` scores for each user.", 100, panel="Decoding")
    beam_width: int = option("Slates kept side by side while decoding; 1 is greedy.", 1, panel="Decoding")
    precision: str = option(
        "Number format; auto builds what `score` with auto opens: fp32 and fp16.",
        "auto",
        panel="Engine",
        choices=PRECISIONS,
    )
    batch_size: str = option("Users per batch: auto or a whole number.", "auto", panel="Engine")
    device: str = option("auto, cuda or cuda:N.", "auto", panel="Engine")
    library: str = option(
        "auto is tensorrt, or tensorrt_rtx where only that is installed.",
        "auto",
        panel="Engine",
        choices=("auto", "tensorrt", "tensorrt_rtx"),
    )
    compute_capability: str | None = option(
        "Build for another machine's GPU, such as 8.9; this machine needs no GPU (tensorrt_rtx only).", panel="Engine"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, max_events=1, seen_limit=0, top_k=1, num_candidates=1, beam_width=1)
        if self.mean_events is not None and not 0 <= self.mean_events <= self.max_events:
            raise ConfigError(f"--mean-events {self.mean_events:g}: a number from 0 to --max-events {self.max_events}")
        if self.decode == "candidates" and self.beam_width > 1:
            raise ConfigError("--beam-width goes with --decode slate, not with --decode candidates")
        check_batch_size(self.batch_size)
        check_device(self.device)
        if self.device == "cpu":
            raise ConfigError("--device cpu: TensorRT engines run on a GPU; the others need no building")
        if self.compute_capability is not None and not re.fullmatch(r"\d+\.\d", self.compute_capability):
            raise ConfigError(f"--compute-capability {self.compute_capability!r}: two numbers, such as 8.9")
