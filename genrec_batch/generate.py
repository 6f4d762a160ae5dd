"""Decoding: which items an engine is asked to read, in which order.

Owns: slate, beam and candidate decoding, and the blend that ranks. Must not know: how an engine computes, users, video
ids, files. In: a `Batch` and an engine. Out: `Ranked`, in decode order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from genrec_batch.arrays import F32, HEADS, I32, Batch, Ranked
from genrec_batch.engines import Engine


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a list is made."""

    mode: str = "slate"  # "slate": one item after the other; "candidates": the best of one look, scored in parallel
    top_k: int = 10  # items of a slate
    num_candidates: int = 100  # items that "candidates" scores
    beam_width: int = 1  # slates kept side by side; 1 is greedy


def recommend(engine: Engine, batch: Batch, decoding: Decoding) -> Ranked:
    """Return each row's items in decode order: [B, top_k] for a slate, [B, C] for candidates.

    Where nothing is left to recommend, tokens are 0 and log-probabilities -inf, at a row's end.
    """
    if batch.candidates_BC is not None:
        return _given(engine, batch, batch.candidates_BC)
    if decoding.mode == "candidates":
        return _candidates(engine, batch, decoding.num_candidates)
    if decoding.beam_width > 1:
        return _beam(engine, batch, decoding.top_k, decoding.beam_width)
    state = engine.prefill(batch, steps=decoding.top_k)
    for _ in range(decoding.top_k):
        engine.decode(state)
    return engine.collect(state)


def _candidates(engine: Engine, batch: Batch, count: int) -> Ranked:
    state = engine.prefill(batch, steps=1, choices=count)
    tokens_BC, log_prob_BC = engine.choose(state)
    return Ranked(tokens_BK=tokens_BC, log_prob_BK=log_prob_BC, heads_BKH=engine.score(state, tokens_BC))


def _given(engine: Engine, batch: Batch, candidates_BC: I32) -> Ranked:
    """Score given candidates; the seen ones are dropped, and what is left moves to the row's start."""
    seen_BC = (candidates_BC[:, :, None] == batch.seen_BX[:, None, :]).any(axis=2)
    left_BC = (candidates_BC > 0) & ~seen_BC
    first_BC = np.argsort(~left_BC, axis=1, kind="stable")
    tokens_BC = np.take_along_axis(np.where(left_BC, candidates_BC, 0), first_BC, axis=1).astype(np.int32)
    state = engine.prefill(batch, steps=1)
    log_prob_BC = np.where(tokens_BC > 0, engine.log_probs(state, tokens_BC), -np.inf).astype(np.float32)
    return Ranked(tokens_BK=tokens_BC, log_prob_BK=log_prob_BC, heads_BKH=engine.score(state, tokens_BC))


def _beam(engine: Engine, batch: Batch, steps: int, width: int) -> Ranked:
    """Return the list of greatest total log-probability among `width` kept at each step (Graves 2012's beam search).

    Every row keeps `width` lists, those that do not exist yet with a total of -inf. A list that has nothing left to
    choose is carried on unchanged.
    """
    users, row_B = len(batch), np.arange(len(batch))
    state = engine.select(engine.prefill(batch, steps=steps, choices=width), np.repeat(row_B, width))
    total_BW = np.full((users, width), -np.inf)
    total_BW[:, 0] = 0.0
    for _ in range(steps):
        tokens_RW, log_prob_RW = engine.choose(state)
        tokens_BWW = tokens_RW.reshape(users, width, width)
        gain_BWW = log_prob_RW.reshape(users, width, width).astype(np.float64)
        ended_BW = tokens_BWW[:, :, 0] == 0
        gain_BWW[:, :, 0][ended_BW] = 0.0
        reached = (total_BW[:, :, None] + gain_BWW).reshape(users, width * width)
        best_BW = np.argsort(-reached, axis=1, kind="stable")[:, :width]
        total_BW = np.take_along_axis(reached, best_BW, axis=1)
        came_from_R = (row_B[:, None] * width + best_BW // width).reshape(-1)
        chosen_BW = np.take_along_axis(tokens_BWW.reshape(users, width * width), best_BW, axis=1)
        state = engine.select(state, came_from_R)
        engine.decode(state, chosen_BW.reshape(-1).astype(np.int32))
    ranked = engine.collect(state)
    best_R = row_B * width + np.argmax(total_BW, axis=1)
    return Ranked(
        tokens_BK=ranked.tokens_BK[best_R],
        log_prob_BK=ranked.log_prob_BK[best_R],
        heads_BKH=ranked.heads_BKH[best_R],
    )


def blend(ranked: Ranked, weights: Mapping[str, float] | None) -> F32:
    """Return what rows are ranked by, [B, K]: log_prob, or the linear blend of heads and log_prob by name.

    Token 0 gets -inf.
    """
    score_BK: F32 = ranked.log_prob_BK
    if weights is not None:
        parts = {head: ranked.heads_BKH[:, :, h] for h, head in enumerate(HEADS)} | {"log_prob": ranked.log_prob_BK}
        empty_BK = ranked.tokens_BK == 0
        total_BK = np.zeros(ranked.tokens_BK.shape, np.float64)
        for name, weight in weights.items():
            total_BK += weight * np.where(empty_BK, 0.0, parts[name])
        score_BK = total_BK.astype(np.float32)
    return np.where(ranked.tokens_BK == 0, np.float32(-np.inf), score_BK)
