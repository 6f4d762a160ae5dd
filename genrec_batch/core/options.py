"""Every option once: its name, its sentence, its default and its checks.

Owns: frozen option classes whose field sentences become `--help`, what each option decides, and the checks between
fields. Must not know: Typer, or what an option does. A field `top_k` is the flag `--top-k`, the variable
`GENREC_BATCH_TOP_K` and the entry `top_k` or `top-k` of `genrec-batch.toml`, in this order of precedence.
"""

from __future__ import annotations

from dataclasses import dataclass

from genrec_batch.core.arm_options import ArmOptions
from genrec_batch.core.arrays import HEADS
from genrec_batch.core.check_options import CheckOptions
from genrec_batch.core.declare import check_at_least, check_choices, check_share, check_types, option
from genrec_batch.core.drift_options import DriftOptions
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.list_options import ListConfig
from genrec_batch.core.option_values import (
    blend_of,
    check_batch_size,
    check_positions,
    check_since,
    moment_us,
    size_bytes,
    span_us,
)
from genrec_batch.core.output_options import OutputOptions
from genrec_batch.core.rule_options import RuleConfig
from genrec_batch.core.servers import check_engine
from genrec_batch.core.worker_options import WorkerOptions

ENGINES = ("auto", "tensorrt", "onnxruntime", "torch")
PRECISIONS = ("auto", "fp32", "bf16", "bf16-fast", "fp16", "fp16-fast", "int8", "int8-fast", "fp8")
BLENDABLE = (*HEADS, "log_prob")
NEXT_TO_NONE = 0.01  # share of ids in common below which two inputs do not belong together


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is printed on stderr, and how long nothing may happen."""

    quiet: bool = option(
        "Print only warnings and errors on stderr.",
        default=False,
        panel="Output",
        flags="--quiet",
        identity="none",
    )
    verbose: bool = option("Print more on stderr.", default=False, panel="Output", flags="--verbose", identity="none")
    log_format: str = option(
        "Format of the logs on stderr: text or JSON lines.",
        "text",
        panel="Output",
        choices=("text", "json"),
        identity="none",
    )
    stall_limit: float = option(
        "Seconds without progress after which the run ends with exit code 75; 0 for no limit.",
        1800.0,
        panel="Output",
        identity="none",
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_choices(self)
        check_at_least(self, stall_limit=0)


@dataclass(frozen=True, kw_only=True)
class RegistryConfig(LogConfig):
    """Where the registry of models is."""

    registry: str | None = option("Directory of the model registry.", panel="Model", identity="none")


@dataclass(frozen=True, kw_only=True)
class HistoryConfig(RegistryConfig):
    """Which log and tables are read, and how they become histories."""

    model: str | None = option(
        "Model directory, by path or URI (s3://, gs://, az://), or registry:NAME@champion or registry:NAME@3 of "
        "--registry; without one, untrained reference weights rank by chance, with a warning.",
        panel="Model",
        identity="content",
    )
    users: str | None = option(
        "Parquet table of users: user_id and any further columns.", panel="Input", identity="content"
    )
    videos: str | None = option(
        "Parquet table of videos: video_id and any further columns.", panel="Input", identity="content"
    )
    extra_features: str | None = option(
        "Parquet table of user_id and a list of further features, for a model that was trained with one.",
        panel="Input",
        identity="content",
    )
    schema: str | None = option(
        "Names of the log's columns: `kuairand`, or a TOML file of Polars SQL expressions.",
        panel="Input",
        identity="content",
    )
    as_of: str | None = option(
        "Score as of this moment, in ISO 8601, UTC by default; later events are ignored. "
        "Default: the log's last timestamp.",
        panel="Input",
        identity="bytes",
    )
    since: str | None = option(
        "Leave out events before this moment, or older than this span before as-of, such as 30d.",
        panel="Input",
        identity="bytes",
    )
    max_events: int = option("Number of newest events kept for each user.", 50, panel="Input", identity="bytes")
    seen_limit: int = option(
        "Number of newest distinct videos of each user that count as seen.", 1000, panel="Input", identity="bytes"
    )
    max_rejects: float = option(
        "Share of rows that may be rejected, for whatever reason, before the run fails with exit code 6.",
        0.05,
        panel="Input",
        identity="bytes",
    )
    verify_input: str | None = option(
        "Check the inputs before anything is written: `pages` reads all Parquet files once more and compares the "
        "checksums of their pages, where they have some; the path of an earlier output compares the contents with "
        "those that it was made from. A difference is exit code 3.",
        panel="Input",
        identity="none",
    )
    min_match: float = option(
        "Smallest share of ids that the model's catalog and each table must have in common with the log, of the side "
        "with fewer ids; less is exit code 6, and next to none (0.01) exit code 3 or 4. 0 for no limit.",
        NEXT_TO_NONE,
        panel="Input",
        identity="none",
    )
    timezone: str | None = option(
        "Time zone, such as Europe/Berlin, of hours and weekdays that are derived from timestamp. Default: UTC.",
        panel="Input",
    )
    dedupe: bool = option(
        "Whether to drop events of a user that are equal in all columns that are read.",
        default=False,
        panel="Input",
        flags="--dedupe",
    )
    dedupe_by: str | None = option(
        "Drop events of a user that are equal in these columns, such as video_id,timestamp; the first one stays.",
        panel="Input",
    )
    side_tables_newest: str | None = option(
        "Column of --users and --videos, such as updated_at: of an id's rows, the one with its largest value counts.",
        panel="Input",
    )
    rejects: str | None = option(
        "Parquet file for rejected rows: input, reason, file, row and values.", panel="Input", identity="none"
    )
    strict: bool = option(
        "Whether any warning ends the run with exit code 6 before anything is published.",
        default=False,
        panel="Input",
        flags="--strict",
        identity="none",
    )
    limit: int | None = option("Score only the first N users by id.", panel="Input", identity="bytes")
    user: tuple[str, ...] = option(
        "Score only this user and print the result; may be repeated.", (), panel="Input", identity="bytes"
    )
    users_only: str | None = option(
        "Table with a column user_id, or a text with an id on each line: score only these of the users.",
        panel="Input",
        identity="content",
    )
    if_exists: str | None = option(
        "What to do if the output exists; append is for tables. Default: resume an identical unfinished run, else "
        "fail.",
        panel="Output",
        choices=("error", "resume", "overwrite", "append"),
        identity="none",
    )
    shard_users: int = option(
        "Users per shard, which is one part of the output: the most that a killed run loses.",
        16384,
        panel="Output",
        identity="bytes",
    )
    memory_limit: str = option(
        "Memory for events and histories, such as 512MiB or 8GiB; a larger log is split on disk first. "
        "The output does not depend on it.",
        "1GiB",
        panel="Input",
        identity="none",
    )
    spill_dir: str | None = option(
        "Folder for events that do not fit in memory, and for copies of texts; default: the folder of OUTPUT.",
        panel="Input",
        identity="none",
    )

    @property
    def user_flag(self) -> str:
        """The option that `user` came from, for errors."""
        return "--user"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, max_events=1, seen_limit=0, shard_users=1)
        self.memory_bytes()
        if self.users_only is not None and self.user:
            raise ConfigError(f"{self.user_flag} goes without --users-only: both name the users to score")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit}: at least 1")
        if not 0 <= self.max_rejects <= 1:
            raise ConfigError(f"--max-rejects {self.max_rejects}: a share from 0 to 1")
        check_share(self, "min_match")
        check_since(self.since, self.as_of_us())

    def memory_bytes(self) -> int:
        """Return `--memory-limit` in bytes.

        Raises:
            ConfigError: not a number of KiB, MiB or GiB, or less than 1 MiB.
        """
        return size_bytes(self.memory_limit, "--memory-limit")

    def as_of_us(self) -> int | None:
        """Return `--as-of` as epoch microseconds.

        Raises:
            ConfigError: not an ISO 8601 date or moment.
        """
        return None if self.as_of is None else moment_us(self.as_of, "--as-of")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(
    WorkerOptions, ArmOptions, CheckOptions, DriftOptions, OutputOptions, RuleConfig, ListConfig, HistoryConfig
):
    """All options of `score` that decide or check its output."""

    top_k: int = option("Videos recommended to each user.", 10, panel="Decoding")
    decode: str = option(
        "slate: each video is chosen given those before it; candidates: the best after the history, scored together; "
        "auto: what ranked better on the model's validation, else slate.",
        "auto",
        panel="Decoding",
        choices=("auto", "slate", "candidates"),
    )
    num_candidates: int = option("Videos that `--decode candidates` scores for each user.", 100, panel="Decoding")
    beam_width: int = option("Slates kept in parallel while decoding; 1 is greedy decoding.", 1, panel="Decoding")
    candidates: str | None = option(
        "Parquet table of user_id and a list of video_id, or a row for each: score these videos instead.",
        panel="Decoding",
        identity="content",
    )
    weights: str | None = option(
        "Rank by this blend instead of log_prob, such as recommendation=0.4,engagement=0.3,log_prob=0.1.",
        panel="Decoding",
    )
    include_seen: bool = option(
        "Whether videos that the user has seen may be recommended.",
        default=False,
        panel="Decoding",
        flags="--include-seen/--exclude-seen",
    )
    engine: str = option(
        "Engine that computes: auto, tensorrt, onnxruntime or torch; auto reports its choice and why. "
        "triton://HOST:PORT,HOST:PORT/MODEL?wait=60 are Triton servers with a repository of `model export --format "
        "triton`, by their gRPC ports, or tritons:// with TLS; MODEL (genrec) and the seconds to wait where no server "
        "answers may be left out.",
        "auto",
        panel="Engine",
        offers=ENGINES,
        identity="content",
    )
    precision: str = option(
        "Number format; auto takes the fastest but fp8 that keeps 98% of fp32's top 10.",
        "auto",
        panel="Engine",
        choices=PRECISIONS,
        identity="content",
    )
    batch_size: str = option("Users per batch: auto or a whole number.", "auto", panel="Engine", identity="bytes")
    previous: str | None = option(
        "Earlier output of this command: users with the same input, model and options keep their rows.",
        panel="Input",
        identity="none",
    )
    carry_for: str | None = option(
        "With --previous: users without new events keep their rows although as-of moved, up to this age, such as 7d.",
        panel="Input",
        identity="bytes",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, top_k=1, num_candidates=1, beam_width=1)
        if self.candidates and self.beam_width > 1:
            raise ConfigError("--beam-width goes with --decode slate, not with --candidates")
        if self.decode == "candidates" and self.beam_width > 1:
            raise ConfigError("--beam-width goes with --decode slate, not with --decode candidates")
        if self.decode == "candidates" and not self.candidates and self.num_candidates < self.top_k:
            raise ConfigError(f"--num-candidates {self.num_candidates} is less than --top-k {self.top_k}")
        if self.carry_for is not None and self.previous is None:
            raise ConfigError("--carry-for goes with --previous, which names the output whose rows are kept")
        self.carry_us()
        self.check_output(self.top_k, videos=self.videos is not None, users=self.users is not None)
        self.check_drift()
        check_batch_size(self.batch_size)
        self.check_workers()
        check_engine(self.engine, self.device, ENGINES)
        self.check_checks()
        self.blend()
        self.check_rules(videos=self.videos, candidates=self.candidates)
        scored = None if self.candidates else self.num_candidates
        self.check_lists(self.list_decode, self.top_k, scored, beams=self.beam_width, videos=self.videos)
        self.check_arms(self.model)

    @property
    def list_decode(self) -> str:
        """`--decode`; auto becomes candidates where rules compose lists, since these have a pool to choose from."""
        return "candidates" if self.composes and self.decode == "auto" else self.decode

    def check_positions(self, have: int) -> None:
        """Raise ConfigError unless a history and the items read after it fit a model's positions."""
        slate = self.list_decode != "candidates" and not self.candidates
        check_positions(have, events=self.max_events, items=self.pool_steps(self.top_k) if slate else 1)

    def carry_us(self) -> int:
        """Return `--carry-for` in microseconds, 0 where it is not given.

        Raises:
            ConfigError: not a span of time.
        """
        return 0 if self.carry_for is None else span_us(self.carry_for, "--carry-for")

    def blend(self) -> dict[str, float] | None:
        """Return `--weights` by name, None for ranking by log_prob.

        Raises:
            ConfigError: an unknown name, a name given twice, or not a finite number.
        """
        return None if self.weights is None else blend_of(self.weights, BLENDABLE)
