"""Earlier outputs of `score`, for `--exclude-recommended`: which of them count, and what they recommended to users.

Owns: their checks, their age, and reading the rows of neighbouring users. Must not know: tokens, what becomes of the
rows. In: paths and as-of. Out: `Earlier`, of which a few row groups are in memory at a time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from genrec_batch.core.errors import ConfigError, GenrecError, InputError, nearest
from genrec_batch.core.option_values import moment_us
from genrec_batch.core.output_options import wide_name
from genrec_batch.core.rule_options import RuleConfig
from genrec_batch.core.snapshot import Snapshot
from genrec_batch.events.joins import Joins
from genrec_batch.io import fetched, parquet, published, table_runs
from genrec_batch.io.attempt import reading, unchanged
from genrec_batch.io.read import Source
from genrec_batch.io.recommended import Recommended
from genrec_batch.runtime import threads
from genrec_batch.runtime.console import LOG

FLAG = "--exclude-recommended"
READ = ["user_id", "video_id"]
US = dt.timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Neighbouring rows of an output that are read together, and their smallest and largest user."""

    file: Path
    number: int
    low: Any
    high: Any


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """An earlier output that counts at as-of; in each of its groups rows are sorted by user."""

    path: str
    as_of: str
    rows: int
    groups: tuple[Group, ...]
    recommended: Recommended
    user_type: pl.DataType  # of the log
    video_type: pl.DataType
    seen: Snapshot  # its files, as they were checked

    @property
    def name(self) -> str:
        """What the rule is called in errors and summaries."""
        return f"{FLAG} {self.path}"

    def rows_of(self, ids: pl.Series) -> pl.DataFrame:
        """Return user_id and video_id of what it recommended to users from the first to the last of some rising ids.

        Raises:
            InputError: it cannot be read.
            RetryError: it has changed since it was checked.
        """
        low, high = ids[0], ids[-1]
        found = [self._read(group) for group in self.groups if group.low <= high and group.high >= low]
        if not found:
            return pl.DataFrame(schema={"user_id": self.user_type, "video_id": self.video_type})
        return pl.concat(found).filter(pl.col("user_id").is_between(pl.lit(low), pl.lit(high)))

    def _read(self, group: Group) -> pl.DataFrame:
        columns = self.recommended.stored_names(READ)

        def read() -> pl.DataFrame:
            with pq.ParquetFile(group.file) as opened:
                in_files = self.recommended.in_files(columns)
                stored = opened.read_row_group(group.number, columns=in_files, use_threads=False)
            placed = self.recommended.placed(pl.DataFrame(pl.from_arrow(stored)).lazy(), group.file.parent, columns)
            return self.recommended.rows(placed, READ).collect()

        frame = unchanged(read, self.seen, [str(group.file)], self.name)
        types = {"user_id": self.user_type, "video_id": self.video_type}
        return reading(lambda: frame.cast(types), self.name)  # type: ignore[arg-type]


def earlier_outputs(config: RuleConfig, as_of_us: int, joins: Joins, inputs: dict[str, Source]) -> tuple[Earlier, ...]:
    """Return the outputs of `--exclude-recommended` that count at as-of, and add them to the inputs.

    An output counts where its own as-of is at most `--again-after` before that of this run.

    Raises:
        InputError: one is missing, damaged, not an output of `score`, or has ids of another type than the log.
    """
    paths = [table_runs.newest(path, FLAG) for path in config.exclude_recommended]
    counting = [path for path in paths if _counts(path, as_of_us, config.again_after_us())]
    if not counting:
        return ()
    with ThreadPoolExecutor(min(len(counting), threads.cores()), thread_name_prefix="earlier") as pool:
        found = list(pool.map(lambda path: _opened(path, joins), counting))
    for at, (_, source) in enumerate(found):
        inputs[f"exclude_recommended_{at + 1}" if at else "exclude_recommended"] = source
    return tuple(earlier for earlier, _ in found)


def _metadata(path: str) -> dict[str, str]:
    """Return the metadata of a finished output of `score`.

    Raises:
        InputError: it is none.
    """
    place, where = fetched.local(path, FLAG), f"{FLAG} {path}"
    if not place.exists():
        beside = [each.name for each in place.parent.iterdir()] if place.parent.is_dir() else []
        raise InputError(f"{where}: no such file or directory.{nearest(place.name, beside)}")
    try:
        finished = published.finished_id(place)
    except ConfigError as error:
        raise InputError(f"{where}: it cannot be read ({error.__cause__ or error})") from error
    if finished is None:
        raise InputError(f"{where}: not a finished and whole output of `genrec-batch score`; name one, or omit it")
    return published.files_of(place)[1]


def _as_of_us(metadata: dict[str, str], where: str) -> int:
    moment = metadata.get("genrec.as_of")
    if moment is None:
        raise InputError(f"{where}: its metadata names no as-of; name an output of `genrec-batch score`, or omit it")
    return moment_us(moment, where)


def _counts(path: str, as_of_us: int, again_after_us: int) -> bool:
    where = f"{FLAG} {path}"
    age_us = as_of_us - _as_of_us(_metadata(path), where)
    if 0 <= age_us <= again_after_us:
        return True
    why = "of a later as-of than this run" if age_us < 0 else f"{age_us * US} older than this run, beyond --again-after"
    LOG.info("%s: left out, since it is %s", where, why)
    return False


def _opened(path: str, joins: Joins) -> tuple[Earlier, Source]:
    """Check an output as a whole and find its row groups."""
    place, where = fetched.local(path, FLAG), f"{FLAG} {path}"
    metadata = _metadata(path)
    files = [str(file) for file in published.files_of(place)[0]]
    about = [str(place / published.MANIFEST)] if place.is_dir() else []
    try:
        seen = Snapshot.of([*files, *about], where)
        published.check_whole(place)
        recommended = Recommended.of([Path(file) for file in files], metadata)
        groups = tuple(group for file in recommended.files for group in _groups(file, recommended))
    except ConfigError as error:
        fault = str(error).partition("; --if-exists")[0].removeprefix(f"OUTPUT {place}").lstrip(": ")
        raise InputError(f"{where}: it is damaged ({fault}); score it again, or omit it") from error
    except GenrecError:
        raise
    except (*parquet.UNREADABLE, pl.exceptions.PolarsError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: it is damaged ({error}); score it again, or omit it") from error
    _check_types(recommended, joins, where)
    earlier = Earlier(
        path=path,
        as_of=metadata["genrec.as_of"],
        rows=int(metadata.get(published.ROWS, 0)),
        groups=groups,
        recommended=recommended,
        user_type=joins.users.dtype,
        video_type=joins.videos.dtype,
        seen=seen,
    )
    digest: Future[str] = Future()
    digest.set_result(_digest(place))
    size = sum(Path(file).stat().st_size for file in files)
    source = Source(
        path=path,
        columns=(),
        row_groups=(),
        files=tuple(files),
        rows=earlier.rows,
        bytes=size,
        contents=digest,
        first_look=seen,
    )
    return earlier, source


def _digest(place: Path) -> str:
    """Return the sha256 that a checked output carries of itself: of its manifest, or of its one file."""
    manifest = published.manifest_of(place) if place.is_dir() else None
    if manifest is not None:
        return str(manifest["sha256"])
    stored: dict[bytes, bytes] = pq.read_metadata(place).metadata
    return stored[b"genrec.sha256"].decode()


def _check_types(recommended: Recommended, joins: Joins, where: str) -> None:
    for name, log in zip(READ, (joins.users.dtype, joins.videos.dtype), strict=True):
        stored = name if name in recommended.columns else wide_name(name, 1)
        if stored not in recommended.columns:
            raise InputError(
                f"{where}: column {name!r} is missing, so it recommends nothing; name an output of `genrec-batch score`"
            )
        kind = recommended.columns[stored]
        kind = kind.inner if isinstance(kind, pl.List) else kind  # type: ignore[assignment]
        if kind.is_integer() != log.is_integer():
            raise InputError(
                f"{where}: column {name!r} is {kind} and that of the log is {log}: no id would match; name an output "
                "of this log"
            )


def _groups(file: Path, recommended: Recommended) -> Iterator[Group]:
    """Yield the row groups of a file with their range of users: from its folder, the statistics or the rows."""
    partition = recommended.partition
    of_folder = partition.value(file.parent.name) if partition and partition.column == "user_id" else None
    with pq.ParquetFile(file) as opened:
        for number in range(opened.num_row_groups):
            about = opened.metadata.row_group(number)
            if not about.num_rows:
                continue
            if of_folder is not None:
                yield Group(file=file, number=number, low=of_folder, high=of_folder)
                continue
            leaves = (about.column(at) for at in range(about.num_columns))
            found = next(leaf.statistics for leaf in leaves if leaf.path_in_schema == "user_id")
            if found is not None and found.has_min_max:
                low, high = found.min, found.max
            else:
                users = opened.read_row_group(number, columns=["user_id"]).column(0)
                low, high = users[0].as_py(), users[-1].as_py()
            yield Group(file=file, number=number, low=low, high=high)
