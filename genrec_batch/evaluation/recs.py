"""An earlier output of `score` as lists to judge: what it recommended, and the moment that it was made for.

Owns: reading a finished output, and matching its users and videos with those of a log. Must not know: metrics, engines.
In: the output and a log that goes on after it. Out: the log, the rows, and what is judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from genrec_batch.core.arrays import FIRST_ITEM, HEADS, I32
from genrec_batch.core.errors import ConfigError, InputError, nearest
from genrec_batch.core.option_values import moment_us
from genrec_batch.evaluation import tested_rows
from genrec_batch.evaluation.lists import ArmRows, Judged, Lists
from genrec_batch.evaluation.options import EvaluateConfig
from genrec_batch.evaluation.targets import row_keys
from genrec_batch.evaluation.tested_rows import Rows
from genrec_batch.events.histories import rows_of
from genrec_batch.events.joins import Joins, Side
from genrec_batch.events.survey import Survey
from genrec_batch.events.whole import WholeLog, read_whole
from genrec_batch.io import fetched, published, table_runs
from genrec_batch.io.attempt import reading
from genrec_batch.io.recommended import Recommended
from genrec_batch.model.catalog import Catalog
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG

LEAST_CATALOG = 20_000  # videos of the log that count as its catalog, beside all that the output recommends
KEYS = ("user_id", "rank", "video_id")
ARM = "arm"  # of an output with arms
MOST_RANK = 10_000


@dataclass(frozen=True, kw_only=True)
class Output:
    """A finished output in memory: a row for each recommendation."""

    where: str
    rows: pl.DataFrame
    metadata: Mapping[str, str]

    @property
    def config(self) -> Mapping[str, Any]:
        """The options that it was made with."""
        found: Mapping[str, Any] = json.loads(self.metadata.get("genrec.config", "{}"))
        return found

    def as_of(self) -> str | None:
        """Return the moment that it was made for, None where the output does not say."""
        return self.metadata.get("genrec.as_of") or self.config.get("as_of")


def read(path: str) -> Output:
    """Read the recommendations of a finished output, in whatever layout.

    Raises:
        InputError: not there, not finished, or not an output of `score`.
    """
    place, where = fetched.local(table_runs.newest(path, "--recs"), "--recs"), f"--recs {path}"
    if not place.exists():
        beside = [each.name for each in place.parent.iterdir()] if place.parent.is_dir() else []
        raise InputError(f"{where}: no such file or directory.{nearest(place.name, beside)}")
    if place.is_dir() and (published.manifest_of(place) is None or not (place / published.SUCCESS).exists()):
        raise InputError(f"{where}: not a finished output of `genrec-batch score`: it lacks its manifest or _SUCCESS")
    try:
        files, metadata = published.files_of(place)
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: not a whole Parquet file ({error})") from error
    if not files:
        raise InputError(f"{where}: the output has no rows")
    form = reading(lambda: Recommended.of(files, metadata), where)
    if missing := [name for name in KEYS if name not in form.names]:
        raise InputError(f"{where}: column {missing[0]!r} is missing; name an output of `genrec-batch score`")
    lacking = [name for name in HEADS if name not in form.names]
    if lacking:
        LOG.warning("%s: it was written without %s (--columns), so heads are not judged", where, ", ".join(lacking))
    armed = [ARM] if ARM in form.names else []
    frame = form.all_rows([*KEYS, *(() if lacking else HEADS), *armed])
    rows = reading(frame.collect, where).drop_nulls(["user_id", "video_id"])
    rows = rows.with_columns(pl.lit(None, pl.Float32).alias(name) for name in lacking)
    if not len(rows):
        raise InputError(f"{where}: the output has no rows")
    if int(rows["rank"].max() or 0) > MOST_RANK or int(rows["rank"].min() or 0) < 1:  # type: ignore[arg-type]
        raise InputError(f"{where}: column 'rank' is not from 1 to {MOST_RANK:,}")
    return Output(where=where, rows=rows, metadata=metadata)


def judged(config: EvaluateConfig, source: str, stages: Stages) -> tuple[WholeLog, Rows, Judged]:
    """Return the lists of an output for the users of a log who come back after it.

    Raises:
        ConfigError: the moment that the output was made for is not known.
        InputError: the log has nothing after it, or other users or videos.
    """
    assert config.recs is not None
    with stages.time("read recs"):
        output = read(config.recs)
    first_us, flag = _moment(config, output)

    def catalog_of(found: Survey, video_type: pl.DataType) -> Catalog:
        return _catalog(output, found, video_type, source)

    with stages.watched(config.stall_limit):
        log = read_whole(
            source, catalog_of, stages,
            users=config.users, videos=config.videos, schema_name=config.schema, as_of_us=config.as_score().as_of_us(),
            since=config.since, timezone=config.timezone,
            dedupe=config.dedupe, dedupe_by=config.dedupe_by,
            max_rejects=config.max_rejects, min_match=config.min_match, positive=config.positive,
            newest=config.side_tables_newest, rejects=config.rejects,
        )  # fmt: skip
    cuts = tested_rows.at_moment(log.events, first_us, flag, f"EVENTS {source}")
    ids = log.ids.gather(cuts.user_N)
    users = output.rows["user_id"].unique(maintain_order=True)
    users = _same_type(users, "user_id", ids.dtype, output.where, source)
    output_row_M = rows_of(ids, users)
    there = np.flatnonzero(output_row_M >= 0)
    if config.limit is not None:
        there = there[: config.limit]
    if not len(there):
        raise InputError(
            f"{output.where}: none of its {len(users):,} users has an event after {tested_rows.moment_text(first_us)} "
            f"in EVENTS {source}: another log, other ids, or a --test-from that is too late"
        )
    log = replace(log, matches=_matches(output, users, log, f"EVENTS {source}", config.min_match))
    if len(there) < len(cuts):
        LOG.warning("%s users who came back are not in the output and not judged", f"{len(cuts) - len(there):,}")
    include_seen = bool(output.config.get("include_seen", config.include_seen))
    rows = tested_rows.rows_of(
        log.events, cuts.take(there),
        tokens=len(log.catalog) + FIRST_ITEM, max_events=config.max_events, seen_limit=config.seen_limit,
        include_seen=include_seen,
    )  # fmt: skip
    lists, heads = _lists(output, log, users, output_row_M[there])
    facts: dict[str, Any] = {
        "recs": config.recs,
        "as_of": tested_rows.moment_text(first_us - 1),
        "users_of_the_output": len(users),
        "run_id": output.metadata.get("genrec.run_id"),
        "fingerprint": output.metadata.get("genrec.model", "")[:16] or None,
        "engine": output.metadata.get("genrec.engine"),
        "precision": output.metadata.get("genrec.precision"),
        "decode": output.config.get("decode"),
        "catalog_videos": len(log.catalog),
        "seen": "included" if include_seen else "excluded",
    }
    judged = _with_heads(rows, lists, heads, facts)
    return log, rows, replace(judged, arms=_arms(output, users, output_row_M[there]))


def _arms(output: Output, users: pl.Series, user_M: I32) -> ArmRows | None:
    """Return the arms of an output, by their first buckets, and that of some users' rows; None where it has none."""
    if ARM not in output.rows.columns:
        return None
    stored: Mapping[str, Any] = json.loads(output.metadata.get("genrec.arms", "{}"))
    there = {*output.rows[ARM].drop_nulls(), *(name for name, about in stored.items() if not about["shadow"])}
    names = sorted(there, key=lambda name: (stored.get(name, {}).get("buckets", [0]), name))
    arm_U = output.rows.unique("user_id", maintain_order=True)[ARM]
    assert len(arm_U) == len(users), "in the order of the users"
    place_U = arm_U.replace_strict(names, list(range(len(names))), return_dtype=pl.Int64).to_numpy()
    return ArmRows(names=tuple(names), arm_M=place_U[user_M])


def _matches(output: Output, users: pl.Series, log: WholeLog, where: str, least: float) -> dict[str, object]:
    """Return how far users and videos of the output, beside those of the tables, met the log.

    Raises:
        InputError: next to none of them do.
        GateError: fewer do than `--min-match` asks for.
    """
    joins = Joins.of(log.found, where, least)
    videos = output.rows["video_id"].unique(maintain_order=True).cast(log.video_type)
    joins.table("recs_users", Side(name=output.where, ids=users), "user_id")
    joins.table("recs_videos", Side(name=output.where, ids=videos), "video_id")
    return {**{name: each for name, each in log.matches.items() if name != "catalog"}, **joins.found}


def _moment(config: EvaluateConfig, output: Output) -> tuple[int, str]:
    """Return the first moment after the output, and what gave it."""
    first_us = config.moment_us()
    if first_us is not None:
        return first_us, f"--test-from {config.test_from}"
    as_of = output.as_of()
    if as_of is None:
        raise ConfigError(
            f"{output.where}: it does not say which moment it was made for; --test-from names the first moment after it"
        )
    return moment_us(as_of, output.where) + 1, f"the as-of of {output.where}"


def _catalog(output: Output, found: Survey, video_type: pl.DataType, source: str) -> Catalog:
    """Return the videos that the output recommends and the most viewed of the log, by falling views."""
    recommended = output.rows.select(pl.col("video_id")).unique()["video_id"]
    recommended = _same_type(recommended, "video_id", video_type, output.where, source)
    most = found.videos.sort(["count", "video_id"], descending=[True, False]).head(LEAST_CATALOG)
    ours = recommended.alias("video_id").to_frame().join(found.videos, on="video_id", how="left")
    if not ours["count"].count():
        raise InputError(f"{output.where}: none of its {len(ours):,} videos is in EVENTS {source}: other ids")
    counted = pl.concat([most, ours.with_columns(pl.col("count").fill_null(0).cast(most.schema["count"]))])
    counted = counted.unique("video_id")
    return Catalog.from_counts(counted, vocabulary=len(counted) + FIRST_ITEM)


def _same_type(ids: pl.Series, name: str, kind: pl.DataType, where: str, source: str) -> pl.Series:
    if ids.dtype.is_integer() != kind.is_integer():
        raise InputError(f"{where}: column {name!r} is {ids.dtype} and that of EVENTS {source} is {kind}: other ids")
    try:
        return ids.cast(kind)
    except pl.exceptions.InvalidOperationError as error:
        raise InputError(f"{where}: column {name!r} holds ids that do not fit {kind} ({error})") from error


def _lists(output: Output, log: WholeLog, users: pl.Series, user_M: I32) -> tuple[Lists, Any]:
    """Return the lists of some of the output's users, and the heads of each place, [M, K, H]."""
    row_U = np.full(len(users), -1, np.int64)
    row_U[user_M] = np.arange(len(user_M))
    row_R = row_U[rows_of(output.rows["user_id"].cast(users.dtype), users)]
    mine_R = np.flatnonzero(row_R >= 0)
    place_R = output.rows["rank"].to_numpy()[mine_R] - 1
    tokens_MK = np.zeros((len(user_M), int(place_R.max()) + 1), np.int32)
    video_ids = output.rows["video_id"].cast(log.video_type)
    tokens_MK[row_R[mine_R], place_R] = log.catalog.tokens(video_ids).to_numpy()[mine_R]
    heads_MKH = np.full((*tokens_MK.shape, len(HEADS)), np.nan, np.float32)
    heads_MKH[row_R[mine_R], place_R] = output.rows.select(HEADS).to_numpy()[mine_R]
    return Lists(tokens_MK=tokens_MK), heads_MKH


def _with_heads(rows: Rows, lists: Lists, heads_MKH: Any, facts: Mapping[str, Any]) -> Judged:
    """Add the heads of the recommended videos that their users then watched."""
    exposures, place_E = rows.exposures()
    row_E = np.repeat(np.arange(len(rows)), exposures.lengths_N)
    listed_MK = row_keys(np.broadcast_to(np.arange(len(rows))[:, None], lists.tokens_MK.shape), lists.tokens_MK)
    order = np.argsort(listed_MK, axis=None, kind="stable")
    sorted_keys = listed_MK.ravel()[order]
    keys_E = row_keys(row_E, exposures.values)
    at_E = np.searchsorted(sorted_keys, keys_E).clip(max=len(sorted_keys) - 1)
    found = np.flatnonzero((sorted_keys[at_E] == keys_E) & (exposures.values >= FIRST_ITEM))
    heads_EH = heads_MKH.reshape(-1, len(HEADS))[order[at_E[found]]]
    given_F = ~np.isnan(heads_EH).any(axis=1)  # a place that no model filled has none
    found, heads_EH = found[given_F], heads_EH[given_F]
    place_F = place_E[found]
    return Judged(
        lists={"recs": lists}, main="recs", facts=facts, heads_EH=heads_EH, row_E=row_E[found], place_E=place_F
    )
