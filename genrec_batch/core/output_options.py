"""The options that decide what a row of the output carries, and in which form.

Owns: their sentences and checks, and the names that columns of an output have. Must not know: tables, files, how a
value is found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from genrec_batch.core.arrays import HEADS
from genrec_batch.core.declare import option
from genrec_batch.core.errors import ConfigError, nearest

ITEM_COLUMNS = ("rank", "video_id", "score", "log_prob", "step", *HEADS, "source", "propensity")
USER_COLUMNS = ("user_id", "feature_scores", "history_length", "cold_start", "arm", "bucket")
KEYS = {"long": ("user_id", "rank", "video_id"), "nested": ("user_id", "video_id"), "wide": ("user_id", "video_id")}
"""By layout: the columns without which nobody could tell whose rows these are, and in which order they stand."""
TABLES = ("videos", "users")


@dataclass(frozen=True, kw_only=True)
class Carry:
    """One entry of `--carry`."""

    name: str  # in the output
    column: str  # in the table
    table: str | None  # videos or users; None for the one that has the column


def listed(text: str, flag: str) -> tuple[str, ...]:
    """Return the names of a list with commas between.

    Raises:
        ConfigError: an empty name, or one that is there twice.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(f"{flag} {text!r}: an empty name; write names with commas between, such as user_id,video_id")
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(f"{flag}: {name!r} is there twice; name it once")
    return tuple(names)


def wide_name(name: str, rank: int) -> str:
    """Return what a column of the recommendation at a rank is called in the wide layout."""
    return f"{name}_{rank}"


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What the rows of an output carry."""

    carry: str | None = option(
        "Columns of --videos (of the recommended video) or of --users to add to every row, such as title,category; "
        "videos.NAME or users.NAME where both have it, NEW=NAME to call it NEW.",
        panel="Output",
        identity="bytes",
    )
    columns: str | None = option(
        "Columns of the output, in this order, such as user_id,rank,video_id,score. Default: all.",
        panel="Output",
        identity="bytes",
    )
    layout: str = option(
        "long: one row per user and rank; nested: one row per user with lists; wide: one row per user with columns "
        "video_id_1, video_id_2 and so on.",
        "long",
        panel="Output",
        choices=("long", "nested", "wide"),
        identity="bytes",
    )
    output_format: str = option(
        "parquet: files; delta: OUTPUT is the folder of a Delta table; iceberg: OUTPUT is "
        "iceberg://CATALOG/NAMESPACE.TABLE of a catalog that pyiceberg is configured for. A run is one commit.",
        "parquet",
        panel="Output",
        choices=("parquet", "delta", "iceberg"),
        identity="bytes",
    )
    partition_by: str | None = option(
        "Column of the output by whose values its files are put into folders COLUMN=value, as Hive does; OUTPUT is a "
        "directory.",
        panel="Output",
        identity="bytes",
    )

    def carried(self) -> tuple[Carry, ...]:
        """Return the entries of `--carry`.

        Raises:
            ConfigError: not a list of names, or a name that a column of the output has.
        """
        if self.carry is None:
            return ()
        entries = tuple(_entry(text) for text in listed(self.carry, "--carry"))
        for name, count in Counter(entry.name for entry in entries).items():
            if count > 1:
                raise ConfigError(f"--carry: two columns would be called {name!r}; call one of them NEW=NAME")
        return entries

    def chosen(self) -> tuple[str, ...] | None:
        """Return the names of `--columns`, None where all columns are written.

        Raises:
            ConfigError: a name that no output has, or one is missing that every output needs.
        """
        if self.columns is None:
            return None
        chosen = listed(self.columns, "--columns")
        known = [*USER_COLUMNS, *ITEM_COLUMNS, *(entry.name for entry in self.carried())]
        for name in chosen:
            if name not in known:
                raise ConfigError(
                    f"--columns: the output has no column {name!r}.{nearest(name, known)} It can have: "
                    f"{', '.join(known)}; --carry adds columns of --videos and --users"
                )
        if self.layout == "wide" and "rank" in chosen:
            raise ConfigError("--columns: in --layout wide a column's name ends in the rank; leave 'rank' out")
        for name in KEYS[self.layout]:
            if name not in chosen:
                raise ConfigError(
                    f"--columns: {name!r} is missing; without {' and '.join(KEYS[self.layout])} nobody can tell whose "
                    "recommendations these are, and in which order"
                )
        return chosen

    def check_output(self, top_k: int, *, videos: bool, users: bool) -> None:
        """Check the options with each other, and with whether `--videos` and `--users` are given.

        Raises:
            ConfigError: a name is unknown, missing or there twice, or a table is not given.
        """
        given = {"videos": videos, "users": users}
        for entry in self.carried():
            if entry.table is not None and not given[entry.table]:
                raise ConfigError(
                    f"--carry {entry.table}.{entry.column}: --{entry.table} is not given; name the table of "
                    f"{entry.table}"
                )
            if not any(given.values()):
                raise ConfigError(
                    f"--carry {entry.column}: goes with --videos or --users, the table that has the column"
                )
            if entry.name in _taken(self.layout, top_k):
                raise ConfigError(
                    f"--carry: the output has a column {entry.name!r} of its own; call the carried one by another "
                    f"name: my_{entry.name}={entry.column}"
                )
        chosen = self.chosen()
        if self.partition_by is not None and chosen is not None and self.partition_by not in chosen:
            raise ConfigError(
                f"--partition-by {self.partition_by}: not among --columns.{nearest(self.partition_by, list(chosen))}"
            )

    def check_target(self, target: str | None) -> None:
        """Raise ConfigError where `--partition-by` is given and the output is no directory."""
        if target is None and self.output_format != "parquet":
            raise ConfigError(f"--output-format {self.output_format}: there is no OUTPUT, so no table is written")
        if self.partition_by is not None and (target is None or target.endswith(".parquet")):
            place = "there is no OUTPUT" if target is None else f"OUTPUT {target} is one file"
            raise ConfigError(
                f"--partition-by {self.partition_by}: folders are made in a directory, and {place}; name an OUTPUT "
                "that does not end in .parquet"
            )


def _entry(text: str) -> Carry:
    name, equals, column = (side.strip() for side in text.rpartition("="))
    table, dot, rest = column.partition(".")
    of_table = bool(dot) and table in TABLES
    column = rest if of_table else column
    if not column or (equals and not name):
        raise ConfigError(f"--carry {text!r}: expected NAME, videos.NAME, users.NAME or NEW=NAME")
    return Carry(name=name or column, column=column, table=table if of_table else None)


def _taken(layout: str, top_k: int) -> Sequence[str]:
    """Return the names that columns of an output have or could have."""
    wide = [wide_name(name, rank) for name in ITEM_COLUMNS for rank in range(1, top_k + 1)] if layout == "wide" else []
    return [*USER_COLUMNS, *ITEM_COLUMNS, *wide]
