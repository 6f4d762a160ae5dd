"""What a model recommends to the rows of a test, and what its heads say of the videos that they were shown.

Owns: which rows go through the engine together, and what is asked of it for each. Must not know: metrics, baselines,
files. In: rows, an engine. Out: lists of tokens, and head predictions. The engine, its batches and its decoding are
those of `score`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrec_batch import features
from genrec_batch.core.arrays import F32, HEADS, I32, I64, Batch, Histories, Ragged, SideTable
from genrec_batch.core.errors import DeviceMemoryError
from genrec_batch.engines.decode import Decoding, blend, recommend_all
from genrec_batch.engines.feed import batch_rows
from genrec_batch.engines.protocol import Engine
from genrec_batch.features.batches import ModelInputs
from genrec_batch.runtime import console
from genrec_batch.runtime.console import LOG

AT_ONCE = 1 << 13  # rows whose features are held at once
WIDTHS = (8, 32, 100)  # exposures that rows of a batch have at most: the longest decides what all of them take


@dataclass(frozen=True, kw_only=True)
class Lists:
    """A list of tokens for each row, [M, K]; token 0 (only at a row's end) is no place."""

    tokens_MK: I32
    score_MK: F32 | None = None  # of a slate, whose tokens are in decode order; None: best first

    def by_length(self, ks: Sequence[int]) -> Iterator[tuple[I32, tuple[int, ...]]]:
        """Yield lists, best first, and the lengths they are right for: a slate has another order at each length."""
        if self.score_MK is None:
            yield self.tokens_MK, tuple(ks)
        else:
            yield from ((self.best(k), (k,)) for k in ks)

    def best(self, k: int) -> I32:
        """Return what `score --top-k` k recommends, best first: a slate's first k items in the order of their score."""
        tokens_Mk = self.tokens_MK[:, :k]
        if self.score_MK is None:
            return tokens_Mk
        order_Mk = np.argsort(-self.score_MK[:, :k], axis=1, kind="stable")
        return np.take_along_axis(tokens_Mk, order_Mk, axis=1)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is judged: its lists, what its heads said of which exposures, and what the report says of it."""

    lists: Mapping[str, Lists]
    main: str  # the list that `ndcg@10` means
    facts: Mapping[str, Any]
    trained_heads: tuple[str, ...] | None = None  # heads that had labels in training; None: not known
    heads_EH: F32 | None = None
    row_E: I64 | None = None  # of each prediction
    place_E: I64 | None = None  # of each prediction's event in the whole log


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the model reads of each row."""

    histories: Histories
    users: SideTable | None
    videos: SideTable | None
    max_events: int
    include_seen: bool

    def of_rows(self, rows_B: I64) -> ModelInputs:
        """Compute the features of some rows."""
        histories = self.histories.take(rows_B)
        kernel = features.kernel_name(len(self.histories))
        return ModelInputs(
            histories=histories,
            dense_NF=features.compute(histories, self.users, self.videos, max_events=self.max_events, kernel=kernel),
            profile=None if self.users is None else features.profile_vectors(histories, self.users),
            video=None if self.videos is None else features.video_vectors(histories, self.videos, kernel=kernel),
            candidates=None,
            include_seen=self.include_seen,
        )


Asked = tuple[I32, F32, F32 | None]  # tokens and scores of the lists, heads of the exposures


def recommend(
    engine: Engine,
    inputs: Inputs,
    decoding: Decoding,
    *,
    batch_users: int,
    weights: Mapping[str, float] | None,
    exposures: Ragged | None = None,
) -> tuple[Lists, F32 | None]:
    """Return the lists of all rows, and the heads of each exposure, [E, H], where exposures are given.

    Raises:
        DeviceMemoryError: one row alone does not fit the device.
    """
    rows = len(inputs.histories)
    tokens_MK = np.zeros((rows, decoding.top_k), np.int32)
    score_MK = np.full((rows, decoding.top_k), -np.inf, np.float32)
    heads_EH = np.zeros((0 if exposures is None else len(exposures.values), len(HEADS)), np.float32)
    with console.progress(decoding.mode, rows, "users") as advance:
        for rows_B, shown, batch in _batches(inputs, exposures, batch_users, engine.room(batch_users)):
            found_BK, score_BK, heads_BCH = _ask(engine, batch, decoding, weights, shown)
            tokens_MK[rows_B, : found_BK.shape[1]] = found_BK
            score_MK[rows_B, : found_BK.shape[1]] = score_BK
            if exposures is not None and heads_BCH is not None:
                _put(heads_EH, exposures, rows_B, heads_BCH)
            advance(len(rows_B))
    slate = decoding.mode == "slate"
    lists = Lists(tokens_MK=tokens_MK, score_MK=score_MK if slate else None)
    return lists, None if exposures is None else heads_EH


def _batches(
    inputs: Inputs, exposures: Ragged | None, users: int, room: int
) -> Iterator[tuple[I64, I32 | None, Batch]]:
    """Yield batches of rows of about as many exposures each, with the exposures."""
    for group in _groups(len(inputs.histories), exposures):
        for start in range(0, len(group), AT_ONCE):
            rows_P = group[start : start + AT_ONCE]
            part = inputs.of_rows(rows_P)
            for places_B in batch_rows(part.histories.lengths_N, users, room):
                rows_B = rows_P[places_B]
                yield rows_B, None if exposures is None else exposures.padded(rows_B), part.batch(places_B)


def _groups(rows: int, exposures: Ragged | None) -> Iterator[I64]:
    if exposures is None:
        yield np.arange(rows)
        return
    lengths_M, least = exposures.lengths_N, -1
    for width in WIDTHS:
        group = np.flatnonzero((lengths_M > least) & (lengths_M <= width))
        if len(group):
            yield group
        least = width


def _ask(
    engine: Engine, batch: Batch, decoding: Decoding, weights: Mapping[str, float] | None, shown_BC: I32 | None
) -> Asked:
    """Return what the engine says of a batch, in halves where the device has too little memory."""
    try:
        return _asked(engine, batch, decoding, weights, shown_BC)
    except DeviceMemoryError as error:
        if len(batch) == 1:
            raise
        half = len(batch) // 2
        LOG.warning("out of memory with %d users in a batch, trying %d (%s)", len(batch), half, error)
    (tokens, scores, heads), (more_tokens, more_scores, more_heads) = (
        _ask(engine, batch.rows(start, stop), decoding, weights, None if shown_BC is None else shown_BC[start:stop])
        for start, stop in ((0, half), (half, len(batch)))
    )
    both = None if heads is None or more_heads is None else np.concatenate([heads, more_heads])
    return np.concatenate([tokens, more_tokens]), np.concatenate([scores, more_scores]), both


def _asked(
    engine: Engine, batch: Batch, decoding: Decoding, weights: Mapping[str, float] | None, shown_BC: I32 | None
) -> Asked:
    if decoding.mode == "candidates" and weights is None:  # ranked by the first look: no candidate need be scored
        state = engine.prefill(batch, steps=1, choices=decoding.num_candidates)
        tokens_BK, log_prob_BK = engine.choose(state)
        return tokens_BK, log_prob_BK, None if shown_BC is None else engine.score(state, shown_BC)
    ranked = next(recommend_all(engine, [batch], decoding))
    tokens_BK, score_BK = ranked.tokens_BK, blend(ranked, weights)
    if decoding.mode == "candidates":
        order_BK = np.argsort(-score_BK, axis=1, kind="stable")[:, : decoding.top_k]
        tokens_BK = np.take_along_axis(tokens_BK, order_BK, axis=1)
        score_BK = np.take_along_axis(score_BK, order_BK, axis=1)
    heads_BCH = None if shown_BC is None else engine.score(engine.prefill(batch, steps=1), shown_BC)
    return tokens_BK, score_BK, heads_BCH


def _put(heads_EH: F32, exposures: Ragged, rows_B: I64, heads_BCH: F32) -> None:
    """Put the heads of a batch's exposures where they belong among all."""
    lengths_B = exposures.lengths_N[rows_B]
    column = np.arange(int(lengths_B.sum())) - np.repeat(np.cumsum(lengths_B) - lengths_B, lengths_B)
    row_B = np.repeat(np.arange(len(rows_B)), lengths_B)
    heads_EH[np.repeat(exposures.offsets_N1[rows_B], lengths_B) + column] = heads_BCH[row_B, column]
