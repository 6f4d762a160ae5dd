"""Parity: how far two engines, or two precisions, agree over the same users.

Owns: the measures and the gates. Must not know: which engines they are, users, files. In: the items that both
recommended. Out: a `Parity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import HEADS, I32, U8, Ranked
from genrec_batch.core.errors import GateError


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far two engines agree. Differences are over items that both decoded after the same previous items."""

    users: int
    top1_match: float  # share of users whose first item is the same
    topk_overlap: float  # mean share of a user's items that both recommend
    compared_items: int
    largest: Mapping[str, float]  # largest absolute difference of log_prob and of each head
    mean: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, JSON-able."""
        return {name: round(v, 6) if isinstance(v, float) else v for name, v in asdict(self).items()}

    def check(self, *, min_topk_overlap: float, min_top1: float, max_difference: float | None) -> None:
        """Raise GateError with every gate that fails: the flag, its threshold and the measured value."""
        faults = []
        if self.topk_overlap < min_topk_overlap:
            faults.append(f"--min-topk-overlap {min_topk_overlap}: measured {self.topk_overlap:.4f}")
        if self.top1_match < min_top1:
            faults.append(f"--min-top1 {min_top1}: measured {self.top1_match:.4f}")
        worst = max(self.largest, key=lambda name: self.largest[name])
        if max_difference is not None and self.largest[worst] > max_difference:
            faults.append(f"--max-difference {max_difference}: measured {self.largest[worst]:.4g} in {worst}")
        if faults:
            raise GateError("the engines do not agree:\n  " + "\n  ".join(faults))


def compare(ours: Ranked, reference: Ranked) -> Parity:
    """Compare what two engines recommended to the same B users, in decode order."""
    same_BK = ours.tokens_BK == reference.tokens_BK
    paired_BK: U8 = np.logical_and.accumulate(same_BK, axis=1) & (ours.tokens_BK > 0)
    differences = {"log_prob": np.abs(ours.log_prob_BK[paired_BK] - reference.log_prob_BK[paired_BK])}
    for h, head in enumerate(HEADS):
        differences[head] = np.abs(ours.heads_BKH[:, :, h][paired_BK] - reference.heads_BKH[:, :, h][paired_BK])
    return Parity(
        users=len(ours),
        top1_match=float(same_BK[:, 0].mean()) if len(ours) else 1.0,
        topk_overlap=top_overlap(ours.tokens_BK, reference.tokens_BK),
        compared_items=int(paired_BK.sum()),
        largest={name: float(d.max(initial=0)) for name, d in differences.items()},
        mean={name: float(d.mean()) if len(d) else 0.0 for name, d in differences.items()},
    )


def top_overlap(a_BK: I32, b_BK: I32) -> float:
    """Return the mean share of items that two lists have in common, over users; two empty lists agree."""
    same_B = ((a_BK[:, :, None] == b_BK[:, None, :]) & (a_BK[:, :, None] > 0)).any(axis=2).sum(axis=1)
    longest_B = np.maximum((a_BK > 0).sum(axis=1), (b_BK > 0).sum(axis=1))
    return float(np.mean(np.where(longest_B > 0, same_B / np.maximum(longest_B, 1), 1.0)))


def best(ranked: Ranked, top_k: int) -> Ranked:
    """Return the items that log_prob ranks first, in the order of an output, [B, at most top_k]."""
    order_BK = np.argsort(-ranked.log_prob_BK, axis=1, kind="stable")[:, :top_k]
    return Ranked(
        tokens_BK=np.take_along_axis(ranked.tokens_BK, order_BK, axis=1),
        log_prob_BK=np.take_along_axis(ranked.log_prob_BK, order_BK, axis=1),
        heads_BKH=np.take_along_axis(ranked.heads_BKH, order_BK[:, :, None], axis=1),
    )


def joined(batches: list[Ranked]) -> Ranked:
    """Return the rows of several batches as one, as wide as the widest, filled up with token 0."""
    width = max(ranked.tokens_BK.shape[1] for ranked in batches)

    def wide(array: npt.NDArray[Any], empty: float) -> npt.NDArray[Any]:
        room = [(0, 0)] * array.ndim
        room[1] = (0, width - array.shape[1])
        return np.pad(array, room, constant_values=empty)

    return Ranked(
        tokens_BK=np.concatenate([wide(ranked.tokens_BK, 0) for ranked in batches]),
        log_prob_BK=np.concatenate([wide(ranked.log_prob_BK, -np.inf) for ranked in batches]),
        heads_BKH=np.concatenate([wide(ranked.heads_BKH, 0) for ranked in batches]),
    )
