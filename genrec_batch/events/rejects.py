"""Rows that cannot be scored, and why: one bad row costs one row.

Owns: the reasons, `--rejects FILE`, and the gate `--max-rejects`. Must not know: what a column means to the model. In:
rows of a log and its contract. Out: a frame with a row for each reject; counts by reason.
"""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from genrec_batch.core.errors import GateError, RetryError
from genrec_batch.events import lists
from genrec_batch.events.columns import KINDS, REQUIRED
from genrec_batch.events.convert import converted
from genrec_batch.events.schema import Contract
from genrec_batch.events.times import FIRST_US
from genrec_batch.io import stored
from genrec_batch.io.durable import disk_errors
from genrec_batch.runtime.console import LOG
from genrec_batch.stores.bucket import Bucket, is_uri, uri_of

FUTURE = "timestamp more than a day after now"
ROW, VALUES = "row number of the file", "values at fault"
SCHEMA = {"input": pl.String, "reason": pl.String, "file": pl.String, "row": pl.Int64, "values": pl.String}


def faulty_rows(
    contract: Contract, frame: pl.LazyFrame, files: int, last_us: int, *, events: bool = True
) -> pl.LazyFrame:
    """Return row, reason and values (as JSON) of the rows of some files that cannot be scored.

    A row whose id or time an entry of `--schema` makes null on purpose is no event, and no reject.

    Args:
        contract: of the log.
        frame: rows of its files, as they are in them.
        files: the number of their kind.
        last_us: the last plausible time, epoch us.
        events: whether events may be faulty, not only the lists that they are in.
    """
    numbered = frame.with_row_index(ROW)
    found = [_faulty_events(contract, numbered, files, last_us)] if events else []
    if contract.explode:
        lengths = pl.struct(pl.col(name).list.len() for name in contract.explode).struct.json_encode().alias(VALUES)
        uneven = lists.listed(numbered, contract.explode).filter(~lists.even(contract.explode)).select(ROW, lengths)
        found.append(uneven.with_columns(reason=pl.lit("lists of unequal length")))
    together = pl.concat(found, how="diagonal")
    return together.select(pl.col(ROW).cast(pl.Int64).alias("row"), "reason", pl.col(VALUES).alias("values"))


def _faulty_events(contract: Contract, numbered: pl.LazyFrame, files: int, last_us: int) -> pl.LazyFrame:
    raw = {name: contract.raw(name, files) for name in REQUIRED if contract.has(name, files)}
    fails = contract.failing(files)
    read = sorted({name for each in [*raw.values(), *fails.values()] for name in each.meta.root_names()})
    types = numbered.collect_schema()
    values = pl.lit("{}").alias(VALUES)
    if read:
        values = pl.struct(_in_json(name, types[name]) for name in read).struct.json_encode().alias(VALUES)
    chosen = pl.any_horizontal(pl.lit(value=False), *(contract.chosen_null(name, files) for name in REQUIRED))
    rows = contract.rows(numbered, files).filter(~chosen)
    rows = rows.select(ROW, values, **raw, **{f"fails {name}": each for name, each in fails.items()})
    conditions = {f"{name} cannot be computed": pl.col(f"fails {name}") for name in fails}
    for name in REQUIRED:
        conditions |= _conditions(contract, name, files, last_us)
    reason = pl.coalesce(pl.when(each).then(pl.lit(said)) for said, each in conditions.items())
    return rows.select(ROW, VALUES, reason=reason).filter(pl.col("reason").is_not_null())


def _in_json(name: str, kind: pl.DataType) -> pl.Expr:
    """Return values as JSON can show them: bytes as hexadecimal digits; of what holds bytes, only the type."""
    if kind == pl.Binary:
        return pl.col(name).bin.encode("hex")
    return pl.lit(str(kind)).alias(name) if "Binary" in str(kind) else pl.col(name)


def _conditions(contract: Contract, name: str, files: int, last_us: int) -> dict[str, pl.Expr]:
    """Return when a row is rejected for a required column, by reason."""
    if not contract.has(name, files):
        return {f"{name} is null": pl.lit(value=True)}
    raw, unit = pl.col(name), contract.units[files]
    value = converted(name, KINDS[name], contract.own[files][name], contract.types[name], unit)
    faults = {f"{name} is null": raw.is_null()}
    if name == "timestamp":
        time_us = value.dt.epoch("us")
        if unit.name.startswith("epoch"):
            number = raw if contract.own[files][name].is_numeric() else raw.str.strip_chars()
            number = number.cast(pl.Float64, strict=False).fill_nan(None)
            faults |= unit.others(number, last_us)
            time_us = unit.microseconds(number)
        faults["timestamp before 1990"] = time_us < FIRST_US
        faults[FUTURE] = time_us > last_us
    elif contract.types[name] == pl.String:
        faults[f"{name} is empty"] = value.str.strip_chars() == ""
    return {**faults, f"{name} cannot be read": value.is_null()}


def in_words(reasons: Mapping[str, int]) -> str:
    """Return counts by reason as words: "user_id is null: 13, timestamp before 1990: 2"."""
    return ", ".join(f"{reason}: {count:,}" for reason, count in sorted(reasons.items(), key=lambda each: -each[1]))


def warn_of(reasons: Mapping[str, int], rows: int) -> None:
    """Warn of rejected rows of a log."""
    if reasons:
        LOG.warning("%s of %s rows rejected: %s", f"{sum(reasons.values()):,}", f"{rows:,}", in_words(reasons))


def facts_of(reasons: Mapping[str, int], of_tables: Mapping[str, Mapping[str, int]]) -> dict[str, object]:
    """Return the entries of the summary about rejected rows, of the log by reason and of the tables."""
    return {
        "rejected_rows": sum(reasons.values()),
        **({"rejected_because": dict(reasons)} if reasons else {}),
        **({"rejected_rows_of_tables": dict(of_tables)} if of_tables else {}),
    }


def check_share(reasons: Mapping[str, int], rows: int, most: float, where: str) -> None:
    """Raise GateError where more than the share `most` of some rows are rejected (`--max-rejects`)."""
    rejected = sum(reasons.values())
    if rejected > most * rows:
        raise GateError(
            f"{where}: {rejected:,} of {rows:,} rows are rejected ({in_words(reasons)}), more than "
            f"--max-rejects {most}; --rejects FILE.parquet writes them; correct them or raise the limit"
            f"{clock_hint(reasons)}"
        )


def clock_hint(reasons: Mapping[str, int]) -> str:
    """Return what this machine's clock says, where most rejects are future by it: it may be the clock that is wrong."""
    if reasons.get(FUTURE, 0) * 2 <= sum(reasons.values()):
        return ""
    now = dt.datetime.fromtimestamp(time.time_ns() // 10**9, dt.timezone.utc)
    return (
        f"; or this machine's clock is wrong, which says {now:%Y-%m-%d %H:%M} UTC: set it (timedatectl set-ntp true) "
        "and run the same command again"
    )


@dataclass(frozen=True, kw_only=True)
class RejectFile:
    """The file of `--rejects`: a row for each rejected row of any input, written as they are found."""

    writer: pq.ParquetWriter | None
    path: str = ""

    def add(self, name: str, rows: pl.DataFrame) -> None:
        """Write rows with the columns reason, file, row and values of the input `name`."""
        if self.writer is not None and len(rows):
            with disk_errors(Path(self.path), "--rejects"):
                self.writer.write_table(rows.select(pl.lit(name).alias("input"), *list(SCHEMA)[1:]).to_arrow())


@contextmanager
def reject_file(path: str | None) -> Iterator[RejectFile]:
    """Open `--rejects` for the time of a reading; without a path, rejected rows are only counted.

    The file appears at the end, unless that comes by an error that another try may not have.

    Raises:
        ConfigError: it cannot be written.
        RetryError: the disk is full.
    """
    if path is None:
        yield RejectFile(writer=None)
        return
    if is_uri(path):
        with _goes_up(path) as local, reject_file(local) as file:
            yield file
        return
    scratch = Path(f"{path}.tmp")
    try:
        with disk_errors(Path(path), "--rejects"):
            writer = pq.ParquetWriter(scratch, pl.DataFrame(schema=SCHEMA).to_arrow().schema, compression="zstd")
        again = False
        try:
            yield RejectFile(writer=writer, path=path)
        except RetryError:
            again = True
            raise
        finally:
            with suppress(OSError) if again else disk_errors(Path(path), "--rejects"):
                try:
                    writer.close()
                finally:
                    writer.is_open = False  # else the garbage collector closes it once more
                if not again:
                    scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def _goes_up(uri: str) -> Iterator[str]:
    """Yield a local path, whose file, if there is one at the end of the block, becomes the object of a URI.

    Raises:
        ConfigError: the store refuses.
        RetryError: it cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="genrec-rejects-") as folder:
        file = Path(folder, "rejects.parquet")
        with stored.failures(f"--rejects {uri}"):
            store = Bucket(uri_of(uri), "--rejects")
            store.probe(f"{store.key}.")
        try:
            yield str(file)
        finally:
            if file.is_file():
                with stored.failures(f"--rejects {uri}"):
                    store.put(store.key, file)
