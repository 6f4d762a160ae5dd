"""Requests with a log's own columns: the entries of `--schema` that a model repository carries, row by row.

Owns: when an entry is compiled, and what becomes of a request on which one fails. Must not know: what a contract column
means. In: lists by the log's own names. Out: lists by contract column. Only such a repository has Polars compute
anything per request; entries are compiled once for each set of columns and types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.events import schema
from genrec_batch.events.columns import SCORED
from genrec_batch.events.schema_file import ColumnNames

WHERE = "the request"
MOST_FORMS = 256  # sets of columns and types that stay compiled


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The entries for requests of one set of columns and types."""

    values: list[pl.Expr]
    failing: dict[str, pl.Expr]
    where: pl.Expr | None


@dataclass(frozen=True, kw_only=True)
class OwnColumns:
    """The names of a log's own columns."""

    expressions: Mapping[str, str]  # SQL by contract column
    where: str | None = None  # of the rows that are events
    _compiled: dict[tuple[tuple[str, pl.DataType], ...], Compiled] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(names: ColumnNames) -> OwnColumns | None:
        """Return the names of `--schema`, None where its log has the contract's.

        Raises:
            ConfigError: the log has a row for a user, with lists of events.
        """
        if names.explode:
            raise ConfigError(
                f"--schema {names.name}: its log has lists of events in a row (explode), which a request has anyway; "
                "give a schema without explode, for the columns of single events"
            )
        entries = {name: sql for name, sql in names.events.items() if name in SCORED and name != "user_id"}
        where = names.where.get("events")
        return OwnColumns(expressions=entries, where=where) if entries or where else None

    def contract(self, events: Mapping[str, list[Any]]) -> Mapping[str, list[Any]]:
        """Return a request's events in contract columns.

        Raises:
            InputError: a column is missing or of a wrong type, or an entry fails on a row.
        """
        if not events or not next(iter(events.values())):
            return events
        try:
            frame = pl.DataFrame({name: pl.Series(name, values, strict=True) for name, values in events.items()})
        except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
            raise InputError(f"events: a column holds values of several types ({error})") from error
        form = tuple(frame.schema.items())
        compiled = self._compiled.get(form)
        if compiled is None:
            compiled = self._compile(dict(form))
            if len(self._compiled) < MOST_FORMS:
                self._compiled[form] = compiled
        if compiled.where is not None:
            frame = frame.filter(compiled.where)
        if compiled.failing:
            failed = frame.select(**{name: each.any() for name, each in compiled.failing.items()}).row(0, named=True)
            if names := [name for name, fails in failed.items() if fails]:
                raise InputError(f"events: the entry {names[0]!r} of the repository's schema fails on a row")
        return {column.name: column.to_list() for column in frame.select(compiled.values)}

    def _compile(self, types: dict[str, pl.DataType]) -> Compiled:
        try:
            entries = schema.entries_of(self.expressions, types, WHERE)
            where = None if self.where is None else schema.filter_of(self.where, types, WHERE)
        except ConfigError as error:
            raise InputError(str(error)) from error
        own = [pl.col(name) for name in types if name in SCORED and name not in entries]
        failing = {name: each.fails for name, each in entries.items() if each.fails is not None}
        if where is not None and where.fails is not None:
            failing["where"] = where.fails
        return Compiled(
            values=[*own, *(each.value.alias(name) for name, each in entries.items())],
            failing=failing,
            where=None if where is None else where.value if where.fails is None else where.value | where.fails,
        )
