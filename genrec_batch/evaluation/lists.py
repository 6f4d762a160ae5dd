"""Lists to judge: what was recommended to each row of a test, and what the heads said.

Owns: the border types between what makes lists and what judges them. Must not know: either of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32, I32, I64


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
class ArmRows:
    """The arms of an experiment, the one to compare with first, and the place of each row's arm among them, [M]."""

    names: tuple[str, ...]
    arm_M: I64


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
    arms: ArmRows | None = None  # of an output with arms
