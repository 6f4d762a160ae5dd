"""The checks of `inspect`: whether a finished output is what its manifest, its metadata and its format promise.

Owns: each check, its name and what it found. Must not know: how an output is opened or shown. In: a `Finished`. Out: a
list of plain dictionaries. One row group is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from genrec_batch.core.arrays import HEADS, MODEL, SOURCES
from genrec_batch.io import parquet, published
from genrec_batch.reports.finished import Finished
from genrec_batch.runtime import console

CHECKED = ("user_id", "rank", "video_id", "score", "log_prob", *HEADS, "source", "feature_scores")


def checks(found: Finished, advance: console.Advance) -> list[dict[str, Any]]:
    """Return the checks of an output: name, whether it holds, what was found; `advance` takes rows as stored."""
    done: list[dict[str, Any]] = []

    def add(check: str, *, ok: bool, found: str) -> None:
        done.append({"check": check, "ok": ok, "found": found})

    if found.manifest:
        unread = {str(file.relative_to(found.path)) for file in found.damaged}
        bad = [
            f"{name} (damaged: what cannot be read is left out)" if name in unread else name for name in found.altered
        ]
        add(
            "every part is what the manifest says (sha256)",
            ok=not bad,
            found=", ".join(bad) or f"{len(found.files)} parts",
        )
        manifest = published.manifest_of(found.path)
        faults = (
            ["it is damaged"]
            if manifest is None
            else list(published.manifest_faults(found.path, manifest, beside=found.altered))
        )
        add("the manifest is what was written, and what the parts say", ok=not faults, found="; ".join(faults) or "all")
        extra = published.strangers(found.path, found.manifest)
        add("no file that the manifest does not name", ok=not extra, found=", ".join(extra[:5]) or "none")
    else:
        lost = [group for whole in found.damaged.values() for group, fine in enumerate(whole) if not fine]
        said = f"row groups {', '.join(map(str, lost))} are damaged and left out" if lost else "all row groups"
        add("every page is what its checksum says", ok=not lost, found=said)
        whole = parquet.is_whole(found.path)
        add("every byte is what was written (sha256)", ok=whole, found="all" if whole else "some are not")
    if published.prints_damaged(found.path):
        add("the fingerprints are what was written", ok=False, found=published.fingerprint_file(found.path).name)
    rows = sum(rows for _, _, rows in found.groups())
    expected = int(found.metadata.get("rows", -1))
    add("as many rows as the metadata says", ok=rows == expected, found=f"{rows:,} of {expected:,}")
    for check, count in _order(found, advance).items():
        add(check, ok=not count, found=f"{count:,} rows do not" if count else "all rows")
    return done


def _order(found: Finished, advance: console.Advance) -> dict[str, int]:
    """Return how many rows break each promise of an output's order, reading one row group at a time."""
    names = (
        "users rise",
        "ranks are 1, 2, 3, ...",
        "score never rises with rank",
        "no null",
        "no video twice for a user",
        "every score is a finite number, every head within 0..1",
    )
    faults = dict.fromkeys(names, 0)
    last: pl.DataFrame | None = None
    for stored, frame, falls in _shards(found):
        advance(stored)
        faults["users rise"] += falls
        if not len(frame):
            continue
        joined = frame if last is None else pl.concat([last, frame])
        skip = 0 if last is None else 1
        before = joined.shift(1)
        first = before["user_id"].is_null()
        same = (joined["user_id"] == before["user_id"]).fill_null(value=False)
        rises = (joined["user_id"] > before["user_id"]).fill_null(value=False) | first
        wanted = pl.select(pl.when(same).then(before["rank"] + 1).otherwise(1)).to_series()
        for name, fine in zip(names[:3], (same | rises, joined["rank"] == wanted, _falling(joined)), strict=True):
            faults[name] += int((~fine.fill_null(value=False))[skip:].sum())
        faults["no null"] += _nulls(frame)
        faults[names[5]] += len(frame) - int(frame.select(_are_numbers(frame.schema).sum()).item())
        faults["no video twice for a user"] += len(frame) - frame.select("user_id", "video_id").n_unique()
        last = frame.tail(1)
    return faults


def _falling(frame: pl.DataFrame) -> pl.Series:
    """Return whether each score is at most the one before it in the list; a place without one has none to compare."""
    if "score" not in frame.columns:
        return pl.Series([True]).new_from_index(0, len(frame))
    before = pl.col("score").shift(1).forward_fill().over("user_id")
    return frame.select((pl.col("score") <= before) | before.is_null() | pl.col("score").is_null()).to_series()


def _nulls(frame: pl.DataFrame) -> int:
    """Return the number of nulls but for numbers of places that no score of the model decided."""
    if "source" not in frame.columns:
        return sum(frame.null_count().row(0))
    others = frame.filter(pl.col("source") != SOURCES[MODEL])
    model = frame.filter((pl.col("source") == SOURCES[MODEL]) | pl.col("source").is_null())
    always = others.drop("score", "log_prob", *HEADS, strict=False)
    return int(sum(model.null_count().row(0)) + sum(always.null_count().row(0)))


def _are_numbers(schema: pl.Schema) -> pl.Expr:
    """Return whether all numbers of a row are what they can be; nulls are another check's."""
    fine = [pl.repeat(value=True, n=pl.len())]
    fine += [pl.col(name).is_between(0, 1) for name in HEADS if name in schema]
    for name, kind in schema.items():
        numbers = [pl.col(name)] if name not in HEADS else []
        if isinstance(kind, pl.Struct):
            numbers = [pl.col(name).struct.field(field.name) for field in kind.fields]
            fine += [number.is_finite() for number in numbers]
        elif kind.is_float():
            fine += [number.is_finite() for number in numbers]
    return pl.all_horizontal(each.fill_null(value=True) for each in fine)


def _shards(found: Finished) -> Iterator[tuple[int, pl.DataFrame, int]]:
    """Yield rows as stored, a row for each recommendation of some users in order, and places where ids fell.

    A row group, or of an output in folders all files of a part together.
    """
    form = found.form
    if form is None:
        return
    names = [name for name in CHECKED if name in form.names]
    numbered = sorted(found.files, key=lambda file: (len(file.name), file.name, file.parent.name))
    for _, files in groupby(numbered, key=lambda file: file.name if form.partition else file):
        falls, frames = 0, []
        for file in files:
            for frame in _row_groups(found, file, form.stored_names(names)):
                falls += int((frame["user_id"] < frame["user_id"].shift(1)).sum())
                if form.partition is None:
                    yield len(frame), form.rows(frame.lazy(), names).collect(), 0
                else:
                    frames.append(frame)
        if frames:
            whole = pl.concat(frames)
            rows = form.rows(whole.lazy(), names).sort("user_id", "rank").collect()
            yield len(whole), rows, falls


def _row_groups(found: Finished, file: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield some stored columns of the row groups of a file that can be read."""
    if found.form is None or not any(found.damaged.get(file, [True])):
        return
    in_files = found.form.in_files(columns)
    with pq.ParquetFile(file, page_checksum_verification=True) as opened:
        whole = found.damaged.get(file, [True] * opened.num_row_groups)
        for group in range(opened.num_row_groups):
            if whole[group]:
                stored = pl.DataFrame(pl.from_arrow(opened.read_row_group(group, columns=in_files)))
                yield found.form.placed(stored.lazy(), file.parent, columns).collect()
