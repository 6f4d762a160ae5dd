"""The files of `--schema`: other names for the columns of logs and tables, built in or of a user's own.

Owns: which entries such a file may have. Must not know: frames, what an entry may say. In: a name or a TOML file. Out:
`ColumnNames`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from genrec_batch.core import toml
from genrec_batch.core.errors import ConfigError, nearest
from genrec_batch.events.columns import KINDS, KNOWN
from genrec_batch.io.durable import check_local

FOLDER = resources.files("genrec_batch.events").joinpath("schemas")
BUILT_IN = sorted(p.name.removesuffix(".toml") for p in FOLDER.iterdir() if p.name.endswith(".toml"))
TABLES = ("events", "users", "videos")


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Polars SQL expressions by contract column, for events, users and videos."""

    name: str = "contract"
    events: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict)
    videos: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)  # which rows are read, by table
    explode: tuple[str, ...] = ()  # columns of lists with an element for each event


def column_names(name: str | None) -> ColumnNames:
    """Return the column names to read: None for the contract's own, a built-in name, or a TOML file.

    A TOML file has entries `contract_column = "Polars SQL expression"`, at the top for events, or under `[events]`,
    `[users]` and `[videos]`; `where = "..."` there names the rows to read, and `explode = ["column", ...]` of events
    the lists with an element for each event.

    Raises:
        ConfigError: no such built-in, unreadable TOML, or an entry for a column that the contract does not have.
    """
    if name is None:
        return ColumnNames()
    if name in BUILT_IN:
        return _parse(FOLDER.joinpath(f"{name}.toml").read_bytes(), name)
    check_local(name, "--schema", reads=True)
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
    tables = {key: dict(entries.pop(key)) for key in TABLES if isinstance(entries.get(key), dict)}
    tables["events"] = {**entries, **tables.get("events", {})}
    explode = tables["events"].pop("explode", [])
    faults = []
    if not (isinstance(explode, list) and all(isinstance(column, str) for column in explode)):
        faults.append(f"explode = {explode!r}: a list of names of columns")
    faults += [
        f"{column} = {sql!r}: an expression is a string"
        for table in tables.values()
        for column, sql in table.items()
        if not isinstance(sql, str)
    ]
    where = {name: table.pop("where") for name, table in tables.items() if "where" in table}
    known = [*KINDS, *KNOWN]
    faults += [
        f"{c}: not a column of the events contract.{nearest(c, [*known, 'where', 'explode'])}"
        for c in tables["events"]
        if c not in known
    ]
    if faults:
        raise ConfigError(f"--schema {name}:\n  " + "\n  ".join(faults))
    return ColumnNames(name=name, where=where, explode=tuple(explode), **tables)
