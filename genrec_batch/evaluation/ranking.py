"""From scores of the whole catalog to lists: the best K videos of each row, exactly and in the same order everywhere.

Owns: the choice of the best and how ties break. Must not know: what a score means. In: scores of some rows at a time,
so that memory stays bounded. Out: lists of tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from genrec_batch.core.arrays import F32, FIRST_ITEM, I32, I64, Ragged
from genrec_batch.runtime import threads

CHUNK_BYTES = 1 << 21  # of the scores of the rows that are ranked at once, as keys of 8 bytes

FIRST_ROWS = 1 << 12  # rows that take from one order at once

Fill = Callable[[int, int], F32]  # rows start..stop: their scores, [rows, V], none below 0


def best(fill: Fill, rows: int, *, count: int, priority_V: I64, banned: Ragged | None) -> I32:
    """Return the `count` best tokens of each row, best first, [rows, count]; token 0 where nothing is left.

    Args:
        fill: computes scores.
        rows: number of rows.
        count: tokens of a list.
        priority_V: equal scores: the token of lower priority number first; each number once.
        banned: tokens of each row that are in no list.
    """
    tokens = len(priority_V)
    count_here = min(count, tokens)
    size = max(1, CHUNK_BYTES // (8 * tokens))
    order_V = np.argsort(priority_V, kind="stable").astype(np.int32)
    later_V = (tokens - 1 - priority_V).astype(np.int64)
    tokens_MK = np.zeros((rows, count), np.int32)

    def rank(start: int) -> None:
        stop = min(rows, start + size)
        keys_CV = _keys(fill(start, stop), later_V)
        keys_CV[:, :FIRST_ITEM] = -1
        if banned is not None:
            mine = banned.slice(start, stop)
            keys_CV[np.repeat(np.arange(stop - start), mine.lengths_N), mine.values] = -1
        keys_CV.partition(tokens - count_here, axis=1)
        top_CK = -np.sort(-keys_CV[:, tokens - count_here :], axis=1)
        chosen_CK = order_V[(tokens - 1 - (top_CK & 0xFFFFFFFF)).clip(0)]
        tokens_MK[start:stop, :count_here] = np.where(top_CK < 0, 0, chosen_CK)

    for _ in threads.ordered(rank, range(0, rows, size), workers=threads.cores(), name="ranking"):
        pass
    return tokens_MK


def first(order_V: I32, rows: int, *, count: int, banned: Ragged | None) -> I32:
    """Return the first `count` tokens of one order that are not banned, for each row: what `best` gives for it."""
    if banned is None:
        return np.broadcast_to(_padded(order_V[None, :count], count), (rows, count)).copy()
    place_V = np.empty(int(order_V.max()) + 1, np.int64)
    place_V[:] = len(order_V)  # padding and unknown are in no order
    place_V[order_V] = np.arange(len(order_V))
    tokens_MK = np.zeros((rows, count), np.int32)
    for start in range(0, rows, FIRST_ROWS):
        mine = banned.slice(start, min(rows, start + FIRST_ROWS))
        width = min(len(order_V), count + int(mine.lengths_N.max(initial=0)))
        taken_CW = np.zeros((len(mine), width + 1), np.bool_)
        place = np.minimum(place_V[mine.values], width)
        taken_CW[np.repeat(np.arange(len(mine)), mine.lengths_N), place] = True
        column_CK = np.argsort(taken_CW[:, :width], axis=1, kind="stable")[:, :count]
        free_CK = ~np.take_along_axis(taken_CW, column_CK, axis=1)
        tokens_MK[start : start + len(mine)] = _padded(np.where(free_CK, order_V[column_CK], 0), count)
    return tokens_MK


def _padded(tokens_CK: I32, count: int) -> I32:
    return np.pad(tokens_CK, ((0, 0), (0, count - tokens_CK.shape[1]))).astype(np.int32)


def _keys(score_CV: F32, later_V: I64) -> I64:
    """Return whole numbers that order as (score, priority) does: bits of a float from 0 on rise as the float does."""
    keys_CV = np.ascontiguousarray(score_CV, np.float32).view(np.uint32).astype(np.int64)
    keys_CV <<= 32
    keys_CV |= later_V
    return keys_CV
