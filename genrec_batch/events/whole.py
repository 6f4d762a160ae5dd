"""A whole log in memory: every event of every user in order, with labels and side tables, for training and judging.

Owns: reading a log and its side tables as `score` reads them, but all events of a user, not the newest. Must not know:
splits, features, the model's weights. In: paths and names of columns. Out: `WholeLog`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import polars as pl

from genrec_batch.core.arrays import Histories, SideTable
from genrec_batch.core.errors import InputError
from genrec_batch.core.options import NEXT_TO_NONE
from genrec_batch.events import histories, plausible, schema_file, side_tables, sorter_choice
from genrec_batch.events.by_user import RecordReader
from genrec_batch.events.duplicates import Duplicates
from genrec_batch.events.histories import VideoRows
from genrec_batch.events.joins import Joins
from genrec_batch.events.log import EventLog
from genrec_batch.events.rejects import facts_of, reject_file, warn_of
from genrec_batch.events.splits import ALL_EVENTS
from genrec_batch.events.survey import Survey, check_rejects, survey
from genrec_batch.events.table_rows import TableRules
from genrec_batch.io import read
from genrec_batch.model.catalog import Catalog
from genrec_batch.runtime import threads
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG


@dataclass(frozen=True, kw_only=True)
class WholeLog:
    """All usable events of a log up to as-of. `events.numbers` also holds the labels that the log has.

    Users are in id order; those of `--users` alone are not among them.
    """

    ids: pl.Series
    events: Histories  # all of them: `splits` cuts them
    users: SideTable | None
    videos: SideTable | None
    catalog: Catalog
    inputs: dict[str, read.Source]  # the log ("events") and the side tables, by name
    video_type: pl.DataType
    found: Survey
    ignored: tuple[str, ...]  # columns that nothing reads
    matches: Mapping[str, object]  # how far the catalog and each table met the log
    facts: Mapping[str, object]  # for the summary: what of the inputs was not used, or is odd


def read_whole(
    path: str,
    catalog_of: Callable[[Survey, pl.DataType], Catalog],
    stages: Stages,
    *,
    flag: str = "EVENTS",
    users: str | None = None,
    extra_features: str | None = None,
    extra_wanted: int = -1,
    videos: str | None = None,
    schema_name: str | None = None,
    as_of_us: int | None = None,
    since: str | None = None,
    timezone: str | None = None,
    dedupe: bool = False,
    dedupe_by: str | None = None,
    max_rejects: float = 0.05,
    min_match: float = NEXT_TO_NONE,
    positive: str | None = None,
    newest: str | None = None,
    rejects: str | None = None,
) -> WholeLog:
    """Read a log with its labels and side tables.

    Args:
        path: the log.
        catalog_of: returns the catalog from the survey and the log's type of video_id.
        stages: the run's clock.
        flag: names the log in errors.
        users: `--users`, as for `score`.
        extra_features: `--extra-features`.
        extra_wanted: further features that the model reads, -1 for as many as the table has.
        videos: `--videos`.
        schema_name: `--schema`.
        as_of_us: `--as-of`.
        since: `--since`.
        timezone: `--timezone`.
        dedupe: `--dedupe`.
        dedupe_by: `--dedupe-by`.
        max_rejects: `--max-rejects`.
        min_match: `--min-match`.
        positive: the log's own column that is the label of recommendation.
        newest: `--side-tables-newest`.
        rejects: `--rejects`.

    Raises:
        ConfigError, InputError, GateError, ModelError, RetryError: see each input.
    """
    where = f"{flag} {path}"
    with stages.time("open"):
        source = read.scan(path, flag)
        if not source.rows:
            raise InputError(f"{where}: no rows, so nothing to learn from")
        log = EventLog.of(source, schema_name, where, positive=positive, labels=True)
        log = log.in_zone(timezone).since(since, as_of_us)
    sorter = sorter_choice.for_log(log.rows)
    with reject_file(rejects) as rejected:
        with stages.time("scan", rows=log.rows):
            found = survey(log, as_of_us, threads.cores(), sorter, rejected)
        check_rejects(found, max_rejects, where)
        warn_of(found.rejects, found.rows)
        if not len(found.users):
            raise InputError(f"{where}: no event up to as-of, so nothing to learn from")
        ids, video_ids = found.users["user_id"], found.videos["video_id"]
        catalog = catalog_of(found, video_ids.dtype)
        token_V = catalog.tokens(video_ids).to_numpy()
        joins = Joins.of(found, where, min_match)
        joins.catalog(catalog, token_V, found.videos["count"], "the catalog")
        inputs = {"events": source}
        rules = TableRules(max_rejects=max_rejects, newest=newest, file=rejected)
        with stages.time("tables"):
            users_table = side_tables.read_users(users, schema_name, joins, inputs, rules)
            videos_table = side_tables.read_videos(videos, schema_name, joins, inputs, rules)
            users_table = side_tables.with_extra_features(
                users_table, extra_features, extra_wanted, joins, inputs, rules
            )
            rules.check_dated(given=users is not None or videos is not None)
            users_side = None if users_table is None else side_tables.users_table(users_table)
            videos_side = None if videos_table is None else side_tables.videos_table(videos_table, f"--videos {videos}")
    reader = RecordReader.of(log, found, ids, sorter)
    with stages.time("histories", rows=log.rows):
        chunks = list(
            threads.ordered(reader.records, range(len(log.row_groups)), workers=threads.cores(), name="records")
        )
        entries, categories = schema_file.column_names(schema_name).events, schema_name not in schema_file.BUILT_IN
        for warning in plausible.warnings(reader.looks, entries, categories=categories):
            LOG.warning("%s", warning)
        total_N = found.users["count"].to_numpy().astype("int64")
        duplicates = Duplicates.of(reader.record, all_columns=dedupe, by=dedupe_by)
        if duplicates is not None:
            kept, total_N = duplicates.without(chunks, reader.record, 0, len(ids))
            chunks = [kept]
            LOG.info("%s duplicates dropped", f"{sum(duplicates.dropped.values()):,}")
        events = histories.build(
            chunks,
            reader.record,
            start=0,
            total_N=total_N,
            videos=VideoRows(
                token_V=token_V,
                row_V=histories.rows_of(video_ids, None if videos_table is None else videos_table["video_id"]),
            ),
            user_row_N=histories.rows_of(ids, None if users_table is None else users_table["user_id"]),
            as_of_us=found.as_of_us,
            max_events=ALL_EVENTS,
            seen_limit=ALL_EVENTS,
            sorter=sorter,
        )
    return WholeLog(
        ids=ids,
        events=events,
        users=users_side,
        videos=videos_side,
        catalog=catalog,
        inputs=inputs,
        video_type=video_ids.dtype,
        found=found,
        matches=joins.found,
        ignored=log.contract.reading.ignored,
        facts={
            **facts_of(found.rejects, rules.counts),
            **({"odd_values": odd} if (odd := plausible.counts(reader.looks)) else {}),
            **({"absent_columns": dict(log.contract.reading.absent)} if log.contract.reading.absent else {}),
        },
    )
