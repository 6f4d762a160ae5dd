"""What runs on a batch of one shape: buffers that batches share, and the calls that make slates or candidates on them.

Owns: these buffers, and the order of passes. Must not know: how a pass works, batches, streams, CUDA graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genrec_batch.core.arrays import HEADS
from genrec_batch.engines.cuda.buffers import (
    History,
    Inputs,
    Rows,
    Scratch,
    make_history,
    make_rows,
    make_scratch,
    make_suffix,
)
from genrec_batch.engines.cuda.candidates import best, score
from genrec_batch.engines.cuda.passes import Kernels, choose, heads_only, prefill, read
from genrec_batch.engines.cuda.weights import Fused


class Arena:
    """Named buffers that grow when more is needed and otherwise keep their addresses."""

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self._device, self._pinned = device, pinned
        self._held: dict[str, Tensor] = {}
        self.grown = 0  # how often a buffer moved; a captured graph is valid only while this does not change

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the buffer `name` as a contiguous tensor of this shape: zeros when new, else its former content."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size or held.dtype != dtype:
            self._held.pop(name, None)
            held = self._held[name] = torch.zeros(size, dtype=dtype, device=self._device, pin_memory=self._pinned)
            self.grown += 1
        return held[:size].view(shape)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes that a graph is captured for."""

    users: int
    rows: int
    width: int
    steps: int  # of slates
    candidates: int  # 0: slates
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One shape's views of the shared buffers, and the calls that run prefill and then all else on them."""

    packed: dict[str, Tensor]
    banned_BW: Tensor
    out: tuple[Tensor, Tensor, Tensor]  # tokens [B, K], log-probabilities [B, K], heads [B, K, H]
    prefill: Callable[[], None]
    decode: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class _State:
    """The buffers that prefill fills for what follows it."""

    inputs: Inputs
    history: History
    scratch: Scratch
    rows: Rows
    banned_BW: Tensor


# of a Loop: out, prefill and decode
_Parts = tuple[tuple[Tensor, Tensor, Tensor], Callable[[], None], Callable[[], None]]


def prepare(fused: Fused, kernels: Kernels, arena: Arena, shape: Shape) -> Loop:
    """Return the calls of a shape, on an arena's buffers."""
    users = shape.users
    lengths_B, first_B = (arena(name, (users,), torch.int32) for name in ("lengths", "first"))
    sizes = {"profile": fused.config.profile, "video": fused.config.video}
    given = {
        n: (arena(n, (users, sizes[n]), fused.dtype), arena(f"has {n}", (users, 1), fused.dtype)) for n in shape.inputs
    }
    inputs = Inputs(
        tokens_BS=arena("tokens", (users, shape.width), torch.int32),
        features_BF=arena("features", (users, fused.config.features), fused.dtype),
        profile=given.get("profile"),
        video=given.get("video"),
    )
    lengths_B.zero_()  # old lengths may exceed these rows, and a capture begins with a real run
    first_B.copy_(torch.arange(users))
    history = make_history(fused, arena, lengths_B, first_B, shape.rows, shape.width)
    scratch, rows = make_scratch(fused, arena, "packed", shape.rows), make_rows(fused, arena, users)
    banned_BW = arena("banned", (users, fused.words), torch.int32)
    packed = {"tokens": inputs.tokens_BS, "lengths": lengths_B, "first": first_B, "features": inputs.features_BF}
    packed |= {n: values for n, (values, _) in given.items()} | {f"has {n}": has for n, (_, has) in given.items()}
    state = _State(inputs=inputs, history=history, scratch=scratch, rows=rows, banned_BW=banned_BW)
    parts = (_candidates if shape.candidates else _slates)(fused, kernels, arena, shape, state)
    return Loop(packed=packed, banned_BW=banned_BW, out=parts[0], prefill=parts[1], decode=parts[2])


def _slates(fused: Fused, kernels: Kernels, arena: Arena, shape: Shape, state: _State) -> _Parts:
    users = shape.users
    rows, banned_BW = state.rows, state.banned_BW
    suffix = make_suffix(fused, arena, users, shape.steps)
    tokens_KB = arena("out tokens", (shape.steps, users), torch.int32)
    log_prob_KB = arena("out log_prob", (shape.steps, users), torch.float32)
    heads_KBH = arena("out heads", (shape.steps, users, len(HEADS)), torch.float32)
    by_step = [replace(rows, next_R=tokens_KB[k], log_prob_R=log_prob_KB[k]) for k in range(shape.steps)]

    def first() -> None:
        prefill(fused, kernels, state.inputs, state.history, state.scratch, rows)
        choose(fused, kernels, by_step[0], banned_BW)

    def following() -> None:
        for k, row in enumerate(by_step):
            read(fused, kernels, row.next_R, state.history, rows, step=k, suffix=suffix, banned_RW=banned_BW)
            raw_RH = _next(fused, kernels, by_step[k + 1 :], rows, banned_BW)
            kernels.heads(raw_RH, row.next_R, heads_KBH[k])

    return (tokens_KB.mT, log_prob_KB.mT, heads_KBH.transpose(0, 1)), first, following


def _candidates(fused: Fused, kernels: Kernels, arena: Arena, shape: Shape, state: _State) -> _Parts:
    users = shape.users
    tokens_BC = arena("best tokens", (users, shape.candidates), torch.int32)
    log_prob_BC = arena("best log_prob", (users, shape.candidates), torch.float32)
    heads_BCH = arena("aside heads", (users * shape.candidates, len(HEADS)), torch.float32)

    def first() -> None:
        prefill(fused, kernels, state.inputs, state.history, state.scratch, state.rows)
        choose(fused, kernels, state.rows, state.banned_BW)

    def following() -> None:
        tokens, log_prob = best(fused, kernels, state.rows, state.banned_BW, shape.candidates)
        tokens_BC.copy_(tokens)
        log_prob_BC.copy_(log_prob)
        score(fused, kernels, tokens_BC, state.history, arena)

    return (tokens_BC, log_prob_BC, heads_BCH.view(users, shape.candidates, len(HEADS))), first, following


def _next(fused: Fused, kernels: Kernels, following: list[Rows], rows: Rows, banned_BW: Tensor) -> Tensor:
    """Choose the next item, if one follows, and return the heads of the item just read, before their sigmoid."""
    if not following:
        return heads_only(fused, rows.scratch.x_MD)
    choose(fused, kernels, following[0], banned_BW)
    return rows.raw_RN[:, fused.config.vocabulary :]
