"""The device buffers of the hand-fused engine's passes.

Owns: their shapes and types. Must not know: batches, kernels, which pass fills what. Shapes as in `passes`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genrec_batch.engines.cuda.weights import Fused

Room = Callable[[str, tuple[int, ...], torch.dtype], Tensor]  # returns a buffer of that name, shape and type


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a prefill of B users, on the device; `profile` and `video` are (floats, 1.0 where given [B, 1])."""

    tokens_BS: Tensor
    features_BF: Tensor
    profile: tuple[Tensor, Tensor] | None
    video: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, kw_only=True)
class History:
    """Keys and values of the packed rows in every layer, and which rows belong to which user."""

    lengths_B: Tensor
    first_B: Tensor
    longest: int  # upper bound of the lengths
    qkv_M3: tuple[Tensor, ...]  # of every layer but the last; one buffer for all where they are kept apart
    last_kv_M2: Tensor
    kept_LM2: Tensor | None  # keys and values in e4m3, where the layers multiply wider numbers

    def part(self, first: int, users: int) -> History:
        """Return the history of some users."""
        some = slice(first, first + users)
        return replace(self, lengths_B=self.lengths_B[some], first_B=self.first_B[some])

    def cache(self, layer: int) -> Tensor:
        """Return a layer's keys (columns 0..D) and values (D..2D) as a view."""
        if self.kept_LM2 is not None:
            return self.kept_LM2[layer]
        width = self.last_kv_M2.shape[1] // 2
        return self.last_kv_M2 if layer == len(self.qkv_M3) else self.qkv_M3[layer][:, width:]


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """The buffers of one pass over M packed rows (or R single rows): hidden rows, attention, inner rows.

    Where layers multiply e4m3 numbers, context_MD and up_MF hold such numbers, and context_MD also those of x_MD.
    """

    x_MD: Tensor
    context_MD: Tensor
    up_MF: Tensor
    added_MD: Tensor | None  # what such products add to x_MD

    def part(self, rows: int) -> Scratch:
        """Return the first rows."""
        added_MD = None if self.added_MD is None else self.added_MD[:rows]
        return Scratch(
            x_MD=self.x_MD[:rows], context_MD=self.context_MD[:rows], up_MF=self.up_MF[:rows], added_MD=added_MD
        )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The inputs and outputs of a decode pass of R rows."""

    scratch: Scratch
    qkv_R3: Tensor
    raw_RN: Tensor  # logits of the vocabulary, then the heads before their sigmoid
    next_R: Tensor  # best token of the next position, int32
    log_prob_R: Tensor
    log_sum_R: Tensor  # log of the sum of exponentials of the logits


def make_history(fused: Fused, room: Room, lengths_B: Tensor, first_B: Tensor, rows: int, longest: int) -> History:
    """Return a history with room for `rows` packed rows."""
    d, dtype = fused.config.width, fused.product_dtype
    last, apart = len(fused.layers) - 1, fused.cache_dtype != dtype
    if apart:
        qkv = room("qkv", (rows, 3 * d), dtype)
        qkv_M3, last_kv_M2 = (qkv,) * last, qkv.view(-1)[: rows * 2 * d].view(rows, 2 * d)
    else:
        qkv_M3 = tuple(room(f"qkv {i}", (rows, 3 * d), dtype) for i in range(last))
        last_kv_M2 = room(f"qkv {last}", (rows, 2 * d), dtype)
    return History(
        lengths_B=lengths_B,
        first_B=first_B,
        longest=longest,
        qkv_M3=qkv_M3,
        last_kv_M2=last_kv_M2,
        kept_LM2=room("kept", (last + 1, rows, 2 * d), fused.cache_dtype) if apart else None,
    )


def make_scratch(fused: Fused, room: Room, name: str, rows: int) -> Scratch:
    """Return buffers for one pass over `rows` rows."""
    d, ffn, dtype = fused.config.width, fused.config.ffn, fused.product_dtype
    return Scratch(
        x_MD=room(f"{name} x", (rows, d), fused.dtype),
        context_MD=room(f"{name} context", (rows, d), dtype),
        up_MF=room(f"{name} up", (rows, ffn), dtype),
        added_MD=room(f"{name} added", (rows, d), fused.dtype) if fused.small else None,
    )


def make_rows(fused: Fused, room: Room, rows: int) -> Rows:
    """Return buffers for decode passes over `rows` rows."""
    return Rows(
        scratch=make_scratch(fused, room, "row", rows),
        qkv_R3=room("row qkv", (rows, 3 * fused.config.width), fused.dtype),
        raw_RN=room("raw", (rows, len(fused.output[1])), fused.dtype),
        next_R=room("next", (rows,), torch.int32),
        log_prob_R=room("log_prob", (rows,), torch.float32),
        log_sum_R=room("log_sum", (rows,), torch.float32),
    )


def make_suffix(fused: Fused, room: Room, rows: int, steps: int) -> Tensor:
    """Return a buffer for keys and values of `steps` decoded items, [layers, R, T, 2D]."""
    return room("suffix", (len(fused.layers), rows, steps, 2 * fused.config.width), fused.cache_dtype)
