"""The best items of a position, and the heads of items that are read alone.

Owns: the choice of several items, and the pass over candidates. Must not know: batches, streams, CUDA graphs, the
engine's interface, or whether the kernels are Triton's or a plain twin's. Shapes as in `passes`, and C items of a user.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genrec_batch.core.arrays import HEADS
from genrec_batch.engines.cuda.buffers import History, Room, Rows, Scratch, make_scratch
from genrec_batch.engines.cuda.passes import Kernels, finish_layer, heads_only, keys
from genrec_batch.engines.cuda.weights import Fused

AT_ONCE = 131_072  # items of one pass
TOKENS = 1 << 16  # that fit beside 16 bits of a logit


def best(fused: Fused, kernels: Kernels, rows: Rows, banned_RW: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the best items of the next position that are not banned, best first, and their log-probabilities, [R, C].

    Of equal logits the lower token comes first. Where nothing is left, token 0 has log-probability -inf.
    """
    vocabulary, dtype = fused.config.vocabulary, rows.raw_RN.dtype
    if dtype.itemsize == 2 and vocabulary <= TOKENS:
        keys_RV = torch.empty(len(rows.raw_RN), vocabulary, dtype=torch.int32, device=rows.raw_RN.device)
        kernels.order(rows.raw_RN, vocabulary, banned_RW, keys_RV)
        top_RC = keys_RV.topk(count).values
        ordered_RC = top_RC >> 16
        bits_RC = torch.where(ordered_RC < 0, ordered_RC ^ 0x7FFF, ordered_RC)
        chosen_RC = bits_RC.to(torch.int16).view(dtype).float()
        tokens_RC = TOKENS - 1 - (top_RC & (TOKENS - 1))
        chosen_RC = chosen_RC.masked_fill(ordered_RC == -(TOKENS // 2), -torch.inf)
    else:
        token_V = torch.arange(vocabulary, device=rows.raw_RN.device)
        banned = (banned_RW[:, token_V // 32] >> (token_V % 32).to(torch.int32)) & 1
        logits_RV = rows.raw_RN[:, :vocabulary].float().masked_fill(banned.bool(), -torch.inf)
        tokens_RC = _top(logits_RV, count)
        chosen_RC = logits_RV.gather(1, tokens_RC)
    tokens_RC = tokens_RC.masked_fill(chosen_RC == -torch.inf, 0).int()
    return tokens_RC, chosen_RC - rows.log_sum_R[:, None]


def _top(logits_RV: Tensor, count: int) -> Tensor:
    """Return the tokens of the largest logits, [R, C]; of equals the lower token first, which topk does not do."""
    bits = logits_RV.add(0.0).view(torch.int32)  # adding 0 makes -0 equal to 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    token_V = torch.arange(logits_RV.shape[1], device=logits_RV.device)
    return (ordered * 2**32 + (2**31 - token_V)).topk(count).indices


def score(fused: Fused, kernels: Kernels, tokens_BC: Tensor, history: History, room: Room) -> Tensor:
    """Return the heads [B, C, H] of items, each read as if it alone came after the history; 0 for token 0."""
    count, each = tokens_BC.shape
    users = min(count, max(1, AT_ONCE // max(1, each)))
    heads_RH = room("aside heads", (count * each, len(HEADS)), torch.float32)
    qkv_R3 = room("aside qkv", (users * each, 3 * fused.config.width), fused.dtype)
    scratch = make_scratch(fused, room, "aside", users * each)
    for first in range(0, count, users):
        tokens_R = tokens_BC[first : first + users].flatten()
        rows = len(tokens_R)
        x_RD = _read_aside(fused, kernels, tokens_R, history.part(first, users), scratch.part(rows), qkv_R3[:rows])
        kernels.heads(heads_only(fused, x_RD), tokens_R, heads_RH[first * each : first * each + rows])
    return heads_RH.view(count, each, len(HEADS))


def _read_aside(
    fused: Fused, kernels: Kernels, tokens_R: Tensor, history: History, scratch: Scratch, qkv_R3: Tensor
) -> Tensor:
    """Read R / B items of each user; return their last hidden rows, [R, D]."""
    lengths_B = history.lengths_B
    lengths_R = lengths_B.repeat_interleave(len(tokens_R) // len(lengths_B), output_size=len(tokens_R))
    kernels.read(tokens_R, lengths_R, 0, fused.tables, None, scratch.x_MD, qkv_R3)
    for i in range(len(fused.layers)):
        if i:
            keys(fused, kernels, i, scratch, qkv_R3)
        kernels.attend_aside(
            qkv_R3,
            history.cache(i),
            lengths_B,
            history.first_B,
            scratch.context_MD,
            fused.config.heads,
            history.longest,
            fused.score_unit(i),
        )
        finish_layer(fused, kernels, i, scratch)
    return scratch.x_MD
