"""The options of `train`, and what they mean for each preset.

Owns: the option class, its checks, the sizes and the recipe of a preset. Must not know: Typer, torch, files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

from genrec_batch.core.declare import check_at_least, check_share, option, same_as
from genrec_batch.core.errors import ConfigError, ModelError
from genrec_batch.core.option_values import check_device, check_since, moment_us
from genrec_batch.core.options import NEXT_TO_NONE, HistoryConfig, RegistryConfig
from genrec_batch.model.weights import PRESETS, ModelConfig

HORIZON = 25  # events after a cut that are predicted one by one, as a slate is decoded
LEAST_HORIZON = 4
UNITS_S = {"s": 1, "m": 60, "h": 3600}
SIZES = ("layers", "width", "heads", "ffn", "positions")
DEFAULT_PRESET = "lightweight"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a preset learns best with; measured, see `docs/benchmarks`."""

    lr: float
    batch_size: int = 64
    dropout: float = 0.2


RECIPES = {
    "reference": Recipe(lr=3e-4),
    "high-performance": Recipe(lr=2e-4),
    "lightweight": Recipe(lr=7e-4),
    "tiny": Recipe(lr=2e-3),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RegistryConfig):
    """Everything that `train` takes beside EVENTS and `--out`."""

    users: str | None = same_as(HistoryConfig, "users")
    videos: str | None = same_as(HistoryConfig, "videos")
    extra_features: str | None = option(
        "Parquet table of user_id and a list of further features: the model reads them beside the 1024, and scoring "
        "with it needs such a table.",
        panel="Input",
        identity="content",
    )
    schema: str | None = same_as(HistoryConfig, "schema")
    as_of: str | None = option(
        "Learn from events up to this moment, ISO 8601, UTC unless it says otherwise. Default: all of them.",
        panel="Input",
    )
    since: str | None = option(
        "Leave out events before this moment, or older than this span before as-of, such as 90d.", panel="Input"
    )
    timezone: str | None = option(
        "Time zone, such as Europe/Berlin, of hours and weekdays that are derived from timestamp; scoring must use the "
        "same. Default: UTC.",
        panel="Input",
    )
    dedupe: bool = same_as(HistoryConfig, "dedupe")
    dedupe_by: str | None = same_as(HistoryConfig, "dedupe_by")
    max_rejects: float = same_as(HistoryConfig, "max_rejects")
    side_tables_newest: str | None = same_as(HistoryConfig, "side_tables_newest")
    rejects: str | None = same_as(HistoryConfig, "rejects")
    min_match: float = option(
        "Smallest share of ids that each table must have in common with the log, of the side with fewer ids; less is "
        "exit code 6, and next to none (0.01) exit code 3. 0 for no limit.",
        NEXT_TO_NONE,
        panel="Input",
        identity="none",
    )
    positive: str | None = option(
        "Column of the log that the recommendation head predicts, such as long_view. Default: complete, or watched for "
        "18 seconds.",
        panel="Input",
    )
    max_events: int = option("Newest events of a history that the model reads; score with as many.", 50, panel="Input")
    preset: str = option("Sizes of the model.", DEFAULT_PRESET, panel="Model", choices=tuple(PRESETS))
    vocab_size: int | None = option(
        "Tokens: two more than the videos that can be recommended. Default: the preset's.", panel="Model"
    )
    layers: int | None = option("Encoder layers. Default: the preset's.", panel="Model")
    width: int | None = option("Hidden size. Default: the preset's.", panel="Model")
    heads: int | None = option("Attention heads. Default: the preset's.", panel="Model")
    ffn: int | None = option("Inner size of the feed-forward layers. Default: the preset's.", panel="Model")
    positions: int | None = option("Position table. Default: the preset's.", panel="Model")
    init_from: str | None = option(
        "Model directory, or registry:NAME@champion, to begin with; embeddings are mapped by video_id, so the catalog "
        "may differ.",
        panel="Model",
        identity="content",
    )
    valid_from: str | None = option(
        "Validate on the events from this moment on, ISO 8601. Default: on the last day if it has 500 users and the "
        "log's times are a clock's, else on each user's newest event.",
        panel="Training",
    )
    valid_fraction: float | None = option("Validate on this share of the newest events.", panel="Training")
    leave_one_out: bool = option(
        "Validate on each user's newest event.", default=False, panel="Training", flags="--leave-one-out"
    )
    epochs: int | None = option(
        "Passes over the log at most; it stops early where validation no longer improves. Default: by the log's size.",
        panel="Training",
    )
    batch_size: int | None = option("Rows of a step. Default: the preset's, 64.", panel="Training")
    lr: float | None = option("Highest learning rate. Default: the preset's.", panel="Training")
    dropout: float | None = option("Share of activations dropped. Default: the preset's.", panel="Training")
    seed: int = option("Same seed, same model, on one machine's CPU.", 1, panel="Training")
    time_limit: str | None = option(
        "Time that training may take, such as 45m or 2h: fewer epochs are planned.", panel="Training"
    )
    set_epochs: int = option(
        "More epochs in which the order of what follows is shuffled in tens; kept where lists then validate better.",
        0,
        panel="Training",
    )
    refit: bool = option(
        "Whether to train again on the whole log, for the epochs that validation found.",
        default=True,
        panel="Training",
        flags="--refit/--no-refit",
    )
    include_seen: bool = option(
        "Whether the model is to recommend videos that a user has seen.",
        default=False,
        panel="Training",
        flags="--include-seen/--exclude-seen",
    )
    device: str = option("auto, cpu, cuda or cuda:N.", "auto", panel="Engine")
    precision: str = option(
        "Number format of products; weights are fp32. auto: bf16 where the device is fast at it.",
        "auto",
        panel="Engine",
        choices=("auto", "fp32", "bf16"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, max_events=1, set_epochs=0)
        check_device(self.device)
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: at least 1")
        if not 0 <= self.max_rejects <= 1:
            raise ConfigError(f"--max-rejects {self.max_rejects}: a share from 0 to 1")
        check_share(self, "min_match")
        check_since(self.since, self.as_of_us())
        if self.lr is not None and not 0 < self.lr < 1:
            raise ConfigError(f"--lr {self.lr}: above 0 and below 1")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"--dropout {self.dropout}: from 0 to below 1")
        if self.valid_fraction is not None and not 0 < self.valid_fraction < 1:
            raise ConfigError(f"--valid-fraction {self.valid_fraction}: above 0 and below 1")
        ways = [self.valid_from is not None, self.valid_fraction is not None, self.leave_one_out]
        if sum(ways) > 1:
            raise ConfigError("--valid-from, --valid-fraction and --leave-one-out: only one of them")
        self.valid_from_us()
        self.as_of_us()
        self.time_limit_s()
        self.sizes()

    def as_of_us(self) -> int | None:
        """Return `--as-of` as epoch microseconds."""
        return None if self.as_of is None else moment_us(self.as_of, "--as-of")

    def valid_from_us(self) -> int | None:
        """Return `--valid-from` as epoch microseconds."""
        return None if self.valid_from is None else moment_us(self.valid_from, "--valid-from")

    def time_limit_s(self) -> float | None:
        """Return `--time-limit` in seconds.

        Raises:
            ConfigError: not a number with s, m or h.
        """
        if self.time_limit is None:
            return None
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", self.time_limit)
        if match is None or not float(match[1]):
            raise ConfigError(f"--time-limit {self.time_limit!r}: a time such as 90s, 45m or 2h")
        return float(match[1]) * UNITS_S[match[2]]

    def sizes(self) -> ModelConfig:
        """Return the model's sizes: the preset's, but for those that are given.

        Raises:
            ConfigError: they do not go together, or the positions hold no history with what is predicted after it.
        """
        given = {name: getattr(self, name) for name in SIZES if getattr(self, name) is not None}
        if self.vocab_size is not None:
            given["vocabulary"] = self.vocab_size
        try:
            sizes = replace(PRESETS[self.preset], **given)
        except ModelError as error:
            raise ConfigError(f"the sizes do not go together: {error}") from error
        self.check_positions(sizes)
        return sizes

    def has_sizes(self) -> bool:
        """Return whether any size is given, beside the vocabulary."""
        return self.preset != DEFAULT_PRESET or any(getattr(self, name) is not None for name in SIZES)

    def check_positions(self, sizes: ModelConfig) -> None:
        """Raise ConfigError unless a model's positions hold a history and what is predicted after it."""
        most = sizes.positions - 1 - LEAST_HORIZON
        if self.max_events > most:
            raise ConfigError(
                f"--max-events {self.max_events} needs {1 + self.max_events + LEAST_HORIZON} positions, and the model "
                f"has {sizes.positions}: give --positions, or at most {most} events"
            )

    def horizon(self, sizes: ModelConfig) -> int:
        """Return how many events after a cut are predicted."""
        return min(HORIZON, sizes.positions - 1 - self.max_events)

    def recipe(self) -> Recipe:
        """Return the preset's recipe, but for what is given."""
        names = [field.name for field in fields(Recipe)]
        return replace(
            RECIPES[self.preset], **{name: getattr(self, name) for name in names if getattr(self, name) is not None}
        )
