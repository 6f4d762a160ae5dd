"""The rows of a finished output, whatever its layout: long, nested or wide, in one file, in parts or in folders.

Owns: which layout an output has, and how its rows become a row for each recommendation. Must not know: whether the
output is whole (`published`), what it is read for. In: the files and the metadata of a finished output. Out: frames.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby, takewhile
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from genrec_batch.core.errors import ConfigError, InputError, nearest
from genrec_batch.core.output_options import ITEM_COLUMNS, wide_name
from genrec_batch.io import fetched, published
from genrec_batch.io.attempt import reading
from genrec_batch.io.hive import Partition
from genrec_batch.io.published import PARTITION

FORM = "genrec.form"  # in an output's metadata: its layout, and which of its columns are of a recommendation
ROWS = "recommendations of the user"  # a column that only `rows` sees
PLACE = "file of the row"  # a column that only `stored` sees


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """The rows of an output on disk, and what is known of their columns."""

    files: tuple[Path, ...]
    layout: str
    items: tuple[str, ...]  # columns of a recommendation, by their plain names; the others are of a user
    columns: Mapping[str, pl.DataType]  # as stored, that of the folders among them
    partition: Partition | None

    @staticmethod
    def of(
        files: Sequence[Path], metadata: Mapping[str, str], schema: Mapping[str, pl.DataType] | None = None
    ) -> Recommended:
        """Return the rows of an output with these files; `schema` by default that of the first.

        Raises:
            PolarsError, OSError: the first file cannot be read.
            ValueError, KeyError, TypeError: the metadata is damaged.
        """
        stored = dict(pl.read_parquet_schema(files[0]) if schema is None else schema)
        about, partition = json.loads(metadata.get(FORM, "{}")), None
        if PARTITION in metadata:
            partition = Partition.read(json.loads(metadata[PARTITION]))
            stored[partition.column] = partition.kind
        nested = isinstance(stored.get("video_id"), pl.List)
        layout = "wide" if wide_name("video_id", 1) in stored else "nested" if nested else "long"
        items = tuple(about.get("items", ITEM_COLUMNS))
        return Recommended(files=tuple(files), layout=layout, items=items, columns=stored, partition=partition)

    @property
    def top(self) -> int:
        """Ranks that have columns in the wide layout."""
        return len(list(takewhile(lambda rank: wide_name("video_id", rank) in self.columns, count(1))))

    @property
    def names(self) -> list[str]:
        """The plain names of the columns that `rows` can give, `rank` among them."""
        if self.layout == "long":
            return list(self.columns)
        if self.layout == "nested":
            return list(dict.fromkeys(["user_id", "rank", *self.columns]))
        numbered = {wide_name(name, rank): name for name in self.items for rank in range(1, self.top + 1)}
        return list(dict.fromkeys(["user_id", "rank", *(numbered.get(name, name) for name in self.columns)]))

    def stored_names(self, columns: Sequence[str]) -> list[str]:
        """Return the stored columns of some plain names, in their order."""
        if self.layout != "wide":
            return [name for name in columns if name in self.columns]
        ranks = range(1, self.top + 1)
        plain = [[wide_name(name, rank) for rank in ranks] if name in self.items else [name] for name in columns]
        return [name for names in plain for name in names if name in self.columns]

    def stored(self, files: Sequence[Path] | None = None) -> pl.LazyFrame:
        """Return rows as they are stored, of some files or of all."""
        chosen = self.files if files is None else files
        paths = [str(file) for file in chosen]
        if self.partition is None:
            return pl.scan_parquet(paths, glob=False)
        # One scan of all folders: Polars starts threads for each of several.
        frame = pl.scan_parquet(paths, glob=False, hive_partitioning=False, include_file_paths=PLACE)
        values = pl.Series([self.partition.value(file.parent.name) for file in chosen], dtype=self.partition.kind)
        of_folder = pl.col(PLACE).replace_strict(pl.Series(paths), values, return_dtype=self.partition.kind)
        return frame.with_columns(of_folder.alias(self.partition.column)).select(list(self.columns))

    def placed(self, frame: pl.LazyFrame, folder: Path, columns: Sequence[str] | None = None) -> pl.LazyFrame:
        """Return some stored columns, by default all, of files of a folder, that which its name holds among them."""
        if self.partition is not None:
            frame = frame.with_columns(self.partition.literal(folder.name))
        return frame.select(list(self.columns if columns is None else columns))

    def in_files(self, columns: Sequence[str]) -> list[str]:
        """Return those of some stored columns that are in the files, not in the names of their folders."""
        return [name for name in columns if self.partition is None or name != self.partition.column]

    def rows(self, stored: pl.LazyFrame, columns: Sequence[str] | None = None) -> pl.LazyFrame:
        """Return a row for each recommendation of rows as they are stored, in the same order.

        `columns` are plain names of the result, by default all of them.
        """
        names = self.names if columns is None else list(columns)
        wanted = list(dict.fromkeys(["video_id", *names]))
        if self.layout == "long":
            return stored.select(names)
        items = [name for name in self.items if name in wanted and name != "rank"]
        users = [name for name in wanted if name not in self.items]
        if self.layout == "nested":
            ranks = pl.int_ranges(1, pl.col("video_id").list.len() + 1, dtype=pl.Int32).alias("rank")
            listed = stored.select(*users, *items, ranks).explode("rank", *items)
            return listed.filter(pl.col("video_id").is_not_null()).select(names)
        places = [
            pl.struct(
                pl.lit(rank, pl.Int32).alias("rank"), *(pl.col(wide_name(name, rank)).alias(name) for name in items)
            )
            for rank in range(1, self.top + 1)
        ]
        listed = stored.select(*users, pl.concat_list(places).alias(ROWS)).explode(ROWS).unnest(ROWS)
        return listed.filter(pl.col("video_id").is_not_null()).select(names)

    def all_rows(self, columns: Sequence[str] | None = None) -> pl.LazyFrame:
        """Return a row for each recommendation of the output; of one in folders, in no order."""
        return self.rows(self.stored(), columns)

    def shards(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """Yield some stored columns, by default all, a shard of users at a time.

        Users rise from shard to shard and in each; all rows of a user are in one shard.
        """
        names = list(self.columns if columns is None else columns)
        if len(self.files) == 1 and self.partition is None:
            with pq.ParquetFile(self.files[0], page_checksum_verification=True) as opened:
                for group in range(opened.num_row_groups):
                    yield pl.DataFrame(pl.from_arrow(opened.read_row_group(group, columns=names))).select(names)
            return
        numbered = sorted(self.files, key=lambda file: (len(file.name), file.name, file.parent.name))
        keys = ["user_id", "rank"] if self.layout == "long" else ["user_id"]
        for _, files in groupby(numbered, key=lambda file: file.name):
            shard = self.stored(list(files))
            yield (shard if self.partition is None else shard.sort(keys)).select(names).collect()


def has_items(parts: pl.LazyFrame) -> bool:
    """Return whether rows of an output have a recommendation in them."""
    columns, first = parts.collect_schema(), wide_name("video_id", 1)
    items = pl.col(first).count() if first in columns else pl.len()
    if columns.get("video_id", pl.Int64()).is_nested():
        items = pl.col("video_id").list.len().sum()
    return bool(parts.select(items).collect(engine="streaming").item())


def opened(path: str, flag: str) -> tuple[Recommended, dict[str, str]]:
    """Open an earlier output, which must be whole; return its rows and its metadata. `flag` names it in errors.

    Raises:
        InputError: not there, unfinished, not an output of `score`, damaged or changed.
    """
    place, where = fetched.local(path, flag), f"{flag} {path}"
    if not place.exists():
        beside = [each.name for each in place.parent.iterdir()] if place.parent.is_dir() else []
        raise InputError(f"{where}: no such file or directory.{nearest(place.name, beside)}")
    try:
        if published.finished_id(place) is None:
            raise InputError(f"{where}: not a finished output of `genrec-batch score`")
        published.check_whole(place)
    except ConfigError as error:
        said = str(error).removeprefix(f"OUTPUT {place}").removeprefix(":").strip()
        raise InputError(f"{where}: {said}") from error
    files, metadata = published.files_of(place)
    found = reading(lambda: Recommended.of(files, metadata), where)
    if "video_id" not in found.names:
        raise InputError(f"{where}: no column 'video_id', so not an output of `genrec-batch score`")
    return found, metadata
