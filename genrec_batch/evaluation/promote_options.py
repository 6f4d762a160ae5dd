"""The options of `model promote`: the gates, and what of `evaluate` and `verify` decides what they measure.

Owns: one option class. Must not know: how a gate is measured.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from genrec_batch.core.declare import check_at_least, check_share, option, same_as
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import RegistryConfig, ScoreConfig
from genrec_batch.core.servers import check_here
from genrec_batch.core.verify_options import VerifyConfig
from genrec_batch.evaluation.options import EvaluateConfig
from genrec_batch.model import registry

ALIAS = "What is live is called; other aliases than champion are for comparisons."


@dataclass(frozen=True, kw_only=True)
class PromoteConfig(RegistryConfig):
    """What `model promote` takes beside NAME@N."""

    alias: str = option(ALIAS, registry.CHAMPION, panel="Model")
    only_new: bool = option(
        "Change nothing where the version, or a newer one, was live before: for a job, which must not undo a rollback.",
        default=False,
        panel="Model",
        flags="--only-new",
    )
    log: str | None = option("A log as it will be scored: gates on its catalog coverage and on parity.", panel="Test")
    min_coverage: float = option(
        "With --log: smallest share of its events whose video the version knows.", 0.5, panel="Test"
    )
    min_topk_overlap: float | None = option(
        "With --log: smallest share of the top K that the engine of the options has in common with fp32, such as 0.98.",
        panel="Test",
    )
    evaluate: str | None = option(
        "Log to evaluate the version on, and the champion on the same rows; neither may have been trained on what is "
        "tested.",
        panel="Test",
    )
    gate: tuple[str, ...] = option(
        "With --evaluate: a condition such as 'ndcg@10>=0.98*champion' or 'engagement.auc>=0.7'; may be repeated.",
        (),
        panel="Test",
    )
    max_noise: float = option(
        "A figure that falls short of its share of the champion's passes all the same where the 95% interval of the "
        "difference reaches it, and half of that interval is at most this share of the champion's figure. 0: never.",
        0.1,
        panel="Test",
    )
    test_from: str | None = same_as(EvaluateConfig, "test_from")
    leave_out: int = same_as(EvaluateConfig, "leave_out")
    ks: str = same_as(EvaluateConfig, "ks")
    seed: int = same_as(EvaluateConfig, "seed")
    users: str | None = same_as(ScoreConfig, "users")
    videos: str | None = same_as(ScoreConfig, "videos")
    extra_features: str | None = same_as(ScoreConfig, "extra_features")
    schema: str | None = same_as(ScoreConfig, "schema")
    positive: str | None = same_as(EvaluateConfig, "positive")
    as_of: str | None = same_as(EvaluateConfig, "as_of")
    since: str | None = same_as(ScoreConfig, "since")
    timezone: str | None = same_as(ScoreConfig, "timezone")
    dedupe: bool = same_as(ScoreConfig, "dedupe")
    dedupe_by: str | None = same_as(ScoreConfig, "dedupe_by")
    max_events: int = same_as(ScoreConfig, "max_events")
    seen_limit: int = same_as(ScoreConfig, "seen_limit")
    max_rejects: float = same_as(ScoreConfig, "max_rejects")
    side_tables_newest: str | None = same_as(ScoreConfig, "side_tables_newest")
    min_match: float = same_as(ScoreConfig, "min_match")
    limit: int | None = same_as(EvaluateConfig, "limit")
    decode: str = same_as(EvaluateConfig, "decode")
    include_seen: bool = same_as(ScoreConfig, "include_seen")
    engine: str = same_as(ScoreConfig, "engine")
    device: str = same_as(EvaluateConfig, "device")
    precision: str = same_as(ScoreConfig, "precision")
    batch_size: str = same_as(ScoreConfig, "batch_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not registry.ALIAS.fullmatch(self.alias):
            raise ConfigError(f"--alias {self.alias!r}: small letters, digits, _ and -, and a letter first")
        check_share(self, "min_coverage")
        check_here(self.engine, "model promote")
        check_at_least(self, max_noise=0)
        if self.min_topk_overlap is not None:
            check_share(self, "min_topk_overlap")
            if self.log is None:
                raise ConfigError("--min-topk-overlap goes with --log, whose users are compared")
        if self.gate and self.evaluate is None:
            raise ConfigError("--gate goes with --evaluate, which names the log to measure on")
        if self.evaluate is not None and not self.gate:
            raise ConfigError("--evaluate goes with --gate, such as --gate 'ndcg@10>=0.98*champion'")
        self.for_evaluation("")
        self.for_parity("")

    def for_evaluation(self, model: str) -> EvaluateConfig:
        """Return the options of an evaluation of a model; gates are judged elsewhere."""
        return EvaluateConfig(**{**self._shared(EvaluateConfig), "gate": (), "model": model})

    def for_parity(self, model: str) -> VerifyConfig:
        """Return the options of `verify` for a model."""
        shared = self._shared(VerifyConfig)
        for name in ("evaluate", "test_from", "limit", "min_topk_overlap", "decode"):
            shared.pop(name)
        if self.min_topk_overlap is not None:
            shared["min_topk_overlap"] = self.min_topk_overlap
        return VerifyConfig(**shared, model=model)

    def _shared(self, kind: type[RegistryConfig]) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(kind) if hasattr(self, f.name)}
