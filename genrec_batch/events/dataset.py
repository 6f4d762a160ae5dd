"""What a run is about: from files and options to users with events, a model and a catalog.

Owns: reading the inputs in their order, the rejects, the moment to score as of, and who is scored. Must not know:
engines, decoding, the output. In: options and a log. Out: a `Job`, which loads histories a bucket at a time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from genrec_batch.core.arrays import I32, I64, Histories, Ragged, SideTable
from genrec_batch.core.errors import ConfigError, NothingToScoreError
from genrec_batch.core.options import HistoryConfig, ScoreConfig
from genrec_batch.events import by_user, histories, schema, side_tables, sides, sorter_choice
from genrec_batch.events.by_user import Bucket, EventStore, Split, Users
from genrec_batch.events.ids import Index
from genrec_batch.events.log import EventLog
from genrec_batch.events.records import Records, RecordType
from genrec_batch.events.survey import Survey, check_rejects, in_words, survey
from genrec_batch.io import read
from genrec_batch.model import weights
from genrec_batch.model.catalog import Catalog
from genrec_batch.model.weights import Model
from genrec_batch.runtime import console, threads
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG

UNTRAINED = "untrained weights: the ranking means nothing until --model names a trained model"


@dataclass(kw_only=True)
class Job:
    """Everything that a run scores: N users in id order, their events, and what reads them."""

    users: Users
    store: EventStore
    known: histories.Videos
    user_table: pl.DataFrame | None
    user_row_N: I32  # of `user_table`, -1 where it has none
    videos: SideTable | None
    candidates: Ragged | None  # given candidates as tokens, a row per user
    catalog: Catalog
    model: Model
    video_type: pl.DataType
    as_of_us: int
    config: HistoryConfig
    inputs: dict[str, read.Source]  # every log and table read, for lineage
    stages: Stages
    facts: dict[str, object]  # counts, for the summary
    warnings: list[str] = field(default_factory=list)
    _loaded: dict[int, Histories] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths_N(self) -> I64:
        """Kept events of each user, [N]."""
        return np.minimum(self.users.events_N, self.config.max_events)

    @property
    def mean_events(self) -> float:
        """Kept events of a user on average."""
        return float(self.lengths_N.mean())

    def histories(self, bucket: Bucket, *, keep: bool = False) -> Histories:
        """Load the histories of a bucket's users; `keep` holds them for the next call.

        Raises:
            InputError: a page of the log is damaged.
            RetryError: a connection was lost.
        """
        built = self._loaded.pop(bucket.number, None)
        if built is None:
            count = bucket.events * self.store.split.record.kind.itemsize
            with self.stages.time("load", rows=bucket.events, bytes=count):
                held = self.store.load(bucket)
            with self.stages.time("histories", rows=bucket.events, bytes=count):
                built = self._ordered(bucket, held)
        if keep:
            self._loaded[bucket.number] = built
        return built

    def _ordered(self, bucket: Bucket, held: list[Records]) -> Histories:
        return histories.order(
            held,
            self.store.split.record,
            start=bucket.start,
            total_N=self.users.events_N[bucket.start : bucket.stop],
            videos=self.known,
            user_row_N=self.user_row_N[bucket.start : bucket.stop],
            as_of_us=self.as_of_us,
            max_events=self.config.max_events,
            seen_limit=self.config.seen_limit,
            sorter=self.store.split.sorter,
        )

    def first_shard(self) -> Histories:
        """Return the histories of the users of the first part of the output: what a run is tried on."""
        return self.histories(self.store.buckets[0], keep=True).slice(0, min(self.config.shard_users, len(self)))

    def profiles(self, user_row_N: I32) -> tuple[SideTable | None, I32]:
        """Return the side table of some users, and their rows in it, from their rows in the whole table."""
        if self.user_table is None:
            return None, user_row_N
        there_N = user_row_N >= 0
        rows_N = np.where(there_N, np.cumsum(there_N) - 1, -1).astype(np.int32)
        return side_tables.users_table(self.user_table[user_row_N[there_N]], checked=True), rows_N


def open_model(config: HistoryConfig) -> Model:
    """Return the model of `--model`, else the packaged demo rule: seeded `reference` weights."""
    if config.model is not None:
        return weights.load(Path(config.model))
    return weights.demo_model(weights.PRESETS["reference"])


def read_log(path: str, config: HistoryConfig, stages: Stages) -> tuple[EventLog, read.Source]:
    """Open a log and find out how it is read.

    Raises:
        InputError: not readable, or not the contract.
        NothingToScoreError: the log has no rows.
    """
    with stages.time("open"):
        source = read.scan(path, "INPUT")
        if source.rows == 0:
            raise NothingToScoreError(f"INPUT {path}: no rows, so nobody to score")
        return EventLog.of(source.frame, source.row_groups, config.schema, f"INPUT {path}"), source


def catalog_of(path: str, schema_name: str | None, vocabulary: int) -> Catalog:
    """Return the catalog of a log's usable events (`--catalog-from`).

    Raises:
        InputError: not readable, or not the contract.
    """
    flag = "--catalog-from"
    source = read.scan(path, flag)
    log = EventLog.of(source.frame, source.row_groups, schema_name, f"{flag} {path}")
    return Catalog.from_counts(survey(log, None, threads.cores()).videos, vocabulary=vocabulary)


def prepare(
    config: HistoryConfig,
    log: EventLog,
    stages: Stages,
    *,
    path: str,
    inputs: dict[str, read.Source],
    spill_to: Path,
    candidates: str | None = None,
    loaded_model: Model | None = None,
    known: Callable[[Model], None] | None = None,
) -> Job:
    """Find out who is scored and bring the log into an order by user.

    Args:
        config: the run's options.
        log: the events.
        stages: the run's clock.
        path: names the log in errors.
        inputs: what was read, to which the side tables are added.
        spill_to: the folder for spill files, where the log does not fit in memory.
        candidates: the table of given candidates.
        loaded_model: a model that is open already.
        known: told the model as soon as its catalog is known, before the log is arranged.

    Raises:
        ConfigError, InputError, GateError, ModelError, NothingToScoreError: see DESIGN of each input.
    """
    with stages.time("model"), console.busy("reading the model"):
        loaded = loaded_model or open_model(config)
    if isinstance(config, ScoreConfig):
        config.check_positions(loaded.config.positions)
    opened = inputs.get("events")
    with stages.time("scan", rows=log.rows, bytes=(opened and opened.bytes) or 0):
        sorter = sorter_choice.for_log(log.rows)
        found = survey(log, config.as_of_us(), threads.cores(), sorter)
    check_rejects(found, config.max_rejects, log.where)
    ranks = isinstance(config, ScoreConfig)
    warnings = [UNTRAINED] if ranks and not loaded.trained else []
    types = {"user_id": found.users.schema["user_id"], "video_id": found.videos.schema["video_id"]}
    with stages.time("catalog"):
        catalog = _catalog(loaded, found, path, warnings)
        loaded = loaded.with_catalog(len(catalog))
    if known is not None:
        known(loaded)
    with stages.time("tables"), console.busy("reading the tables of users, videos and candidates"):
        names = schema.column_names(config.schema)
        users = sides.table(config.users, "--users", "user_id", names.users, types["user_id"], inputs)
        videos = sides.table(config.videos, "--videos", "video_id", names.videos, types["video_id"], inputs)
        given = sides.candidates(candidates, types, inputs)
        if users is not None:
            side_tables.check_users(users, f"--users {config.users}")
        videos_side = side_tables.videos_table(videos, f"--videos {config.videos}") if videos is not None else None
    chosen = sides.chosen(config.user, types["user_id"], config.user_flag)
    wanted = chosen if chosen is not None or given is None else given["user_id"]  # who could get a row
    scored = _users(found, users, given, wanted, config.limit)
    _check_somebody(scored.ids, catalog, chosen, config, path)
    tokens, unknown = sides.candidate_tokens(given, scored.ids, catalog)
    if tokens is not None and not len(tokens.values):
        raise NothingToScoreError(f"--candidates {candidates}: none of its videos is in the catalog")
    if unknown:
        warnings.append(f"{unknown:,} given candidates are not in the catalog and were left out")
    video_ids = found.videos["video_id"]
    split = Split(
        log=log,
        record=RecordType.of(log.contract.reading.columns, log.contract.types),
        users=Index(scored.ids),
        videos=Index(video_ids),
        as_of_us=found.as_of_us,
        sorter=sorter,
    )
    events = int(scored.events_N.sum())
    with stages.time("partition", rows=events, bytes=events * split.record.kind.itemsize):
        store = by_user.store(
            split,
            scored,
            found,
            shard_users=config.shard_users,
            memory_bytes=config.memory_bytes(),
            spill_to=spill_to,
            workers=threads.cores(),
        )
    if empty := split.empty_columns():
        warnings.append(
            f"{', '.join(empty)}: no value in the whole log (null, not finite, or a flag that is not 0 or 1)"
        )
    for warning in warnings:
        LOG.warning(warning)
    return Job(
        users=scored,
        store=store,
        known=histories.known(video_ids, catalog, videos["video_id"] if videos is not None else None),
        user_table=users,
        user_row_N=histories.rows_of(scored.ids, users["user_id"] if users is not None else None),
        videos=videos_side,
        candidates=tokens,
        catalog=catalog,
        model=loaded,
        video_type=types["video_id"],
        as_of_us=found.as_of_us,
        config=config,
        inputs=inputs,
        stages=stages,
        facts=_facts(log, found, scored, catalog, store, config),
        warnings=warnings,
    )


def _facts(
    log: EventLog, found: Survey, scored: Users, catalog: Catalog, store: EventStore, config: HistoryConfig
) -> dict[str, object]:
    rejected = found.rows - found.usable
    if rejected:
        said = in_words(found.nulls)
        LOG.warning("%s of %s rows rejected: null %s", f"{rejected:,}", f"{found.rows:,}", said)
    return {
        "input_rows": found.rows,
        "events": found.usable,
        "rejected_rows": rejected,
        **({"rejected_because_null": found.nulls} if rejected else {}),
        "ignored_columns": list(log.contract.reading.ignored),
        "timestamps": log.contract.reading.time_unit,
        "time_ordered": found.by_time,
        "partitioned": store.way,
        "buckets": len(store.buckets),
        "spilled_mib": round(store.spilled_bytes / 2**20, 1),
        "as_of": (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=found.as_of_us)).isoformat() + "Z",  # noqa: DTZ001 (UTC by its Z)
        "users": len(scored),
        "users_without_events": int((scored.events_N == 0).sum()),
        "kept_events": int(np.minimum(scored.events_N, config.max_events).sum()),
        "catalog_videos": len(catalog),
        "videos_beyond_vocabulary": catalog.unknown_videos,
    }


def _users(
    found: Survey, users: pl.DataFrame | None, given: pl.DataFrame | None, wanted: pl.Series | None, limit: int | None
) -> Users:
    """Return who is scored: everybody of the log and the tables, or those of them who are wanted, the first `limit`."""
    counts_N = found.users["count"].to_numpy().astype(np.int64)
    if users is None and given is None and wanted is None:  # the survey has them as they are wanted
        ids = found.users["user_id"] if limit is None else found.users["user_id"].head(limit)
        return Users(ids=ids, events_N=counts_N[: len(ids)])
    others = [frame["user_id"] if frame is not None else None for frame in (users, given)]
    ids = histories.everybody(found.users["user_id"], *others)
    if wanted is not None:
        ids = ids.filter(ids.is_in(wanted.implode()))
    ids = ids if limit is None else ids.head(limit)
    row_N = histories.rows_of(ids, found.users["user_id"])
    events_N = np.where(row_N >= 0, counts_N[row_N], 0) if len(counts_N) else np.zeros(len(ids), np.int64)
    return Users(ids=ids, events_N=events_N)


def _catalog(loaded: Model, found: Survey, path: str, warnings: list[str]) -> Catalog:
    vocabulary = loaded.config.vocabulary
    file = loaded.directory / "catalog.parquet" if loaded.directory else None
    if file is not None and file.exists():
        catalog = Catalog.read(file, vocabulary=vocabulary)
        catalog.check_type(found.videos.schema["video_id"], f"INPUT {path}")
        return catalog
    if file is not None:
        warnings.append(f"{file} is missing, so the catalog is taken from the input: the ranking means nothing")
    return Catalog.from_counts(found.videos, vocabulary=vocabulary)


def _check_somebody(
    ids: pl.Series, catalog: Catalog, chosen: pl.Series | None, config: HistoryConfig, path: str
) -> None:
    if chosen is not None:
        absent = chosen.filter(~chosen.is_in(ids.implode()))
        if len(absent):
            raise ConfigError(f"{config.user_flag} {absent[0]}: neither in INPUT {path} nor in --users or --candidates")
    if not len(ids):
        raise NothingToScoreError(f"INPUT {path}: no event up to --as-of {config.as_of}, so nobody to score")
    if not len(catalog):
        raise NothingToScoreError(f"INPUT {path}: the catalog is empty: no event up to --as-of {config.as_of}")
