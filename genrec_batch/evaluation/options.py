"""The options of `evaluate`: those of `score` that decide a ranking, and how it is judged.

Owns: one option class. Must not know: what an option does. An option that `score` has too is declared there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from genrec_batch.core.declare import check_at_least, option, same_as
from genrec_batch.core.errors import ConfigError, nearest
from genrec_batch.core.option_values import moment_us
from genrec_batch.core.options import RegistryConfig, ScoreConfig
from genrec_batch.core.servers import check_here
from genrec_batch.engines.choose import mode_of
from genrec_batch.engines.decode import Decoding
from genrec_batch.evaluation import metrics
from genrec_batch.model.weights import Model

DECLARED = {field.name: field for field in dataclasses.fields(ScoreConfig)}
MODES = ("candidates", "slate")
LONG = 10  # events that the longer horizon looks ahead
MAIN_K = 10  # of the metrics that are shown first, where `--ks` has it
MOST_K = 1000


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RegistryConfig):
    """What `evaluate` takes beside EVENTS."""

    model: str | None = same_as(ScoreConfig, "model")
    recs: str | None = option(
        "Judge this earlier output of `score` instead of a model: by the events after the moment it was made for, or "
        "from --test-from on.",
        panel="Model",
    )
    users: str | None = same_as(ScoreConfig, "users")
    videos: str | None = same_as(ScoreConfig, "videos")
    extra_features: str | None = same_as(ScoreConfig, "extra_features")
    schema: str | None = same_as(ScoreConfig, "schema")
    positive: str | None = option(
        "Column of the log that is the label of the recommendation head, such as long_view. Default: complete, or "
        "watched for 18 s.",
        panel="Input",
    )
    as_of: str | None = option(
        "End of the test: later events are ignored. Default: the log's last timestamp.", panel="Input"
    )
    since: str | None = same_as(ScoreConfig, "since")
    timezone: str | None = same_as(ScoreConfig, "timezone")
    dedupe: bool = same_as(ScoreConfig, "dedupe")
    dedupe_by: str | None = same_as(ScoreConfig, "dedupe_by")
    test_from: str | None = option(
        "Test on the events from this moment on, ISO 8601, UTC unless it says otherwise; the events before it are the "
        "history. --as-of ends the test.",
        panel="Test",
    )
    leave_one_out: bool = option(
        "Test on the newest event of each user; the default without --test-from.",
        default=False,
        panel="Test",
        flags="--leave-one-out",
    )
    leave_out: int = option("Test on this many of the newest events of each user instead of one.", 1, panel="Test")
    ks: str = option("Lengths of the lists that are judged.", "1,5,10,20", panel="Test")
    gate: tuple[str, ...] = option(
        "A condition such as 'ndcg@10>=0.02', 'slate.next10.recall@10>=0.1' or 'engagement.auc>=0.7', else exit code "
        "6; may be repeated.",
        (),
        panel="Test",
    )
    seed: int = option("Same seed, same intervals.", 1, panel="Test")
    max_events: int = same_as(ScoreConfig, "max_events")
    seen_limit: int = same_as(ScoreConfig, "seen_limit")
    max_rejects: float = same_as(ScoreConfig, "max_rejects")
    side_tables_newest: str | None = same_as(ScoreConfig, "side_tables_newest")
    rejects: str | None = same_as(ScoreConfig, "rejects")
    min_match: float = same_as(ScoreConfig, "min_match")
    limit: int | None = option("Test only the first N users by id.", panel="Input")
    decode: str = option(
        "Ways of making a list, with commas between: candidates ranks the whole catalog after the history; slate "
        "chooses each video given those before it; auto is what `score` takes with the model.",
        "candidates,slate",
        panel="Decoding",
    )
    num_candidates: int = option(
        "Videos that `--decode candidates` scores for each user where --weights ranks them.", 100, panel="Decoding"
    )
    beam_width: int = same_as(ScoreConfig, "beam_width")
    weights: str | None = same_as(ScoreConfig, "weights")
    include_seen: bool = same_as(ScoreConfig, "include_seen")
    engine: str = same_as(ScoreConfig, "engine")
    device: str = option("Device of the engine: auto, cpu, cuda or cuda:N.", "auto", panel="Engine", identity="content")
    precision: str = same_as(ScoreConfig, "precision")
    batch_size: str = same_as(ScoreConfig, "batch_size")
    html: str | None = option("Write the report as one page that needs no network.", panel="Output")
    json: str | None = option("Write the report as JSON.", panel="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.as_score().check_one_process("evaluate")
        check_here(self.engine, "evaluate, which looks at each step,")
        self.moment_us()
        check_at_least(self, leave_out=1, seed=0)
        if self.test_from is not None and (self.leave_one_out or self.leave_out > 1):
            flag = "--leave-one-out" if self.leave_one_out else "--leave-out"
            raise ConfigError(f"{flag} goes without --test-from: the test is the newest events or those from a moment")
        if self.leave_one_out and self.leave_out > 1:
            raise ConfigError(f"--leave-out {self.leave_out}: --leave-one-out says one")
        if self.recs is not None and (self.leave_one_out or self.leave_out > 1):
            raise ConfigError("--recs is judged by what came later: --test-from names the moment, not --leave-out")
        if self.num_candidates < self.lengths()[-1] and self.weights is not None and "candidates" in self.modes():
            raise ConfigError(f"--num-candidates {self.num_candidates} is less than the {self.lengths()[-1]} of --ks")

    def moment_us(self) -> int | None:
        """Return `--test-from` as epoch microseconds.

        Raises:
            ConfigError: not an ISO 8601 date or moment.
        """
        return None if self.test_from is None else moment_us(self.test_from, "--test-from")

    def as_score(self) -> ScoreConfig:
        """Return the options that `score` has too, checked as there.

        Raises:
            ConfigError: see `ScoreConfig`.
        """
        shared = {name: getattr(self, name) for name in DECLARED if hasattr(self, name) and name != "decode"}
        slates = "slate" in self.modes()
        return ScoreConfig(
            **{**shared, "num_candidates": max(self.num_candidates, self.lengths()[-1])},
            decode="slate" if slates else "candidates",
            top_k=self.lengths()[-1],
        )

    def lengths(self) -> tuple[int, ...]:
        """Return `--ks` as rising numbers.

        Raises:
            ConfigError: not whole numbers from 1 on.
        """
        parts = [part.strip() for part in self.ks.split(",")]
        if not all(part.isdigit() and 0 < int(part) <= MOST_K for part in parts):
            raise ConfigError(f"--ks {self.ks!r}: whole numbers from 1 to {MOST_K} with commas between")
        return tuple(sorted({int(part) for part in parts}))

    def main_k(self) -> int:
        """Return the length of list whose metrics are shown first."""
        ks = self.lengths()
        return MAIN_K if MAIN_K in ks else ks[-1]

    def modes(self) -> tuple[str, ...]:
        """Return `--decode` as names, each once; all of them where it is still auto.

        Raises:
            ConfigError: not names of ways to decode.
        """
        parts, known = [part.strip() for part in self.decode.split(",")], [*MODES, "auto"]
        for part in parts:
            if part not in known:
                raise ConfigError(f"--decode {part!r} is not one of {', '.join(known)}.{nearest(part, known)}")
        return MODES if "auto" in parts else tuple(dict.fromkeys(parts))

    def for_model(self, model: Model) -> EvaluateConfig:
        """Return the same with what `--decode auto` means for a model."""
        usual = mode_of("auto", self.beam_width, model)
        named = [usual if part.strip() == "auto" else part.strip() for part in self.decode.split(",")]
        return dataclasses.replace(self, decode=",".join(named))

    def decoding(self, mode: str, tokens: int) -> Decoding:
        """Return how lists of the longest length are made, from a catalog of `tokens`."""
        longest = self.lengths()[-1]
        return Decoding(
            mode=mode,
            top_k=longest,
            num_candidates=min(self.num_candidates if self.weights is not None else longest, tokens),
            beam_width=min(self.beam_width, tokens) if mode == "slate" else 1,
        )

    def horizons(self) -> tuple[int, ...]:
        """Return how many events ahead a list is judged by."""
        return (1, LONG) if self.test_from is not None or self.recs is not None or self.leave_out > 1 else (1,)

    def lists(self) -> tuple[str, ...]:
        """Return the names of the lists that are judged."""
        return ("recs",) if self.recs is not None else self.modes()

    def measurable(self, heads: tuple[str, ...], head_metrics: tuple[str, ...]) -> list[str]:
        """Return the names that `--gate` may use: `ndcg@10` is of the main list and the next video."""
        of_lists = [
            f"{name}{horizon}{metric}"
            for name in ("", *(f"{each}." for each in self.lists()))
            for horizon in ("", *(f"next{ahead}." for ahead in self.horizons() if ahead > 1))
            for metric in metrics.names(self.lengths())
        ]
        return of_lists + [f"{head}.{metric}" for head in heads for metric in head_metrics]
