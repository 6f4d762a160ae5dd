"""The sampled softmax of large catalogs: which videos a step's softmax is over, and how that is made up for.

Owns: the draw of videos and the log-q correction (Bengio & Senecal 2008; Yi et al. 2019 for the targets of a batch).
Must not know: torch, the network. A video that is likely to be in the sample has its logit lowered by the log of that
probability, so that the expected gradient is that of the full softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genrec_batch.core.arrays import F32, F64, I32, I64

SAMPLED_FROM, DRAWS = 100_000, 8192  # videos of a catalog from which the softmax is sampled; draws of a step


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some rows of the catalog, rising, and what is subtracted from their logits."""

    rows_U: I64
    log_q_U: F32


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws videos by how often they are watched, each at least as if once."""

    share_C: F64  # of each video
    cumulated_C: F64
    draws: int

    @staticmethod
    def of(known_M: I32, items: int, *, sampled_from: int = SAMPLED_FROM, draws: int = DRAWS) -> Sampler | None:
        """Return the sampler of a catalog, None for one that is small enough for the full softmax."""
        if items <= sampled_from:
            return None
        count_C = np.bincount(known_M, minlength=items) + 1.0
        share_C = count_C / count_C.sum()
        return Sampler(share_C=share_C, cumulated_C=np.cumsum(share_C), draws=draws)

    def sample(self, target_P: I64, random: np.random.Generator) -> Sample:
        """Return the targets of a step with as many other videos as `draws` finds."""
        drawn = np.searchsorted(self.cumulated_C, random.random(self.draws) * self.cumulated_C[-1], side="right")
        rows_U = np.unique(np.concatenate([target_P, np.minimum(drawn, len(self.share_C) - 1)]))
        absent_U = (self.draws + len(target_P)) * np.log1p(-self.share_C[rows_U])  # log: neither drawn nor a target
        return Sample(rows_U=rows_U, log_q_U=np.log(-np.expm1(absent_U)).astype(np.float32))
