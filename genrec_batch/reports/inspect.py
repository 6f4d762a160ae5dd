"""`inspect`: the facts of a finished output, and whether its files are what its metadata says.

Owns: metadata and lineage, counts, scores by rank, recommended videos, and the checks. Must not know: how an output is
made. In: a file or a directory that `score` wrote. Out: a plain dictionary. Memory is bounded by one row group and by
the catalog: everything over rows is a streaming scan, quantiles come from a histogram.
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
from genrec_batch.core.errors import GateError, InputError, nearest
from genrec_batch.io import parquet, published
from genrec_batch.io.published import MANIFEST, SUCCESS
from genrec_batch.io.read import reading
from genrec_batch.model.catalog import Catalog
from genrec_batch.runtime import console

LOOKS = 5  # over all rows: counts, videos, two for the scores, and the checks
BINS = 4096  # of the histogram behind the quantiles, over all scores' range
QUANTILES = (0.05, 0.5, 0.95)
LISTED = ("rank", "video_id", "score", *HEADS)  # columns that are lists in the nested form
NOTHING = {**dict.fromkeys(("user_id", *LISTED, "history_length"), pl.Float32), "cold_start": pl.Boolean}
LINEAGE = ("run_id", "version", "model", "catalog", "layout", "engine", "device", "precision")


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


def inspected(place: str, *, model: str | None = None, top: int = 10) -> dict[str, Any]:
    """Return the facts of a finished output.

    Args:
        place: a .parquet file or a directory of parts.
        model: model directory whose catalog coverage is computed; by default that of the run, if it still exists.
        top: how many of the most recommended videos to list.

    Raises:
        InputError: missing, unfinished, not an output of `score`, or a single file whose end is damaged.
    """
    found = _open(Path(place))
    where = f"OUT {place}"
    rows = found.rows()
    total = int(found.metadata.get("users", 0))
    with console.progress("inspect", LOOKS * found.stored, "rows") as advance:
        facts = reading(lambda: _counts(rows, total), where)
        advance(found.stored)
        videos = reading(lambda: _videos(rows, top), where)
        advance(found.stored)
        scores = reading(lambda: _scores(rows), where)
        advance(2 * found.stored)
        checks = reading(lambda: _checks(found, advance), where)
    videos["catalog"] = _coverage(found, model, videos["distinct"])
    return {
        "output": place,
        "form": ("nested" if found.nested else "long") + (", a directory of parts" if found.manifest else ", one file"),
        "files": len(found.files),
        "bytes": sum(file.stat().st_size for file in found.files),
        "lineage": {name: found.metadata.get(name) for name in LINEAGE},
        "config": json.loads(found.metadata.get("config", "{}")),
        "input": json.loads(found.metadata.get("input", "{}")),
        "counts": facts,
        "scores": scores,
        "videos": videos,
        "checks": checks,
    }


def check(facts: Mapping[str, Any]) -> None:
    """Raise GateError (exit code 6) if a check of `inspect` failed."""
    faults = [f"{c['check']}: {c['found']}" for c in facts["checks"] if not c["ok"]]
    if faults:
        raise GateError(f"OUT {facts['output']} failed its checks:\n  " + "\n  ".join(faults))


def _open(path: Path) -> Finished:
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        unfinished = path.with_name(f".{path.name}.unfinished")
        if unfinished.exists():
            raise InputError(f"OUT {path}: unfinished; its parts are in {unfinished}; run the same `score` to resume")
        raise InputError(f"OUT {path}: no such file or directory.{nearest(path.name, beside)}")
    if path.is_dir():
        manifest = published.manifest_of(path)
        if manifest is None or not (path / SUCCESS).exists():
            raise InputError(
                f"OUT {path}: not a finished output of `genrec-batch score`: no {MANIFEST} with {SUCCESS} beside it"
            )
        stored, entries = manifest["metadata"], tuple(manifest["files"])
        files = tuple(path / entry["file"] for entry in entries if (path / entry["file"]).is_file())
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


def _counts(rows: pl.LazyFrame, users: int) -> dict[str, Any]:
    first = pl.col("rank") == 1  # one row for each user with recommendations
    counted = rows.select(
        rows=pl.len(),
        users_with_rows=first.sum(),
        cold_start_users=(first & pl.col("cold_start")).sum(),
        longest=pl.col("rank").max(),
        mean_history_length=pl.col("history_length").filter(first).mean(),
        **{f"mean_{head}": pl.col(head).mean() for head in HEADS},
    )
    found = counted.collect(engine="streaming").row(0, named=True)
    return {"users": users, **{k: round(v, 6) if isinstance(v, float) else v for k, v in found.items()}}


def _scores(rows: pl.LazyFrame) -> list[dict[str, Any]]:
    """Return min, quantiles, max and mean of the score at each rank."""
    score = pl.col("score").cast(pl.Float64)
    ranks = (
        rows.group_by("rank")
        .agg(users=pl.len(), least=score.min(), most=score.max(), mean=score.mean())
        .collect(engine="streaming")
        .sort("rank")
    )
    if not len(ranks):
        return []
    low, high = float(ranks["least"].min()), float(ranks["most"].max())  # type: ignore[arg-type]
    step = (high - low) / BINS or 1.0
    binned = (
        rows.select("rank", bin=((score - low) / step).floor().clip(0, BINS - 1).cast(pl.Int32))
        .group_by("rank", "bin")
        .agg(users=pl.len())
        .collect(engine="streaming")
        .sort("rank", "bin")
        .with_columns(below=pl.col("users").cum_sum().over("rank"))
    )
    out = []
    for row in ranks.iter_rows(named=True):
        mine = binned.filter(pl.col("rank") == row["rank"])
        at = {
            f"p{round(100 * q):02d}": round(
                low + step * (0.5 + int(mine.filter(pl.col("below") >= q * row["users"])["bin"][0])), 4
            )
            for q in QUANTILES
        }
        ends = {"min": round(row["least"], 4), **at, "max": round(row["most"], 4), "mean": round(row["mean"], 4)}
        out.append({"rank": row["rank"], "users": row["users"], **ends})
    return out


def _videos(rows: pl.LazyFrame, top: int) -> dict[str, Any]:
    counted = (
        rows.group_by("video_id")
        .agg(users=pl.len())
        .collect(engine="streaming")
        .sort(["users", "video_id"], descending=[True, False])
    )
    total = int(counted["users"].sum())
    first = max(1, round(len(counted) / 100))
    return {
        "distinct": len(counted),
        "top_1_percent_share": round(int(counted["users"].head(first).sum()) / total, 4) if total else 0.0,
        "most_recommended": [
            {"video_id": row["video_id"], "rows": row["users"], "share": round(row["users"] / total, 4)}
            for row in counted.head(top).iter_rows(named=True)
        ],
    }


def _coverage(found: Finished, model: str | None, distinct: int) -> dict[str, Any]:
    """Return the share of the catalog that was recommended to any user, or why it is not known."""
    named = model or json.loads(found.metadata.get("config", "{}")).get("model")
    if not named:
        return {"videos": None, "coverage": None, "why": "the run had no model directory; name one with --model"}
    file = Path(named) / "catalog.parquet"
    if not file.is_file():
        return {"videos": None, "coverage": None, "why": f"{file} is not there; name the model's place with --model"}
    catalog = Catalog.read(file, vocabulary=2**31)
    if catalog.fingerprint() != found.metadata.get("catalog"):
        return {"videos": None, "coverage": None, "why": f"{file} is not the catalog that the run had"}
    return {"videos": len(catalog), "coverage": round(distinct / max(1, len(catalog)), 4), "why": ""}


def _checks(found: Finished, advance: console.Advance) -> list[dict[str, Any]]:
    checks = []

    def add(check: str, *, ok: bool, found: str) -> None:
        checks.append({"check": check, "ok": ok, "found": found})

    if found.manifest:
        unread = {file.name for file in found.damaged}
        bad = [
            f"{name} (damaged: what cannot be read is left out)" if name in unread else name for name in found.altered
        ]
        add(
            "every part is what the manifest says (sha256)",
            ok=not bad,
            found=", ".join(bad) or f"{len(found.files)} parts",
        )
        extra = published.strangers(found.path, found.manifest)
        add("no file that the manifest does not name", ok=not extra, found=", ".join(extra[:5]) or "none")
    else:
        lost = [group for whole in found.damaged.values() for group, fine in enumerate(whole) if not fine]
        said = f"row groups {', '.join(map(str, lost))} are damaged and left out" if lost else "all row groups"
        add("every page is what its checksum says", ok=not lost, found=said)
    rows = sum(rows for _, _, rows in found.groups())
    expected = int(found.metadata.get("rows", -1))
    add("as many rows as the metadata says", ok=rows == expected, found=f"{rows:,} of {expected:,}")
    faults = _order(found, advance)
    for check, count in faults.items():
        add(check, ok=not count, found=f"{count:,} rows do not" if count else "all rows")
    return checks


def _order(found: Finished, advance: console.Advance) -> dict[str, int]:
    """Return how many rows break each promise of an output's order, reading one row group at a time."""
    names = (
        "users rise",
        "ranks are 1, 2, 3, ...",
        "score never rises with rank",
        "no null",
        "no video twice for a user",
    )
    faults = dict.fromkeys(names, 0)
    last: pl.DataFrame | None = None
    for stored, frame in _row_groups(found):
        advance(stored)
        if not len(frame):
            continue
        joined = frame if last is None else pl.concat([last, frame])
        skip = 0 if last is None else 1
        before = joined.shift(1)
        first = before["user_id"].is_null()
        same = (joined["user_id"] == before["user_id"]).fill_null(value=False)
        rises = (joined["user_id"] > before["user_id"]).fill_null(value=False) | first
        wanted = pl.select(pl.when(same).then(before["rank"] + 1).otherwise(1)).to_series()
        falls = (joined["score"] <= before["score"]).fill_null(value=False) | ~same
        for name, fine in zip(names[:3], (same | rises, joined["rank"] == wanted, falls), strict=True):
            faults[name] += int((~fine.fill_null(value=False))[skip:].sum())
        faults["no null"] += sum(frame.null_count().row(0))
        faults["no video twice for a user"] += len(frame) - frame.select("user_id", "video_id").n_unique()
        last = frame.tail(1)
    return faults


def _row_groups(found: Finished) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield each row group: its rows as stored, and a row per recommendation."""
    names = ["user_id", "rank", "video_id", "score"]
    for file in found.files:
        if not any(found.damaged.get(file, [True])):
            continue
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            whole = found.damaged.get(file, [True] * opened.num_row_groups)
            for group in range(opened.num_row_groups):
                if not whole[group]:
                    continue
                frame = pl.DataFrame(pl.from_arrow(opened.read_row_group(group, columns=names)))
                stored = len(frame)
                if found.nested:
                    frame = frame.explode(names[1:]).filter(pl.col("rank").is_not_null())
                yield stored, frame
