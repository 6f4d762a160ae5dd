"""The tables of rules: `--exclude` and `--only` with the log's own types of ids, and upload times for `--max-age`.

Owns: which of their rows count at as-of, and which column has the time of upload. Must not know: tokens, what becomes
of a rule. In: paths, the log's side of the joins, and as-of. Out: `RuleTables`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from genrec_batch.core.errors import ConfigError, InputError, nearest
from genrec_batch.core.rule_options import MaxAge, RuleConfig
from genrec_batch.events import user_list
from genrec_batch.events.earlier import Earlier, earlier_outputs
from genrec_batch.events.given_ids import same_type
from genrec_batch.events.joins import Joins, Side
from genrec_batch.events.moments import is_moment, moments_us
from genrec_batch.events.table_rows import TableRules
from genrec_batch.io import read
from genrec_batch.model.catalog import Catalog
from genrec_batch.runtime import console
from genrec_batch.runtime.console import LOG

FROM, UNTIL = "from", "until"  # columns of moments between which a row counts
UPLOADED = ("created_at", "upload_time", "uploaded_at", "published_at", "upload_dt", "publish_time", "create_time")
OTHER_USER = "user_id as it was given"

Kind = Literal["exclude", "only"]


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One table of `--exclude` or `--only`: its rows that count at as-of, with ids of the log's types."""

    kind: Kind
    path: str
    rows: pl.DataFrame  # video_id, and user_id where it is a table of users' own videos
    left_out: int  # rows whose time is not now

    @property
    def name(self) -> str:
        """What the rule is called in errors and summaries."""
        return f"--{self.kind} {self.path}"

    @property
    def per_user(self) -> bool:
        """Whether each row is about one user."""
        return "user_id" in self.rows.columns


@dataclass(frozen=True, kw_only=True)
class RuleTables:
    """What a run was given about which videos may be recommended."""

    listed: tuple[Listed, ...] = ()
    earlier: tuple[Earlier, ...] = ()
    uploaded: pl.DataFrame | None = None  # video_id and us, null where the table has no time

    def __bool__(self) -> bool:
        return bool(self.listed or self.earlier or self.uploaded is not None)


def read_rules(
    config: RuleConfig,
    uploaded: pl.DataFrame | None,
    joins: Joins,
    catalog: Catalog,
    as_of_us: int,
    inputs: dict[str, read.Source],
    rules: TableRules,
) -> RuleTables:
    """Read the tables of rules with the log's own types of ids and add them to the inputs.

    Raises:
        InputError: not readable, none of the videos is known, a table of `--only` has no row that counts, or an earlier
            output is damaged or none.
        GateError: too many rows are rejected.
    """
    with console.busy("reading the tables of rules"):
        pairs: list[tuple[Kind, str]] = [("exclude", path) for path in config.exclude]
        pairs += [("only", path) for path in config.only]
        listed = [_listed(kind, path, joins, catalog, as_of_us, inputs, rules) for kind, path in pairs]
        return RuleTables(
            listed=tuple(listed),
            earlier=earlier_outputs(config, as_of_us, joins, inputs),
            uploaded=uploaded,
        )


def _listed(
    kind: Kind,
    path: str,
    joins: Joins,
    catalog: Catalog,
    as_of_us: int,
    inputs: dict[str, read.Source],
    rules: TableRules,
) -> Listed:
    flag, where = f"--{kind}", f"--{kind} {path}"
    name = next(name for at in range(len(inputs) + 1) if (name := f"{kind}_{at + 1}" if at else kind) not in inputs)
    if user_list.is_one(path):
        ids, inputs[name] = user_list.read(path, where, joins.videos.dtype, "video_id")
        rows = ids.to_frame()
        left_out = 0
    else:
        frame, inputs[name] = read.table(path, flag, "video_id", lambda lazy: lazy, rules.spill_to)
        rows, left_out = _rows(frame, where, name, joins, as_of_us, inputs[name], rules)
    if kind == "only" and not len(rows):
        said = f"none of its {left_out:,} rows counts at as-of" if left_out else "no rows"
        raise InputError(f"{where}: {said}, so nothing could be recommended; give videos, or omit the option")
    if left_out:
        LOG.info("%s: %s rows do not count at as-of, by their from and until", where, f"{left_out:,}")
    if len(rows):
        joins.rule(name, Side(name=where, ids=rows["video_id"].unique(maintain_order=True)), catalog)
        if "user_id" in rows.columns:
            joins.table(f"{name}_users", Side(name=where, ids=rows["user_id"].unique(maintain_order=True)), "user_id")
    else:
        LOG.info("%s: no row counts, so it excludes nothing", where)
    return Listed(kind=kind, path=path, rows=rows, left_out=left_out)


def _rows(
    frame: pl.DataFrame, where: str, name: str, joins: Joins, as_of_us: int, source: read.Source, rules: TableRules
) -> tuple[pl.DataFrame, int]:
    """Return the usable rows of a table that count at as-of, and how many others there are."""
    keys = ["video_id", *(["user_id"] if "user_id" in frame.columns else [])]
    kept = [*keys, FROM, UNTIL, read.ROW, read.PIECE, read.GIVEN]
    frame = frame.select(name for name in kept if name in frame.columns)
    faults: dict[str, pl.Expr] = {}
    if len(keys) > 1:
        users = same_type(pl.DataFrame(read.ids_of(frame["user_id"], where)), "user_id", joins.users.dtype, where)
        frame = frame.with_columns(users.rename({read.GIVEN: OTHER_USER}, strict=False).get_columns())
        if OTHER_USER in frame.columns:
            faults[f"user_id is no {joins.users.dtype}, as the log's are"] = pl.col(OTHER_USER).is_not_null()
        faults["user_id is null"] = pl.col("user_id").is_null()
    frame = same_type(frame, "video_id", joins.videos.dtype, where)
    for column in (FROM, UNTIL):
        if column in frame.columns:
            there = frame[column].is_not_null()
            frame = frame.with_columns(moments_us(frame[column], where))
            faults[f"{column} is no moment"] = pl.lit(there) & pl.col(column).is_null()
    if FROM in frame.columns and UNTIL in frame.columns:
        faults["from is not before until"] = pl.col(FROM) >= pl.col(UNTIL)
    good = rules.usable(frame, "video_id", where, name, source, faults=faults)
    now = pl.lit(value=True)
    if FROM in good.columns:
        now &= pl.col(FROM).is_null() | (pl.col(FROM) <= as_of_us)
    if UNTIL in good.columns:
        now &= pl.col(UNTIL).is_null() | (pl.col(UNTIL) > as_of_us)
    counting = good.filter(now)
    return counting.select(keys).unique(maintain_order=True), len(good) - len(counting)


def uploaded(videos: pl.DataFrame | None, rule: MaxAge | None, where: str) -> pl.DataFrame | None:
    """Return the video_id and the time of upload (epoch us, null without one) of `--videos`, None without `--max-age`.

    Raises:
        ConfigError: there is no such column, or none or several that obviously have the time of upload.
        InputError: the column holds no moments.
    """
    if rule is None or videos is None:
        return None
    column = rule.column or _upload_column(videos, where)
    if column not in videos.columns:
        raise ConfigError(
            f"--max-age {column}: {where} has no such column.{nearest(column, videos.columns)} Its columns: "
            f"{', '.join(videos.columns[:40])}"
        )
    return videos.select("video_id", moments_us(videos[column], where).alias("us"))


def _upload_column(videos: pl.DataFrame, where: str) -> str:
    found = [name for name in UPLOADED if name in videos.columns]
    if len(found) == 1:
        return found[0]
    kinds = videos.schema
    can = found or [name for name in videos.columns if kinds[name].is_temporal()]
    can = can or [name for name in videos.columns if name != "video_id" and is_moment(kinds[name])]
    said = "several columns of" if found else "no column of"
    raise ConfigError(
        f"--max-age: {said} {where} that is obviously the time of upload; name it, as in --max-age COLUMN=30d; "
        f"candidates: {', '.join(can[:10]) or 'none'}"
    )
