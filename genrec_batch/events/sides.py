"""Who and what stands beside the log: users, videos, given candidates, and who is asked for by name.

Owns: reading the side inputs in the log's own id types, and candidates as tokens. Must not know: events, histories,
engines. In: paths and the log's types. Out: frames with one row per id, and `Ragged` candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import polars as pl

from genrec_batch.core.arrays import FIRST_ITEM, Ragged
from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.events import schema
from genrec_batch.io import read
from genrec_batch.model.catalog import Catalog


def table(
    path: str | None, flag: str, key: str, names: Mapping[str, str], log: pl.DataType, inputs: dict[str, read.Source]
) -> pl.DataFrame | None:
    """Read `--users` or `--videos` with the log's own type of id (`log`), None where there is none.

    Raises:
        InputError: not readable, ids repeat, or can never match the log's.
    """
    if path is None:
        return None
    rename = partial(schema.rename, expressions=names, source=f"{flag} {path}")
    frame, source = read.table(path, flag, key, rename)
    inputs[flag.lstrip("-")] = source
    return _same_type(frame, key, log, f"{flag} {path}")


def _same_type(frame: pl.DataFrame, key: str, log: pl.DataType, source: str) -> pl.DataFrame:
    kind = frame.schema[key]
    if kind.is_integer() != log.is_integer():
        raise InputError(
            f"{source}: column {key!r} is {kind} and that of the log is {log}: no row would ever match; "
            "convert one with --schema FILE.toml"
        )
    if kind == log:
        return frame
    try:
        return frame.with_columns(pl.col(key).cast(log))
    except pl.exceptions.InvalidOperationError as error:
        raise InputError(f"{source}: column {key!r} holds ids that do not fit the log's {log} ({error})") from error


def candidates(path: str | None, ids: Mapping[str, pl.DataType], inputs: dict[str, read.Source]) -> pl.DataFrame | None:
    """Read `--candidates` with the log's own types of user_id and video_id (`ids`), None where there is none.

    Raises:
        InputError: not readable, not a list per user, or ids that can never match the log's.
    """
    if path is None:
        return None
    frame, source = read.table(path, "--candidates", "user_id", lambda lazy: lazy)
    inputs["candidates"] = source
    where = f"--candidates {path}"
    kind = frame.schema.get("video_id")
    if not isinstance(kind, (pl.List, pl.Array)):
        raise InputError(f"{where}: column 'video_id' is {kind or 'missing'}, expected a list of video ids per user")
    frame = frame.with_columns(pl.col("video_id").cast(pl.List(kind.inner)))
    _same_type(frame.select(pl.col("video_id").explode()).drop_nulls(), "video_id", ids["video_id"], where)
    return _same_type(frame, "user_id", ids["user_id"], where)


def candidate_tokens(given: pl.DataFrame | None, ids: pl.Series, catalog: Catalog) -> tuple[Ragged | None, int]:
    """Return each user's given candidates as tokens, each once, in their order, and how many are not in the catalog."""
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


def chosen(users: tuple[str, ...], kind: pl.DataType, flag: str = "--user") -> pl.Series | None:
    """Return the ids that `flag` names in the log's type, each once; None where nobody is named.

    Raises:
        ConfigError: a name that is no number where the log's ids are.
    """
    if not users:
        return None
    try:
        return pl.Series("user_id", users).cast(kind).unique()
    except pl.exceptions.InvalidOperationError:
        raise ConfigError(f"{flag} {', '.join(users)}: the log's user_id is {kind}, so a whole number") from None
