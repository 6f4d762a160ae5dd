"""The rows of side tables that can be used: one bad row costs one row here, too.

Owns: which rows of a table are rejected and why, and which of several rows of an id counts. Must not know: what the
columns mean. In: a table as it was read. Out: the table with one row per id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from genrec_batch.core.errors import ConfigError
from genrec_batch.events.rejects import RejectFile, check_share, in_words
from genrec_batch.events.schema import FAILED
from genrec_batch.events.vectors import Widths, odd_rows
from genrec_batch.io.read import GIVEN, PIECE, ROW, Source
from genrec_batch.io.row_groups import in_files
from genrec_batch.runtime.console import LOG


@dataclass(frozen=True, kw_only=True)
class TableRules:
    """How side tables are read, and what becomes of their rows that cannot be used."""

    max_rejects: float = 0.05
    newest: str | None = None  # the column by which the newest row of an id is found
    spill_to: Path | None = None  # the folder for copies of tables that are texts
    file: RejectFile = field(default_factory=lambda: RejectFile(writer=None))
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # of rejected rows, by table and reason
    dated: set[str] = field(default_factory=set)  # tables that have the column `newest`

    def usable(
        self,
        frame: pl.DataFrame,
        key: str,
        where: str,
        name: str,
        source: Source,
        vectors: Widths | None = None,
        faults: Mapping[str, pl.Expr] | None = None,
    ) -> pl.DataFrame:
        """Return the rows of a table that can be used, one for each id, in their order.

        A row is rejected where its id is null, empty, of another type than the log's or repeats, where an entry of
        `--schema` fails on it, or where a vector has a hole or another width than most. Of an id's rows, the one with
        the largest value of `newest` is taken, and the others are no rejects; else the first. A table with `faults` of
        its own has any number of rows for an id.

        Args:
            frame: the table with the columns `ROW` and `PIECE`, and perhaps `GIVEN`.
            key: its column of ids.
            where: names it in errors.
            name: names it in the summary.
            source: where it was read.
            vectors: the widths of its columns of vectors.
            faults: when else a row is rejected, by reason.

        Raises:
            GateError: more rows are rejected than `--max-rejects` allows.
        """
        conditions: dict[str, pl.Expr] = {}
        if FAILED in frame.columns:
            conditions["an expression cannot be computed"] = pl.col(FAILED)
        if GIVEN in frame.columns:
            kind = frame.schema[key]
            odd_id = f"{key} is no {kind}, as the log's are" if kind.is_integer() else f"{key} is no whole number"
            conditions[odd_id] = pl.col(GIVEN).is_not_null()
        conditions[f"{key} is null"] = pl.col(key).is_null()
        if frame.schema[key] == pl.String:
            conditions[f"{key} is empty"] = pl.col(key) == ""
        for column, width in (vectors or {}).items():
            if column in frame.columns:
                odd = odd_rows(frame[column], width)
                if len(frame) and not frame[column].count():
                    LOG.warning("%s: column %r has no value in any row", where, column)
                conditions[f"{column} holds null, NaN or infinity, or has another width"] = pl.lit(odd)
        conditions |= faults or {}
        reason = pl.coalesce(pl.when(each).then(pl.lit(said)) for said, each in conditions.items())
        read = frame.with_columns(reason.alias("reason"))
        good = read.filter(pl.col("reason").is_null())
        if self.newest is not None and self.newest in good.columns:
            self.dated.add(name)
            good = _newest(good, key, self.newest)
        again = ~good[key].is_first_distinct() if faults is None else pl.repeat(False, len(good), eager=True)
        repeated = good.filter(again).with_columns(reason=pl.lit(f"{key} repeats"))
        rejected = pl.concat([read.filter(pl.col("reason").is_not_null()), repeated])
        self._tell(rejected, key, where, name, source, len(frame))
        return good.filter(~again).drop("reason", ROW, PIECE, FAILED, GIVEN, strict=False)

    def check_dated(self, given: bool) -> None:
        """Raise ConfigError where tables are given and none has the column of `--side-tables-newest`."""
        if self.newest is not None and given and not self.dated:
            raise ConfigError(f"--side-tables-newest {self.newest}: neither --users nor --videos has such a column")

    def _tell(self, rejected: pl.DataFrame, key: str, where: str, name: str, source: Source, rows: int) -> None:
        if not len(rejected):
            return
        counts = dict(Counter(rejected["reason"].to_list()))
        self.counts[name] = counts
        pieces = [piece for group in source.row_groups for piece in group.pieces]
        for number, some in rejected.group_by(PIECE, maintain_order=True):
            given = [pl.col(GIVEN)] if GIVEN in some.columns else []
            shown = pl.coalesce(*given, pl.col(key).cast(pl.String)) if given else pl.col(key)
            values = pl.struct(shown.alias(key)).struct.json_encode().alias("values")
            found = some.select(pl.col(ROW).cast(pl.Int64).alias("row"), "reason", values)
            self.file.add(name, in_files(found, pieces[int(str(number[0]))]))
        LOG.warning("%s: %s of %s rows rejected: %s", where, f"{len(rejected):,}", f"{rows:,}", in_words(counts))
        check_share(counts, rows, self.max_rejects, where)


def _newest(frame: pl.DataFrame, key: str, column: str) -> pl.DataFrame:
    """Return the rows that are the newest of their id, several where they are equally new; null is the oldest."""
    newest = pl.col(column).max().over(key)
    return frame.filter(newest.is_null() | (pl.col(column) == newest))
