"""The table of `--promote`: videos that take places of lists, with the log's own types of ids.

Owns: its columns, its faults, and its videos as tokens. Must not know: which places are taken, who has seen what. In: a
path, and the log's side of the joins. Out: a frame of token and rank, and user_id where the table is about users.
"""

from __future__ import annotations

import polars as pl

from genrec_batch.core.arrays import FIRST_ITEM
from genrec_batch.core.errors import InputError
from genrec_batch.events.given_ids import same_type
from genrec_batch.events.joins import Joins, Side
from genrec_batch.events.table_rows import TableRules
from genrec_batch.io import read
from genrec_batch.model.catalog import Catalog
from genrec_batch.runtime.console import LOG

NAME = "promote"
BOTH = "row"  # video and rank of one row, while the rows of a user are together


def read_promoted(
    path: str | None, top_k: int, joins: Joins, inputs: dict[str, read.Source], rules: TableRules
) -> pl.DataFrame | None:
    """Read `--promote` and add it to the inputs; None where it is not given.

    Returns columns video_id, rank (Int32, from 1, null without a place) and, where the table has it, user_id.

    Raises:
        InputError: not readable, next to none of its users is the log's, or a rank is no place of a list.
        GateError: too many rows are rejected, or too few users are the log's.
    """
    if path is None:
        return None
    where = f"--promote {path}"
    frame, source = read.table(path, "--promote", "video_id", lambda lazy: lazy, rules.spill_to)
    inputs[NAME] = source
    ranked = frame.with_columns(_ranks(frame, top_k, where))
    typed = same_type(ranked, "video_id", joins.videos.dtype, where)
    if "user_id" in typed.columns:
        return _of_users(typed, joins, where, source, rules)
    return _of_all(typed, where, source, rules)


def promoted_tokens(
    given: pl.DataFrame | None, path: str | None, catalog: Catalog, joins: Joins
) -> pl.DataFrame | None:
    """Return what `read_promoted` read with the tokens of a catalog in the place of ids: each video once for each user.

    Videos that the catalog lacks are left out and counted.

    Raises:
        InputError: no video of it is in the catalog, or two videos have the same place.
    """
    if given is None:
        return None
    where = f"--promote {path}"
    known = _known(given, catalog, joins, where)
    _check_places(known, where)
    return known


def _ranks(frame: pl.DataFrame, top_k: int, where: str) -> pl.Series:
    """Return the places as Int32, null without one.

    Raises:
        InputError: one is not from 1 to `top_k`.
    """
    if "rank" not in frame.columns:
        return pl.Series("rank", [None] * len(frame), pl.Int32)
    given = frame["rank"]
    if not (given.dtype.is_numeric() or given.dtype == pl.Null):
        raise InputError(f"{where}: column 'rank' is {given.dtype}, expected places from 1 to --top-k {top_k}")
    given = given.fill_nan(None) if given.dtype.is_float() else given
    ranks = given.cast(pl.Int32, strict=False)
    odd = given.filter(given.is_not_null() & ~((ranks == given) & ranks.is_between(1, top_k)).fill_null(value=False))
    if len(odd):
        raise InputError(f"{where}: column 'rank' holds {odd[0]}, expected places from 1 to --top-k {top_k}, or null")
    return ranks


def _of_all(frame: pl.DataFrame, where: str, source: read.Source, rules: TableRules) -> pl.DataFrame:
    return rules.usable(frame, "video_id", where, NAME, source).select("video_id", "rank")


def _of_users(frame: pl.DataFrame, joins: Joins, where: str, source: read.Source, rules: TableRules) -> pl.DataFrame:
    """Return the usable rows of a table about users, a row for each video of each user."""
    frame = frame.drop(read.GIVEN, strict=False)  # of the videos; these are null and counted as unknown
    frame = frame.with_columns(*read.ids_of(frame["user_id"], where))
    frame = same_type(frame, "user_id", joins.users.dtype, where)
    keys = [name for name in ("user_id", read.GIVEN) if name in frame.columns]
    rows = pl.struct("video_id", "rank").alias(BOTH)
    lists = frame.group_by(keys, maintain_order=True).agg(rows, pl.col(read.ROW, read.PIECE).first())
    usable = rules.usable(lists, "user_id", where, NAME, source)
    joins.table("promote_users", Side(name=where, ids=usable["user_id"]), "user_id")
    return usable.select("user_id", BOTH).explode(BOTH).unnest(BOTH)


def _known(frame: pl.DataFrame, catalog: Catalog, joins: Joins, where: str) -> pl.DataFrame:
    """Return token and rank of the catalog's videos, each once for each user, first with a place, then without."""
    if not len(frame):
        raise InputError(f"{where}: no rows, so nothing to promote; give videos, or omit the option")
    frame = frame.with_columns(token=catalog.tokens(frame["video_id"]))
    known = frame.filter(pl.col("token") >= FIRST_ITEM)
    videos, met = frame["video_id"].n_unique(), known["video_id"].n_unique()
    joins.found[NAME] = {"ids": videos, "against": "catalog", "met": met}
    if not met:
        some = ", ".join(map(repr, frame["video_id"].drop_nulls().head(3)))
        raise InputError(
            f"{where}: none of its {videos:,} video_id ({some}) is in the model's catalog, so nothing can be promoted; "
            "give videos that the model was trained with"
        )
    if met < videos:
        LOG.warning(
            "%s: %s of its %s videos are not in the catalog and left out", where, f"{videos - met:,}", f"{videos:,}"
        )
    keys = [name for name in ("user_id", "token") if name in known.columns]
    placed = known.sort(pl.col("rank").is_null(), maintain_order=True)
    return placed.unique(keys, keep="first", maintain_order=True).drop("video_id")


def _check_places(frame: pl.DataFrame, where: str) -> None:
    """Raise InputError where two videos have one place in one list."""
    keys = [name for name in ("user_id", "rank") if name in frame.columns]
    placed = frame.filter(pl.col("rank").is_not_null())
    twice = placed.filter(~placed.select(keys).is_unique())
    if len(twice):
        user = f" of user {twice['user_id'][0]}" if "user_id" in keys else ""
        raise InputError(f"{where}: several videos have place {twice['rank'][0]}{user}; give each its own, or null")
