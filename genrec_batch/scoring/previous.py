"""Incremental scoring: an earlier output of `score`, whose rows are kept for users whose input has not changed.

Owns: the checks of an earlier output, who keeps rows of it and how old these may be, and reading them. Must not know:
how fingerprints or rows are computed. In: the path of an earlier output, and fingerprints of this run's users. Out:
which users are unchanged, and their rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from genrec_batch.core.arrays import I64, U8
from genrec_batch.core.declare import differences
from genrec_batch.core.errors import ConfigError, InputError, RetryError
from genrec_batch.core.output_options import ITEM_COLUMNS, listed, wide_name
from genrec_batch.core.snapshot import Snapshot
from genrec_batch.io import fetched, parquet, published, table_runs
from genrec_batch.io.attempt import reading
from genrec_batch.io.recommended import Recommended
from genrec_batch.scoring.fingerprints import COLUMNS, Prints

T = TypeVar("T")
SCOPE, DISTRIBUTION = b"genrec.scope", b"genrec.distribution"
OF_EARLIER_AS_OF = "carried_of_earlier_as_of"  # users who keep rows although as-of moved
AS_OF_ONLY = "changed_only_by_as_of"  # users who are scored though their input differs by nothing else


class DamagedError(InputError):
    """An earlier output is not as its run left it, so that none of its rows can be kept."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which of N users keep their rows of an earlier output, and what is known of the rows that each will have."""

    unchanged_N: U8
    prints: Prints
    counts: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Previous:
    """An earlier output: its users with their fingerprints, and where their rows are."""

    path: str
    ids: pl.Series  # rising
    prints: Prints
    items_N: I64  # recommendations to each
    rows: pl.LazyFrame  # as stored
    form: Recommended  # how these are read
    columns: tuple[str, ...] | None  # that it was limited to
    run_id: str
    scope: Mapping[str, Any]
    seen: Snapshot  # its files, as they were checked
    distribution: str | None = None  # of its users, as its run kept it
    why_not: str = ""  # why no row of it can be kept, "" if rows can

    @staticmethod
    def open(path: str) -> Previous:
        """Open the output of an earlier run, and check all of it against its metadata.

        Raises:
            DamagedError: changed since, or written only in part; the message names the file.
            InputError: not an output of `score`.
        """
        try:
            return Previous._open(path)
        except InputError:
            raise
        except (
            ValueError,
            KeyError,
            pl.exceptions.PolarsError,
            *parquet.UNREADABLE,
        ) as error:  # in a place that no checksum covers
            raise _damaged(path, f"it is damaged ({error})") from error

    @staticmethod
    def _open(path: str) -> Previous:
        place = fetched.local(table_runs.newest(path, "--previous"), "--previous")
        kept = published.fingerprint_file(place)
        seen = _seen(path, place)
        run_id = _checked_files(path, place)
        if not kept.is_file() and run_id is None:
            raise InputError(
                f"--previous {path}: not an output of genrec-batch score with its fingerprints ({kept.name}); name "
                "one, or omit the option to score all users"
            )
        if not kept.is_file() or run_id is None:
            raise _damaged(path, f"{kept.name} is missing" if run_id else "it is not a finished output")
        if not parquet.is_whole(kept):
            raise _damaged(path, f"{kept.name} is damaged")
        about = pq.read_metadata(kept).metadata or {}
        if about.get(b"genrec.run_id") != run_id.encode() or SCOPE not in about:
            raise _damaged(path, f"{kept.name} is that of another run")
        table = pq.read_table(kept).replace_schema_metadata(None)
        if table.column_names != COLUMNS:
            raise _damaged(path, f"{kept.name} has other columns than this version writes")
        frame = pl.DataFrame(table)
        if not frame["user_id"].is_sorted():
            raise _damaged(path, f"{kept.name} is damaged")
        files, metadata = published.files_of(place)
        seen.check()
        stored = _read(path, lambda: sum(pq.read_metadata(file).num_rows for file in files))
        for what, count, said in (
            ("rows", stored, metadata.get(published.ROWS)),
            ("users with fingerprints", len(frame), metadata.get("genrec.users")),
        ):
            if str(count) != said:
                raise _damaged(path, f"it has {count:,} {what} and its metadata says {said}")
        form = _read(path, lambda: Recommended.of(files, metadata))
        return Previous(
            path=path,
            ids=frame["user_id"],
            prints=Prints.read(frame),
            items_N=_items(path, form, frame["user_id"]),
            rows=form.stored(),
            form=form,
            columns=_chosen(metadata),
            run_id=run_id,
            scope=json.loads(about[SCOPE]),
            seen=seen,
            distribution=about[DISTRIBUTION].decode() if DISTRIBUTION in about else None,
        )

    def compared(
        self,
        shared: Mapping[str, Any],
        user_type: pl.DataType,
        video_type: pl.DataType,
        needs: Sequence[str] | None = None,
    ) -> Previous:
        """Return this output with the reason why no row of it can be kept.

        Args:
            shared: this run's scope.
            user_type: of this run's user_id.
            video_type: of this run's video_id.
            needs: columns of a recommendation that this run writes, None for all that it has.
        """
        differing = differences(self.scope, shared)
        types = self.rows.collect_schema()
        video = types[wide_name("video_id", 1) if self.form.layout == "wide" else "video_id"]
        video = video.inner if isinstance(video, pl.List) else video  # type: ignore[assignment]
        for name, before, now in (("user_id", self.ids.dtype, user_type), ("video_id", video, video_type)):
            if before != now:
                differing.append(f"{name} ({before}, now {now})")
        had = ITEM_COLUMNS if self.columns is None else (*self.columns, "rank")
        lacking = [name for name in (ITEM_COLUMNS if needs is None else needs) if name not in had]
        if lacking:
            differing.append(f"its columns, which were chosen by --columns without {', '.join(lacking)}")
        return replace(self, why_not=", ".join(differing))

    def kept(self, ids: pl.Series, prints: Prints, carry_us: int = 0) -> Kept:
        """Return which of N users (rising ids) keep their rows.

        Those whose input is the same, and up to an age of `carry_us` also those whose input differs only by as-of:
        their rows stay what they were, and as old as they were, so that the next run knows it.
        """
        if self.why_not or not len(self.ids) or not len(ids):
            return Kept(unchanged_N=np.zeros(len(ids), np.bool_), prints=prints, counts={})
        place_N = self._places(ids)
        there_N = (self.ids.gather(place_N) == ids).to_numpy()
        before = self.prints.take(place_N)
        same_N = there_N & prints.same(before)
        aged_N = there_N & ~same_N & prints.same_but_for_as_of(before)
        age_us_N = prints.as_of_us_N - before.as_of_us_N
        young_N = aged_N & (age_us_N >= 0) & (age_us_N <= carry_us)
        counts = {AS_OF_ONLY: int((aged_N & ~young_N).sum())}
        counts |= {OF_EARLIER_AS_OF: int(young_N.sum())} if carry_us else {}
        return Kept(unchanged_N=same_N | young_N, prints=prints.where(young_N, before), counts=counts)

    def _places(self, ids: pl.Series) -> I64:
        place_N: I64 = self.ids.search_sorted(ids, "left").to_numpy().astype(np.int64)
        return np.minimum(place_N, len(self.ids) - 1)

    def rows_of(self, ids: pl.Series, columns: Sequence[str] | None = None) -> tuple[pl.DataFrame, I64]:
        """Return the recommendations to N of its users (rising ids), in order, and the number for each, [N].

        `columns` are those of a recommendation that are wanted, with user_id and rank; by default all.

        Raises:
            RetryError: the files have changed since they were opened.
        """
        low, high = ids[0], ids[-1]
        near = self.rows.filter(pl.col("user_id").is_between(pl.lit(low, ids.dtype), pl.lit(high, ids.dtype)))
        wanted = self.form.rows(near.filter(pl.col("user_id").is_in(ids.implode())), columns)
        try:
            found = _read(self.path, wanted.sort("user_id", "rank").collect)
        except DamagedError as error:
            raise _changed(self.path, str(error.__cause__)) from error
        place_R = ids.search_sorted(found["user_id"], "left").to_numpy()
        items_N = np.bincount(place_R, minlength=len(ids)).astype(np.int64)
        lost_N = items_N != self.items_N[self._places(ids)]
        if lost_N.any():
            user = ids[int(lost_N.argmax())]
            raise _changed(self.path, f"rows of user {user} are missing")
        self.seen.check()
        return found, items_N


def _damaged(path: str, what: str) -> DamagedError:
    return DamagedError(f"--previous {path}: {what}, so no row is carried over and all users are scored")


def _changed(path: str, what: str) -> RetryError:
    return RetryError(
        f"--previous {path}: it has changed while it was read ({what}); run the same command again, which continues"
    )


def _read(path: str, read: Callable[[], T]) -> T:
    try:
        return reading(read, f"--previous {path}")
    except InputError as error:
        raise _damaged(path, f"it cannot be read ({error.__cause__})") from error


def _seen(path: str, place: Path) -> Snapshot:
    """Look at the files of an earlier output before they are checked."""
    found = [place, published.fingerprint_file(place), *(place.rglob("*") if place.is_dir() else ())]
    return Snapshot.of([str(file) for file in found if file.is_file()], f"--previous {path}")


def _checked_files(path: str, place: Path) -> str | None:
    """Return the run that finished an output, None if none did.

    Raises:
        InputError: its files have changed since.
    """
    try:
        run_id = published.finished_id(place)
    except ConfigError as error:
        raise InputError(f"--previous {path}: {error.__cause__ or error}") from error
    if run_id is None:
        return None
    if place.is_file():
        if published.ROWS not in published.files_of(place)[1]:
            raise _damaged(path, f"{place.name} was rewritten by another program")
        if not parquet.is_whole(place):
            raise _damaged(path, f"{place.name} is damaged")
        return run_id
    manifest = published.manifest_of(place)
    assert manifest is not None, "it names the run"
    entries = manifest["files"]
    for name in published.strangers(place, entries):
        raise _damaged(path, f"{name} is in the folder and not in its {published.MANIFEST}")
    for fault in _read(path, lambda: list(published.manifest_faults(place, manifest))):
        raise _damaged(path, fault)
    for name in _read(path, lambda: list(published.altered(place, entries))):
        raise _damaged(path, f"{name} is missing or not what its {published.MANIFEST} says")
    return run_id


def _chosen(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    columns = json.loads(metadata.get("genrec.config", "{}")).get("columns")
    return None if columns is None else listed(columns, "--columns")


def _items(path: str, rows: Recommended, ids: pl.Series) -> I64:
    """Return the number of recommendations of each user of an earlier output, [N].

    Raises:
        InputError: a user without a fingerprint, or one whose ranks are not 1, 2, 3, ...
    """
    by_user = rows.all_rows(["user_id", "rank"]).group_by("user_id").agg(items=pl.len(), last=pl.col("rank").max())
    counted = _read(path, lambda: by_user.collect(engine="streaming"))
    users = ids.to_frame().join(counted, on="user_id", how="left", maintain_order="left")
    wrong = users.filter(pl.col("items") != pl.col("last"))["user_id"]
    if rows.layout != "long":
        stored = _read(path, lambda: rows.stored().select("user_id").collect(engine="streaming"))["user_id"]
        again = stored.filter(stored.is_duplicated())
        wrong = again if len(again) else ids.filter(~ids.is_in(stored.implode()))
    for user in wrong.head(1):
        raise _damaged(path, f"user {user} has too many or too few rows in it")
    items_N = users["items"].fill_null(0)
    if int(items_N.sum()) != int(counted["items"].sum()):
        raise _damaged(path, "it has rows of users without a fingerprint")
    return items_N.to_numpy().astype(np.int64)


def merged(scored: pl.DataFrame, carried: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of two groups of users, each in order, in the order of one output."""
    return pl.concat([scored, carried.select(scored.columns).cast(scored.schema)]).sort(["user_id", "rank"])
