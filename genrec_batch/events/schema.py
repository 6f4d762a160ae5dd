"""How a log with columns of its own becomes the events contract: names, kinds, units.

Owns: other names for the contract's columns (`--schema`, Polars SQL expressions), the unit of timestamps, and which
rows are rejected. Must not know: where frames come from, what the columns are used for. In: a lazy frame for each kind
of files, with columns of its own. Out: lazy frames with contract columns of fixed types, and a `Reading` of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import polars as pl

from genrec_batch.core import toml
from genrec_batch.core.errors import ConfigError, InputError, nearest
from genrec_batch.events.columns import KINDS, KNOWN, LABELS, REQUIRED, SCORED, check_columns, is_text
from genrec_batch.events.convert import converted, meeting_type
from genrec_batch.events.expressions import Types, entry
from genrec_batch.io.row_groups import Columns

FOLDER = resources.files("genrec_batch.events").joinpath("schemas")
BUILT_IN = sorted(p.name.removesuffix(".toml") for p in FOLDER.iterdir() if p.name.endswith(".toml"))

EPOCHS: tuple[tuple[str, int, int, int], ...] = (  # unit, first value, first value beyond, units per second
    ("s", 10**8, 10**10, 1),
    ("ms", 10**11, 10**13, 10**3),
    ("us", 10**14, 10**16, 10**6),
    ("ns", 10**17, 2**63, 10**9),
)
FIRST_US, LAST_US = 10**14, 10**16  # 1973-03-03 to 2286-11-20: the plausible times of a log


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Polars SQL expressions by contract column, for events, users and videos."""

    name: str = "contract"
    events: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict)
    videos: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The columns of a log and how they are read."""

    columns: tuple[str, ...]  # contract columns that it has
    ignored: tuple[str, ...]  # its columns that nothing reads
    time_unit: str  # "datetime" or "epoch s", "epoch ms", "epoch us", "epoch ns"


def column_names(name: str | None) -> ColumnNames:
    """Return the column names to read: None for the contract's own, a built-in name, or a TOML file.

    A TOML file has entries `contract_column = "Polars SQL expression"`, at the top for events, or under `[events]`,
    `[users]` and `[videos]`.

    Raises:
        ConfigError: no such built-in, unreadable TOML, or an entry for a column that the contract does not have.
    """
    if name is None:
        return ColumnNames()
    if name in BUILT_IN:
        return _parse(FOLDER.joinpath(f"{name}.toml").read_bytes(), name)
    if not Path(name).is_file():
        hint = nearest(name, BUILT_IN)
        raise ConfigError(f"--schema {name!r} is neither a TOML file nor built in ({', '.join(BUILT_IN)}).{hint}")
    try:
        content = Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"--schema {name}: cannot be read ({error.strerror})") from error
    return _parse(content, name)


def _parse(content: bytes, name: str) -> ColumnNames:
    entries = toml.parsed(content, name, f"--schema {name}")
    tables = {key: entries.pop(key) for key in ("events", "users", "videos") if isinstance(entries.get(key), dict)}
    tables["events"] = {**entries, **tables.get("events", {})}
    faults = [
        f"{column} = {sql!r}: an expression is a string"
        for table in tables.values()
        for column, sql in table.items()
        if not isinstance(sql, str)
    ]
    known = [*KINDS, *KNOWN]
    faults += [
        f"{c}: not a column of the events contract.{nearest(c, known)}" for c in tables["events"] if c not in known
    ]
    if faults:
        raise ConfigError(f"--schema {name}:\n  " + "\n  ".join(faults))
    return ColumnNames(name=name, **tables)


def rename(frame: pl.LazyFrame, expressions: Mapping[str, str], source: str) -> pl.LazyFrame:
    """Add each contract column computed by its SQL expression over the frame's own columns.

    Raises:
        ConfigError, InputError: see `expressions.entry`.
    """
    if not expressions:
        return frame
    types = dict(frame.collect_schema())
    entries = {column: entry(column, sql, types, source) for column, sql in expressions.items()}
    return frame.with_columns(**{column: each.value for column, each in entries.items()})


def _reads(expressions: Mapping[str, str], types: Types, source: str) -> set[str]:
    return {name for column, sql in expressions.items() for name in entry(column, sql, types, source).reads}


def check(columns: Mapping[str, pl.DataType], source: str, *, labels: bool = False, alone: Sequence[str] = ()) -> None:
    """Raise one InputError that lists every required column that is missing and every column of a wrong type.

    `alone` are the columns that other files of the log do not have.
    """
    readers = {
        name: {column for sql in column_names(name).events.values() for column in pl.sql_expr(sql).meta.root_names()}
        for name in BUILT_IN
    }
    check_columns(columns, source, readers=readers, kinds=KINDS if labels else SCORED, alone=alone)


@dataclass(frozen=True, kw_only=True)
class Contract:
    """How one log's own columns become contract columns, the same way in every row group."""

    expressions: Mapping[str, str]
    own: tuple[Mapping[str, pl.DataType], ...]  # of the log's files, by kind: contract columns before conversion
    units: tuple[str, ...]  # of the times of each kind of files
    types: Mapping[str, pl.DataType]  # in which all files meet
    reading: Reading
    source: str

    def events(self, frame: pl.LazyFrame, columns: Iterable[str] | None = None, files: int = 0) -> pl.LazyFrame:
        """Return rows of the log in contract columns, all or some of those it has; rows are not filtered.

        `files` is the number of the kind of files that the rows are from; a column that they do not have is null.
        """
        wanted, own, unit = (
            self.reading.columns if columns is None else tuple(columns),
            self.own[files],
            self.units[files],
        )
        frame = rename(frame, {n: sql for n, sql in self.expressions.items() if n in wanted}, self.source)
        return frame.select(
            converted(name, KINDS[name], own[name], self.types[name], unit)
            if name in own
            else pl.lit(None, self.types[name]).alias(name)
            for name in wanted
        )


def read_contract(
    log: pl.LazyFrame | Sequence[Columns],
    expressions: Mapping[str, str],
    source: str,
    *,
    labels: bool = False,
) -> Contract:
    """Find out how a log is read: ids as they are, times in UTC, numbers Float64, flags Boolean.

    Each kind of files has types of its own, which meet in one; see `convert`. Labels, which scoring does not read, are
    left out unless `labels` is set. The range of datetimes is left to `check_time_range`, for the caller reads them all
    anyway.

    Raises:
        InputError: a file lacks a required column, a type is wrong, two files have types that cannot meet, or epoch
            timestamps are implausible.
        ConfigError: an expression of the mapping does not fit the frame.
    """
    kinds = [Columns(frame=log)] if isinstance(log, pl.LazyFrame) else log
    if not labels:
        expressions = {name: sql for name, sql in expressions.items() if name not in LABELS}
    before = [dict(kind.frame.collect_schema()) for kind in kinds]
    own, units, used = [], [], set[str]()
    for number, kind in enumerate(kinds):
        where = source if len(kinds) == 1 else f"{source}: {kind.file}"
        unread = {**before[number], **dict.fromkeys(kind.unreadable, pl.Null())}
        used |= _reads(expressions, unread, where)
        _check_readable(kind, used, where)
        renamed = rename(kind.frame, expressions, where)
        types = dict(renamed.collect_schema())
        others = {name for at, names in enumerate(before) if at != number for name in names}
        alone = [name for name in before[number] if name not in others] if others else []
        check(types, where, labels=labels, alone=alone)
        own.append({name: types[name] for name in (KINDS if labels else SCORED) if name in types})
        units.append(_time_unit(renamed, types["timestamp"], where))
    columns = tuple(name for name in KINDS if any(name in types for types in own))
    every = dict.fromkeys(name for names in before for name in names)
    unreadable = [name for kind in kinds for name in kind.unreadable]
    reading = Reading(
        columns=columns,
        ignored=tuple(
            name
            for name in dict.fromkeys([*every, *unreadable])
            if name not in KINDS and name not in KNOWN and name not in used
        ),
        time_unit=" and ".join(sorted(set(units))),
    )
    return Contract(
        expressions=expressions,
        own=tuple(own),
        units=tuple(units),
        types={name: _meeting_type(name, own, kinds, source) for name in columns},
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


def _meeting_type(
    name: str, own: Sequence[Mapping[str, pl.DataType]], kinds: Sequence[Columns], source: str
) -> pl.DataType:
    """Return the type of a column in which all files of a log meet; sessions, which are only compared, meet in text."""
    met = meeting_type(KINDS[name], [types[name] for types in own if name in types])
    if met is not None:
        return met
    if name not in REQUIRED:
        return pl.String()
    text = next(at for at, types in enumerate(own) if is_text(types[name]))
    whole = next(at for at, types in enumerate(own) if types[name] != pl.Null and not is_text(types[name]))
    raise InputError(
        f"{source}: its files disagree: column {name!r} is {own[whole][name]} in {kinds[whole].file} and "
        f"{own[text][name]} in {kinds[text].file}, and no number equals a text; make all of them texts with "
        f"--schema FILE.toml and in it {name} = 'CAST({name} AS VARCHAR)'"
    )


def usable() -> pl.Expr:
    """Return the filter of rows that can be scored: user_id, video_id and timestamp are not null."""
    return pl.all_horizontal(pl.col(REQUIRED).is_not_null())


def _time_unit(frame: pl.LazyFrame, type_: pl.DataType, source: str) -> str:
    if not type_.is_numeric():
        return "datetime"
    time = pl.col("timestamp") if type_.is_integer() else pl.col("timestamp").cast(pl.Float64)
    if not type_.is_integer():
        time = time.filter(time.is_finite())
    low, high = frame.select(low=time.min(), high=time.max()).cast(pl.Int64).collect(engine="streaming").row(0)
    if low is None or high is None:
        return "epoch us"
    for unit, first, beyond, _ in EPOCHS:
        if first <= high < beyond:
            _check_range(low, high, first, beyond, source, f"epoch {unit}, as its largest value says")
            return f"epoch {unit}"
    raise InputError(
        f"{source}: column 'timestamp' runs from {low} to {high}, which is not an epoch in s, ms, us or ns between "
        '1973 and 2262; convert it with --schema FILE.toml, for example timestamp = "your_column * 1000"'
    )


def check_time_range(low_us: int, high_us: int, source: str) -> None:
    """Raise InputError where datetimes from `low_us` to `high_us` (epoch us) are implausible."""
    _check_range(low_us, high_us, FIRST_US, LAST_US, source, "datetime")


def _check_range(low: int, high: int, first: int, beyond: int, source: str, unit: str) -> None:
    if not first <= low <= high < beyond:
        odd = low if low < first else high
        raise InputError(
            f"{source}: column 'timestamp' ({unit}) holds {odd}, before 1973 or after 2262, which is implausible "
            f"(it runs from {low} to {high}); correct or filter those rows, or convert with --schema FILE.toml"
        )
