"""From histories to batches: all that the model reads of users.

Owns: what a `Batch` is filled with, and its padding. Must not know: which rows make a batch, engines, files. In:
histories and side tables. Out: `arrays.Batch`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from genrec_batch import features
from genrec_batch.core.arrays import F32, I64, U8, Batch, Histories, Ragged
from genrec_batch.events.dataset import Dataset
from genrec_batch.events.side_tables import Tables
from genrec_batch.features import Kernel


def workers(cores: int) -> int:
    """Return how many shards' inputs are computed at once: the engine has most cores if it runs on the CPU."""
    return max(1, cores // 3)


@dataclass(frozen=True, kw_only=True)
class Vectorizer:
    """Turns histories into what the model reads, the same way for all users of a run."""

    tables: Tables
    max_events: int
    kernel: Kernel  # the same for all users of a run: see `features.kernel_name`
    include_seen: bool

    @staticmethod
    def of(dataset: Dataset, *, include_seen: bool = False) -> Vectorizer:
        """Return the vectorizer of a data set's users; `include_seen` lets seen videos be recommended."""
        return Vectorizer(
            tables=dataset.tables,
            max_events=dataset.users.max_events,
            kernel=features.kernel_name(len(dataset.users)),
            include_seen=include_seen,
        )

    def inputs(self, histories: Histories, start: int, rows_N: I64 | None = None) -> ModelInputs:
        """Return what the model reads of the users from row `start` of the run on, or of `rows_N` of them."""
        if rows_N is not None:
            histories = histories.take(rows_N)
        users, user_row_N = self.tables.profiles(histories.user_row_N)
        histories = replace(histories, user_row_N=user_row_N)
        places_N = start + (np.arange(len(histories)) if rows_N is None else rows_N)
        videos, given, kernel = self.tables.videos, self.tables.candidates, self.kernel
        return ModelInputs(
            histories=histories,
            dense_NF=features.compute(histories, users, videos, max_events=self.max_events, kernel=kernel),
            profile=None if users is None else features.profile_vectors(histories, users),
            video=None if videos is None else features.video_vectors(histories, videos, kernel=kernel),
            candidates=None if given is None else given.take(places_N),
            include_seen=self.include_seen,
        )


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """All that the model reads of N users, in the order given."""

    histories: Histories
    dense_NF: F32
    profile: tuple[F32, U8] | None
    video: tuple[F32, U8] | None
    candidates: Ragged | None
    include_seen: bool

    def take(self, rows_N: I64) -> ModelInputs:
        """Return some of the users, in the order given."""
        return ModelInputs(
            histories=self.histories.take(rows_N),
            dense_NF=self.dense_NF[rows_N],
            profile=None if self.profile is None else (self.profile[0][rows_N], self.profile[1][rows_N]),
            video=None if self.video is None else (self.video[0][rows_N], self.video[1][rows_N]),
            candidates=None if self.candidates is None else self.candidates.take(rows_N),
            include_seen=self.include_seen,
        )

    def batch(self, rows_B: I64) -> Batch:
        """Return what the model reads of B users; views where the rows are neighbours."""
        straight = len(rows_B) > 0 and bool((np.diff(rows_B) == 1).all())
        pick = slice(int(rows_B[0]), int(rows_B[-1]) + 1) if straight else rows_B
        tokens = self.histories.token_rows()
        tokens_BS = tokens.padded(rows_B)
        seen = self.histories.seen
        if self.include_seen:
            seen_BX = np.zeros((len(rows_B), 1), np.int32)
        else:
            seen_BX = tokens_BS if seen.same_as(tokens) else seen.padded(rows_B)
        return Batch(
            dense_BF=self.dense_NF[pick],
            tokens_BS=tokens_BS,
            lengths_B=self.histories.lengths_N[pick].astype(np.int32),
            seen_BX=seen_BX,
            candidates_BC=None if self.candidates is None else self.candidates.padded(rows_B),
            profile_BP=None if self.profile is None else self.profile[0][pick],
            has_profile_B=None if self.profile is None else self.profile[1][pick],
            video_BV=None if self.video is None else self.video[0][pick],
            has_video_B=None if self.video is None else self.video[1][pick],
        )

    def seen_candidates(self) -> int:
        """Return how many given candidates are left out because their user has seen them."""
        if self.candidates is None or self.include_seen:
            return 0
        given, seen = (
            np.repeat(np.arange(len(rows.lengths_N)), rows.lengths_N) << 32 | rows.values.astype(np.int64)
            for rows in (self.candidates, self.histories.seen)
        )
        return int(np.isin(given, seen).sum())

    def wanted_N(self, top_k: int) -> I64:
        """Return how many items each user could get at most, [N]."""
        users = len(self.histories)
        return np.full(users, top_k) if self.candidates is None else np.minimum(top_k, self.candidates.lengths_N)
