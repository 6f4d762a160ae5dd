"""A finished output as `inspect` opens it: its files, its metadata, and which of its row groups can be read.

Owns: what is a finished output, and which parts of a damaged one are left out. Must not know: statistics, checks. In: a
file or a directory that `score` wrote. Out: a `Finished`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.core.arrays import HEADS
from genrec_batch.core.errors import InputError, nearest
from genrec_batch.io import parquet, published
from genrec_batch.io.attempt import reading
from genrec_batch.io.published import MANIFEST, SUCCESS
from genrec_batch.runtime import console

LISTED = ("rank", "video_id", "score", *HEADS)  # columns that are lists in the nested form
NOTHING = {**dict.fromkeys(("user_id", *LISTED, "history_length"), pl.Float32), "cold_start": pl.Boolean}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished output on disk."""

    path: Path
    files: tuple[Path, ...]
    metadata: Mapping[str, str]  # without the prefix `genrec.`
    manifest: tuple[Mapping[str, Any], ...]  # an entry for each part; empty for a single file
    nested: bool
    altered: tuple[str, ...] = ()  # files that are missing or not what the manifest says
    damaged: Mapping[Path, list[bool]] = field(default_factory=dict)  # of damaged files: which row groups are whole

    @property
    def stored(self) -> int:
        """Rows of the files according to the metadata: recommendations, or users in the nested form."""
        return int(self.metadata.get("rows", 0))

    def rows(self) -> pl.LazyFrame:
        """Return user_id, rank, video_id, score, heads, history_length, cold_start; a row per recommendation."""
        whole = [str(file) for file in self.files if file not in self.damaged]
        frames = [pl.scan_parquet(whole, glob=False)] if whole else []
        for file, start, rows in self.groups():  # damaged ones are left out
            if file in self.damaged:
                frames.append(pl.scan_parquet(str(file), glob=False).slice(start, rows))
        if not frames:
            return pl.LazyFrame(schema=NOTHING)  # without rows there are no lists to explode
        columns = ("user_id", *LISTED, "history_length", "cold_start")
        frame = pl.concat([frame.select(columns) for frame in frames])
        return frame.explode(LISTED).filter(pl.col("rank").is_not_null()) if self.nested else frame

    def groups(self) -> Iterator[tuple[Path, int, int]]:
        """Yield the file, the first row and the rows of each row group that can be read."""
        for file in self.files:
            whole = self.damaged.get(file)
            if whole is not None and not any(whole):
                continue
            about, start = pq.read_metadata(file), 0
            for group in range(about.num_row_groups):
                rows = about.row_group(group).num_rows
                if whole is None or whole[group]:
                    yield file, start, rows
                start += rows


def opened(path: Path) -> Finished:
    """Open a finished output, and find what of it can be read.

    Raises:
        InputError: missing, unfinished, not an output of `score`, or a single file whose end is damaged.
    """
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        unfinished = path.with_name(f".{path.name}.unfinished")
        if unfinished.exists():
            raise InputError(f"OUT {path}: unfinished; its parts are in {unfinished}; run the same `score` to resume")
        raise InputError(f"OUT {path}: no such file or directory.{nearest(path.name, beside)}")
    if path.is_dir():
        manifest = published.manifest_of(path)
        if manifest is None and published.ours(path):
            raise InputError(
                f"OUT {path}: its {MANIFEST} is damaged; `score` with --if-exists overwrite writes it again"
            )
        if manifest is None or not (path / SUCCESS).exists():
            raise InputError(
                f"OUT {path}: not a finished output of `genrec-batch score`: no {MANIFEST} with {SUCCESS} beside it"
            )
        stored, entries = manifest["metadata"], tuple(manifest["files"])
        files = tuple(path / entry["file"] for entry in entries if not (path / entry["file"]).is_symlink())
        files = tuple(file for file in files if file.is_file())
    else:
        try:
            stored, entries, files = published.files_of(path)[1], (), (path,)
        except parquet.UNREADABLE as error:
            raise InputError(f"OUT {path}: not a whole Parquet file ({error})") from error
    metadata = {key.removeprefix("genrec."): value for key, value in stored.items() if key.startswith("genrec.")}
    if "run_id" not in metadata:
        raise InputError(f"OUT {path}: not written by genrec-batch: its metadata names no run (genrec.run_id)")
    try:
        parsed = {name: json.loads(metadata.get(name, "{}")) for name in ("config", "input", "rows", "users")}
    except ValueError as error:
        raise InputError(f"OUT {path}: its metadata is damaged ({error}); `score` makes the output anew") from error
    with console.busy("checking the files"):
        altered = tuple(reading(lambda: list(published.altered(path, entries)), f"OUT {path}"))
        schema = _schema([*(f for f in files if f.name not in altered), *(f for f in files if f.name in altered)])
        if schema is not None and "score" not in schema.names:
            raise InputError(
                f"OUT {path}: no column 'score', so not an output of `score`; it has {', '.join(schema.names[:8])}"
            )
        suspects = [file for file in files if not entries or file.name in altered]
        damaged = {file: whole for file in suspects if not (whole := _whole(file, schema)) or not all(whole)}
    nested = parsed["config"].get("layout") == "nested"
    if schema is not None:
        nested = pa.types.is_list(schema.field("score").type) or pa.types.is_large_list(schema.field("score").type)
    found = Finished(path=path, files=files, metadata=metadata, manifest=entries, nested=nested, altered=altered)
    return replace(found, damaged=damaged)


def _schema(files: list[Path]) -> pa.Schema | None:
    """Return the columns of the first file that can be opened."""
    for file in files:
        with suppress(*parquet.UNREADABLE):
            return pq.read_schema(file)
    return None


def _whole(file: Path, schema: pa.Schema | None) -> list[bool]:
    """Return whether each row group can be read; nothing for a file with other columns or a damaged end."""
    whole = parquet.whole_groups(file)
    if not whole or schema is None or not pq.read_schema(file).equals(schema):
        return []
    try:
        pl.scan_parquet(str(file), glob=False).select(pl.all().null_count()).collect(engine="streaming")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        return [] if all(whole) else whole  # one reader accepts the file, the other does not
    return whole
