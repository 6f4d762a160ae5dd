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
from genrec_batch.io.recommended import Recommended
from genrec_batch.runtime import console

NUMBERS = ("user_id", "rank", "video_id", "score", "log_prob", *HEADS, "history_length")
READ = (*NUMBERS, "cold_start", "source", "arm", "bucket")
NOTHING = {**dict.fromkeys(NUMBERS, pl.Float32), "cold_start": pl.Boolean}


KINDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("config", "input", "arms", "counts", "registry"), dict),
    **dict.fromkeys(("drift", "distribution"), (dict, type(None))),
    **dict.fromkeys(("rows", "users"), int),
}  # of the metadata that is read here


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished output on disk."""

    path: Path
    files: tuple[Path, ...]
    metadata: Mapping[str, str]  # without the prefix `genrec.`
    manifest: tuple[Mapping[str, Any], ...]  # an entry for each part; empty for a single file
    form: Recommended | None  # how its rows are read; None where no file can be
    altered: tuple[str, ...] = ()  # files that are missing or not what the manifest says
    damaged: Mapping[Path, list[bool]] = field(default_factory=dict)  # of damaged files: which row groups are whole

    @property
    def stored(self) -> int:
        """Rows of the files according to the metadata: recommendations, or users in the nested form."""
        return int(self.metadata.get("rows", 0))

    def rows(self) -> pl.LazyFrame:
        """Return those columns of `READ` that the output has, a row for each recommendation."""
        whole = [file for file in self.files if file not in self.damaged]
        if self.form is None:
            return pl.LazyFrame(schema=NOTHING)  # without rows there are no lists to explode
        frames = [self.form.stored(whole)] if whole else []
        for file, start, rows in self.groups():  # damaged ones are left out
            if file in self.damaged:
                some = pl.scan_parquet(str(file), glob=False, hive_partitioning=False).slice(start, rows)
                frames.append(self.form.placed(some, file.parent))
        if not frames:
            return pl.LazyFrame(schema=NOTHING)
        return self.form.rows(pl.concat(frames), [name for name in READ if name in self.form.names])

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
    _check_metadata(path, metadata)
    with console.busy("checking the files"):
        altered = tuple(reading(lambda: list(published.altered(path, entries)), f"OUT {path}"))
        ordered = sorted(files, key=lambda file: _place(path, file) in altered)  # whole ones first
        schema, form = _schema(ordered), None
        if schema is not None:
            form = _form(path, ordered, stored, schema)
        suspects = [file for file in files if not entries or _place(path, file) in altered]
        damaged = {file: whole for file in suspects if not (whole := _whole(file, schema)) or not all(whole)}
    found = Finished(path=path, files=files, metadata=metadata, manifest=entries, form=form, altered=altered)
    return replace(found, damaged=damaged)


def _place(path: Path, file: Path) -> str:
    """Return the name of a file in the manifest."""
    return str(file.relative_to(path)) if path.is_dir() else file.name


def _check_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Raise InputError where an entry that is read later is not what a run writes."""
    for name, kind in KINDS.items():
        if name not in metadata:
            continue
        try:
            value = json.loads(metadata[name])
        except (ValueError, RecursionError) as error:
            raise _damaged(path, name, str(error)) from error
        right = isinstance(value, kind)
        if right and name == "config":
            right = isinstance(value.get("model"), str | None)
        if right and name == "registry":
            right = {"name", "version"} <= value.keys()
        if not right:
            raise _damaged(path, name, f"it is {metadata[name][:40]!r}")


def _damaged(path: Path, name: str, why: str) -> InputError:
    return InputError(f"OUT {path}: its metadata genrec.{name} is damaged ({why}); `score` makes the output anew")


def _form(path: Path, files: list[Path], metadata: Mapping[str, str], schema: pa.Schema) -> Recommended:
    columns = dict(pl.DataFrame(pl.from_arrow(schema.empty_table())).schema)
    try:
        form = Recommended.of(files, metadata, columns)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"OUT {path}: its metadata is damaged ({error}); `score` makes the output anew") from error
    if "video_id" not in form.names:
        raise InputError(
            f"OUT {path}: no column 'video_id', so not an output of `score`; it has {', '.join(schema.names[:8])}"
        )
    return form


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
        pl.scan_parquet(str(file), glob=False, hive_partitioning=False).select(pl.all().null_count()).collect(
            engine="streaming"
        )
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        return [] if all(whole) else whole  # one reader accepts the file, the other does not
    return whole
