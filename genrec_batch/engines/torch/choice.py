"""The choice of the next item: log-probabilities over the vocabulary, and the best items that may be recommended.

Owns: masking, order and ties on tensors. Must not know: where logits come from, what a choice is used for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from genrec_batch.core.arrays import PADDING


@dataclass(frozen=True, kw_only=True)
class RowMasks:
    """`arrays.Masks` as tensors: M bit maps over V tokens, and the bit map that each of B rows obeys."""

    bytes_MC: Tensor  # uint8; bit t % 8 of byte t // 8 is 1 where token t must not be chosen
    mask_B: Tensor
    vocabulary: int
    added: Tensor  # of each byte, what to add to the logits of its eight tokens: -inf or 0, [256, 8]

    @staticmethod
    def of(bytes_MC: Tensor, mask_B: Tensor, vocabulary: int) -> RowMasks:
        """Return the masks of rows."""
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        added = torch.from_numpy(np.where(bits, np.float32(-np.inf), np.float32(0))).to(bytes_MC.device)
        return RowMasks(bytes_MC=bytes_MC, mask_B=mask_B, vocabulary=vocabulary, added=added)

    def take(self, rows_R: Tensor) -> RowMasks:
        """Return the masks of these rows."""
        return replace(self, mask_B=self.mask_B[rows_R])

    @cached_property
    def banned_MV(self) -> Tensor:
        """Which tokens each bit map bans, bool."""
        return (self._added(self.bytes_MC) < 0).contiguous()

    def open(self, logits_BV: Tensor) -> Tensor:
        """Return a copy of logits with -inf where a token is banned.

        On a CPU `masked_fill` with random bits takes five times as long as this table.
        """
        if len(self.bytes_MC) == 1:
            return logits_BV + self._added(self.bytes_MC)
        return self._added(self.bytes_MC.index_select(0, self.mask_B)).add_(logits_BV)

    def _added(self, bytes_RC: Tensor) -> Tensor:
        return torch.nn.functional.embedding(bytes_RC.int(), self.added).flatten(1)[:, : self.vocabulary]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The next position of B rows: its logits, and the best W items with their log-probabilities, best first."""

    logits_BV: Tensor
    log_sum_B: Tensor  # log of the sum of exponentials of the logits: log_prob = logit - log_sum
    tokens_BW: Tensor
    log_prob_BW: Tensor

    def take(self, rows_R: Tensor) -> Choice:
        """Return the choice of these rows."""
        return Choice(
            logits_BV=self.logits_BV[rows_R],
            log_sum_B=self.log_sum_B[rows_R],
            tokens_BW=self.tokens_BW[rows_R],
            log_prob_BW=self.log_prob_BW[rows_R],
        )


def choose(
    logits_BV: Tensor,
    banned_BX: Tensor,
    *,
    tokens: int,
    choices: int,
    masks: RowMasks | None = None,
    log_sum_B: Tensor | None = None,
) -> Choice:
    """Return the best `choices` items below `tokens` that are not banned; of equals the lower token comes first.

    Where fewer are left, token 0 with -inf fills the row. Log-probabilities are over all V tokens, banned ones
    included. Without bit maps the logits are masked in place for the search and then restored, which is cheaper than a
    copy.
    """
    log_sum_B = logits_BV.logsumexp(1) if log_sum_B is None else log_sum_B
    open_BV = logits_BV if masks is None else masks.open(logits_BV)
    kept_BX = open_BV.gather(1, banned_BX)
    open_BV.scatter_(1, banned_BX, -torch.inf)
    allowed = open_BV[:, :tokens]
    if choices == 1:
        value, best = allowed.max(1, keepdim=True)
    else:
        best = _order(allowed).topk(min(choices, tokens), 1).indices
        value = allowed.gather(1, best)
        missing = choices - value.shape[1]
        value = torch.nn.functional.pad(value, (0, missing), value=-torch.inf)
        best = torch.nn.functional.pad(best, (0, missing))
    open_BV.scatter_(1, banned_BX, kept_BX)
    return Choice(
        logits_BV=logits_BV,
        log_sum_B=log_sum_B,
        tokens_BW=best.masked_fill(value == -torch.inf, PADDING),
        log_prob_BW=value - log_sum_B[:, None],
    )


def log_probs(logits_BV: Tensor, log_sum_B: Tensor, tokens_BC: Tensor) -> Tensor:
    """Return the log-probabilities of given items, [B, C]; -inf for token 0."""
    return (logits_BV.gather(1, tokens_BC) - log_sum_B[:, None]).masked_fill(tokens_BC == PADDING, -torch.inf)


def _order(logits_BV: Tensor) -> Tensor:
    """Return integers, distinct within a row, that sort by logit and then by lower token, [B, V].

    The bits of an IEEE 754 float, read as a signed integer, sort like the float once all bits but the sign of a
    negative one are flipped. Adding 0 makes -0 and 0 equal.
    """
    bits = (logits_BV + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) - torch.arange(logits_BV.shape[1], device=logits_BV.device)
