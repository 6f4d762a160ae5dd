"""The options of `model export`: the form of an export, and how a server answers with it.

Owns: their sentences, defaults and checks, and the part of them that a repository keeps. Must not know: Triton, how
anything is exported or answered. `core.options` describes how a field becomes a flag.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from genrec_batch.core.arm_options import Arm, arms_of
from genrec_batch.core.declare import check_at_least, option, same_as
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.option_values import check_device
from genrec_batch.core.options import LogConfig, ScoreConfig

FORMATS = ("onnx", "triton")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a model repository says of how its requests are answered."""

    max_events: int
    seen_limit: int
    timezone: str  # of hours and weekdays; empty: UTC
    top_k: int  # of a request that does not say it
    most_top_k: int
    most_events: int
    decode: str
    num_candidates: int
    beam_width: int
    engine: str
    device: str
    precision: str
    max_batch: int
    session_cache_mb: int = 0
    session_refresh: int = 1

    @staticmethod
    def of(stored: dict[str, Any]) -> Serving:
        """Return the options that were stored as JSON; a repository without sessions may not have those of sessions."""
        own = [field.name for field in fields(Serving) if field.name in stored or field.default is MISSING]
        return Serving(**{name: stored[name] for name in own})


@dataclass(frozen=True, kw_only=True)
class RepositoryConfig(LogConfig):
    """What decides a version of a model repository."""

    out: str | None = option(
        "The Triton model repository: a folder, to which a model or a version of it is added.",
        panel="Output",
        identity="none",
    )
    name: str = option("Name of the model in the repository.", "genrec", panel="Output", identity="none")
    precision: str = option(
        "Number format: of graphs fp32 or fp16; of a repository what its engine can.", "fp32", panel="Engine"
    )
    engine: str = option(
        "Engine of the server.", "onnxruntime", panel="Engine", choices=("onnxruntime", "tensorrt", "torch")
    )
    device: str = option("Device of the server: auto, cpu, cuda or cuda:N.", "auto", panel="Engine")
    schema: str | None = option(
        "Requests have the log's own columns: `kuairand`, or a TOML file of Polars SQL expressions.", panel="Input"
    )
    videos: str | None = option(
        "Parquet table of videos: video_id and any further columns, for features and for caps.", panel="Input"
    )
    timezone: str | None = same_as(ScoreConfig, "timezone")
    max_events: int = same_as(ScoreConfig, "max_events")
    seen_limit: int = same_as(ScoreConfig, "seen_limit")
    most_events: int = option("Events of one request, at most.", 5000, panel="Input")
    top_k: int = option("Videos recommended where a request does not say how many.", 10, panel="Decoding")
    most_top_k: int = option("Videos that a request may ask for, at most.", 100, panel="Decoding")
    decode: str = same_as(ScoreConfig, "decode")
    num_candidates: int = same_as(ScoreConfig, "num_candidates")
    beam_width: int = same_as(ScoreConfig, "beam_width")
    arm: tuple[str, ...] = option(
        "An arm of an experiment in the place of DIR: NAME=DIR:WEIGHT, with the percentage of users that it answers, "
        "such as control=model/:90; may be repeated, and the weights add up to 100.",
        (),
        panel="Arms",
    )
    salt: str | None = same_as(ScoreConfig, "salt")
    assign: str = same_as(ScoreConfig, "assign")
    max_batch: int = option("Users that are answered together, at most.", 32, panel="Engine")
    instances: int = option("Copies of the model in the server, each a process.", 1, panel="Engine")
    session_cache_mb: int = option(
        "Megabytes (2^20 bytes) of each instance for what it has read of users, so that their next requests cost new "
        "events only; 0: nothing is kept.",
        0,
        panel="Engine",
    )
    session_refresh: int = option(
        "With --session-cache-mb: new events of a user after which the features are computed again and the whole "
        "history is read.",
        5,
        panel="Engine",
    )
    queue_delay_ms: float = option(
        "Milliseconds that a request waits for others to be answered with.", 1.0, panel="Engine"
    )
    queue_limit: int = option("Requests that may wait; further ones are refused at once.", 256, panel="Engine")
    queue_timeout_ms: float = option(
        "Milliseconds after which a request that still waits is refused. A client that waits for less says so "
        "by its own deadline.",
        10_000.0,
        panel="Engine",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)
        check_at_least(
            self, max_events=1, seen_limit=0, most_events=1, top_k=1, num_candidates=1, beam_width=1, max_batch=1,
            instances=1, queue_limit=1, session_cache_mb=0, session_refresh=1,
        )  # fmt: skip
        self._check_arms()
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ConfigError(f"--name {self.name!r}: letters, digits, '_', '-' and '.', as a folder's name")
        if not (0 <= self.queue_delay_ms <= 1000 and 0 < self.queue_timeout_ms <= 3_600_000):
            raise ConfigError("--queue-delay-ms: 0 to 1000; --queue-timeout-ms: above 0, at most an hour")
        self._check_sessions()
        if self.top_k > self.most_top_k:
            raise ConfigError(f"--top-k {self.top_k} is more than --most-top-k {self.most_top_k}")

    def _check_sessions(self) -> None:
        if self.session_refresh > self.max_events:
            raise ConfigError(f"--session-refresh {self.session_refresh}: from 1 to --max-events, {self.max_events}")
        if self.session_cache_mb == 0:
            return
        if self.engine == "tensorrt" or self.device.startswith("cuda"):
            raise ConfigError("--session-cache-mb goes with --engine onnxruntime or torch, and --device cpu")

    def _check_arms(self) -> None:
        arms = self.arms()
        if bool(arms) != (self.salt is not None):
            raise ConfigError("--arm and --salt go together: the name of the experiment decides who is in which arm")
        for arm in arms:
            if arm.shadow or arm.own:
                what = "a shadow answers nobody" if arm.shadow else f"it has {', '.join(arm.own)} of its own"
                raise ConfigError(f"--arm {arm.name}: {what}; the arms of a server differ in their models only")

    def arms(self) -> list[Arm]:
        """Return the arms of an experiment, none without `--arm`.

        Raises:
            ConfigError: see `arm_options.arms_of`.
        """
        return arms_of(self.arm)

    @property
    def repository(self) -> Path:
        """The folder of `--out`."""
        assert self.out is not None
        return Path(self.out)

    def serving(self) -> dict[str, Any]:
        """Return what a repository keeps."""
        kept = {field.name: getattr(self, field.name) for field in fields(Serving)}
        return kept | {"timezone": self.timezone or ""}


@dataclass(frozen=True, kw_only=True)
class ExportConfig(RepositoryConfig):
    """What `model export` takes."""

    format: str = option(
        "onnx: graphs in DIR/onnx/; triton: a model repository for NVIDIA's Triton Inference Server.",
        "onnx",
        panel="Output",
        choices=FORMATS,
        identity="none",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format == "triton" and self.out is None:
            raise ConfigError("--format triton needs --out REPO, the folder of the model repository")
        if self.format == "onnx" and self.out is not None:
            raise ConfigError("--out goes with --format triton; graphs are written to DIR/onnx/")
        if self.format == "onnx" and self.precision not in ("fp32", "fp16"):
            raise ConfigError(f"--precision {self.precision!r}: graphs are written in fp32 or fp16")
        if self.format == "onnx" and self.arm:
            raise ConfigError("--arm goes with --format triton")
        if self.format == "onnx" and self.session_cache_mb:
            raise ConfigError("--session-cache-mb goes with --format triton")
