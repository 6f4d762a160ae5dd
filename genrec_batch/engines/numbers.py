"""Whether what an engine returns are numbers: the same check for every engine, on the host, before anything is ranked.

Owns: the check, and what is said of the inputs of a user for whom it fails. Must not know: engines, users, files. In: a
batch and its ranking. Out: nothing, or `NotNumbersError` with the rows at fault.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch.core import layout
from genrec_batch.core.arrays import F32, FIRST_ITEM, I64, PADDING, U8, Batch, Ranked
from genrec_batch.core.errors import EngineError

EXTREME = 1e3  # of an input's size, from which it may be the cause


class NotNumbersError(EngineError):
    """An engine returned NaN or infinity, or lost items to it; `key` and `rows_R` are the batch and rows at fault."""

    about = "scores"

    def __init__(self, text: str, *, key: Any = None, rows_R: I64) -> None:
        """Keep the caller's batch and the rows in it, beside the text."""
        super().__init__(text)
        self.key, self.rows_R = key, rows_R


def check(batch: Batch, ranked: Ranked, *, tokens: int | None, key: Any = None, first: int = 0) -> None:
    """Check that every item has a finite log-probability and finite heads, and that no item was lost to NaN.

    Args:
        batch: B users.
        ranked: what came back for them, [B, K].
        tokens: of the model; a list that ends before its user's items do is a fault, those that were neither seen nor
            banned by a mask. None: such lists are accepted.
        key: the caller's batch, for the error.
        first: place of the first row in the caller's batch, for the error.

    Raises:
        NotNumbersError: with the rows at fault, and the largest input of the first of them.
    """
    there_BK = ranked.tokens_BK != PADDING
    finite_BK = np.isfinite(ranked.log_prob_BK) & np.isfinite(ranked.heads_BKH).all(axis=2)
    bad_B = (there_BK & ~finite_BK).any(axis=1)
    if tokens is not None and batch.candidates_BC is None and not there_BK.all():
        short_B = ~there_BK.all(axis=1)
        left_S = np.minimum(there_BK.shape[1], _left(batch, short_B, tokens))
        bad_B[short_B] |= there_BK[short_B].sum(axis=1) < left_S
    if bad_B.any():
        rows_R = np.flatnonzero(bad_B)
        raise NotNumbersError(_largest(batch, int(rows_R[0])), key=key, rows_R=first + rows_R)


def _left(batch: Batch, rows_B: U8, tokens: int) -> I64:
    """Return how many items may be recommended to some users: those of the model, neither seen nor banned."""
    seen_SX = np.sort(batch.seen_BX[rows_B], axis=1)
    counted_SX = (seen_SX >= FIRST_ITEM) & (seen_SX < tokens)
    counted_SX[:, 1:] &= seen_SX[:, 1:] != seen_SX[:, :-1]
    open_S = np.int64(tokens - FIRST_ITEM)
    if batch.masks is not None:
        masks = batch.masks.take(np.flatnonzero(rows_B))
        open_S = (~masks.unpacked(tokens)[:, FIRST_ITEM:]).sum(axis=1)[masks.mask_B]
        counted_SX &= ~masks.banned_BC(np.where(counted_SX, seen_SX, 0))
    left_S: I64 = open_S - counted_SX.sum(axis=1)
    return left_S


def _largest(batch: Batch, row: int) -> str:
    """Return in words which input of a row is the largest."""
    vectors: dict[str, F32 | None] = {
        "feature": batch.dense_BF, "profile_vector": batch.profile_BP, "mean video_vector": batch.video_BV,
    }  # fmt: skip
    places = [
        (float(abs(values_BF[row]).max()), int(abs(values_BF[row]).argmax()), name, values_BF[row])
        for name, values_BF in vectors.items()
        if values_BF is not None
    ]
    size, place, name, values_F = max(places, key=lambda found: found[0])
    if size < EXTREME:
        return (
            "no input of theirs is large, so weights of the model are; score with --precision fp32 if it was another, "
            "or train it again"
        )
    slots = layout.names()
    which = f"{name} {place}" + (f" ({slots[place]})" if name == "feature" and place < len(slots) else "")
    return f"the largest input is {which} = {values_F[place]:g}; correct the log or the table that it comes from"
