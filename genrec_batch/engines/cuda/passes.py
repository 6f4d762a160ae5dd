"""The two passes of the hand-fused engine: which product and which kernel runs after which.

Owns: prefill over packed rows and one decode step. Must not know: batches, streams, CUDA
graphs, the engine's interface, or whether the kernels are Triton's or a plain twin's. A pass allocates no memory,
so it can be captured.

Compared with the plain network, this saves work and gives the same results: there is no row for padding; the first
layer's query, key and value are looked up in tables (`weights.FusedTables`); a residual is added inside the product
that follows it; the last layer computes keys and values for all rows and the rest for one row per user; logits and
heads are one product. Where weights are e4m3 (`Fused.small`), layers multiply e4m3 numbers, and LayerNorm's kernel adds
what they give to the residual and rounds its rows for the next product. Where only the cache is e4m3, the kernel that
attends over histories keeps their keys and values as such.

Shape legend beside that of `arrays.py`: R rows of a decode pass (users, or users times candidates), M packed rows of a
prefill (user b owns rows first_B[b] .. first_B[b] + lengths_B[b]: its prefix, then its tokens), D width, W = V / 32
words of the bit map of banned tokens, T decoded items that have room, N columns of the output product.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from genrec_batch.engines.cuda.buffers import History, Inputs, Rows, Scratch
from genrec_batch.engines.cuda.fp8 import Product, SmallLayer
from genrec_batch.engines.cuda.weights import Fused, FusedLayer, FusedTables


class Kernels(Protocol):
    """The functions of the module `kernels`, which documents them; a twin in tests has the same ones."""

    def embed(
        self,
        tokens_BS: Tensor,
        lengths_B: Tensor,
        first_B: Tensor,
        prefix_BD: Tensor,
        prefix_qkv_B3: Tensor,
        tables: FusedTables,
        x_MD: Tensor,
        qkv_M3: Tensor,
    ) -> None:
        """Write the packed rows and their first layer's query, key and value."""

    def read(
        self,
        tokens_R: Tensor,
        lengths_R: Tensor,
        step: int,
        tables: FusedTables,
        banned_RW: Tensor | None,
        x_RD: Tensor,
        qkv_R3: Tensor,
    ) -> None:
        """Write the rows of one new item each, and ban it."""

    def attend_history(
        self,
        qkv_M3: Tensor,
        lengths_B: Tensor,
        first_B: Tensor,
        out_MD: Tensor,
        heads: int,
        longest: int,
        unit: float,
        kept_M2: Tensor | None = None,
    ) -> None:
        """Attend causally from every packed row to its user's."""

    def narrow(self, wide_MN: Tensor, out_MN: Tensor) -> None:
        """Convert numbers to e4m3."""

    def attend_one(
        self,
        query_R: Tensor,
        cache_M: Tensor,
        lengths_R: Tensor,
        first_R: Tensor,
        suffix_RT2: Tensor | None,
        count: int,
        out_RD: Tensor,
        heads: int,
        longest: int,
        unit: float,
    ) -> None:
        """Attend from one query per row."""

    def attend_aside(
        self,
        qkv_R3: Tensor,
        cache_M: Tensor,
        lengths_B: Tensor,
        first_B: Tensor,
        out_RD: Tensor,
        heads: int,
        longest: int,
        unit: float,
    ) -> None:
        """Attend from as many queries per user, each to the user's rows and itself."""

    def order(self, raw_RN: Tensor, vocabulary: int, banned_RW: Tensor, keys_RV: Tensor) -> None:
        """Write whole numbers that order as the logits do."""

    def multiply(self, x_MK: Tensor, product: Product, out_MN: Tensor) -> None:
        """Write a product of e4m3 numbers."""

    def positive_product(self, x_MK: Tensor, product: Product, out_MN: Tensor) -> None:
        """Write the positive part of a product of e4m3 numbers."""

    def add_norm(
        self,
        x_MD: Tensor,
        bias_D: Tensor,
        gain_D: Tensor,
        shift_D: Tensor,
        added_MD: Tensor | None = None,
        small_MD: Tensor | None = None,
        unit: float = 1.0,
    ) -> None:
        """Normalise x + bias + added in place, and write its e4m3 copy."""

    def choose(
        self,
        logits_RN: Tensor,
        vocabulary: int,
        banned_RW: Tensor,
        tokens_R: Tensor,
        log_probs_R: Tensor,
        log_sums_R: Tensor,
    ) -> None:
        """Write the best tokens that are not banned, their log-probabilities, and log sum exp."""

    def ban(self, seen_RX: Tensor, banned_RW: Tensor) -> None:
        """Set the bits of tokens."""

    def heads(self, raw_RH: Tensor, tokens_R: Tensor, out_RH: Tensor) -> None:
        """Write the sigmoids of the heads."""


def _linear(x: Tensor, weights: tuple[Tensor, Tensor], out: Tensor) -> None:
    torch.addmm(weights[1], x, weights[0].T, out=out)


def finish_layer(fused: Fused, kernels: Kernels, i: int, scratch: Scratch) -> None:
    """Compute attention's output product, residual, LayerNorm, feed-forward, residual, LayerNorm; x_MD in place."""
    layer, x_MD = fused.layers[i], scratch.x_MD
    if fused.small:
        _finish_small(kernels, layer, fused.small[i], scratch)
        return
    x_MD.addmm_(scratch.context_MD, layer.out[0].T)
    kernels.add_norm(x_MD, layer.out[1], *layer.norm1)
    torch._addmm_activation(layer.up[1], x_MD, layer.up[0].T, use_gelu=False, out=scratch.up_MF)  # noqa: SLF001 (the only way to cuBLASLt's ReLU epilogue)
    x_MD.addmm_(scratch.up_MF, layer.down[0].T)
    kernels.add_norm(x_MD, layer.down[1], *layer.norm2)


def _finish_small(kernels: Kernels, layer: FusedLayer, small: SmallLayer, scratch: Scratch) -> None:
    """Compute the same with e4m3 products; context_MD is then the e4m3 copy of x_MD."""
    x_MD, small_MD, added_MD = scratch.x_MD, scratch.context_MD, scratch.added_MD
    assert added_MD is not None
    kernels.multiply(small_MD, small.out, added_MD)
    kernels.add_norm(x_MD, layer.out[1], *layer.norm1, added_MD, small_MD, small.units.norm1)
    kernels.positive_product(small_MD, small.up, scratch.up_MF)
    kernels.multiply(scratch.up_MF, small.down, added_MD)
    kernels.add_norm(x_MD, layer.down[1], *layer.norm2, added_MD, small_MD, small.units.norm2)


def keys(fused: Fused, kernels: Kernels, i: int, scratch: Scratch, out: Tensor) -> None:
    """Compute a layer's queries, keys and values, or as many of the last columns of these as `out` has."""
    if fused.small:
        qkv = fused.small[i].qkv
        kernels.multiply(scratch.context_MD, qkv.outputs(len(qkv.weight) - out.shape[1]), out)
    else:
        weight, bias = fused.layers[i].qkv
        start = len(weight) - out.shape[1]
        _linear(scratch.x_MD, (weight[start:], bias[start:]), out)


def prefill(fused: Fused, kernels: Kernels, inputs: Inputs, history: History, scratch: Scratch, rows: Rows) -> None:
    """Read B histories: fill the history's keys and values, and rows.scratch.x_MD with each user's last hidden row."""
    lengths_B, first_B, heads = history.lengths_B, history.first_B, fused.config.heads
    width, last = fused.config.width, len(fused.layers) - 1
    prefix_BD = rows.scratch.x_MD
    _linear(inputs.features_BF, fused.inputs["feature"], prefix_BD)
    for name, given in (("user_profile", inputs.profile), ("video_feature", inputs.video)):
        if given is not None:
            values_BP, has_B1 = given
            weight, bias = fused.inputs[name]
            prefix_BD.addmm_(values_BP, weight.T).addcmul_(has_B1, bias)
    _linear(prefix_BD, fused.layers[0].qkv, rows.qkv_R3)
    kernels.embed(
        inputs.tokens_BS, lengths_B, first_B, prefix_BD, rows.qkv_R3, fused.tables, scratch.x_MD, history.qkv_M3[0]
    )
    for i in range(last):
        unit = fused.score_unit(i)
        kept_M2 = None if history.kept_LM2 is None else history.kept_LM2[i]
        kernels.attend_history(
            history.qkv_M3[i], lengths_B, first_B, scratch.context_MD, heads, history.longest, unit, kept_M2
        )
        finish_layer(fused, kernels, i, scratch)
        keys(fused, kernels, i + 1, scratch, history.last_kv_M2 if i + 1 == last else history.qkv_M3[i + 1])
    if history.kept_LM2 is not None:
        kernels.narrow(history.last_kv_M2, history.kept_LM2[last])
    torch.index_select(scratch.x_MD, 0, first_B + lengths_B, out=rows.scratch.x_MD)
    query_BD = rows.qkv_R3.view(-1)[: prefix_BD.numel()].view_as(prefix_BD)
    weight, bias = fused.layers[last].qkv
    _linear(rows.scratch.x_MD, (weight[:width], bias[:width]), query_BD)
    kernels.attend_one(
        query_BD, history.cache(last), lengths_B, first_B, None, 0, rows.scratch.context_MD, heads, history.longest,
        fused.score_unit(last),
    )  # fmt: skip
    finish_layer(fused, kernels, last, rows.scratch)


def read(
    fused: Fused,
    kernels: Kernels,
    tokens_R: Tensor,
    history: History,
    rows: Rows,
    *,
    step: int,
    suffix: Tensor,
    banned_RW: Tensor,
) -> None:
    """Read one item per row, the `step`-th after its history; rows.scratch.x_MD is then its last hidden row."""
    kernels.read(tokens_R, history.lengths_B, step, fused.tables, banned_RW, rows.scratch.x_MD, rows.qkv_R3)
    for i in range(len(fused.layers)):
        if i:
            keys(fused, kernels, i, rows.scratch, rows.qkv_R3)
        kernels.attend_one(
            rows.qkv_R3,
            history.cache(i),
            history.lengths_B,
            history.first_B,
            suffix[i],
            step,
            rows.scratch.context_MD,
            fused.config.heads,
            history.longest,
            fused.score_unit(i),
        )
        finish_layer(fused, kernels, i, rows.scratch)


def choose(fused: Fused, kernels: Kernels, rows: Rows, banned_RW: Tensor) -> None:
    """Compute logits and heads of the last hidden rows in one product, then the best token that is not banned."""
    _linear(rows.scratch.x_MD, fused.output, rows.raw_RN)
    kernels.choose(rows.raw_RN, fused.config.vocabulary, banned_RW, rows.next_R, rows.log_prob_R, rows.log_sum_R)


def heads_only(fused: Fused, hidden_RD: Tensor) -> Tensor:
    """Return the heads of the last hidden rows before their sigmoid, [R, columns >= H], without any logits."""
    start = fused.config.vocabulary
    weight, bias = fused.output
    return torch.addmm(bias[start:], hidden_RD, weight[start:].T)
