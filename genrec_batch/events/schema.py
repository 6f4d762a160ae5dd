"""How a log with columns of its own becomes the events contract: names, kinds, units.

Owns: other names for the contract's columns (`--schema`, Polars SQL expressions), the unit of timestamps, and which
rows are rejected. Must not know: where frames come from, what the columns are used for. In: a lazy frame for each kind
of files, with columns of its own. Out: lazy frames with contract columns of fixed types, and a `Reading` of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from genrec_batch.core.errors import InputError
from genrec_batch.events import lists
from genrec_batch.events.columns import KINDS, KNOWN, LABELS, REQUIRED, SCORED, check_columns
from genrec_batch.events.convert import common_type, converted
from genrec_batch.events.expressions import Entry, entry
from genrec_batch.events.schema_file import BUILT_IN, column_names
from genrec_batch.events.times import LOCAL, TimeUnit, check_zone, local_values, time_unit
from genrec_batch.events.trees import Types
from genrec_batch.io.row_groups import Columns

FAILED = "an entry fails"  # a column beside those of the contract


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The columns of a log and how they are read."""

    columns: tuple[str, ...]  # contract columns that it has
    ignored: tuple[str, ...]  # its columns that nothing reads
    absent: Mapping[str, int]  # columns that some files do not have, with the number of these files
    time_unit: str  # "datetime" or "epoch s", "epoch ms", "epoch us", "epoch ns"


def rename(frame: pl.LazyFrame, expressions: Mapping[str, str], source: str, where: str | None = None) -> pl.LazyFrame:
    """Add each contract column computed by its SQL expression over the frame's own columns, of the rows of `where`.

    A column `FAILED` says where an expression fails, if any can.

    Raises:
        ConfigError, InputError: see `expressions.entry`.
    """
    if not expressions and where is None:
        return frame
    types = dict(frame.collect_schema())
    if where is not None:
        frame = frame.filter(filter_of(where, types, source).value)
    entries = entries_of(expressions, types, source)
    fails = [each.fails for each in entries.values() if each.fails is not None]
    failed = {FAILED: pl.any_horizontal(fails)} if fails else {}
    return frame.with_columns(**{name: each.value for name, each in entries.items()}, **failed)


def filter_of(sql: str, types: Types, source: str) -> Entry:
    """Return the checked entry `where` for columns of these types.

    Raises:
        ConfigError, InputError: see `expressions.entry`; or it is neither true nor false.
    """
    found = entry("where", sql, types, source)
    kind = pl.LazyFrame(schema=types).select(value=found.value).collect_schema()["value"]
    if kind not in (pl.Boolean, pl.Null):
        example = "1" if kind.is_numeric() else "'view'"
        raise InputError(
            f"--schema: where = {sql!r} is {kind} in {source}, and has to be true or false for each row, as "
            f'where = "({sql}) = {example}" is'
        )
    return found


def entries_of(expressions: Mapping[str, str], types: Types, source: str) -> dict[str, Entry]:
    """Return the checked entries for columns of these types.

    Raises:
        ConfigError, InputError: see `expressions.entry`.
    """
    return {column: entry(column, sql, types, source) for column, sql in expressions.items()}


def check(
    columns: Mapping[str, pl.DataType],
    source: str,
    *,
    labels: bool = False,
    alone: Sequence[str] = (),
    text: bool = False,
    entries: Mapping[str, str] | None = None,
) -> None:
    """Raise one InputError that lists every required column that is missing and every column of a wrong type.

    `entries` are those of `--schema`, `alone` the columns that other files of the log do not have; the values of a
    `text` may have any form.
    """
    readers = {
        name: {column for sql in column_names(name).events.values() for column in pl.sql_expr(sql).meta.root_names()}
        for name in BUILT_IN
    }
    kinds = KINDS if labels else SCORED
    check_columns(columns, source, readers=readers, kinds=kinds, alone=alone, text=text, entries=entries or {})


@dataclass(frozen=True, kw_only=True)
class Contract:
    """How one log's own columns become contract columns, the same way in every row group."""

    entries: tuple[Mapping[str, Entry], ...]  # of `--schema`, for each kind of files
    where: tuple[Entry | None, ...]
    explode: tuple[str, ...]
    own: tuple[Mapping[str, pl.DataType], ...]  # of the log's files, by kind: contract columns before conversion
    units: tuple[TimeUnit, ...]  # of the times of each kind of files
    types: Mapping[str, pl.DataType]  # in which all files meet
    reading: Reading
    source: str
    zone: str = "UTC"  # of hours and weekdays
    derived: tuple[str, ...] = ()  # columns that are computed from the time, in another zone than UTC

    def in_zone(self, zone: str | None) -> Contract:
        """Return the contract with hour, weekday and weekend in a time zone, where the log has no such columns.

        Raises:
            ConfigError: there is no such zone.
        """
        if zone is None:
            return self
        check_zone(zone)
        derived = tuple(name for name in LOCAL if name not in self.reading.columns)
        columns = tuple(name for name in KINDS if name in (*self.reading.columns, *derived))
        return replace(
            self,
            zone=zone,
            derived=derived,
            types={**self.types, **{name: LOCAL[name] for name in derived}},
            reading=replace(self.reading, columns=columns),
        )

    def events(self, frame: pl.LazyFrame, columns: Iterable[str] | None = None, files: int = 0) -> pl.LazyFrame:
        """Return the events of rows of the log in contract columns, all or some of those it has.

        `files` is the number of the kind of files that the rows are from; a column that they do not have is null. Rows
        that cannot be used are among them; an event on which an entry fails has no timestamp.
        """
        wanted = self.reading.columns if columns is None else tuple(columns)
        own, unit = self.own[files], self.units[files]
        needed = (*wanted, "timestamp") if set(self.derived) & set(wanted) else wanted
        added = {name: each.value for name, each in self.entries[files].items() if name in needed}
        fails = self.failing(files) if "timestamp" in wanted else {}
        if fails:
            added[FAILED] = pl.any_horizontal(fails.values())
        values = {
            name: converted(name, KINDS[name], own[name], self.types[name], unit)
            if name in own
            else pl.lit(None, self.types[name])
            for name in wanted
        }
        if len(needed) > len(wanted):
            time = converted("timestamp", "time", own["timestamp"], self.types["timestamp"], unit)
            values |= {name: local_values(time, self.zone)[name] for name in self.derived if name in wanted}
        if fails:
            values["timestamp"] = pl.when(~pl.col(FAILED)).then(values["timestamp"])
        frame = self.rows(frame, files)
        return (frame.with_columns(**added) if added else frame).select(**values)

    def made_null(self, frame: pl.LazyFrame, columns: Sequence[str], files: int) -> pl.LazyFrame:
        """Return, for columns that files of a kind have, counts of values and of those made null, and one of these."""
        names = [name for name in columns if self.has(name, files)]
        rows = self.rows(frame, files).select(**{name: self.raw(name, files) for name in names})
        own, unit = self.own[files], self.units[files]
        lost = {
            name: pl.col(name).is_not_null() & converted(name, KINDS[name], own[name], self.types[name], unit).is_null()
            for name in names
        }
        return rows.select(
            pl.struct(
                made=each.sum(),
                values=pl.col(name).is_not_null().sum(),
                example=pl.col(name).filter(each).first().cast(pl.String),
            ).alias(name)
            for name, each in lost.items()
        )

    def rows(self, frame: pl.LazyFrame, files: int) -> pl.LazyFrame:
        """Return the events of a file's rows in its own columns: lists exploded, rows of `where`."""
        if self.explode:
            filled = pl.col(self.explode[0]).list.len() > 0
            frame = lists.listed(frame, self.explode).filter(lists.even(self.explode) & filled).explode(*self.explode)
        where = self.where[files]
        if where is None:
            return frame
        return frame.filter(where.value if where.fails is None else where.value | where.fails)

    def has(self, name: str, files: int) -> bool:
        """Return whether files of a kind have a contract column."""
        return name in self.own[files]

    def raw(self, name: str, files: int) -> pl.Expr:
        """Return a contract column before it is converted."""
        each = self.entries[files].get(name)
        return pl.col(name) if each is None else each.value

    def chosen_null(self, name: str, files: int) -> pl.Expr:
        """Return whether an entry makes a contract column null on purpose: all that it reads is there."""
        each = self.entries[files].get(name)
        return pl.lit(value=False) if each is None else each.chosen_null

    def failing(self, files: int) -> dict[str, pl.Expr]:
        """Return where entries fail, of those that can."""
        named = {**self.entries[files], "where": self.where[files]}
        read = {*self.reading.columns, "where"}
        return {
            name: each.fails
            for name, each in named.items()
            if name in read and each is not None and each.fails is not None
        }


def read_contract(
    log: pl.LazyFrame | Sequence[Columns],
    expressions: Mapping[str, str],
    source: str,
    *,
    labels: bool = False,
    only: str | None = None,
    explode: tuple[str, ...] = (),
) -> Contract:
    """Find out how a log is read: ids as they are, times in UTC, numbers Float64, flags Boolean.

    Each kind of files has types of its own, which meet in one; see `convert`. Labels, which scoring does not read, are
    left out unless `labels` is set. `only` and `explode` are `where` and `explode` of `--schema`. Which times are
    plausible is left to the caller, who reads them all anyway.

    Raises:
        InputError: a file lacks a required column, a type is wrong, two files have types that cannot meet, or epoch
            timestamps are implausible.
        ConfigError: an expression of the mapping does not fit the frame.
    """
    kinds = [Columns(frame=log)] if isinstance(log, pl.LazyFrame) else log
    if not labels:
        expressions = {name: sql for name, sql in expressions.items() if name not in LABELS}
    exploded = [lists.exploded(kind.frame, explode, source if len(kinds) == 1 else kind.file) for kind in kinds]
    before = [dict(frame.collect_schema()) for frame in exploded]
    own, units, entries, wheres, used = [], [], [], [], set[str](explode)
    for number, kind in enumerate(kinds):
        where = source if len(kinds) == 1 else f"{source}: {kind.file}"
        unread = {**before[number], **dict.fromkeys(kind.unreadable, pl.Null())}
        compiled = entries_of(expressions, unread, where)
        filtered = None if only is None else filter_of(only, unread, where)
        used |= {name for each in [*compiled.values(), filtered] if each is not None for name in each.reads}
        _check_readable(kind, used, where)
        rows = exploded[number] if filtered is None else exploded[number].filter(filtered.value)
        renamed = rows.with_columns(**{name: each.value for name, each in compiled.items()})
        types = dict(renamed.collect_schema())
        others = {name for at, names in enumerate(before) if at != number for name in names}
        alone = [name for name in before[number] if name not in others] if others else []
        check(types, where, labels=labels, alone=alone, text=kind.text, entries=expressions)
        own.append({name: types[name] for name in (KINDS if labels else SCORED) if name in types})
        units.append(time_unit(renamed, types["timestamp"], where, text=kind.text))
        entries.append(compiled)
        wheres.append(filtered)
    columns = tuple(name for name in KINDS if any(name in types for types in own))
    every = dict.fromkeys(name for names in before for name in names)
    unreadable = [name for kind in kinds for name in kind.unreadable]
    lacking = {
        name: sum(kind.files for kind, types in zip(kinds, own, strict=True) if name not in types) for name in columns
    }
    reading = Reading(
        columns=columns,
        absent={name: files for name, files in lacking.items() if files},
        ignored=tuple(
            name
            for name in dict.fromkeys([*every, *unreadable])
            if name not in KINDS and name not in KNOWN and name not in used
        ),
        time_unit=" and ".join(sorted({unit.name for unit in units})),
    )
    return Contract(
        entries=tuple(entries),
        where=tuple(wheres),
        explode=explode,
        own=tuple(own),
        units=tuple(units),
        types={name: common_type(name, own, [kind.file for kind in kinds], source) for name in columns},
        reading=reading,
        source=source,
    )


def _check_readable(kind: Columns, used: set[str], where: str) -> None:
    wanted = [name for name in kind.unreadable if name in SCORED or name in used]
    if wanted:
        raise InputError(
            f"{where}: column {wanted[0]!r} has the type {kind.unreadable[wanted[0]]}, which cannot be read; write the "
            "column again in another type, or leave it out"
        )


def usable() -> pl.Expr:
    """Return the filter of rows that can be scored: user_id, video_id and timestamp are not null."""
    return pl.all_horizontal(pl.col(REQUIRED).is_not_null())
