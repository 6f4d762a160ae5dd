"""Decoding: from a batch of histories to ranked items, with any engine.

Owns: slate, beam, candidates and given candidates, and the blended score. Must not know: torch, ONNX, Polars, or where
the engine runs. It uses only `protocol` and NumPy.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from genrec_batch.core.arrays import F32, F64, FIRST_ITEM, HEADS, I32, I64, PADDING, Batch, Masks, Ranked
from genrec_batch.engines.numbers import NotNumbersError
from genrec_batch.engines.protocol import Engine, Recorder, State, SteppedEngine
from genrec_batch.engines.timing import timed

LOG_PROB = "log_prob"

Prefill = Callable[..., State]  # as `SteppedEngine.prefill`


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a list is made."""

    mode: str = "slate"  # "slate": one item after the other; "candidates": the best of one step, scored in parallel
    top_k: int = 10  # items of a slate
    num_candidates: int = 100  # items that "candidates" scores, at most the model's tokens
    beam_width: int = 1  # hypotheses of a slate; 1 is greedy

    @property
    def greedy(self) -> bool:
        """Whether each item of a slate is the best next one, so that an engine may decode without the host."""
        return self.mode == "slate" and self.beam_width == 1


class WholeEngine(Engine, ABC):
    """An engine that decodes a batch as a whole, elsewhere: it has no steps that could be called."""

    @abstractmethod
    def rankings(
        self, batches: Iterable[Batch], decoding: Decoding, record: Recorder | None = None
    ) -> Iterator[Ranked]:
        """Yield what `recommend` returns for each batch, in order; several may be on their way."""


def recommend(engine: Engine, batch: Batch, decoding: Decoding, prefill: Prefill | None = None) -> Ranked:
    """Return what the model recommends to each row of a batch, in decode order.

    A slate has K = `top_k` columns, candidates have C = `num_candidates`, given candidates as many as the batch has;
    ranking cuts candidates to `top_k` once they are scored. Items that `batch.masks` bans are left out before the
    choice, so K others come out. Where fewer items are left, token 0 fills the row's end.

    Given candidates (`batch.candidates_BC`) are scored whatever the mode; padding, unknown, seen and banned items and
    repeats among them are dropped.

    Args:
        engine: computes.
        batch: B users.
        decoding: how a list is made.
        prefill: takes the place of the engine's, where some rows resume what was kept of them.

    Raises:
        ConfigError: history and items do not fit the model's positions.
        RetryError: the device is out of memory.
    """
    if isinstance(engine, WholeEngine):
        return next(engine.rankings([batch], decoding))
    assert isinstance(engine, SteppedEngine)
    prefill = engine.prefill if prefill is None else prefill
    if batch.candidates_BC is not None:
        return _given(engine, batch, batch.candidates_BC, prefill)
    if decoding.mode == "candidates":
        return _candidates(engine, batch, decoding.num_candidates, prefill)
    if decoding.beam_width > 1:
        return _beam(engine, batch, decoding.top_k, decoding.beam_width, prefill)
    return _greedy(engine, batch, decoding.top_k, prefill)


def recommend_all(
    engine: Engine, batches: Iterable[Batch], decoding: Decoding, record: Recorder | None = None
) -> Iterator[Ranked]:
    """Yield what `recommend` returns for each batch, in order; `record` receives the stages of the work.

    A greedy slate and candidates are decoded by the engine's own loop where it has one: the whole loop stays on the
    device, and the copies of one batch overlap with the computation of another.

    Raises:
        ConfigError: history and items do not fit the model's positions.
        RetryError: the device is out of memory.
    """
    if isinstance(engine, WholeEngine):
        yield from engine.rankings(batches, decoding, record)
        return
    assert isinstance(engine, SteppedEngine)
    if not (engine.has_slate_loop if decoding.greedy else decoding.mode == "candidates" and engine.has_candidates_loop):
        yield from (_recorded(engine, batch, decoding, record) for batch in batches)
        return
    waiting = iter(batches)
    first = next(waiting, None)
    if first is None:
        return
    together = itertools.chain([first], waiting)
    if first.candidates_BC is not None:
        yield from (_recorded(engine, batch, decoding, record) for batch in together)
    elif decoding.greedy:
        yield from engine.slate(together, decoding.top_k, record)
    else:
        yield from engine.candidates(together, decoding.num_candidates, record)


def _recorded(engine: SteppedEngine, batch: Batch, decoding: Decoding, record: Recorder | None) -> Ranked:
    if record is None:
        return recommend(engine, batch, decoding)
    with timed(engine, record) as watched:
        return recommend(watched, batch, decoding)


def _greedy(engine: SteppedEngine, batch: Batch, steps: int, prefill: Prefill) -> Ranked:
    """Read the best choice `steps` times; the last read computes the heads of the last item."""
    state = prefill(batch, steps=steps)
    for _ in range(steps):
        engine.decode(state)
    return engine.collect(state)


def _candidates(engine: SteppedEngine, batch: Batch, count: int, prefill: Prefill) -> Ranked:
    """Take the best `count` items after the history and score each alone, best first."""
    state = prefill(batch, steps=1, choices=count)
    tokens_BC, log_prob_BC = engine.choose(state)
    return Ranked(tokens_BK=tokens_BC, log_prob_BK=log_prob_BC, heads_BKH=engine.score(state, tokens_BC))


def _given(engine: SteppedEngine, batch: Batch, candidates_BC: I32, prefill: Prefill) -> Ranked:
    """Score the given items only; those that may be recommended come first, in their given order."""
    tokens_BC = _allowed(candidates_BC, batch.seen_BX, batch.masks)
    state = prefill(batch, steps=1)
    return Ranked(
        tokens_BK=tokens_BC, log_prob_BK=engine.log_probs(state, tokens_BC), heads_BKH=engine.score(state, tokens_BC)
    )


def _allowed(candidates_BC: I32, seen_BX: I32, masks: Masks | None) -> I32:
    """Drop padding, unknown, seen, banned and repeated items; the others move to the front, followed by token 0."""
    order = np.argsort(candidates_BC, axis=1, kind="stable")
    ascending = np.take_along_axis(candidates_BC, order, 1)
    first = np.ones(ascending.shape, np.bool_)
    first[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    keep = np.empty_like(first)
    np.put_along_axis(keep, order, first, 1)
    keep &= candidates_BC >= FIRST_ITEM
    keep &= ~np.isin(_row_keys(candidates_BC), _row_keys(seen_BX))
    if masks is not None:
        keep &= ~masks.banned_BC(candidates_BC)
    front = np.argsort(~keep, axis=1, kind="stable")
    return np.take_along_axis(np.where(keep, candidates_BC, np.int32(PADDING)), front, 1)


def _row_keys(tokens_BC: I32) -> I64:
    """Return numbers that are equal only for the same token in the same row, [B, C]."""
    return tokens_BC.astype(np.int64) + (np.arange(len(tokens_BC), dtype=np.int64) << 32)[:, None]


def _beam(engine: SteppedEngine, batch: Batch, steps: int, width: int, prefill: Prefill) -> Ranked:
    """Search for the slate of the greatest total log-probability with `width` hypotheses per row.

    A row's hypotheses are neighbours (row * width + w), best total first. They all start equal, so at first only the
    first one counts. The greedy slate is always kept among them, so the result is never less likely.
    """
    rows = len(batch)
    first_B = np.arange(rows, dtype=np.int64) * width
    state = engine.select(prefill(batch, steps=steps, choices=width), np.repeat(np.arange(rows), width))
    total_BW = np.full((rows, width), -np.inf)
    total_BW[:, 0] = 0.0
    greedy_B = np.zeros(rows, np.int64)  # place of the greedy hypothesis
    for _ in range(steps):
        tokens_BWC, total_BWC = _continuations(engine, state, total_BW)
        kept_BW, greedy_B = _keep(total_BWC.reshape(rows, -1), greedy_B * width, width)
        state = engine.select(state, (first_B[:, None] + kept_BW // width).ravel())
        engine.decode(state, np.take_along_axis(tokens_BWC.reshape(rows, -1), kept_BW, 1).ravel())
        total_BW = np.take_along_axis(total_BWC.reshape(rows, -1), kept_BW, 1)
    found = engine.collect(state)
    return Ranked(
        tokens_BK=found.tokens_BK[first_B], log_prob_BK=found.log_prob_BK[first_B], heads_BKH=found.heads_BKH[first_B]
    )


def _continuations(engine: SteppedEngine, state: State, total_BW: F64) -> tuple[I32, F64]:
    """Return every hypothesis' next items and the totals with them, [B, W, C] each.

    A hypothesis with nothing left to recommend continues with token 0 at no cost.
    """
    tokens, log_prob = engine.choose(state)
    tokens_BWC = tokens.reshape(*total_BW.shape, -1)
    gain_BWC = log_prob.reshape(tokens_BWC.shape).astype(np.float64)
    gain_BWC[:, :, 0] = np.where(tokens_BWC[:, :, 0] == PADDING, 0.0, gain_BWC[:, :, 0])
    return tokens_BWC, total_BW[:, :, None] + gain_BWC


def _keep(total_BM: F64, greedy_B: I64, width: int) -> tuple[I64, I64]:
    """Return the best `width` of M continuations, best first, [B, W], and the place of the greedy one among them, [B].

    Where the greedy continuation is not among the best, it replaces the last one. Equal totals keep their order.
    """
    order_BM = np.argsort(-total_BM, axis=1, kind="stable")
    place_B = (order_BM == greedy_B[:, None]).argmax(1)
    kept_BW = order_BM[:, :width]
    kept_BW[place_B >= width, -1] = greedy_B[place_B >= width]
    return kept_BW, np.minimum(place_B, width - 1)


def blend(ranked: Ranked, weights: Mapping[str, float] | None) -> F32:
    """Return the score that ranks the items, [B, K]: log_prob, or the weighted sum of heads and log_prob.

    score = sum over names of weights[name] * value[name], where a name is one of `arrays.HEADS` or `log_prob`.
    Token 0 scores -inf.

    Raises:
        NotNumbersError: a sum is not a finite float32.
    """
    nothing = ranked.tokens_BK == PADDING
    if weights is None:
        return np.where(nothing, np.float32(-np.inf), ranked.log_prob_BK)
    values = {LOG_PROB: np.where(nothing, np.float32(0), ranked.log_prob_BK)}
    values |= {head: ranked.heads_BKH[:, :, i] for i, head in enumerate(HEADS)}
    score = np.zeros(ranked.tokens_BK.shape)
    for name, weight in weights.items():
        score += weight * values[name].astype(np.float64)
    beyond_B = ~(abs(score) <= np.finfo(np.float32).max).all(axis=1)
    if beyond_B.any():
        said = "a score of --weights is not a number in fp32, since the model's log_prob are too large; train it again"
        raise NotNumbersError(said, rows_R=np.flatnonzero(beyond_B))
    return np.where(nothing, np.float32(-np.inf), score.astype(np.float32))
