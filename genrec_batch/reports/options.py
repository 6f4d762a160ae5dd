"""The options for how a run is shown, and those of `profile`.

Owns: option classes, like `core/options.py`; none of them decides a result. Must not know: what an option does.
"""

from __future__ import annotations

from dataclasses import dataclass

from genrec_batch.core.declare import option
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.core.servers import check_here

CPU_SIZES, GPU_SIZES = "1,4,16,64,256", "1,16,256,2048,8192"


@dataclass(frozen=True, kw_only=True)
class RunConfig(ScoreConfig):
    """All options of the command `score`: those that decide its output, and how the run is shown."""

    report: str | None = option(
        "Write a report of the run: a page (.html) or JSON (.json).", panel="Output", identity="none"
    )
    trace: str | None = option(
        "Write a timeline of the run (.json) for Perfetto, with a lane per thread.", panel="Output", identity="none"
    )
    explain: str | None = option(
        "Explain the list of this user: history, seen videos, features, candidates per step; with --quiet, all of it "
        "as JSON.",
        panel="Output",
        identity="none",
    )

    @property
    def user_flag(self) -> str:
        """The option that `user` came from, for errors."""
        return "--explain" if self.explain is not None else super().user_flag

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.explain is not None:
            self.check_one_process("--explain")
            check_here(self.engine, "--explain, which shows each step,")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(ScoreConfig):
    """The options of `profile`: those of `score`, and what is measured."""

    data: str | None = option(
        "Log to describe and to score; without one, only the model and the engines are measured.", panel="Input"
    )
    engines: tuple[str, ...] = option(
        "Engines to time, such as torch or torch:bf16,onnxruntime; default: all that are installed.", (), panel="Engine"
    )
    batch_sizes: str = option(
        f"Users per batch to time, smallest first; auto is {CPU_SIZES} on a CPU and {GPU_SIZES} on a GPU.",
        "auto",
        panel="Engine",
    )
    seconds: float = option(
        "Seconds of timing for each engine and batch size, after one warm-up run; at least 5 runs are made.",
        2.0,
        panel="Engine",
    )
    compare: tuple[str, ...] = option(
        "Presets to show beside the model, such as lightweight,tiny; may be repeated.", (), panel="Model"
    )
    html: str | None = option("Write the report as one page that needs no network.", panel="Output")
    json: str | None = option("Write the report as JSON.", panel="Output")
    trace: str | None = option("Write the run's timeline (.json) for Perfetto, with a lane per thread.", panel="Output")

    def __post_init__(self) -> None:
        self.check_one_model("profile")
        super().__post_init__()
        self.check_one_process("profile")
        check_here(self.engine, "profile")
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
