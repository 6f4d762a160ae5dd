"""Files in: a file, a glob, a directory or a URI becomes one lazy frame, with a snapshot of the input.

Owns: row groups, one schema over all files, a fingerprint, tables with one row per id. Must not know: the events
contract, what a row means, which files there are (`find`), output (`output`).
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.core.errors import InputError, RetryError, nearest
from genrec_batch.io import find
from genrec_batch.runtime import signals

T = TypeVar("T")

GROUP_ROWS = 1 << 20  # of a log that are read at once
HASHED_AT_ONCE = 1 << 18  # bytes: they stay in a core's own cache

LOST = re.compile(r"error sending request|dns error|timed? ?out|connection (reset|refused|closed)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Neighbouring rows of a log that are read together: whole row groups of its files where small, else some rows."""

    frame: pl.LazyFrame
    rows: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """A log or table on disk: its lazy frame, and a snapshot of its state when the run began."""

    path: str  # as the user gave it
    frame: pl.LazyFrame
    row_groups: tuple[RowGroup, ...]  # the same rows, in order
    files: tuple[str, ...]  # sorted
    rows: int
    bytes: int | None  # None for a URI
    contents: Future[str] | None  # the fingerprint, computed on another thread

    @property
    def fingerprint(self) -> str:
        """Return a sha256 over every file's name and content; a URI, whose content may change, gets a unique value."""
        assert self.contents is not None, "opened without `hashed`"
        return self.contents.result()

    def snapshot(self) -> dict[str, object]:
        """Return the record of this source in the lineage: files, rows, bytes, fingerprint."""
        return {
            "path": self.path,
            "files": len(self.files),
            "rows": self.rows,
            "bytes": self.bytes,
            "sha256": self.fingerprint,
        }


def scan(path: str, flag: str, *, hashed: bool = True) -> Source:
    """Open Parquet input; `flag` ("INPUT", "--users") names it in errors.

    A separate thread hashes the content, unless `hashed` is False because the fingerprint is not needed.

    Raises:
        InputError: nothing there, a file is not Parquet or is truncated, or files disagree about a column's type.
    """
    if "://" in path:
        return _scan_uri(path, flag)
    files = find.files(path, flag)
    base = find.base(path)
    counts = [_group_rows(find.metadata(file, flag)) for file in files]
    names = [str(Path(file).relative_to(base)) for file in files]
    contents = _begin(lambda: _fingerprint(files, names, flag)) if hashed else None
    schema = _one_schema(files, flag)
    hive = _hive(names)
    both = sorted(hive.keys() & schema.keys())
    if both and len(both) < len(hive):
        raise InputError(
            f"{flag} {path}: {', '.join(both)} is in the files and in the names of folders; drop one of them"
        )
    hive = {} if both else hive  # the files have these columns
    scanned = partial(
        pl.scan_parquet,
        schema=schema,
        missing_columns="insert",
        extra_columns="ignore",
        hive_partitioning=bool(hive),
        hive_schema=hive or None,
        cast_options=pl.ScanCastOptions(
            integer_cast="upcast",
            float_cast="upcast",
            datetime_cast=["nanosecond-downcast", "millisecond-upcast", "convert-timezone"],
        ),
        glob=False,
    )
    return Source(
        path=path,
        frame=scanned(files),
        row_groups=tuple(_row_groups(scanned, files, counts)),
        files=tuple(files),
        rows=sum(map(sum, counts)),
        bytes=sum(Path(file).stat().st_size for file in files),
        contents=contents,
    )


def _scan_uri(path: str, flag: str) -> Source:
    frame = pl.scan_parquet(path)
    rows = reading(lambda: int(frame.select(pl.len()).collect().item()), f"{flag} {path}")
    unlike_any = f"unverified-{uuid.uuid4().hex}"  # an object store's content may change: never resume such a run
    groups = tuple(RowGroup(frame=frame.slice(start, count), rows=count) for start, count in cut([rows]))
    contents: Future[str] = Future()
    contents.set_result(unlike_any)
    return Source(path=path, frame=frame, row_groups=groups, files=(path,), rows=rows, bytes=None, contents=contents)


def _row_groups(
    scanned: Callable[[list[str]], pl.LazyFrame], files: list[str], counts: list[list[int]]
) -> Iterator[RowGroup]:
    """Yield the row groups of a log: neighbouring small files together, a large file by its own row groups."""
    small: list[str] = []
    held = 0
    for file, of_groups in zip(files, counts, strict=True):
        rows = sum(of_groups)
        if small and held + rows > GROUP_ROWS:
            yield RowGroup(frame=scanned(small), rows=held)
            small, held = [], 0
        if rows <= GROUP_ROWS:
            small, held = [*small, file], held + rows
        else:
            whole = scanned([file])
            yield from (RowGroup(frame=whole.slice(start, count), rows=count) for start, count in cut(of_groups))
    if small:
        yield RowGroup(frame=scanned(small), rows=held)


def cut(groups: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first row, rows) of at most GROUP_ROWS rows: neighbouring row groups, or slices of a large one."""
    start = held = 0
    for rows in groups:
        if held and held + rows > GROUP_ROWS:
            yield start, held
            start, held = start + held, 0
        held += rows
        while held > GROUP_ROWS:
            yield start, GROUP_ROWS
            start, held = start + GROUP_ROWS, held - GROUP_ROWS
    if held:
        yield start, held


def _group_rows(metadata: pq.FileMetaData) -> list[int]:
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _begin(work: Callable[[], T]) -> Future[T]:
    """Begin work on a separate thread."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="fingerprint")
    begun = pool.submit(work)
    pool.shutdown(wait=False)
    return begun


def _fingerprint(files: list[str], names: list[str], flag: str) -> str:
    with ThreadPoolExecutor() as pool:
        contents = list(pool.map(lambda file: reading(lambda: _sha256(file), f"{flag} {file}"), files))
    return hashlib.sha256(repr(list(zip(names, contents, strict=True))).encode()).hexdigest()


def _sha256(file: str) -> str:
    digest, room = hashlib.sha256(), memoryview(bytearray(HASHED_AT_ONCE))
    with Path(file).open("rb", buffering=0) as opened:
        while count := opened.readinto(room):
            if signals.is_over():
                raise InterruptedError(f"{file}: its fingerprint is no longer needed")
            digest.update(room[:count])
    return digest.hexdigest()


def _hive(names: list[str]) -> dict[str, pl.DataType]:
    """Return the type of each hive partition column: integer, date, or else (also for 007) string."""
    values: dict[str, list[str]] = {}
    for name in names:
        for part in Path(name).parts[:-1]:
            key, equals, value = part.partition("=")
            if equals:
                values.setdefault(key, []).append(value)
    return {
        key: pl.Int64()
        if all(re.fullmatch(r"0|-?[1-9]\d{0,17}", value) for value in texts)
        else pl.Date()
        if all(re.fullmatch(r"\d{4}-\d\d-\d\d", value) for value in texts)
        else pl.String()
        for key, texts in values.items()
    }


def _schema_of(file: str) -> pl.Schema:
    with Path(file).open("rb") as opened:  # Polars would take some file names for globs
        return pl.Schema(pl.read_parquet_schema(opened))


def _one_schema(files: list[str], flag: str) -> dict[str, pl.DataType]:
    """Return every column of any file with one type: integers and floats widen, times are in us, others must agree."""
    schema: dict[str, pl.DataType] = {}
    first_seen: dict[str, str] = {}
    faults = []
    for file in files:
        for name, kind in reading(partial(_schema_of, file), f"{flag} {file}").items():
            have = schema.setdefault(name, kind)
            first_seen.setdefault(name, file)
            if have == kind:
                continue
            wide = _wider(have, kind)
            if wide is None:
                faults.append(f"column {name!r} is {have} in {first_seen[name]} and {kind} in {file}")
            else:
                schema[name] = wide
    if faults:
        raise InputError(f"{flag}: its files disagree:\n  " + "\n  ".join(faults[:20]))
    return schema


def _wider(a: pl.DataType, b: pl.DataType) -> pl.DataType | None:
    if pl.Null in (a, b):  # a file without any value has no type
        return b if a == pl.Null else a
    if a.is_integer() and b.is_integer() and a.is_signed_integer() == b.is_signed_integer():
        return max(a, b, key=lambda kind: int(str(kind).lstrip("UInt")))
    if a.is_float() and b.is_float():
        return pl.Float64()
    if isinstance(a, pl.Datetime) and isinstance(b, pl.Datetime) and a.time_zone == b.time_zone:
        return pl.Datetime("us", a.time_zone)  # the unit in which logs are read
    return None


def reading(read: Callable[[], T], source: str) -> T:
    """Call `read`, and map failures of a file to one error that names it.

    Raises:
        InputError: a page is damaged, or a type does not fit.
        RetryError: a connection was lost.
    """
    try:
        return read()
    except (ConnectionError, TimeoutError) as error:
        raise RetryError(f"{source}: connection lost while reading ({error}); run the same command again") from error
    except (
        pl.exceptions.PolarsError,
        OSError,
        pa.ArrowInvalid,
        pa.ArrowNotImplementedError,
        UnicodeDecodeError,
    ) as error:
        if "://" in source and LOST.search(str(error)):
            raise RetryError(f"{source}: connection lost ({error}); run the same command again") from error
        raise InputError(f"{source}: cannot be read: {error}") from error


def table(
    path: str, flag: str, key: str, rename: Callable[[pl.LazyFrame], pl.LazyFrame]
) -> tuple[pl.DataFrame, Source]:
    """Read a table with one row per id, in memory, after `rename`.

    Raises:
        InputError: the key column is missing, null, neither integer nor string, or an id repeats.
    """
    source = scan(path, flag)
    names = source.frame.collect_schema().names()
    frame = rename(source.frame)
    if key not in frame.collect_schema().names():
        raise InputError(
            f"{flag} {path}: column {key!r} is missing.{nearest(key, names)} Its columns: {', '.join(names[:40])}"
        )
    read = reading(frame.collect, f"{flag} {path}")
    kind = read.schema[key]
    if not (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum)):
        raise InputError(f"{flag} {path}: column {key!r} is {kind}, expected an integer or a string")
    if not kind.is_integer():
        read = read.with_columns(pl.col(key).cast(pl.String))
    ids = read[key]
    if ids.null_count():
        row = ids.is_null().arg_true()[0]
        raise InputError(f"{flag} {path}: column {key!r} is null in row {row}; every row needs an id")
    if ids.n_unique() != len(ids):
        row = int(ids.is_first_distinct().not_().arg_true()[0])
        raise InputError(f"{flag} {path}: {key} {ids[row]!r} repeats in row {row}; one row per id")
    return read, source
