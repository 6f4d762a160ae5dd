"""The side tables: `--users`, `--videos` and `--candidates`, read with the log's own types of ids, and as arrays.

Owns: which columns enter the features, candidates as tokens.
Must not know: events, slots, engines. In: paths and the log's types. Out: frames with one row per id,
`arrays.SideTable` in the same row order, and `Tables`, all that a run knows of users besides the log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import polars as pl

from genrec_batch.core.arrays import F32, FIRST_ITEM, I32, U8, Ragged, SideTable
from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.events import hashing, schema, schema_file, user_list, vectors
from genrec_batch.events.given_ids import lists_of_type, same_type
from genrec_batch.events.joins import Joins, Side
from genrec_batch.events.table_rows import TableRules
from genrec_batch.io import read
from genrec_batch.model.catalog import Catalog

PROFILE_VECTOR, VIDEO_VECTOR = 256, 512
USER_VECTORS: vectors.Widths = {"profile": None, "profile_vector": PROFILE_VECTOR}
VIDEO_VECTORS: vectors.Widths = {"embedding": None, "video_vector": VIDEO_VECTOR}
EXTRA = "extra_features"  # of the users, beside their own columns


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The side tables of a run with N users; None for a table that is not given."""

    users: pl.DataFrame | None  # checked; a batch of users at a time becomes arrays
    videos: SideTable | None
    candidates: Ragged | None  # given candidates as tokens, a row for each of N users

    def profiles(self, user_row_B: I32) -> tuple[SideTable | None, I32]:
        """Return the side table of B users, and their rows in it, from their rows in the whole table."""
        if self.users is None:
            return None, user_row_B
        there_B = user_row_B >= 0
        rows_B = np.where(there_B, np.cumsum(there_B) - 1, -1).astype(np.int32)
        return users_table(self.users[user_row_B[there_B]]), rows_B


def read_users(
    path: str | None, schema_name: str | None, joins: Joins, inputs: dict[str, read.Source], rules: TableRules
) -> pl.DataFrame | None:
    """Read `--users` with the log's own type of user_id and add it to the inputs; None where it is not given.

    Raises:
        InputError: not readable, next to none of the ids is the log's, or a list does not fit the model.
        GateError: too few of the ids are the log's, or too many rows are rejected.
    """
    if path is None:
        return None
    rename = _renaming("--users", path, schema_name)
    users = _read(path, "--users", "user_id", rename, joins, inputs, rules, USER_VECTORS)
    check_users(users, f"--users {path}")
    return users


def read_videos(
    path: str | None, schema_name: str | None, joins: Joins, inputs: dict[str, read.Source], rules: TableRules
) -> pl.DataFrame | None:
    """Read `--videos` with the log's own type of video_id and add it to the inputs; None where it is not given.

    Raises:
        InputError: not readable, or next to none of the ids is the log's.
        GateError: too few of the ids are the log's, or too many rows are rejected.
    """
    if path is None:
        return None
    rename = _renaming("--videos", path, schema_name)
    return _read(path, "--videos", "video_id", rename, joins, inputs, rules, VIDEO_VECTORS)


def _renaming(flag: str, path: str, schema_name: str | None) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    names = schema_file.column_names(schema_name)
    expressions = names.users if flag == "--users" else names.videos
    return partial(schema.rename, expressions=expressions, where=names.where.get(flag[2:]), source=f"{flag} {path}")


def no_rows(flag: str, path: str | None, schema_name: str | None) -> pl.DataFrame:
    """Return `--users` or `--videos` with its columns and no rows, and no columns where it is not given.

    Raises:
        InputError: not readable.
    """
    if path is None:
        return pl.DataFrame()
    opened = read.scan(path, flag, hashed=False)
    return pl.DataFrame(
        schema=opened.frame(_renaming(flag, path, schema_name), where=f"{flag} {path}").collect_schema()
    )


def by_token(videos: pl.DataFrame, catalog: Catalog) -> pl.DataFrame:
    """Return the rows of `--videos` in the order of the catalog's tokens: row i is token i + 2, null without one."""
    columns = videos.drop(read.ROW, read.PIECE, read.GIVEN, strict=False)
    token_R = catalog.tokens(columns["video_id"])
    known = columns.drop("video_id").with_columns(token=token_R).filter(token_R >= FIRST_ITEM)
    tokens = pl.DataFrame({"token": range(FIRST_ITEM, FIRST_ITEM + len(catalog))}, {"token": pl.Int32})
    return tokens.join(known, on="token", how="left", maintain_order="left").drop("token")


def _read(
    path: str,
    flag: str,
    key: str,
    rename: Callable[[pl.LazyFrame], pl.LazyFrame],
    joins: Joins,
    inputs: dict[str, read.Source],
    rules: TableRules,
    widths: vectors.Widths | None = None,
) -> pl.DataFrame:
    where = f"{flag} {path}"
    frame, source = read.table(path, flag, key, rename, rules.spill_to)
    name = flag.lstrip("-").replace("-", "_")
    inputs[flag.lstrip("-")] = source
    frame = same_type(frame, key, joins.log(key).ids.dtype, where)
    frame = rules.usable(frame, key, where, name, source, widths)
    joins.table(name, Side(name=where, ids=frame[key]), key)
    return frame


def read_candidates(
    path: str | None, joins: Joins, catalog: Catalog, inputs: dict[str, read.Source], rules: TableRules
) -> pl.DataFrame | None:
    """Read `--candidates` with the log's own types of user_id and video_id; None where it is not given.

    A user has one row with a list of videos, or a row for each video.

    Raises:
        InputError: not readable, no video_id, or next to none of the ids is the log's or the catalog's.
        GateError: too few of the ids are.
    """
    if path is None:
        return None
    frame, source = read.table(path, "--candidates", "user_id", lambda lazy: lazy, rules.spill_to)
    inputs["candidates"] = source
    where = f"--candidates {path}"
    frame = same_type(_as_lists(frame), "user_id", joins.users.dtype, where)
    frame = rules.usable(frame, "user_id", where, "candidates", source)
    kind = frame.schema.get("video_id")
    if not isinstance(kind, (pl.List, pl.Array)):
        raise InputError(f"{where}: column 'video_id' is {kind or 'missing'}, expected a list of video ids per user")
    frame = lists_of_type(frame, "video_id", joins.videos.dtype, where)
    videos = frame["video_id"].explode().unique(maintain_order=True).cast(joins.videos.dtype, strict=False).drop_nulls()
    joins.table("candidate_users", Side(name=where, ids=frame["user_id"]), "user_id")
    joins.candidates(Side(name=where, ids=videos), catalog)
    return frame


def _as_lists(frame: pl.DataFrame) -> pl.DataFrame:
    """Gather the videos of each user where they have a row each."""
    if "video_id" not in frame.columns or frame.schema["video_id"].is_nested():
        return frame
    keys = [name for name in ("user_id", read.GIVEN) if name in frame.columns]
    return frame.group_by(keys, maintain_order=True).agg("video_id", pl.col(read.ROW, read.PIECE).first())


def read_users_only(
    path: str | None, joins: Joins, inputs: dict[str, read.Source], rules: TableRules
) -> pl.Series | None:
    """Read the distinct ids of `--users-only` with the log's own type and add it to the inputs; None without it.

    Raises:
        InputError: not readable, or ids that can never match the log's.
    """
    if path is None:
        return None
    if user_list.is_one(path):
        listed, inputs["users_only"] = user_list.read(path, f"--users-only {path}", joins.users.dtype)
        return listed

    def ids(lazy: pl.LazyFrame) -> pl.LazyFrame:
        return lazy.select("user_id", read.ROW) if "user_id" in lazy.collect_schema() else lazy

    frame, source = read.table(path, "--users-only", "user_id", ids, rules.spill_to)
    inputs["users_only"] = source
    frame = frame.filter(frame["user_id"].is_null() | frame["user_id"].is_first_distinct())  # to repeat is no fault
    where = f"--users-only {path}"
    frame = same_type(frame, "user_id", joins.users.dtype, where)
    return rules.usable(frame, "user_id", where, "users_only", source)["user_id"].sort()


def candidate_tokens(given: pl.DataFrame | None, ids: pl.Series, catalog: Catalog) -> tuple[Ragged | None, int]:
    """Return each user's distinct candidates as tokens, in order, and how many are not in the catalog."""
    if given is None:
        return None, 0
    index = ids.alias("user_id").to_frame().with_row_index("user")
    flat = (
        given.select("user_id", "video_id")
        .join(index, on="user_id", how="inner", maintain_order="left")
        .explode("video_id")
        .filter(pl.col("video_id").is_not_null())
        .sort("user", maintain_order=True)
    )
    flat = flat.with_columns(token=catalog.tokens(flat["video_id"]))
    known = flat.filter(pl.col("token") >= FIRST_ITEM).unique(["user", "token"], keep="first", maintain_order=True)
    lengths = index.select("user").join(known.group_by("user").len(), on="user", how="left", maintain_order="left")
    offsets = [0, *lengths["len"].fill_null(0).cum_sum().to_list()]
    ragged = Ragged(
        offsets_N1=pl.Series(offsets, dtype=pl.Int64).to_numpy(), values=known["token"].to_numpy().astype("int32")
    )
    return ragged, int((flat["token"] < FIRST_ITEM).sum())


def chosen_users(users: tuple[str, ...], kind: pl.DataType, flag: str = "--user") -> pl.Series | None:
    """Return the distinct ids that `flag` names, in the log's type; None where it names none.

    Raises:
        ConfigError: a name is not a number, and the log's ids are numbers.
    """
    if not users:
        return None
    try:
        return pl.Series("user_id", users).cast(kind).unique()
    except pl.exceptions.InvalidOperationError:
        raise ConfigError(f"{flag} {', '.join(users)}: the log's user_id is {kind}, so a whole number") from None


def check_users(frame: pl.DataFrame, source: str) -> None:
    """Raise InputError where a list of `source` has another width or type; it names column, row and what it expects."""
    vectors.check_lists(frame, source, USER_VECTORS)


def users_table(frame: pl.DataFrame) -> SideTable:
    """Return checked rows of `--users` as arrays: `profile` or hashed columns, 200 each, and `profile_vector` (256).

    `with_extra_features` may have added a column to them.
    """
    none: I32 = np.zeros(0, np.int32)
    table = _side_table(*_floats(frame, "profile", "profile_vector", PROFILE_VECTOR), none, none)
    if EXTRA not in frame.columns:
        return table
    return replace(table, extra_RX=vectors.matrix(frame[EXTRA], frame.schema[EXTRA].size)[0])  # type: ignore[attr-defined]


def with_extra_features(
    users: pl.DataFrame | None,
    path: str | None,
    wanted: int,
    joins: Joins,
    inputs: dict[str, read.Source],
    rules: TableRules,
) -> pl.DataFrame | None:
    """Return the users with the list of `--extra-features` as a further column; users of that table alone are added.

    `wanted` is the number of further features that the model reads, -1 for any.

    Raises:
        ConfigError: the model was trained with a table and none is given, or the other way round.
        InputError: not readable, no list of numbers, another number of them than the model reads, or next to none of
            the ids is the log's.
        GateError: too few of the ids are the log's.
    """
    if path is None:
        if wanted > 0:
            raise ConfigError(
                f"--extra-features is missing: the model was trained with {wanted} further features of each user; give "
                "the table of user_id and a list of as many"
            )
        return users
    if not wanted:
        raise ConfigError(
            f"--extra-features {path}: the model was trained without further features; leave the option out"
        )
    flag = f"--extra-features {path}"
    widths = {"features": wanted if wanted > 0 else None}
    frame = _read(path, "--extra-features", "user_id", lambda lazy: lazy, joins, inputs, rules, widths)
    lists = [name for name, kind in frame.schema.items() if isinstance(kind, (pl.List, pl.Array))]
    name = "features" if "features" in lists else lists[0] if len(lists) == 1 else None
    if name is None:
        raise InputError(f"{flag}: no column 'features' with a list of numbers for each user")
    lengths = frame[name].cast(pl.List(frame.schema[name].inner)).list.len().drop_nulls()  # type: ignore[attr-defined]
    width = wanted if wanted > 0 else int(lengths[0]) if len(lengths) else 0
    vectors.check_lists(frame, flag, {name: width})
    numbers = pl.col(name).cast(pl.List(pl.Float32)).list.to_array(width).alias(EXTRA)
    extra = frame.select("user_id", numbers)
    return extra if users is None else users.join(extra, on="user_id", how="full", coalesce=True)


def videos_table(frame: pl.DataFrame, source: str = "--videos") -> SideTable:
    """Return `--videos` as arrays: `embedding` (any width) or hashed columns, `video_vector` (512), creator, category.

    The creator is `creator_id`, else `author_id`; `source` names the table in errors.

    Raises:
        InputError: a list has another width or type, or a creator or category is a list.
    """
    vectors.check_lists(frame, source, VIDEO_VECTORS)
    floats = _floats(frame, "embedding", "video_vector", VIDEO_VECTOR)
    creator = "creator_id" if "creator_id" in frame.columns else "author_id"
    return _side_table(*floats, _codes(frame, creator, source), _codes(frame, "category", source))


def _side_table(hashed: tuple[F32, U8], dense: tuple[F32, U8] | None, creator_R: I32, category_R: I32) -> SideTable:
    return SideTable(
        hashed_R200=hashed[0],
        has_hashed_R=hashed[1],
        dense_RD=dense[0] if dense else None,
        has_dense_R=dense[1] if dense else None,
        creator_R=creator_R,
        category_R=category_R,
    )


def _floats(
    frame: pl.DataFrame, features: str, vector: str, width: int
) -> tuple[tuple[F32, U8], tuple[F32, U8] | None]:
    if features in frame.columns:
        floats_RD, has_R = vectors.matrix(frame[features], None)
        own = vectors.projected(floats_RD), has_R
    else:
        own = hashing.hash_columns(frame), np.ones(len(frame), np.bool_)
    return own, vectors.matrix(frame[vector], width) if vector in frame.columns else None


def _codes(frame: pl.DataFrame, name: str, source: str) -> I32:
    if name not in frame.columns:
        return np.full(len(frame), -1, np.int32)
    if frame.schema[name].is_nested():
        raise InputError(f"{source}: column {name!r} is {frame.schema[name]}, expected one value per video")
    codes: I32 = (frame[name].rank("dense").cast(pl.Int32) - 1).fill_null(-1).to_numpy()
    return codes
