"""How a log with columns of its own becomes the events contract: names, kinds, units.

Owns: other names for the contract's columns (`--schema`, Polars SQL expressions), conversions, the unit of timestamps,
and which rows are rejected. Must not know: where the frame comes from, what the columns are used for. In: a lazy frame
with columns of its own. Out: a lazy frame with contract columns of fixed types, and a `Reading` of what was found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import polars as pl

from genrec_batch.core import toml
from genrec_batch.core.errors import ConfigError, InputError, nearest
from genrec_batch.events.columns import KINDS, KNOWN, LABELS, REQUIRED, SCORED, Kind, check_columns
from genrec_batch.events.expressions import Types, entry

FOLDER = resources.files("genrec_batch.events").joinpath("schemas")
BUILT_IN = sorted(p.name.removesuffix(".toml") for p in FOLDER.iterdir() if p.name.endswith(".toml"))

TIME = pl.Datetime("us", "UTC")
EPOCHS: tuple[tuple[str, int, int, int], ...] = (  # unit, first value, first value beyond, units per second
    ("s", 10**8, 10**10, 1),
    ("ms", 10**11, 10**13, 10**3),
    ("us", 10**14, 10**16, 10**6),
    ("ns", 10**17, 2**63, 10**9),
)
LARGEST = 1e30  # of a plausible number: its square and sums still fit a float
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


def check(columns: Mapping[str, pl.DataType], source: str, *, labels: bool = False) -> None:
    """Raise one InputError that lists every required column that is missing and every column of a wrong type."""
    readers = {
        name: {column for sql in column_names(name).events.values() for column in pl.sql_expr(sql).meta.root_names()}
        for name in BUILT_IN
    }
    check_columns(columns, source, readers=readers, kinds=KINDS if labels else SCORED)


@dataclass(frozen=True, kw_only=True)
class Contract:
    """How one log's own columns become contract columns, the same way in every row group."""

    expressions: Mapping[str, str]
    types: Mapping[str, pl.DataType]  # of the contract's columns that the log has, before they are converted
    reading: Reading
    source: str

    def events(self, frame: pl.LazyFrame, columns: Iterable[str] | None = None) -> pl.LazyFrame:
        """Return rows of the log in contract columns, all or some of those it has; rows are not filtered."""
        wanted = self.reading.columns if columns is None else tuple(columns)
        frame = rename(frame, {n: sql for n, sql in self.expressions.items() if n in wanted}, self.source)
        return frame.select(_convert(name, self.types[name], self.reading.time_unit) for name in wanted)


def read_contract(
    frame: pl.LazyFrame,
    expressions: Mapping[str, str],
    source: str,
    *,
    labels: bool = False,
) -> Contract:
    """Find out how a log is read: ids as they are, times in UTC, numbers Float64, flags Boolean.

    Numbers that are NaN, infinite or beyond 1e30, and flags other than 0 and 1, become null. Labels, which scoring does
    not read, are left out unless `labels` is set; those that are not from 0 to 1 become null. The range of datetimes is
    left to `check_time_range`, for the caller reads them all anyway.

    Raises:
        InputError: a required column is missing, a type is wrong, or epoch timestamps are implausible.
        ConfigError: an expression of the mapping does not fit the frame.
    """
    before = dict(frame.collect_schema())
    if not labels:
        expressions = {name: sql for name, sql in expressions.items() if name not in LABELS}
    renamed = rename(frame, expressions, source)
    used = _reads(expressions, before, source)
    types = dict(renamed.collect_schema())
    check(types, source, labels=labels)
    columns = tuple(name for name in (KINDS if labels else SCORED) if name in types)
    reading = Reading(
        columns=columns,
        ignored=tuple(name for name in before if name not in KINDS and name not in KNOWN and name not in used),
        time_unit=_time_unit(renamed, types["timestamp"], source),
    )
    return Contract(
        expressions=expressions, types={name: types[name] for name in columns}, reading=reading, source=source
    )


def usable() -> pl.Expr:
    """Return the filter of rows that can be scored: user_id, video_id and timestamp are not null."""
    return pl.all_horizontal(pl.col(REQUIRED).is_not_null())


def _time_unit(frame: pl.LazyFrame, type_: pl.DataType, source: str) -> str:
    if not type_.is_integer():
        return "datetime"
    time = pl.col("timestamp")
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


def _convert(name: str, type_: pl.DataType, unit: str) -> pl.Expr:
    column, kind = pl.col(name), KINDS[name]
    if type_ == pl.Null:
        empty: dict[Kind, pl.DataType] = {
            "id": pl.Int64(), "time": TIME, "number": pl.Float64(), "flag": pl.Boolean(), "category": pl.String(),
            "label": pl.Float64(),
        }  # fmt: skip
        return column.cast(empty[kind])
    if kind == "time":
        if unit == "epoch s":
            return (column.cast(pl.Int64) * 10**6).cast(TIME)
        if unit.startswith("epoch"):
            return column.cast(pl.Int64).cast(pl.Datetime(unit.removeprefix("epoch "), "UTC")).cast(TIME)  # type: ignore[arg-type]
        if isinstance(type_, pl.Datetime) and type_.time_zone:
            return column.dt.convert_time_zone("UTC").cast(TIME)
        return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if kind == "number":
        number = column.cast(pl.Float64)
        return pl.when(number.abs() <= LARGEST).then(number).alias(name)
    if kind == "label":
        label = column.cast(pl.Float64)
        return pl.when(label.is_between(0, 1)).then(label).alias(name)
    if kind == "flag" and type_ != pl.Boolean:
        return pl.when(column.is_in([0, 1])).then(column == 1).alias(name)
    if kind in ("id", "category") and not type_.is_integer():
        return column.cast(pl.String)
    return column
