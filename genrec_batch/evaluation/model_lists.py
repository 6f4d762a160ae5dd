"""What a model recommends to the rows of a test, and what its heads say of the videos that they were shown.

Owns: which rows go through the engine together, and what is asked of it for each. Must not know: metrics, baselines,
files. In: rows, an engine. Out: lists of tokens, and head predictions. The engine, its batches and its decoding are
those of `score`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from genrec_batch import features
from genrec_batch.core.arrays import F32, HEADS, I32, I64, Batch, Histories, Ragged, SideTable
from genrec_batch.core.errors import DeviceMemoryError
from genrec_batch.engines.decode import blend
from genrec_batch.engines.feed import Feed
from genrec_batch.engines.protocol import SteppedEngine
from genrec_batch.evaluation.lists import Lists
from genrec_batch.features.batches import ModelInputs
from genrec_batch.runtime import console
from genrec_batch.runtime.console import LOG

AT_ONCE = 1 << 13  # rows whose features are held at once
WIDTHS = (8, 32, 100)  # exposures that rows of a batch have at most: the longest decides what all of them take


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


def recommend(feed: Feed, inputs: Inputs, weights: Mapping[str, float] | None) -> Lists:
    """Return the lists of all rows as `score` makes them.

    Raises:
        DeviceMemoryError: one row alone does not fit the device.
    """
    rows, decoding = len(inputs.histories), feed.decoding
    tokens_MK = np.zeros((rows, decoding.top_k), np.int32)
    score_MK = np.full((rows, decoding.top_k), -np.inf, np.float32)
    with console.progress(decoding.mode, rows, "users") as advance:
        for rows_B, some, ranked in feed.recommend(_batches(feed, inputs, np.arange(rows))):
            score_BK = blend(ranked, weights)
            order_BK = np.argsort(-score_BK, axis=1, kind="stable") if decoding.mode == "candidates" else None
            for whole_MK, found_BK in ((tokens_MK, ranked.tokens_BK), (score_MK, score_BK)):
                best_BK = found_BK if order_BK is None else np.take_along_axis(found_BK, order_BK, axis=1)
                best_BK = best_BK[:, : decoding.top_k]
                whole_MK[rows_B[some], : best_BK.shape[1]] = best_BK
            advance(len(ranked))
    return Lists(tokens_MK=tokens_MK, score_MK=score_MK if decoding.mode == "slate" else None)


def look(feed: Feed, inputs: Inputs, exposures: Ragged, count: int) -> tuple[Lists, F32]:
    """Return the `count` best videos of each row by one look, and the heads of each exposure, [E, H].

    The lists are those of candidates without weights: the look alone ranks them, so no candidate need be scored.

    Raises:
        DeviceMemoryError: one row alone does not fit the device.
    """
    rows = len(inputs.histories)
    tokens_MK = np.zeros((rows, count), np.int32)
    heads_EH, engine = np.zeros((len(exposures.values), len(HEADS)), np.float32), feed.engine
    assert isinstance(engine, SteppedEngine)
    with console.progress("first look", rows, "users") as advance:
        for group in _groups(exposures):
            for rows_B, batch in _batches(feed, inputs, group):
                found_BK, heads_BCH = _look(engine, batch, exposures.padded(rows_B), count)
                tokens_MK[rows_B, : found_BK.shape[1]] = found_BK
                _put(heads_EH, exposures, rows_B, heads_BCH)
                advance(len(rows_B))
    return Lists(tokens_MK=tokens_MK), heads_EH


def _batches(feed: Feed, inputs: Inputs, group: I64) -> Iterator[tuple[I64, Batch]]:
    """Yield batches of some rows, and which rows they are."""
    for start in range(0, len(group), AT_ONCE):
        rows_P = group[start : start + AT_ONCE]
        part = inputs.of_rows(rows_P)
        for places_B in feed.batch_rows(part.histories.lengths_N):
            yield rows_P[places_B], part.batch(places_B)


def _groups(exposures: Ragged) -> Iterator[I64]:
    """Yield the rows with about as many exposures each."""
    least = -1
    for width in WIDTHS:
        group = np.flatnonzero((exposures.lengths_N > least) & (exposures.lengths_N <= width))
        if len(group):
            yield group
        least = width


def _look(engine: SteppedEngine, batch: Batch, shown_BC: I32, count: int) -> tuple[I32, F32]:
    """Return the best of a batch and the heads of its exposures, in halves where the device has too little memory."""
    try:
        state = engine.prefill(batch, steps=1, choices=count)
        return engine.choose(state)[0], engine.score(state, shown_BC)
    except DeviceMemoryError as error:
        if len(batch) == 1:
            raise
        half = len(batch) // 2
        LOG.warning("out of memory with %d users in a batch, trying %d (%s)", len(batch), half, error)
    first = _look(engine, batch.rows(0, half), shown_BC[:half], count)
    second = _look(engine, batch.rows(half, len(batch)), shown_BC[half:], count)
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


def _put(heads_EH: F32, exposures: Ragged, rows_B: I64, heads_BCH: F32) -> None:
    """Put the heads of a batch's exposures where they belong among all."""
    lengths_B = exposures.lengths_N[rows_B]
    column = np.arange(int(lengths_B.sum())) - np.repeat(np.cumsum(lengths_B) - lengths_B, lengths_B)
    row_B = np.repeat(np.arange(len(rows_B)), lengths_B)
    heads_EH[np.repeat(exposures.offsets_N1[rows_B], lengths_B) + column] = heads_BCH[row_B, column]
