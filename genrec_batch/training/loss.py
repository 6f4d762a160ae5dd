"""The losses: cross-entropy over the catalog without what is seen, and that of the heads.

Owns: logits, their masks, the gradient of both losses. Must not know: the network below the last hidden states, users.

Logits of all positions at once would be the largest array of a step by far. They are made for some positions at a time,
turned into their own gradient where they lie, and multiplied on at once: three products, and no array of P x C.
Shapes: P positions, C videos of the catalog, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from genrec_batch.core.arrays import I64

Gradient = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

ALIGNED = 64  # columns of a GPU's product
LOGITS_AT_ONCE = {
    "cpu": 1 << 22,
    "cuda": 1 << 28,
}  # that nearly stay in a CPU's shared cache; a GPU wants large products


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The targets of P positions, and what is masked there: `seen_M[start..start + count]`, catalog rows."""

    target_P: Tensor
    weight_P: Tensor
    seen_M: Tensor
    seen_start_P: Tensor
    seen_count_P: Tensor
    masked_P1: I64  # how many are masked before each position: sizes that a GPU need not be asked for
    column_C: Tensor | None = None  # of a sampled softmax: each catalog row's place in it, -1 for none


def masked_pairs(wanted: Wanted, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return position, from `start` on, and catalog row of everything that is masked at some positions."""
    begin_P, count_P = wanted.seen_start_P[start:stop], wanted.seen_count_P[start:stop]
    total = int(wanted.masked_P1[stop] - wanted.masked_P1[start])
    positions = torch.arange(stop - start, device=begin_P.device)
    position = torch.repeat_interleave(positions, count_P, output_size=total)
    begins_P = torch.cumsum(count_P, 0) - count_P
    place = torch.arange(total, device=begin_P.device) + (begin_P - begins_P)[position]
    column = wanted.seen_M[place]
    if wanted.column_C is None:
        return position, column
    column = wanted.column_C[column]
    return position[column >= 0], column[column >= 0]


class _CrossEntropy(torch.autograd.Function):
    """Sum of weighted cross-entropies; the gradients are made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: Tensor,
        items_CD: Tensor,
        bias_C: Tensor,
        wanted: Wanted,
        dtype: torch.dtype,
        gradient: Gradient,
    ) -> Tensor:
        rows = max(1, LOGITS_AT_ONCE[hidden_PD.device.type] // len(items_CD))
        narrow_PD, narrow_CD = hidden_PD.to(dtype), items_CD.to(dtype)
        hidden_gradient_PD = torch.empty_like(narrow_PD)
        items_gradient_CD = torch.zeros_like(items_CD)
        bias_gradient_C = torch.zeros_like(bias_C)
        total = hidden_PD.new_zeros(())
        for start in range(0, len(hidden_PD), rows):
            stop = min(len(hidden_PD), start + rows)
            target_P1 = wanted.target_P[start:stop, None]
            logits_PC = torch.mm(narrow_PD[start:stop], narrow_CD.t())
            of_target_P1 = logits_PC.gather(1, target_P1)
            if wanted.masked_P1[stop] > wanted.masked_P1[start]:
                logits_PC.index_put_(masked_pairs(wanted, start, stop), logits_PC.new_tensor(-torch.inf))
                logits_PC.scatter_(1, target_P1, of_target_P1)
            loss, narrow_PC, bias_gradient = gradient(logits_PC, bias_C, target_P1, wanted.weight_P[start:stop])
            total += loss
            bias_gradient_C += bias_gradient
            hidden_gradient_PD[start:stop] = torch.mm(narrow_PC, narrow_CD)
            items_gradient_CD += torch.mm(narrow_PC.t(), narrow_PD[start:stop])
        ctx.save_for_backward(hidden_gradient_PD.to(hidden_PD.dtype), items_gradient_CD, bias_gradient_C)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        hidden_PD, items_CD, bias_C = ctx.saved_tensors
        return gradients[0] * hidden_PD, gradients[0] * items_CD, gradients[0] * bias_C, None, None, None


def softmax_gradient(
    logits_PC: Tensor, bias_C: Tensor, target_P1: Tensor, weight_P: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted sum of cross-entropies, the gradient of the logits in their type, and that of the bias."""
    wide_PC = logits_PC.float().add_(bias_C)
    of_target_P1 = wide_PC.gather(1, target_P1)
    log_sum_P1 = torch.logsumexp(wide_PC, 1, keepdim=True)
    loss = ((log_sum_P1 - of_target_P1)[:, 0] * weight_P).sum()
    gradient_PC = wide_PC.sub_(log_sum_P1).exp_()
    gradient_PC.scatter_add_(1, target_P1, gradient_PC.new_full((), -1.0).expand_as(target_P1))
    gradient_PC.mul_(weight_P[:, None])
    return loss, gradient_PC.to(logits_PC.dtype), gradient_PC.sum(0)


def compiled_gradient() -> Gradient:
    """Return `softmax_gradient` compiled for a GPU: two passes over the logits instead of ten."""

    def run(logits_PC: Tensor, bias_C: Tensor, target_P1: Tensor, weight_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide_PC = logits_PC.float() + bias_C
        log_sum_P1 = torch.logsumexp(wide_PC, 1, keepdim=True)
        loss = ((log_sum_P1 - wide_PC.gather(1, target_P1))[:, 0] * weight_P).sum()
        target_PC = torch.arange(len(bias_C), device=bias_C.device) == target_P1
        gradient_PC = (torch.exp(wide_PC - log_sum_P1) - target_PC.float()) * weight_P[:, None]
        return loss, gradient_PC.to(logits_PC.dtype), gradient_PC.sum(0)

    compiled: Gradient = torch.compile(run)
    return compiled


def cross_entropy(
    hidden_PD: Tensor,
    items_CD: Tensor,
    bias_C: Tensor,
    wanted: Wanted,
    dtype: torch.dtype,
    gradient: Gradient = softmax_gradient,
) -> Tensor:
    """Return the sum over positions of weight x cross-entropy, masked videos left out of the softmax."""
    missing = -len(items_CD) % ALIGNED if items_CD.device.type == "cuda" else 0
    if missing:  # rows that end within 16 bytes take products at a third of the speed
        items_CD = functional.pad(items_CD, (0, 0, 0, missing))
        bias_C = functional.pad(bias_C, (0, missing), value=-torch.inf)
    total: Tensor = _CrossEntropy.apply(hidden_PD, items_CD, bias_C, wanted, dtype, gradient)  # type: ignore[no-untyped-call]
    return total


def head_loss(logits_QH: Tensor, labels_QH: Tensor) -> Tensor:
    """Return the mean over heads of their mean binary cross-entropy, over the labels that are known (not NaN)."""
    known_QH = ~torch.isnan(labels_QH)
    each_QH = functional.binary_cross_entropy_with_logits(logits_QH, torch.nan_to_num(labels_QH), reduction="none")
    known_H = known_QH.sum(0)
    mean_H = (each_QH * known_QH).sum(0) / known_H.clamp(min=1)
    return mean_H.sum() / (known_H > 0).sum().clamp(min=1)
