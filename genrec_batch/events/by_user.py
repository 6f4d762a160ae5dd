"""The log by users: all events of neighbouring users together, from a log in any order and of any size.

Owns: shards and buckets of users, the pass that splits a log into them, spill files, and when that pass is not needed.
Must not know: what an event means, histories, the model. In: a log and its survey. Out: `EventStore.load`, which
returns all records of a bucket's users, each user's in input order.

Users are in id order. A shard is a fixed number of them, and one part of the output; a bucket is several neighbouring
shards whose events fit in memory together. Buckets depend on `--memory-limit`, shards do not: the output is the same
whatever the limit. There are three ways, chosen by what the survey found, never by assumption:

- direct: the log is nearly in id order (sorted or partitioned by user), so each bucket reads the few row groups that
  can hold its users, and filters them, while earlier buckets are scored.
- memory: all records fit; they are split in memory.
- spill: they do not fit; one pass writes each bucket's records to a file of its own.

Buckets are ranges of ids, not hashes: the output is sorted by id, so ranges need no merge at the end, and ids are
counted anyway, which balances ranges as well as a hash would.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from genrec_batch.core.arrays import I32, I64, offsets_of
from genrec_batch.core.errors import ConfigError
from genrec_batch.events.ids import IdIndex
from genrec_batch.events.log import EventLog
from genrec_batch.events.plausible import Look, looks
from genrec_batch.events.records import Records, RecordType
from genrec_batch.events.sorter import Sorter
from genrec_batch.events.survey import Survey
from genrec_batch.io.durable import check_local, disk_errors
from genrec_batch.io.spill import SpillFolder, remove_abandoned
from genrec_batch.runtime import console, threads

RADIX = 1 << 16  # users of a bucket: their order is then one pass over 16 bits
DIRECT_SHARE = 1.5  # of the log's row groups, read for all buckets together, up to which no pass is needed
BUCKET_EVENTS = 1 << 20  # that are sorted together, at most: larger buckets measurably leave the caches
MOST_TILES = 1 << 14  # into which a row group is split at once; above it, into buckets only
BALANCE = 8  # buckets of each process, at least, so that all end at about the same time
WORKING_BYTES = 600  # of memory per event of a bucket besides its record: histories, and a bucket read ahead


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Users `start`..`stop` (rows of the run's ids): whole shards."""

    number: int
    start: int
    stop: int
    events: int


@dataclass(frozen=True, kw_only=True)
class Users:
    """The users of a run in id order, and how many events each has up to as-of."""

    ids: pl.Series
    events_N: I64

    def __len__(self) -> int:
        return len(self.ids)


def loaders(cores: int) -> int:
    """Return how many buckets are loaded at the same time."""
    return max(1, cores // 4)


def spill_folder(named: str | None, target: str | None) -> Path:
    """Return the folder for spill files: `--spill-dir`, else that of the output, else the system's temporary one.

    Raises:
        ConfigError: `--spill-dir` is not a folder that can be written.
    """
    if named is None:
        return Path(target).absolute().parent if target else Path(tempfile.gettempdir())
    check_local(named, "--spill-dir")
    if not Path(named).is_dir() or not os.access(named, os.W_OK | os.X_OK):
        raise ConfigError(f"--spill-dir {named}: not a folder that this user may write; create it first")
    return Path(named)


def shards(users: int, size: int) -> list[tuple[int, int]]:
    """Return the (start, stop) of each shard of `size` users."""
    return [(start, min(users, start + size)) for start in range(0, users, size)]


def buckets(users: Users, shard_users: int, most_events: int) -> list[Bucket]:
    """Join neighbouring shards up to `most_events` events; a shard with more is a bucket of its own."""
    made: list[Bucket] = []
    for start, stop in shards(len(users), shard_users):
        events = int(users.events_N[start:stop].sum())
        last = made[-1] if made else None
        if last and last.events + events <= most_events and stop - last.start <= RADIX:
            made[-1] = Bucket(number=last.number, start=last.start, stop=stop, events=last.events + events)
        else:
            made.append(Bucket(number=len(made), start=start, stop=stop, events=events))
    return made


@dataclass(frozen=True, kw_only=True)
class RecordReader:
    """Reads a log's row groups as records, with rows of the run's users and videos for ids."""

    log: EventLog
    record: RecordType
    users: IdIndex
    videos: IdIndex
    as_of_us: int
    sorter: Sorter
    looks: list[dict[str, Look]] = field(default_factory=list, repr=False)  # by column, for each row group read

    @staticmethod
    def of(log: EventLog, found: Survey, users: pl.Series, sorter: Sorter) -> RecordReader:
        """Return the reader of a log's records of these users."""
        return RecordReader(
            log=log,
            record=RecordType.of(log.contract.reading.columns, log.contract.types),
            users=IdIndex(users),
            videos=IdIndex(found.videos["video_id"]),
            as_of_us=found.as_of_us,
            sorter=sorter,
        )

    def empty_columns(self) -> list[str]:
        """Return the columns that had no value in any row group read so far; none before the first."""
        return [
            name for name in self.record.columns if self.looks and not any(look[name].values for look in self.looks)
        ]

    def records(self, group: int) -> Records:
        """Return the usable records of scored users in a row group, in order."""
        frame, user_R = self._scored(group)
        return self.sorter.pack(self.record, frame, user_R, self.videos.rows(frame["video_id"], self.sorter))

    def by_bucket(self, group: int, bucket_of_user: npt.NDArray[np.uint16], buckets: int) -> tuple[Records, I64]:
        """Return the same records grouped by bucket, in order within each, and each bucket's count."""
        frame, user_R = self._scored(group)
        place_R, counts = self.sorter.places_by_bucket(user_R, bucket_of_user, buckets)
        video_R = self.videos.rows(frame["video_id"], self.sorter)
        return self.sorter.pack(self.record, frame, user_R, video_R, place_R), counts

    def _scored(self, group: int) -> tuple[pl.DataFrame, I32]:
        """Return a row group's usable events of scored users up to as-of, and the users' rows."""
        frame = self.log.usable(group)
        if self.log.latest_us.get(group, self.as_of_us + 1) > self.as_of_us:
            frame = frame.filter(pl.col("timestamp").dt.epoch("us") <= self.as_of_us)
        if len(frame):
            self.looks.append(looks(frame.select(self.record.columns), partial(self.log.made_null, group)))
        user_R = self.users.rows(frame["user_id"], self.sorter)
        if len(user_R) and user_R.min() < 0:  # --user, --limit: not everybody is scored
            frame = frame.filter(pl.Series(user_R >= 0))
            user_R = user_R[user_R >= 0]
        return frame, user_R


@dataclass(kw_only=True)
class EventStore:
    """All records of the scored users, by bucket."""

    reader: RecordReader
    buckets: list[Bucket]
    way: str  # "memory", "spill", "direct", or "elsewhere": in other processes
    row_groups: dict[int, list[int]] = field(default_factory=dict)  # direct: of each bucket
    held: dict[int, list[Records]] = field(default_factory=dict)  # memory: of each bucket
    folder: SpillFolder | None = None  # spill: a file for each bucket
    spilled: dict[int, list[int]] = field(default_factory=dict)  # spill: rows of each chunk in a bucket's file
    spilled_bytes: int = 0
    fetch: Callable[[int], list[Records]] | None = None  # elsewhere: the records of a bucket, by its number
    kept: bool = False  # whether a bucket may be loaded again: several processes share them

    def load(self, bucket: Bucket) -> list[Records]:
        """Return all records of a bucket's users in chunks, each user's in input order."""
        if self.way == "memory":
            return self.held.get(bucket.number, [])
        if self.fetch is not None:
            return self.fetch(bucket.number)
        if self.way == "spill":
            assert self.folder is not None
            records = np.fromfile(_file(self.folder.path, bucket), self.reader.record.kind)
            return np.split(records, np.cumsum(self.spilled.get(bucket.number, []))[:-1])
        found = []
        for group in self.row_groups[bucket.number]:
            records = self.reader.records(group)
            inside = (records["user"] >= bucket.start) & (records["user"] < bucket.stop)
            found.append(records if inside.all() else records[inside])
        return found

    def done(self, bucket: Bucket) -> None:
        """Release a bucket that will not be loaded again."""
        if self.kept:
            return
        if self.way == "memory":
            self.held.pop(bucket.number, None)
        elif self.way == "spill":
            assert self.folder is not None
            _file(self.folder.path, bucket).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove what was spilled."""
        if self.folder is not None:
            self.folder.close()


def _file(folder: Path, bucket: Bucket) -> Path:
    return folder / f"bucket-{bucket.number:05d}.events"


def store(
    reader: RecordReader,
    users: Users,
    found: Survey,
    *,
    shard_users: int,
    memory_bytes: int,
    spill_to: Path,
    workers: int,
    processes: int = 1,
) -> EventStore:
    """Arrange a log by users in one of three ways; see the module.

    Args:
        reader: reads the log's records.
        users: the users of the run.
        found: the log's survey.
        shard_users: users of a shard.
        memory_bytes: of memory that events and histories may take.
        spill_to: the folder in which a folder of spill files is made if one is needed.
        workers: threads that read.
        processes: that will load buckets at the same time.

    Raises:
        InputError: a page is damaged.
        RetryError: the disk is full.
    """
    if memory_bytes < sys.maxsize:
        remove_abandoned(spill_to)
    size = reader.record.kind.itemsize
    total = int(users.events_N.sum())
    in_flight = processes * (loaders(threads.cores() // processes) + 2)
    most = max(1, min(BUCKET_EVENTS, memory_bytes // (in_flight * (size + WORKING_BYTES))))
    out = planned(reader, users, found, shard_users=shard_users, most=most, processes=processes)
    if out.way == "direct":
        return out
    if 2 * total * size + min(total, 2 * most) * WORKING_BYTES <= memory_bytes:
        out.way = "memory"
        for number, records in _by_bucket(reader, users, out.buckets, workers):
            out.held.setdefault(number, []).append(records)
        return out
    with disk_errors(spill_to, "--spill-dir"):
        out.folder = folder = SpillFolder.make(spill_to)
    with ExitStack() as stack:
        stack.callback(out.close)  # removes the files, however this pass ends
        out.spilled_bytes = _spill(out, users, folder.path, workers)
        stack.pop_all()
    return out


def planned(
    reader: RecordReader, users: Users, found: Survey, *, shard_users: int, most: int = BUCKET_EVENTS, processes: int
) -> EventStore:
    """Return the buckets of a log, of `most` events, which are read directly or are still to be split; see `store`."""
    if processes > 1:
        most = max(1, min(most, int(users.events_N.sum()) // (BALANCE * processes)))
    made = buckets(users, shard_users, most)
    read = _groups_of(made, users, found)
    direct = len(made) > 1 and sum(map(len, read.values())) <= DIRECT_SHARE * len(reader.log.row_groups)
    return EventStore(
        reader=reader,
        buckets=made,
        way="direct" if direct else "spill",
        row_groups=read if direct else {},
        kept=processes > 1,
    )


def _groups_of(made: list[Bucket], users: Users, found: Survey) -> dict[int, list[int]]:
    """Return the row groups that can hold events of each bucket's users, by the ids that the survey found in them."""
    first = users.ids.gather([bucket.start for bucket in made])
    last = users.ids.gather([bucket.stop - 1 for bucket in made])
    read: dict[int, list[int]] = {bucket.number: [] for bucket in made}
    for group, ids in enumerate(found.user_ranges):
        if ids is not None:
            low = int(last.search_sorted(ids[0], "left"))
            high = int(first.search_sorted(ids[1], "right"))
            for number in range(low, high):
                read[number].append(group)
    return read


def _by_bucket(reader: RecordReader, users: Users, made: list[Bucket], workers: int) -> Iterator[tuple[int, Records]]:
    """Yield each row group's records of each bucket by tile, in order within each."""
    cuts, firsts = _tiles(reader, users, made)
    of_user = np.repeat(np.arange(firsts[-1], dtype=np.uint16), np.diff(cuts))

    def divided(group: int) -> list[tuple[int, Records]]:
        if firsts[-1] == 1:
            return [(0, reader.records(group))]
        records, counts = reader.by_bucket(group, of_user, int(firsts[-1]))
        ends = offsets_of(counts)[firsts]
        return [(number, records[ends[number] : ends[number + 1]]) for number in np.flatnonzero(np.diff(ends)).tolist()]

    with console.progress("arranging by user", reader.log.rows, "rows") as advance:
        groups = reader.log.row_groups
        done = threads.ordered(divided, range(len(groups)), workers=workers, name="partition")
        for group, by_bucket in zip(groups, done, strict=True):
            yield from by_bucket
            advance(group.rows)


def _tiles(reader: RecordReader, users: Users, made: list[Bucket]) -> tuple[I64, I64]:
    """Return the first user of each tile (`Sorter.tiles`), and the end; and each bucket's first tile, and the end."""
    cuts = [b.start + reader.sorter.tiles(users.events_N[b.start : b.stop], reader.record.kind) for b in made]
    if sum(map(len, cuts)) >= MOST_TILES:
        cuts = [np.array([bucket.start, bucket.stop]) for bucket in made]
    firsts = np.cumsum([0, *(len(each) - 1 for each in cuts)])
    return np.concatenate([*(each[:-1] for each in cuts), [made[-1].stop]]), firsts


def _spill(out: EventStore, users: Users, folder: Path, workers: int) -> int:
    written = 0
    with disk_errors(folder.parent, "--spill-dir"):
        for bucket in out.buckets:
            _file(folder, bucket).touch()
        for number, records in _by_bucket(out.reader, users, out.buckets, workers):
            with _file(folder, out.buckets[number]).open("ab", buffering=0) as file:  # one large write
                left = records.view(np.uint8).data
                while left:  # a disk that is nearly full takes a part of it, and refuses the rest
                    left = left[file.write(left) :]
            out.spilled.setdefault(number, []).append(len(records))
            written += records.nbytes
    return written
