"""What a run is about: from files and options to users with histories, a model and a catalog.

Owns: reading the inputs in their order, the rejects, the moment to score as of, and who is scored. Must not know:
engines, decoding, the output. In: options and a log. Out: a `Job`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import polars as pl

from genrec_batch import histories, model, schema, storage, tables
from genrec_batch.arrays import FIRST_ITEM, Histories, Ragged, SideTable
from genrec_batch.catalog import Catalog
from genrec_batch.config import HistoryConfig
from genrec_batch.console import LOG
from genrec_batch.errors import ConfigError, GateError, InputError, NothingToScoreError
from genrec_batch.model import Model
from genrec_batch.profiling import Stages

UNTRAINED = "untrained weights: the ranking means nothing until --model names a trained model"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a run scores: N users in id order with their histories, and what reads them."""

    user_ids: pl.Series
    histories: Histories
    users: SideTable | None
    videos: SideTable | None
    candidates: Ragged | None  # given candidates as tokens, a row per user
    catalog: Catalog
    model: Model
    video_type: pl.DataType
    inputs: dict[str, storage.Source]  # every log and table read, for lineage
    facts: dict[str, object]  # counts, for the summary
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.user_ids)


def open_model(config: HistoryConfig) -> Model:
    """Return the model of `--model`, else the packaged demo rule: seeded `reference` weights."""
    if config.model is not None:
        return model.load(Path(config.model))
    return model.demo_model(model.PRESETS["reference"])


def read_log(
    path: str, config: HistoryConfig, stages: Stages
) -> tuple[pl.DataFrame, dict[str, object], storage.Source]:
    """Read a log into usable contract events.

    Returns: the events, the facts of reading (rows, rejects, ignored columns, unit of time), the files.

    Raises:
        InputError: not readable, not the contract, or no row is usable.
        GateError: more rows than `--max-rejects` are unusable.
        NothingToScoreError: the log has no rows.
    """
    with stages.time("read"):
        source = storage.scan(path, "INPUT")
        if source.rows == 0:
            raise NothingToScoreError(f"INPUT {path}: no rows, so nobody to score")
        where = f"INPUT {path}"
        events, facts = storage.reading(lambda: usable_events(source.frame, config, where), where)
    return events, {"input_rows": source.rows, **facts}, source


def catalog_of(path: str, schema_name: str | None, vocabulary: int) -> Catalog:
    """Return the catalog of a log's usable events (`--catalog-from`).

    Raises:
        InputError: not readable, or not the contract.
    """
    flag = "--catalog-from"
    source = storage.scan(path, flag)
    expressions = schema.column_names(schema_name).events

    def read() -> Catalog:
        events, _ = schema.contract(source.frame, expressions, f"{flag} {path}")
        return Catalog.from_events(events.filter(schema.usable()), vocabulary=vocabulary)

    return storage.reading(read, f"{flag} {path}")


def usable_events(frame: pl.LazyFrame, config: HistoryConfig, source: str) -> tuple[pl.DataFrame, dict[str, object]]:
    """Return the rows of a log that can be scored, in contract columns, and the facts of reading them.

    Raises:
        InputError: the log does not fit the contract, or no row is usable.
        GateError: more rows than `--max-rejects` are unusable.
    """
    contract, reading = schema.contract(frame, schema.column_names(config.schema).events, source)
    everything = contract.collect()
    events = everything.filter(schema.usable())
    rejected = len(everything) - len(events)
    facts: dict[str, object] = {
        "events": len(events),
        "rejected_rows": rejected,
        "ignored_columns": list(reading.ignored),
        "timestamps": reading.time_unit,
    }
    if rejected:
        nulls = {name: everything[name].null_count() for name in schema.REQUIRED}
        said = ", ".join(f"{name} in {count:,}" for name, count in nulls.items() if count)
        facts["rejected_because_null"] = nulls
        if not len(events):
            raise InputError(f"{source}: no row can be scored: null {said} of {len(everything):,} rows")
        if rejected > config.max_rejects * len(everything):
            raise GateError(
                f"{source}: {rejected:,} of {len(everything):,} rows are rejected (null {said}), more than "
                f"--max-rejects {config.max_rejects}; mend the log or raise the limit"
            )
        LOG.warning("%s of %s rows rejected: null %s", f"{rejected:,}", f"{len(everything):,}", said)
    return events, facts


def prepare(
    config: HistoryConfig,
    events: pl.DataFrame,
    stages: Stages,
    *,
    path: str,
    facts: dict[str, object],
    inputs: dict[str, storage.Source],
    candidates: str | None = None,
    loaded_model: Model | None = None,
) -> Job:
    """Build the histories of everybody to score from usable contract events.

    Raises:
        ConfigError, InputError, ModelError, NothingToScoreError: see DESIGN of each input.
    """
    with stages.time("model"):
        loaded = loaded_model or open_model(config)
    warnings = [] if loaded.trained else [UNTRAINED]
    as_of_us = config.as_of_us()
    if as_of_us is None:
        as_of_us = int(events["timestamp"].dt.epoch("us").max())  # type: ignore[arg-type]
    with stages.time("catalog"):
        catalog = _catalog(loaded, events, as_of_us, path, warnings)
        loaded = loaded.with_catalog(len(catalog))
    with stages.time("tables"):
        names = schema.column_names(config.schema)
        users = _table(config.users, "--users", "user_id", names.users, events.schema["user_id"], inputs)
        videos = _table(config.videos, "--videos", "video_id", names.videos, events.schema["video_id"], inputs)
        given = _candidates(candidates, events, inputs)
    chosen = _chosen(config.user, events.schema["user_id"])
    wanted = chosen if chosen is not None else None if given is None else given["user_id"]  # who could get a row
    if wanted is not None:
        one_of = pl.col("user_id").is_in(wanted.implode())
        events = events.filter(one_of)
        users = users.filter(one_of) if users is not None else None
        given = given.filter(one_of) if given is not None else None
    with stages.time("histories"):
        ids, built = histories.build(
            events,
            catalog=catalog,
            as_of_us=as_of_us,
            max_events=config.max_events,
            seen_limit=config.seen_limit,
            users=users,
            videos=videos,
            also=given["user_id"] if given is not None else None,
        )
        if config.limit is not None:
            ids, built = ids.head(config.limit), built.slice(0, config.limit)
    _check_somebody(ids, catalog, chosen, config, path)
    with stages.time("tables"):
        users_side = tables.users_table(users) if users is not None else None
        videos_side = tables.videos_table(videos) if videos is not None else None
        tokens, unknown_candidates = _candidate_tokens(given, ids, catalog)
    if tokens is not None and not len(tokens.values):
        raise NothingToScoreError(f"--candidates {candidates}: none of its videos is in the catalog")
    if unknown_candidates:
        warnings.append(f"{unknown_candidates:,} given candidates are not in the catalog and were left out")
    for warning in warnings:
        LOG.warning(warning)
    facts = {
        **facts,
        "as_of": (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=as_of_us)).isoformat() + "Z",  # noqa: DTZ001 (UTC by its Z)
        "users": len(ids),
        "users_without_events": int((built.lengths_N == 0).sum()),
        "cold_start_users": int(built.cold_start_N().sum()),
        "kept_events": len(built.tokens_E),
        "unknown_events": int((built.tokens_E < FIRST_ITEM).sum()),
        "catalog_videos": len(catalog),
        "videos_beyond_vocabulary": catalog.unknown_videos,
    }
    return Job(
        user_ids=ids,
        histories=built,
        users=users_side,
        videos=videos_side,
        candidates=tokens,
        catalog=catalog,
        model=loaded,
        video_type=events.schema["video_id"],
        inputs=inputs,
        facts=facts,
        warnings=warnings,
    )


def _catalog(loaded: Model, events: pl.DataFrame, as_of_us: int, path: str, warnings: list[str]) -> Catalog:
    vocabulary = loaded.config.vocabulary
    file = loaded.directory / "catalog.parquet" if loaded.directory else None
    if file is not None and file.exists():
        catalog = Catalog.read(file, vocabulary=vocabulary)
        catalog.check_type(events.schema["video_id"], f"INPUT {path}")
        return catalog
    if file is not None:
        warnings.append(f"{file} is missing, so the catalog is taken from the input: the ranking means nothing")
    return Catalog.from_events(events, vocabulary=vocabulary, as_of_us=as_of_us)


def _table(
    path: str | None, flag: str, key: str, names: Mapping[str, str], log: pl.DataType, inputs: dict[str, storage.Source]
) -> pl.DataFrame | None:
    if path is None:
        return None
    rename = partial(schema.rename, expressions=names, source=f"{flag} {path}")
    frame, source = storage.table(path, flag, key, rename)
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


def _candidates(path: str | None, events: pl.DataFrame, inputs: dict[str, storage.Source]) -> pl.DataFrame | None:
    if path is None:
        return None
    frame, source = storage.table(path, "--candidates", "user_id", lambda lazy: lazy)
    inputs["candidates"] = source
    where = f"--candidates {path}"
    kind = frame.schema.get("video_id")
    if not isinstance(kind, (pl.List, pl.Array)):
        raise InputError(f"{where}: column 'video_id' is {kind or 'missing'}, expected a list of video ids per user")
    frame = frame.with_columns(pl.col("video_id").cast(pl.List(kind.inner)))
    _same_type(frame.select(pl.col("video_id").explode()).drop_nulls(), "video_id", events.schema["video_id"], where)
    return _same_type(frame, "user_id", events.schema["user_id"], where)


def _candidate_tokens(given: pl.DataFrame | None, ids: pl.Series, catalog: Catalog) -> tuple[Ragged | None, int]:
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


def _chosen(users: tuple[str, ...], kind: pl.DataType) -> pl.Series | None:
    if not users:
        return None
    try:
        return pl.Series("user_id", users).cast(kind).unique()
    except pl.exceptions.InvalidOperationError:
        raise ConfigError(f"--user {', '.join(users)}: the log's user_id is {kind}, so a whole number") from None


def _check_somebody(
    ids: pl.Series, catalog: Catalog, chosen: pl.Series | None, config: HistoryConfig, path: str
) -> None:
    if chosen is not None:
        absent = chosen.filter(~chosen.is_in(ids.implode()))
        if len(absent):
            raise ConfigError(f"--user {absent[0]}: neither in INPUT {path} nor in --users or --candidates")
    if not len(ids):
        raise NothingToScoreError(f"INPUT {path}: no event up to --as-of {config.as_of}, so nobody to score")
    if not len(catalog):
        raise NothingToScoreError(f"INPUT {path}: the catalog is empty: no event up to --as-of {config.as_of}")
