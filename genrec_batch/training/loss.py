"""The losses: cross-entropy over the catalog without what is seen, and that of the heads.

Owns: logits, their masks, the gradient of both losses. Must not know: the network below the last hidden states, users.

Logits of all positions at once would be the largest array of a step by far. They are made for some positions at a time,
turned into their own gradient where they lie, and multiplied on at once: three products, and no array of P x C.
Shapes: P positions, C videos of the catalog, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LOGITS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 28}  # that stay in a CPU's shared cache; a GPU wants large products


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The targets of P positions. Masked are `seen_M[start..start + count]`; `weight_P` sums up to what is averaged."""

    target_P: Tensor
    weight_P: Tensor
    seen_M: Tensor
    seen_start_P: Tensor
    seen_count_P: Tensor


def masked_pairs(seen_M: Tensor, start_P: Tensor, count_P: Tensor) -> tuple[Tensor, Tensor]:
    """Return position and catalog row of everything that is masked."""
    position = torch.repeat_interleave(torch.arange(len(start_P), device=start_P.device), count_P)
    begins_P = torch.cumsum(count_P, 0) - count_P
    place = torch.arange(len(position), device=position.device) + (start_P - begins_P)[position]
    return position, seen_M[place]


class _CrossEntropy(torch.autograd.Function):
    """Sum of weighted cross-entropies; the gradients are made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden_PD: Tensor, items_CD: Tensor, bias_C: Tensor, wanted: Wanted, dtype: torch.dtype
    ) -> Tensor:
        rows = max(1, LOGITS_AT_ONCE[hidden_PD.device.type] // len(items_CD))
        narrow_PD, narrow_CD = hidden_PD.to(dtype), items_CD.to(dtype)
        hidden_gradient_PD = torch.empty_like(narrow_PD)
        items_gradient_CD = torch.zeros_like(items_CD)
        bias_gradient_C = torch.zeros_like(bias_C)
        total = hidden_PD.new_zeros(())
        for start in range(0, len(hidden_PD), rows):
            some = slice(start, start + rows)
            target_P, weight_P = wanted.target_P[some, None], wanted.weight_P[some]
            logits_PC = torch.mm(narrow_PD[some], narrow_CD.t()).float().add_(bias_C)
            of_target_P1 = logits_PC.gather(1, target_P)
            pairs = masked_pairs(wanted.seen_M, wanted.seen_start_P[some], wanted.seen_count_P[some])
            logits_PC.index_put_(pairs, logits_PC.new_tensor(-torch.inf))
            logits_PC.scatter_(1, target_P, of_target_P1)
            log_sum_P = torch.logsumexp(logits_PC, 1)
            total += ((log_sum_P - of_target_P1[:, 0]) * weight_P).sum()
            gradient_PC = logits_PC.sub_(log_sum_P[:, None]).exp_()
            gradient_PC.scatter_add_(1, target_P, gradient_PC.new_full((), -1.0).expand_as(target_P))
            gradient_PC.mul_(weight_P[:, None])
            bias_gradient_C += gradient_PC.sum(0)
            narrow_PC = gradient_PC.to(dtype)
            hidden_gradient_PD[some] = torch.mm(narrow_PC, narrow_CD)
            items_gradient_CD += torch.mm(narrow_PC.t(), narrow_PD[some])
        ctx.save_for_backward(hidden_gradient_PD.to(hidden_PD.dtype), items_gradient_CD, bias_gradient_C)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        hidden_PD, items_CD, bias_C = ctx.saved_tensors
        return gradients[0] * hidden_PD, gradients[0] * items_CD, gradients[0] * bias_C, None, None


def cross_entropy(hidden_PD: Tensor, items_CD: Tensor, bias_C: Tensor, wanted: Wanted, dtype: torch.dtype) -> Tensor:
    """Return the sum over positions of weight x cross-entropy, masked videos left out of the softmax."""
    total: Tensor = _CrossEntropy.apply(hidden_PD, items_CD, bias_C, wanted, dtype)  # type: ignore[no-untyped-call]
    return total


def head_loss(logits_QH: Tensor, labels_QH: Tensor) -> Tensor:
    """Return the mean over heads of their mean binary cross-entropy, over the labels that are known (not NaN)."""
    known_QH = ~torch.isnan(labels_QH)
    each_QH = functional.binary_cross_entropy_with_logits(logits_QH, torch.nan_to_num(labels_QH), reduction="none")
    known_H = known_QH.sum(0)
    mean_H = (each_QH * known_QH).sum(0) / known_H.clamp(min=1)
    return mean_H.sum() / (known_H > 0).sum().clamp(min=1)
