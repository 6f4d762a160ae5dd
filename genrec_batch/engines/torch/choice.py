"""The choice of the next item: log-probabilities over the vocabulary, and the best items that may be recommended.

Owns: masking, order and ties on tensors. Must not know: where logits come from, what a choice is used for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrec_batch.core.arrays import PADDING


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
    logits_BV: Tensor, banned_BX: Tensor, *, tokens: int, choices: int, log_sum_B: Tensor | None = None
) -> Choice:
    """Return the best `choices` items below `tokens` that are not banned; of equals the lower token comes first.

    Where fewer are left, token 0 with -inf fills the row. Log-probabilities are over all V tokens, banned ones
    included. The logits are masked in place for the search and then restored, which is cheaper than a copy.
    """
    log_sum_B = logits_BV.logsumexp(1) if log_sum_B is None else log_sum_B
    kept_BX = logits_BV.gather(1, banned_BX)
    logits_BV.scatter_(1, banned_BX, -torch.inf)
    allowed = logits_BV[:, :tokens]
    if choices == 1:
        value, best = allowed.max(1, keepdim=True)
    else:
        best = _order(allowed).topk(min(choices, tokens), 1).indices
        value = allowed.gather(1, best)
        missing = choices - value.shape[1]
        value = torch.nn.functional.pad(value, (0, missing), value=-torch.inf)
        best = torch.nn.functional.pad(best, (0, missing))
    logits_BV.scatter_(1, banned_BX, kept_BX)
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
