"""The options that say how a run is shown, and those of `profile`.

Owns: option classes, as `config.py` does; none of them decides a result. Must not know: what an option does.
"""

from __future__ import annotations

from dataclasses import dataclass

from genrec_batch.core.declare import option
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import ScoreConfig

CPU_SIZES, GPU_SIZES = "1,4,16,64,256", "1,16,256,2048,8192"


@dataclass(frozen=True, kw_only=True)
class RunConfig(ScoreConfig):
    """What the command `score` takes beside what decides its result: how the run is shown."""

    report: str | None = option(
        "Write what the run did: a page (.html) or JSON (.json).", panel="Output", identity="none"
    )
    trace: str | None = option(
        "Write a timeline (.json) that Perfetto opens: a lane per thread.", panel="Output", identity="none"
    )
    explain: str | None = option(
        "Tell why this user gets what it gets: history, seen videos, features, candidates per step; with --quiet, all "
        "of it as JSON.",
        panel="Output",
        identity="none",
    )

    @property
    def user_flag(self) -> str:
        """The option that named `user`, for errors."""
        return "--explain" if self.explain is not None else super().user_flag


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(ScoreConfig):
    """What `profile` takes: the options of `score`, and what is measured."""

    data: str | None = option("Log to profile and to run over; without one, model and engines only.", panel="Input")
    engines: tuple[str, ...] = option(
        "Engines to time, such as torch or torch:bf16,onnxruntime; default: all that are installed.", (), panel="Engine"
    )
    batch_sizes: str = option(
        f"Users per batch to time, smallest first; auto is {CPU_SIZES} on a CPU and {GPU_SIZES} on a GPU.",
        "auto",
        panel="Engine",
    )
    seconds: float = option(
        "Seconds of timing for each engine and batch size, after one run of warm-up; at least 5 runs are made.",
        2.0,
        panel="Engine",
    )
    compare: tuple[str, ...] = option(
        "Presets to set beside the model, such as lightweight,tiny; may be repeated.", (), panel="Model"
    )
    html: str | None = option("Write the report as one page that needs no network.", panel="Output")
    json: str | None = option("Write the report as JSON.", panel="Output")
    trace: str | None = option("Write the run's timeline (.json) for Perfetto: a lane per thread.", panel="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sizes()
        if not 0 <= self.seconds <= 3600:
            raise ConfigError(f"--seconds {self.seconds}: from 0 to 3600")
        if self.trace and not self.data:
            raise ConfigError("--trace goes with --data: without a log there is no run")

    def sizes(self, device: str = "cpu") -> tuple[int, ...]:
        """Return `--batch-sizes` as numbers, in rising order; `device` decides what auto means.

        Raises:
            ConfigError: not whole numbers above 0.
        """
        auto = GPU_SIZES if device.startswith("cuda") else CPU_SIZES
        parts = [part.strip() for part in (auto if self.batch_sizes == "auto" else self.batch_sizes).split(",")]
        if not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ConfigError(f"--batch-sizes {self.batch_sizes!r}: auto, or whole numbers above 0 with commas between")
        return tuple(sorted({int(part) for part in parts}))
