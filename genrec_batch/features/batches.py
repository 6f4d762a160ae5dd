"""From histories to batches: all that the model reads of users.

Owns: what a `Batch` is filled with, and its padding. Must not know: which rows make a batch, engines, files. In:
histories and side tables. Out: `arrays.Batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from genrec_batch import features
from genrec_batch.core.arrays import F32, I32, I64, U8, Batch, Histories, Masks, Ragged, offsets_of
from genrec_batch.events.dataset import Dataset
from genrec_batch.events.side_tables import Tables
from genrec_batch.features import Kernel

MOVED = 64  # features that change places at once: their copy stays in the caches

MasksOf = Callable[[I64], Masks]  # of the users at N places of a run, over the model's vocabulary


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
    masks: MasksOf | None = None
    token_V: I32 | None = None  # token of each video code, where histories hold these in the place of tokens
    beyond_V: I32 | None = (
        None  # and the number of each that is beyond the catalog, 0 for others: see `Histories.beyond`
    )

    @staticmethod
    def of(
        dataset: Dataset, *, include_seen: bool = False, masks: MasksOf | None = None, beyond_V: I32 | None = None
    ) -> Vectorizer:
        """Return the vectorizer of a data set's users; `include_seen` lets seen videos be recommended.

        `masks` returns what must not be recommended to the users at some places of the run.
        """
        return Vectorizer(
            tables=dataset.tables,
            max_events=dataset.users.max_events,
            kernel=features.kernel_name(len(dataset.users)),
            include_seen=include_seen,
            masks=masks,
            token_V=dataset.token_V,
            beyond_V=beyond_V,
        )

    def inputs(self, histories: Histories, start: int, rows_N: I64 | None = None) -> ModelInputs:
        """Return what the model reads of the users from row `start` of the run on, or of `rows_N` of them."""
        if rows_N is not None:
            histories = histories.take(rows_N)
        if self.token_V is not None:
            histories = _with_tokens(histories, self.token_V, self.beyond_V)
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
            masks=None if self.masks is None else self.masks(places_N),
        )


def _with_tokens(histories: Histories, token_V: I32, beyond_V: I32 | None) -> Histories:
    """Return histories whose video codes have become a model's tokens, and numbers of videos beyond its catalog."""
    codes, seen = histories.token_rows(), histories.seen
    tokens_E = token_V[codes.values]
    seen_tokens = tokens_E if seen.same_as(codes) else token_V[seen.values]
    beyond = histories.beyond
    if beyond is not None and beyond_V is not None:
        beyond = _numbered(beyond, beyond_V)
    return replace(histories, tokens_E=tokens_E, seen=replace(seen, values=seen_tokens), beyond=beyond)


def _numbered(codes: Ragged, beyond_V: I32) -> Ragged:
    """Return the numbers of videos by their codes, from 1, without those that have none."""
    numbers = beyond_V[codes.values - 1]
    row_E = np.repeat(np.arange(len(codes)), codes.lengths_N)[numbers > 0]
    return Ragged(offsets_N1=offsets_of(np.bincount(row_E, minlength=len(codes))), values=numbers[numbers > 0])


def _picked(rows_B: I64) -> slice | I64:
    """Return an index of rows, a slice where they are neighbours."""
    straight = len(rows_B) > 0 and bool((np.diff(rows_B) == 1).all())
    return slice(int(rows_B[0]), int(rows_B[-1]) + 1) if straight else rows_B


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """All that the model reads of N users, in the order given."""

    histories: Histories
    dense_NF: F32
    profile: tuple[F32, U8] | None
    video: tuple[F32, U8] | None
    candidates: Ragged | None
    include_seen: bool
    masks: Masks | None = None  # of N rows: what must not be recommended to each user

    def take(self, rows_N: I64) -> ModelInputs:
        """Return some of the users, in the order given."""
        return ModelInputs(
            histories=self.histories.take(rows_N),
            dense_NF=self.dense_NF[rows_N],
            profile=None if self.profile is None else (self.profile[0][rows_N], self.profile[1][rows_N]),
            video=None if self.video is None else (self.video[0][rows_N], self.video[1][rows_N]),
            candidates=None if self.candidates is None else self.candidates.take(rows_N),
            include_seen=self.include_seen,
            masks=None if self.masks is None else self.masks.take(rows_N),
        )

    def batches(self, rows: Sequence[I64]) -> Iterator[tuple[I64, Batch]]:
        """Yield the batches of some rows, which together are each of the N users once, with these rows.

        The features, most of the memory, are put into the order of the batches in place, and batches are views of them:
        nothing else can be read from these inputs afterwards.
        """
        order_N = np.concatenate([*rows, np.zeros(0, np.int64)])
        assert len(order_N) == len(self.histories)
        if (np.diff(order_N) != 1).any():
            for first in range(0, self.dense_NF.shape[1], MOVED):
                self.dense_NF[:, first : first + MOVED] = self.dense_NF[order_N, first : first + MOVED]
        start = 0
        for rows_B in rows:
            yield rows_B, self._batch(rows_B, self.dense_NF[start : start + len(rows_B)])
            start += len(rows_B)

    def batch(self, rows_B: I64) -> Batch:
        """Return what the model reads of B users; views where the rows are neighbours."""
        return self._batch(rows_B, self.dense_NF[_picked(rows_B)])

    def _batch(self, rows_B: I64, dense_BF: F32) -> Batch:
        pick = _picked(rows_B)
        tokens = self.histories.token_rows()
        tokens_BS = tokens.padded(rows_B)
        seen = self.histories.seen
        if self.include_seen:
            seen_BX = np.zeros((len(rows_B), 1), np.int32)
        else:
            seen_BX = tokens_BS if seen.same_as(tokens) else seen.padded(rows_B)
        masks = None if self.masks is None else self.masks.take(pick)
        if masks is not None and masks.own is not None and len(masks.own.values):
            seen_BX = np.concatenate([seen_BX, masks.own.padded(np.arange(len(rows_B)))], axis=1)
        return Batch(
            dense_BF=dense_BF,
            tokens_BS=tokens_BS,
            lengths_B=self.histories.lengths_N[pick].astype(np.int32),
            seen_BX=seen_BX,
            candidates_BC=None if self.candidates is None else self.candidates.padded(rows_B),
            profile_BP=None if self.profile is None else self.profile[0][pick],
            has_profile_B=None if self.profile is None else self.profile[1][pick],
            video_BV=None if self.video is None else self.video[0][pick],
            has_video_B=None if self.video is None else self.video[1][pick],
            masks=None if masks is None else masks.bit_maps(),
        )

    def seen_candidates(self) -> int:
        """Return how many given candidates are left out because their user has seen them."""
        return int(self.seen_given().sum())

    def excluded_candidates(self) -> int:
        """Return how many given candidates, unseen ones, are left out because a rule removes them."""
        return int((self.banned_given() & ~self.seen_given()).sum())

    def seen_given(self) -> U8:
        """Return which given candidates are seen and left out, flat."""
        if self.candidates is None or self.include_seen:
            return np.zeros(0 if self.candidates is None else len(self.candidates.values), np.bool_)
        given, seen = (
            np.repeat(np.arange(len(rows.lengths_N)), rows.lengths_N) << 32 | rows.values.astype(np.int64)
            for rows in (self.candidates, self.histories.seen)
        )
        return np.isin(given, seen)

    def banned_given(self) -> U8:
        """Return which given candidates a rule removes, flat."""
        given = self.candidates
        if given is None or self.masks is None:
            return np.zeros(0 if given is None else len(given.values), np.bool_)
        row_C = np.repeat(np.arange(len(given)), given.lengths_N)
        banned_C: U8 = self.masks.take(row_C).banned_BC(given.values[:, None])[:, 0]
        return banned_C

    def wanted_N(self, top_k: int) -> I64:
        """Return how many items each user could get at most, [N]."""
        users = len(self.histories)
        return np.full(users, top_k) if self.candidates is None else np.minimum(top_k, self.candidates.lengths_N)
