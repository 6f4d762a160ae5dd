"""The one way from files and options to a data set: users with their events, side tables, catalog and model.

Owns: the order in which inputs are read, the rejects, the moment to score as of, and which users are scored. Must not
know: engines, decoding, the output. In: options and a log. Out: a `Dataset`, which loads histories a bucket at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl

from genrec_batch.core.arrays import I32
from genrec_batch.core.errors import GateError, NothingToScoreError
from genrec_batch.core.options import HistoryConfig, ScoreConfig
from genrec_batch.events import by_user, histories, plausible, sorter_choice
from genrec_batch.events.beside import Beside, Shared, given_candidates, named_rows, users_to_score
from genrec_batch.events.by_user import EventStore, RecordReader, Users
from genrec_batch.events.dataset_facts import facts_of_run
from genrec_batch.events.duplicates import Duplicates
from genrec_batch.events.histories import VideoRows
from genrec_batch.events.joins import Joins, not_in_catalog
from genrec_batch.events.log import EventLog
from genrec_batch.events.promoted import promoted_tokens, read_promoted
from genrec_batch.events.rejects import RejectFile, reject_file
from genrec_batch.events.rule_tables import RuleTables, read_rules
from genrec_batch.events.schema_file import BUILT_IN, column_names
from genrec_batch.events.side_tables import Tables
from genrec_batch.events.survey import Survey, check_rejects, survey
from genrec_batch.events.table_rows import TableRules
from genrec_batch.events.user_histories import UserHistories
from genrec_batch.io import read
from genrec_batch.model import opening, weights
from genrec_batch.model.catalog import Catalog
from genrec_batch.model.registry import Begun
from genrec_batch.model.weights import Model
from genrec_batch.runtime import console, threads
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG

MASKED = (
    "--include-seen: the model was trained to leave out what a user has seen, so it ranks seen videos badly; train "
    "with --include-seen for one that ranks both"
)
UNTRAINED = "untrained weights: the ranking means nothing until --model names a trained model"


Arranged = Callable[[RecordReader, Users, Survey], EventStore]


class HeadStart(Protocol):
    """Work that a caller begins while the log is read, such as opening an engine."""

    def start(self) -> None:
        """Begin: the log can be read, and no import of the event kernels is in the way."""

    def know(self, model: Model) -> None:
        """Continue with the model, whose number of tokens is that of the catalog."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a run works on: N users in id order with their events, and what reads them."""

    log: EventLog
    inputs: Mapping[str, read.Source]  # every log and table that was read, by name, for lineage
    users: UserHistories
    tables: Tables
    catalog_videos: pl.DataFrame | None  # columns of `--videos`: see `Beside`
    named_videos: pl.DataFrame | None  # see `beside.named_rows`
    rules: RuleTables  # what was given about which videos may be recommended
    log_videos: pl.DataFrame  # video_id and count of all videos of the log, by rising id
    promoted: pl.DataFrame | None  # see `promoted.read_promoted`
    catalog: Catalog
    model: Model
    video_type: pl.DataType  # of the log's own ids
    facts: dict[str, object]  # counts, for the summary
    token_V: I32 | None = None  # token of each video code that histories hold in the place of tokens, None: they do not
    shared: Shared | None = None  # of a run with arms: see `arm_datasets`

    @staticmethod
    def open(
        source: str | pl.DataFrame,
        config: HistoryConfig,
        stages: Stages | None = None,
        *,
        model: Model | None = None,
        begun: Begun | None = None,
        arms: bool = False,
        spill_beside: str | None = None,
        ahead: HeadStart | None = None,
        processes: int = 1,
        arranged: Arranged | None = None,
    ) -> Dataset:
        """Read a log and what the options name beside it, and arrange the events by user; `users.close` ends it.

        Args:
            source: path or URI of the log, or its rows.
            config: the options.
            stages: the clock of the run; a new one by default.
            model: a model that is open already; by default that of `--model`.
            begun: what an earlier try of this run recorded of its model, which is then taken again.
            arms: whether histories hold the log's codes of videos, which further models read: see `arm_datasets`.
            spill_beside: the output, whose folder takes spill files where `--spill-dir` names none.
            ahead: work to begin while the log is read.
            processes: that will load users' events at the same time.
            arranged: arranges the events by user elsewhere.

        Raises:
            ConfigError, InputError, GateError, ModelError, NothingToScoreError, RetryError: see each input.
        """
        stages = stages or Stages()
        spill_to = by_user.spill_folder(config.spill_dir, spill_beside) if isinstance(source, str) else None
        log, inputs = _log(source, config, spill_to, stages)
        with stages.time("scan"):
            log = log.in_zone(config.timezone).since(config.since, config.as_of_us())
        with console.busy("loading the kernels"):
            sorter_choice.for_log(log.rows)  # an import, which would hold up one that `ahead` makes
        if ahead is not None:
            ahead.start()
        loaded = _model(config, model, begun, stages)
        with reject_file(config.rejects) as rejected:
            found = _survey(log, config, inputs, stages, rejected)
            warn_about(loaded, config)
            name = f"INPUT {source if isinstance(source, str) else 'table'}"
            with stages.time("catalog"):
                catalog = catalog_for(loaded, found, name)
                token_V = catalog.tokens(found.videos["video_id"]).to_numpy()
                loaded = loaded.with_catalog(len(catalog))
            if ahead is not None:
                ahead.know(loaded)
            joins = Joins.of(found, name, config.min_match, block=isinstance(source, pl.DataFrame))
            joins.catalog(catalog, token_V, found.videos["count"], f"--model {config.model}")
            rules = TableRules(
                max_rejects=config.max_rejects, newest=config.side_tables_newest, spill_to=spill_to, file=rejected
            )
            beside = Beside.read(config, joins, catalog, loaded, inputs, rules, stages)
            of_rules, promote, promoted = RuleTables(), None, None
            if isinstance(config, ScoreConfig):
                of_rules = read_rules(config, beside.uploaded, joins, catalog, found.as_of_us, inputs, rules)
                promote = read_promoted(config.promote, config.top_k, joins, inputs, rules)
                promoted = promoted_tokens(promote, config.promote, catalog, joins)
        scored = users_to_score(found, beside, config, joins)
        _check_not_empty(scored, catalog, config, name)
        given = given_candidates(beside.given, scored.ids, catalog, config)
        reader = RecordReader.of(log, found, scored.ids, sorter_choice.for_log(log.rows))
        if arranged is not None:
            store = arranged(reader, scored, found)
        else:
            store = _arranged(reader, scored, found, config, spill_to, stages, processes)
        users = UserHistories(
            users=scored,
            store=store,
            duplicates=Duplicates.of(store.reader.record, all_columns=config.dedupe, by=config.dedupe_by),
            videos=VideoRows.of(found.videos["video_id"], beside.video_ids, None if arms else token_V),
            table_row_N=histories.rows_of(scored.ids, beside.user_ids),
            as_of_us=found.as_of_us,
            max_events=config.max_events,
            seen_limit=config.seen_limit,
            shard_users=config.shard_users,
            stages=stages,
        )
        dataset = Dataset(
            log=log,
            inputs=inputs,
            users=users,
            tables=Tables(users=beside.users, videos=beside.videos, candidates=given),
            catalog_videos=beside.catalog_videos,
            named_videos=named_rows(config, beside.video_rows),
            rules=of_rules,
            log_videos=found.videos,
            promoted=promoted,
            catalog=catalog,
            model=loaded,
            video_type=found.videos.schema["video_id"],
            facts={
                **facts_of_run(log, found, users, catalog, rules.counts),
                **not_in_catalog(found.videos, token_V, loaded.directory),
                "matches": joins.found,
            },
            token_V=token_V if arms else None,
            shared=Shared(found=found, joins=joins, beside=beside, promoted=promote) if arms else None,
        )
        dataset.warn_of_values(config)
        check_strict(config)
        return dataset

    def warn_of_values(self, config: HistoryConfig) -> None:
        """Warn of columns without any value, and of values that make no sense, in what was read so far.

        A log that is nearly in id order is read while it is scored; its warnings come at the end.
        """
        reader = self.users.store.reader
        if empty := reader.empty_columns():
            what = "no value in the whole log (null, not finite, or a flag that is not 0 or 1)"
            LOG.warning("%s: %s", ", ".join(empty), what)
        entries = column_names(config.schema).events
        for warning in plausible.warnings(reader.looks, entries, categories=config.schema not in BUILT_IN):
            LOG.warning("%s", warning)


def warn_about(model: Model, config: HistoryConfig) -> None:
    """Warn of a model before it ranks.

    Raises:
        ConfigError: it was trained with another time zone.
    """
    if model.training is not None:
        model.training.check_timezone(config.timezone)
    if not isinstance(config, ScoreConfig):
        return
    masked = config.include_seen and model.training is not None and model.training.seen_masked
    if masked or not model.trained:
        LOG.warning(MASKED if masked else UNTRAINED)


def open_model(config: HistoryConfig, begun: Begun | None = None) -> Model:
    """Return the model of `--model`, else the packaged demo rule: seeded `reference` weights."""
    if config.model is not None:
        model = opening.open_model(config.model, config.registry, begun=begun)
        if model.version is not None:
            LOG.info("model: %s of %s", model.version.label, config.model)
        return model
    return weights.demo_model(weights.PRESETS["reference"])


def catalog_of(path: str, schema_name: str | None, vocabulary: int) -> Catalog:
    """Return the catalog of a log's usable events (`--catalog-from`).

    Raises:
        InputError: not readable, or not the contract.
    """
    flag = "--catalog-from"
    source = read.scan(path, flag)
    log = EventLog.of(source, schema_name, f"{flag} {path}")
    return Catalog.from_counts(survey(log, None, threads.cores()).videos, vocabulary=vocabulary)


def _log(
    source: str | pl.DataFrame, config: HistoryConfig, spill_to: Path | None, stages: Stages
) -> tuple[EventLog, dict[str, read.Source]]:
    """Open a log and find out how it is read; a log in memory is no input of the lineage."""
    with stages.time("open"):
        if isinstance(source, pl.DataFrame):
            if not len(source):
                raise NothingToScoreError("the table has no rows, so nobody to score")
            return EventLog.of(read.Source.of(source.lazy(), len(source)), config.schema, "the table"), {}
        opened = read.scan(source, "INPUT", spill_to=spill_to)
        if opened.rows == 0:
            raise NothingToScoreError(f"INPUT {source}: no rows, so nobody to score")
        return EventLog.of(opened, config.schema, f"INPUT {source}"), {"events": opened}


def _model(config: HistoryConfig, given: Model | None, begun: Begun | None, stages: Stages) -> Model:
    with stages.time("model"), console.busy("reading the model"):
        loaded = given or open_model(config, begun)
    if isinstance(config, ScoreConfig):
        config.check_positions(loaded.config.positions)
    return loaded


def _survey(
    log: EventLog, config: HistoryConfig, inputs: Mapping[str, read.Source], stages: Stages, rejected: RejectFile
) -> Survey:
    opened = inputs.get("events")
    with stages.time("scan", rows=log.rows, bytes=(opened and opened.bytes) or 0):
        found = survey(log, config.as_of_us(), threads.cores(), sorter_choice.for_log(log.rows), rejected)
    check_rejects(found, config.max_rejects, log.where)
    return found


def catalog_for(loaded: Model, found: Survey, name: str) -> Catalog:
    """Return the catalog of the model directory, else that of the log, whose `name` errors use.

    Raises:
        ModelError: the catalog is damaged, or its ids can never equal the log's.
        RetryError: the model's files are not those that its weights were read with.
    """
    vocabulary = loaded.config.vocabulary
    file = loaded.directory / "catalog.parquet" if loaded.directory else None
    if file is not None and file.exists():
        with loaded.files.held():
            catalog = Catalog.read(file, vocabulary=vocabulary)
        catalog.check_type(found.videos.schema["video_id"], name)
        if loaded.training is not None:
            loaded.training.check_catalog(catalog.fingerprint(), file)
        return catalog
    if file is not None:
        LOG.warning("%s is missing, so the catalog is taken from the input: the ranking means nothing", file)
    return Catalog.from_counts(found.videos, vocabulary=vocabulary)


def _check_not_empty(users: Users, catalog: Catalog, config: HistoryConfig, name: str) -> None:
    if not len(users):
        raise NothingToScoreError(f"{name}: no event up to --as-of {config.as_of}, so nobody to score")
    if not len(catalog):  # of the log: one of a model has videos
        raise NothingToScoreError(f"{name}: the catalog is empty: no event up to --as-of {config.as_of}")


def _arranged(
    reader: RecordReader,
    users: Users,
    found: Survey,
    config: HistoryConfig,
    spill_to: Path | None,
    stages: Stages,
    processes: int,
) -> EventStore:
    """Arrange the events by user, in memory or in files; a log in memory stays there, whatever its size."""
    events = int(users.events_N.sum())
    with stages.time("partition", rows=events, bytes=events * reader.record.kind.itemsize):
        return by_user.store(
            reader,
            users,
            found,
            shard_users=config.shard_users,
            memory_bytes=sys.maxsize if spill_to is None else config.memory_bytes(),
            spill_to=spill_to or Path(),
            workers=threads.cores(),
            processes=processes,
        )


def check_strict(config: HistoryConfig) -> None:
    """Raise GateError where `--strict` is given and there was a warning."""
    if config.strict and (said := console.faults()):
        raise GateError("--strict: nothing is published, since there were warnings:\n  " + "\n  ".join(said))
