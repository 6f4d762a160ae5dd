"""The rows of an epoch: which window of which user's life is read, and where its loss begins.

Owns: the draw of windows and of their order in batches. Must not know: tokens, features, tensors. In: how many events
each user has. Out: `Rows` of places in the log's flat arrays, the same for the same seed and epoch.

Half of the rows have features, at a random cut: they read what `score` reads there, and have loss only after it. The
others have no features, and loss everywhere; features of a window whose own events are targets would tell them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genrec_batch.core.arrays import F64, I64, U8

SORTED_BATCHES = 32  # whose rows are put in order of length together, so that a batch needs little padding


@dataclass(frozen=True, kw_only=True)
class Window:
    """Lengths of a row: events that are read before the cut, and events after it that are predicted one by one."""

    history: int
    horizon: int

    @property
    def events(self) -> int:
        """Events of a whole window."""
        return self.history + self.horizon


@dataclass(frozen=True, kw_only=True)
class Rows:
    """R rows: the events `first_R`..`stop_R` are read, those from `target_R` on are predicted.

    Rows with `cut_R` set have features of the events before `target_R`, as of a moment between the last of them and
    that event: a share `moment_R` of the way. Places are those of the log's flat arrays.
    """

    user_R: I64
    first_R: I64
    target_R: I64
    stop_R: I64
    cut_R: U8
    moment_R: F64

    def __len__(self) -> int:
        return len(self.user_R)

    def take(self, rows_B: I64) -> Rows:
        """Return some rows in the given order."""
        return Rows(
            user_R=self.user_R[rows_B],
            first_R=self.first_R[rows_B],
            target_R=self.target_R[rows_B],
            stop_R=self.stop_R[rows_B],
            cut_R=self.cut_R[rows_B],
            moment_R=self.moment_R[rows_B],
        )


def generator(seed: int, *stream: int) -> np.random.Generator:
    """Return the random numbers of a stream, such as (epoch, batch): the same on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))


def draw(offsets_N1: I64, window: Window, random: np.random.Generator) -> Rows:
    """Draw an epoch's rows, in random order: of a user with n events max(1, round(n / window)) rows."""
    events_N = np.diff(offsets_N1)
    rows_N = np.where(events_N > 0, np.maximum(1, np.rint(events_N / window.events)), 0).astype(np.int64)
    user_R = random.permutation(np.repeat(np.arange(len(events_N)), rows_N))
    begin_R, end_R = offsets_N1[user_R], offsets_N1[user_R + 1]
    cut_R = np.arange(len(user_R)) % 2 == 1
    at_R = random.random(len(user_R))
    # without features: a window anywhere; loss begins with its second event, or with its first if that begins the life
    latest_R = np.maximum(begin_R, end_R - window.events)
    first_R = begin_R + (at_R * (latest_R - begin_R + 1)).astype(np.int64)
    target_R = np.where(first_R == begin_R, first_R, first_R + 1)
    stop_R = np.minimum(end_R, first_R + window.events)
    # with features: a cut anywhere, the newest events before it as in scoring, and the next ones
    place_R = begin_R + (at_R * (end_R - begin_R)).astype(np.int64)
    return Rows(
        user_R=user_R,
        first_R=np.where(cut_R, np.maximum(begin_R, place_R - window.history), first_R),
        target_R=np.where(cut_R, place_R, target_R),
        stop_R=np.where(cut_R, np.minimum(end_R, place_R + window.horizon), stop_R),
        cut_R=cut_R,
        moment_R=random.random(len(user_R)),
    )


def shuffled(rows: Rows, block: int, random: np.random.Generator) -> I64:
    """Return the order in which targets are read, [P]: in rows with features at random within each block after the cut.

    What follows soon is then one set to recommend, whatever comes first in it. Targets are numbered row by row.
    """
    count_R = rows.stop_R - rows.target_R
    row_P = np.repeat(np.arange(len(rows)), count_R)
    place_P = np.arange(len(row_P)) - (np.cumsum(count_R) - count_R)[row_P]
    key_P = np.where(rows.cut_R[row_P], random.random(len(row_P)), place_P)
    return np.lexsort((key_P, place_P // block, row_P))


def batches(rows: Rows, size: int, random: np.random.Generator) -> list[I64]:
    """Return the rows of each batch of an epoch: neighbours in length among some batches, batches in random order.

    Every batch has as many rows with features as without, so that no step is of one kind alone.
    """
    length_R = rows.stop_R - rows.first_R
    made: list[I64] = []
    for start in range(0, len(rows), size * SORTED_BATCHES):
        some = np.arange(start, min(len(rows), start + size * SORTED_BATCHES))
        by_kind = [each[np.argsort(length_R[each], kind="stable")] for each in (some[::2], some[1::2])]
        some[::2], some[1::2] = by_kind
        made += [some[at : at + size] for at in range(0, len(some), size)]
    return [made[i] for i in random.permutation(len(made))]
