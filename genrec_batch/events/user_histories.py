"""The users of a run and their histories, loaded a bucket of users at a time.

Owns: when events are loaded, put in order and released, and how many buckets are loaded at once. Must not know: files,
features, the model. In: users, their event store, and what is known of the videos. Out: `arrays.Histories`.
"""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from genrec_batch.core.arrays import I32, I64, Histories
from genrec_batch.events import by_user, histories
from genrec_batch.events.by_user import Bucket, EventStore, Users
from genrec_batch.events.duplicates import Duplicates
from genrec_batch.runtime import threads
from genrec_batch.runtime.clock import Stages

Group = Sequence[int]
"""Numbers of shards that lie in one bucket, rising: they are loaded together."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Neighbouring users of a run, from row `start` on, who become one part of the output."""

    number: int
    start: int
    histories: Histories

    def __len__(self) -> int:
        return len(self.histories)


@dataclass(kw_only=True)
class UserHistories:
    """N users in id order; their histories come from the event store on request."""

    users: Users
    store: EventStore
    videos: histories.VideoRows
    table_row_N: I32  # row of `--users`, -1 where it has none
    as_of_us: int
    max_events: int
    seen_limit: int
    shard_users: int
    stages: Stages
    duplicates: Duplicates | None = None  # that are dropped
    _loaded: dict[int, Histories] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def ids(self) -> pl.Series:
        """Ids of the users, rising."""
        return self.users.ids

    @property
    def lengths_N(self) -> I64:
        """Kept events of each user, [N]."""
        return np.minimum(self.users.events_N, self.max_events)

    @property
    def mean_events(self) -> float:
        """Kept events of a user on average."""
        return float(self.lengths_N.mean())

    def load(self, bucket: Bucket) -> Histories:
        """Load the histories of a bucket's users.

        Raises:
            InputError: a page of the log is damaged.
            RetryError: a connection was lost.
        """
        count = bucket.events * self.store.reader.record.kind.itemsize
        with self.stages.time("load", rows=bucket.events, bytes=count):
            chunks = self.store.load(bucket)
        total_N = self.users.events_N[bucket.start : bucket.stop]
        with self.stages.time("histories", rows=bucket.events, bytes=count):
            if self.duplicates is not None:
                record = self.store.reader.record
                kept, total_N = self.duplicates.without(chunks, record, bucket.start, len(total_N))
                chunks = [kept]
            return histories.build(
                chunks,
                self.store.reader.record,
                start=bucket.start,
                total_N=total_N,
                videos=self.videos,
                user_row_N=self.table_row_N[bucket.start : bucket.stop],
                as_of_us=self.as_of_us,
                max_events=self.max_events,
                seen_limit=self.seen_limit,
                sorter=self.store.reader.sorter,
            )

    def first_shard(self) -> Histories:
        """Return the histories of the first shard's users, on whom engines are tried; they are kept for `shards`.

        Raises:
            InputError, RetryError: see `load`.
        """
        bucket = self.store.buckets[0]
        if bucket.number not in self._loaded:
            self._loaded[bucket.number] = self.load(bucket)
        return self._loaded[bucket.number].slice(0, min(self.shard_users, len(self)))

    def groups(self, skip: Collection[int] = ()) -> list[Group]:
        """Return the numbers of all shards that are not in `skip`, those of a bucket together."""
        size, done = self.shard_users, set(skip)
        of_buckets = [range(bucket.start // size, -(-bucket.stop // size)) for bucket in self.store.buckets]
        left = [[number for number in numbers if number not in done] for numbers in of_buckets]
        return [numbers for numbers in left if numbers]

    def shards(self, groups: Iterable[Group] | None = None) -> Iterator[Shard]:
        """Yield the shards of some groups, in order, by default of all; buckets are loaded ahead and released.

        Raises:
            InputError, RetryError: see `load`.
        """
        size = self.shard_users
        starts = [bucket.start for bucket in self.store.buckets]

        def loaded(group: Group) -> tuple[Group, Bucket, Histories]:
            bucket = self.store.buckets[bisect(starts, group[0] * size) - 1]
            built = self._loaded.pop(bucket.number, None)
            built = self.load(bucket) if built is None else built
            self.store.done(bucket)
            return group, bucket, built

        wanted = self.groups() if groups is None else groups
        workers = by_user.loaders(threads.cores())
        for group, bucket, built in threads.ordered(loaded, wanted, workers=workers, name="histories"):
            shards: deque[Shard] = deque()
            for number in group:
                start, stop = number * size, min((number + 1) * size, bucket.stop)
                histories = built.slice(start - bucket.start, stop - bucket.start)
                shards.append(Shard(number=number, start=start, histories=histories))
            del built, histories  # a shard is not held while the consumer works
            while shards:
                yield shards.popleft()

    def close(self) -> None:
        """Remove what was spilled."""
        self.store.close()
