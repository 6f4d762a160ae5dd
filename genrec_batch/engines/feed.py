"""Feeding an engine: batches in, rankings out, and the device never waits between one batch and the next.

Owns: which rows make a batch, how many users it has, what happens when the device is full, that what comes back are
numbers (`numbers.py`), and the share of padding.
Must not know: shards, events, files. In: batches, each with a key of the caller. Out: the key, the rows of its batch,
and what the engine recommends to them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from genrec_batch.core.arrays import I64, Batch, Ranked
from genrec_batch.core.errors import DeviceMemoryError
from genrec_batch.engines import numbers
from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.engines.protocol import Engine
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG

LONG = 128  # positions up to which a batch has all its users
LEAST_USERS = 64  # of a batch that may end early: a quarter of a full one if that is less, a sixteenth if that is more
LEAST_FILLED = 1 / 1.3  # of the positions of a batch's longest row, for a row to join a batch that may end

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class Fed(Generic[K]):
    """A batch, or some rows of one, on its way through the engine."""

    key: K
    rows: slice  # of the caller's batch
    batch: Batch

    def cut(self, size: int, room: int) -> Iterator[Fed[K]]:
        """Yield it in batches of at most `size` users, and of `room` positions unless that is 0."""
        lengths_B = self.batch.lengths_B.astype(np.int64)
        if len(self.batch) <= size and (not room or int(lengths_B.sum()) + len(lengths_B) <= room):
            yield self
            return
        starts = range(0, len(lengths_B), size)
        for start, stop in mixed(lengths_B, size, room) if room else [(start, start + size) for start in starts]:
            rows = slice(self.rows.start + start, min(self.rows.start + stop, self.rows.stop))
            yield Fed(key=self.key, rows=rows, batch=self.batch.rows(start, stop))


@dataclass(kw_only=True)
class Feed:
    """An engine with a decoding and a size of batches, and what has gone through it."""

    engine: Engine
    decoding: Decoding
    stages: Stages
    batch_users: int  # of a batch, at most; halved when the device is full
    tokens: int | None = None  # of the model, `Model.tokens`; None: short lists are not checked
    fed_users: int = 0
    real_positions: int = 0
    computed_positions: int = 0

    @property
    def padding_share(self) -> float:
        """Share of the computed positions that were padding."""
        return 1 - self.real_positions / self.computed_positions if self.computed_positions else 0.0

    def batch_rows(self, lengths_N: I64) -> list[I64]:
        """Return the rows of each batch over users of these history lengths."""
        return batch_rows(lengths_N, self.batch_users, self.engine.room(self.batch_users))

    def recommend(self, batches: Iterable[tuple[K, Batch]]) -> Iterator[tuple[K, slice, Ranked]]:
        """Yield, in order, what the engine recommends to the rows of each batch.

        A batch is cut where it is too large; where the device is full, what is left is cut in half, down to one user.

        Raises:
            DeviceMemoryError: one user alone does not fit.
            NotNumbersError: what came back for a user is not finite.
        """
        waiting = self._waiting(batches)
        pending: deque[Fed[K]] = deque()
        while True:
            answers = recommend_all(self.engine, self._handed(waiting, pending), self.decoding, self.stages.add)
            try:
                while True:
                    with self.stages.time("model run"):
                        ranked = next(answers, None)
                    if ranked is None:
                        return
                    fed = pending.popleft()
                    self._count(fed.batch.lengths_B.astype(np.int64))
                    key, rows = fed.key, fed.rows
                    numbers.check(fed.batch, ranked, tokens=self.tokens, key=key, first=rows.start)
                    del fed  # the batch is not held while the next ones are computed
                    yield key, rows, ranked
            except DeviceMemoryError as error:
                waiting = self._halved(waiting, pending, error)

    def _waiting(self, batches: Iterable[tuple[K, Batch]]) -> Iterator[Fed[K]]:
        for key, batch in batches:
            fed = Fed(key=key, rows=slice(0, len(batch)), batch=batch)
            yield from fed.cut(self.batch_users, self.engine.room(self.batch_users))

    def _handed(self, waiting: Iterator[Fed[K]], pending: deque[Fed[K]]) -> Iterator[Batch]:
        """Yield the batches that wait and note which are with the engine."""
        while True:
            with self.stages.time("wait"):
                fed = next(waiting, None)
            if fed is None:
                return
            pending.append(fed)
            yield fed.batch

    def _halved(self, waiting: Iterator[Fed[K]], pending: deque[Fed[K]], error: DeviceMemoryError) -> Iterator[Fed[K]]:
        """Return what is left in batches of half the size; `pending` was with the engine and is lost.

        Raises:
            DeviceMemoryError: one user alone does not fit.
        """
        size = max((len(fed.batch) for fed in pending), default=1)
        if size == 1:
            if self.decoding.beam_width == 1:
                raise error
            raise DeviceMemoryError(
                f"one user's {self.decoding.beam_width:,} beams do not fit: lower --beam-width"
            ) from error
        self.batch_users = size // 2
        self.engine.resize(self.batch_users)
        LOG.warning("out of memory with %d users in a batch, continuing with %d (%s)", size, size // 2, error)
        room = self.engine.room(self.batch_users)
        again = [part for fed in pending for part in fed.cut(self.batch_users, room)]
        pending.clear()
        return itertools.chain(again, waiting)

    def _count(self, lengths_B: I64) -> None:
        self.fed_users += len(lengths_B)
        self.real_positions += int(lengths_B.sum()) + len(lengths_B)
        self.computed_positions += self.engine.computed(lengths_B)


def batch_rows(lengths_N: I64, size: int, room: int = 0) -> list[I64]:
    """Return the rows of each batch over users of these history lengths, at most `size` users a batch.

    Rows of like length are together, longest first; an engine that packs rows (`room`, see `Engine.room`) takes
    them as they come, at most so many positions a batch.
    """
    if room:
        return [np.arange(start, stop) for start, stop in mixed(lengths_N, size, room)]
    order_N = np.argsort(-lengths_N, kind="stable")
    return [order_N[start:stop] for start, stop in cuts(lengths_N[order_N], size)]


def mixed(lengths_N: I64, size: int, room: int) -> list[tuple[int, int]]:
    """Return the (start, stop) of batches as the users come: at most `size` users, and `room` positions.

    A user with more positions is a batch alone. Neighbours are of all lengths, so one batch has about as many positions
    as the next.
    """
    ends_N = np.cumsum(lengths_N + 1)
    batches, start = [], 0
    while start < len(ends_N):
        before = int(ends_N[start - 1]) if start else 0
        fit = int(np.searchsorted(ends_N, before + room, side="right"))
        stop = min(len(ends_N), start + size, max(fit, start + 1))
        batches.append((start, stop))
        start = stop
    return batches


def cuts(falling_N: I64, size: int) -> list[tuple[int, int]]:
    """Return the (start, stop) of batches over falling history lengths: at most `size` users, little padding.

    A batch of enough users ends where a row would fill less than LEAST_FILLED of its longest row's positions. Of rows
    of more than LONG positions fewer fit: attention takes memory by the square of the positions.
    """
    positions_N = falling_N + 1
    batches, start = [], 0
    while start < len(positions_N):
        longest = int(positions_N[start])
        most = size if longest <= LONG else max(1, size * LONG**2 // longest**2)
        shorter = int(np.searchsorted(-positions_N, -longest * LEAST_FILLED, side="right"))
        least = max(1, most // 16, min(LEAST_USERS, most // 4))
        stop = min(len(positions_N), start + most, max(shorter, start + least))
        batches.append((start, stop))
        start = stop
    return batches
