"""From rows to what the network reads: tokens, features at cuts, targets, what is already seen, and labels.

Owns: `TrainingBatch`, the standardisation of features, and the order of an epoch's batches. Must not know: torch, the
network. In: all events of a log and the rows of an epoch. Out: batches of NumPy arrays, the same for the same seed.

Shapes besides those of `core.arrays`: R rows, B rows of a batch, K rows with features, P positions with loss, Q
positions with labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genrec_batch import features
from genrec_batch.core.arrays import F32, F64, FIRST_ITEM, I32, I64, U8, UNKNOWN, Histories, SideTable
from genrec_batch.events import splits
from genrec_batch.events.splits import Cuts
from genrec_batch.training.rows import Rows, Window, batches, draw, generator, shuffled
from genrec_batch.training.sampled import Sample, Sampler

SEEN_EVENTS = 1000  # newest events of a user whose videos are masked
FEATURED_BATCHES = 16  # whose features are computed together
ROWS, DROPPED = 0, 1  # streams of random numbers
SMALLEST_SCALE, FURTHEST = 0.05, 8.0  # of a standardised feature: least divisor, most that a known value becomes
LEAST_FURTHEST = 1e-6  # from the mean, in eighths: less is rounding


@dataclass(frozen=True, kw_only=True)
class Standard:
    """How vectors are standardised: (x - mean) / scale."""

    mean_F: F64
    deviation_F: F64
    scale_F: F64
    varies_F: U8  # False: the same value in all rows, of which nothing can be learned

    @staticmethod
    def of(dense_NF: F32) -> Standard:
        """Return mean and scale, so that no known value lies beyond 8 and what hardly varies is not blown up."""
        mean_F = dense_NF.mean(axis=0, dtype=np.float64)
        away_NF = np.abs(dense_NF - mean_F)
        deviation_F = np.sqrt((away_NF**2).mean(axis=0))
        furthest_F = away_NF.max(axis=0, initial=0) / FURTHEST
        return Standard(
            mean_F=mean_F,
            deviation_F=deviation_F,
            scale_F=np.maximum(np.maximum(deviation_F, furthest_F), SMALLEST_SCALE),
            varies_F=furthest_F > LEAST_FURTHEST,
        )

    @property
    def factor_F(self) -> F32:
        """What the distance from the mean is multiplied by; 0 where nothing varies."""
        return (self.varies_F / self.scale_F).astype(np.float32)

    def apply(self, dense_NF: F32) -> F32:
        """Return vectors standardised."""
        standard_NF = (dense_NF - self.mean_F.astype(np.float32)) * self.factor_F
        return standard_NF.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """What position 0 is made of, for K rows; None is a list that the side tables lack."""

    dense_KF: F32
    profile: tuple[F32, U8] | None
    video: tuple[F32, U8] | None

    def take(self, rows_K: I64 | slice) -> Vectors:
        """Return some rows."""
        return Vectors(
            dense_KF=self.dense_KF[rows_K],
            profile=None if self.profile is None else (self.profile[0][rows_K], self.profile[1][rows_K]),
            video=None if self.video is None else (self.video[0][rows_K], self.video[1][rows_K]),
        )


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """What one step reads. Places are those of hidden states, [B, S + 1] laid end to end.

    Hidden state p of a row has read position 0 and p tokens. `seen_start_P` and `seen_count_P` say which of `seen_M`
    are masked at each position.
    """

    tokens_BS: I32  # left-aligned, padded with 0
    lengths_B: I64
    rows_K: I64  # rows with features
    vectors: Vectors
    place_P: I64
    target_P: I64  # row of the catalog
    weight_P: F32  # 0 for a target that is unknown or seen already
    seen_M: I32  # catalog rows of what the users have watched, row by row, in the order in which it is read
    seen_start_P: I64
    seen_count_P: I64
    place_Q: I64
    labels_QH: F32  # NaN where there is none
    sample: Sample | None = None  # of a catalog too large for the full softmax


@dataclass(frozen=True, kw_only=True)
class Events:
    """All events that a model learns from, E of them, ready to be cut into rows."""

    whole: Histories
    users: SideTable | None
    videos: SideTable | None
    labels_EH: F32
    repeated_E: U8  # the user has an earlier event of the same video
    include_seen: bool
    window: Window
    kernel: features.Kernel
    sampler: Sampler | None

    @staticmethod
    def of(
        whole: Histories,
        labels_EH: F32,
        *,
        users: SideTable | None,
        videos: SideTable | None,
        include_seen: bool,
        window: Window,
        kernel: features.Kernel,
        items: int = 0,
    ) -> Events:
        """Find out which events repeat, and which have a token; `items` are the videos of the catalog."""
        user_E = np.repeat(np.arange(len(whole)), whole.lengths_N)
        _, first = np.unique(user_E << 32 | whole.video_code_E, return_index=True)
        repeated_E = np.ones(len(user_E), np.bool_)
        repeated_E[first] = False
        return Events(
            whole=whole,
            users=users,
            videos=videos,
            labels_EH=labels_EH,
            repeated_E=repeated_E,
            include_seen=include_seen,
            window=window,
            kernel=kernel,
            sampler=Sampler.of(whole.tokens_E[whole.tokens_E >= FIRST_ITEM] - FIRST_ITEM, items),
        )

    def vectors(self, cuts: Cuts) -> Vectors:
        """Return what `score` reads at position 0 of these histories."""
        histories = splits.histories_at(self.whole, cuts, max_events=self.window.history, seen_limit=0)
        return vectors_of(histories, self.users, self.videos, self.window.history, self.kernel)

    def epoch(self, seed: int, epoch: int, size: int) -> tuple[Rows, list[I64]]:
        """Return the rows of an epoch and those of each batch."""
        random = generator(seed, ROWS, epoch)
        rows = draw(self.whole.offsets_N1, self.window, random)
        return rows, batches(rows, size, random)

    def batches(
        self, rows: Rows, order: list[I64], *, seed: int, epoch: int, start: int, unknown: float, block: int = 1
    ) -> Iterator[TrainingBatch]:
        """Yield the batches of an epoch from `start` on; a share `unknown` of the tokens read is unknown.

        Rows with features read what follows the cut in an order that is shuffled within blocks of `block` events.
        """
        for first in range(start, len(order), FEATURED_BATCHES):
            some = order[first : first + FEATURED_BATCHES]
            cut = [rows_B[rows.cut_R[rows_B]] for rows_B in some]
            vectors = self.vectors(self._cuts(rows.take(np.concatenate(cut))))
            begin = 0
            for number, rows_B in enumerate(some, first):
                count = len(cut[number - first])
                random = generator(seed, DROPPED, epoch, number)
                yield self._batch(rows.take(rows_B), vectors.take(slice(begin, begin + count)), random, unknown, block)
                begin += count

    def standard(self, seed: int, most: int) -> Standard:
        """Return how features are standardised, by those of at most so many rows of the first epoch."""
        rows, _ = self.epoch(seed, 0, 1)
        return Standard.of(self.vectors(self._cuts(rows.take(np.flatnonzero(rows.cut_R)[:most]))).dense_KF)

    def _cuts(self, rows: Rows) -> Cuts:
        """Return where rows are cut. A score is made at any moment before the next event, not at that event's time."""
        target_us_R = self.whole.time_us_E[rows.target_R]
        before_us_R = self.whole.time_us_E[np.maximum(rows.target_R - 1, self.whole.offsets_N1[rows.user_R])]
        waited_us_R = (rows.moment_R * (target_us_R - before_us_R)).astype(np.int64)
        return Cuts(
            user_N=rows.user_R,
            place_N=rows.target_R,
            stop_N=rows.stop_R,
            as_of_us_N=before_us_R + waited_us_R,
        )

    def _batch(
        self, rows: Rows, vectors: Vectors, random: np.random.Generator, unknown: float, block: int
    ) -> TrainingBatch:
        lengths_B = rows.stop_R - rows.first_R - ~rows.cut_R  # the last event without features is a target only
        width = int(lengths_B.max(initial=0))
        place_P, row_P = splits.places(rows.target_R, rows.stop_R - rows.target_R)
        event_P = place_P if block == 1 else place_P[shuffled(rows, block, random)]
        read_BS = rows.first_R[:, None] + np.arange(width + 1)
        read_BS[row_P, place_P - rows.first_R[row_P]] = event_P
        tokens_BS = self.whole.tokens_E.take(read_BS[:, :-1], mode="clip")
        tokens_BS[random.random(tokens_BS.shape, np.float32) < unknown] = UNKNOWN
        tokens_BS[np.arange(width) >= lengths_B[:, None]] = 0
        known_P = self.whole.tokens_E[event_P] >= FIRST_ITEM
        state_P = row_P * (width + 1) + place_P - rows.first_R[row_P]
        repeated_P = self.repeated_E[event_P] if block == 1 else self._repeated(row_P, place_P, event_P)
        seen_M, seen_start_P, seen_count_P = self._seen(rows, row_P, place_P, event_P)
        with_heads_P = rows.cut_R[row_P]
        target_P = np.where(known_P, self.whole.tokens_E[event_P] - FIRST_ITEM, 0).astype(np.int64)
        return TrainingBatch(
            tokens_BS=tokens_BS,
            lengths_B=lengths_B,
            rows_K=np.flatnonzero(rows.cut_R),
            vectors=vectors,
            place_P=state_P,
            target_P=target_P,
            weight_P=(known_P if self.include_seen else known_P & ~repeated_P).astype(np.float32),
            seen_M=seen_M,
            seen_start_P=seen_start_P,
            seen_count_P=seen_count_P,
            place_Q=state_P[with_heads_P] + 1,
            labels_QH=self.labels_EH[event_P[with_heads_P]],
            sample=None if self.sampler is None else self.sampler.sample(target_P, random),
        )

    def _seen(self, rows: Rows, row_P: I64, place_P: I64, event_P: I64) -> tuple[I32, I64, I64]:
        """Return what users watch until the ends of rows as it is read, [M], and which of it each position masks."""
        if self.include_seen:
            return np.zeros(0, np.int32), np.zeros_like(place_P), np.zeros_like(place_P)
        begin_R = np.maximum(self.whole.offsets_N1[rows.user_R], rows.target_R - SEEN_EVENTS)
        event_X, _ = splits.places(begin_R, rows.stop_R - begin_R)
        first_R = np.cumsum(rows.stop_R - begin_R) - (rows.stop_R - begin_R)
        at_P = (first_R - begin_R)[row_P] + place_P
        event_X[at_P] = event_P
        token_X = self.whole.tokens_E[event_X]
        known_X = token_X >= FIRST_ITEM
        before_X1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(known_X)])
        start_P = before_X1[np.maximum(first_R[row_P], at_P - SEEN_EVENTS)]
        return token_X[known_X] - np.int32(FIRST_ITEM), start_P, before_X1[at_P] - start_P

    def _repeated(self, row_P: I64, place_P: I64, event_P: I64) -> U8:
        """Return whether a user has watched each event's video before it, in the order in which events are read."""
        video_P, as_read_P = (row_P << 32 | self.whole.video_code_E[each] for each in (place_P, event_P))
        videos, first = np.unique(video_P, return_index=True)
        before_cut = self.repeated_E[place_P[first]]
        repeated_P = np.ones(len(row_P), np.bool_)
        repeated_P[np.unique(as_read_P, return_index=True)[1]] = False
        return repeated_P | before_cut[np.searchsorted(videos, as_read_P)]


def vectors_of(
    histories: Histories, users: SideTable | None, videos: SideTable | None, max_events: int, kernel: features.Kernel
) -> Vectors:
    """Return what `score` reads at position 0 of some histories."""
    return Vectors(
        dense_KF=features.compute(histories, users, videos, max_events=max_events, kernel=kernel),
        profile=None if users is None else features.profile_vectors(histories, users),
        video=None if videos is None else features.video_vectors(histories, videos, kernel=kernel),
    )
