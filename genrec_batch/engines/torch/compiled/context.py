"""The context, all positions before a row's newest event, on a CPU in bf16 or in int8 with compiled kernels.

Owns: the order of products and kernels. Must not know: lanes, decoding, how a kernel works. Needs numba, so it is
imported only where that is there. The slow twin is `network.context`.

The residual stream is fp32, the cache bf16 or int8. Long histories are computed by `phases.fill_context`: attention
takes most of their time, and PyTorch's own attention is made for them. Shapes as in `network`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from genrec_batch.core.arrays import F32
from genrec_batch.engines.torch.cache import Cache
from genrec_batch.engines.torch.compiled import attention, row_kernels
from genrec_batch.engines.torch.linear import Int8Linear, Linear, PairLinear, roomy
from genrec_batch.engines.torch.network import (
    FUSED_FROM,
    ContextLayers,
    Layer,
    Network,
    Norm,
    prepare_context,
    prepare_layers,
    scaled_qkv,
)
from genrec_batch.engines.torch.phases import fill_context
from genrec_batch.model.weights import EPSILON

BF16 = torch.bfloat16


def array(x: Tensor) -> Any:
    """Return a view of numbers as an array, of bf16 as one of their bits."""
    return x.view(torch.int16).numpy().view(np.uint16) if x.dtype == BF16 else x.numpy()


def cached(cache: Cache) -> list[tuple[Any, F32, Any, F32]]:
    """Return keys, their scales, values and their scales, the arguments of a kernel, by layer."""
    parts = cache.keys, cache.key_scales, cache.values, cache.value_scales
    return list(zip(*(array(part) for part in parts), strict=True))


def assert_within(tokens: Tensor, vocabulary: int) -> None:
    """Assert that all tokens exist: kernels do not check, and would read memory outside the tables."""
    assert not tokens.numel() or (tokens.min() >= 0 and tokens.max() < vocabulary), "no such token"


def norm_arrays(norm: Norm) -> tuple[F32, F32, float]:
    """Return gain, shift and epsilon of a LayerNorm, the arguments of a kernel."""
    gain_D, shift_D = norm
    return gain_D.numpy(), shift_D.numpy(), EPSILON


@dataclass(frozen=True)
class Singles:
    """Buffers for rows as 8-bit numbers; see `row_kernels`."""

    high: Tensor
    scale: F32
    product: ClassVar[Any] = Int8Linear  # that multiplies them
    kernels: ClassVar[Any] = row_kernels.round_rows, row_kernels.relu_round, row_kernels.add_norm_round

    @classmethod
    def room(cls, rows: int, width: int) -> Singles:
        """Return buffers for rows of `width` numbers."""
        return cls(roomy(rows, width, torch.uint8), np.empty(rows, np.float32))

    def arrays(self) -> tuple[Any, ...]:
        """Return the arrays, in the order of a kernel's arguments."""
        return self.scale, self.high.numpy()

    def times(self, product: Any) -> Tensor:
        """Return the product's sums."""
        sums: Tensor = product.sums(self.high)
        return sums

    def fill(self, *given: Any) -> None:
        """Round rows."""
        self.kernels[0](*given, *self.arrays())

    def fill_relu(self, *given: Any) -> None:
        """Round the ReLU of a product's sums."""
        self.kernels[1](*given, *self.arrays())

    def fill_norm(self, x_ND: Tensor, rows: Singles, product: Any, norm: Norm) -> None:
        """Add the product of rows to x, normalize that, and round it."""
        sums = array(rows.times(product))
        self.kernels[2](x_ND.numpy(), sums, rows.scale, product.bias_N.numpy(), *norm_arrays(norm), *self.arrays())


@dataclass(frozen=True)
class HalfSums(Singles):
    """The same with a product that is rounded to bf16: the passes after it wait for memory."""

    def times(self, product: Any) -> Tensor:
        """Return the product's sums."""
        sums: Tensor = product.sums(self.high, BF16)
        return sums


@dataclass(frozen=True)
class Pairs(Singles):
    """Buffers for rows as pairs of 8-bit numbers; see `row_kernels`."""

    both: Tensor
    product: ClassVar[Any] = PairLinear
    kernels: ClassVar[Any] = row_kernels.split, row_kernels.relu_split, row_kernels.add_norm_split

    @classmethod
    def room(cls, rows: int, width: int) -> Pairs:
        """Return buffers for rows of `width` numbers."""
        high, both = (roomy(rows, times * width, torch.uint8) for times in (1, 2))
        return cls(high, np.empty(rows, np.float32), both)

    def arrays(self) -> tuple[Any, ...]:
        """Return the arrays, in the order of a kernel's arguments."""
        return *super().arrays(), self.both.numpy()

    def times(self, product: Any) -> Tensor:
        """Return the product's sums."""
        sums: Tensor = product.sums(self.high, self.both)
        return sums


class _Pass:
    """One pass over R rows of S positions: their residual stream, and the buffers that every layer uses."""

    def __init__(
        self, network: Network, prefix_RD: Tensor, tokens_RS: Tensor, cache: Cache, mixed: torch.dtype
    ) -> None:
        self.rows, self.width = prefix_RD.shape
        self.positions = tokens_RS.shape[1] + 1
        count = self.rows * self.positions
        self.x_ND = torch.empty(count, self.width)
        self.mixed_ND = roomy(count, self.width, mixed)
        self.cached, self.lengths_R = cached(cache), cache.lengths_R.numpy()
        self._heads = network.config.heads
        self._room_X = np.empty(attention.context_room(self.positions, network.config.head_size), np.float32)

    def embed(
        self, network: Network, layers: ContextLayers, prefix: tuple[Tensor, Tensor], tokens_RS: Tensor
    ) -> Tensor:
        """Fill x and return the first layer's queries, keys and values, [N, 3 D].

        `prefix` is position 0, and its queries, keys and values.
        """
        qkv_N3D = torch.empty(len(self.x_ND), 3 * self.width, dtype=BF16)
        assert_within(tokens_RS, len(layers.first_of_tokens_VN))
        row_kernels.embed(
            prefix[0].numpy(), array(prefix[1]), tokens_RS.contiguous().numpy(), network.token_embedding.weight.numpy(),
            network.position_embedding.weight.numpy(), layers.first_of_tokens_VN.numpy(),
            layers.first_of_positions.upto(self.positions).numpy(), self.x_ND.numpy(), array(qkv_N3D),
        )  # fmt: skip
        return qkv_N3D

    def attend(self, layer: int, queries_NX: Tensor, values_NX: Tensor) -> Tensor:
        """Cache a layer's keys and values and return the result of its attention, [N, D].

        The keys are in the columns after the queries, the values in the last D columns.
        """
        keys, values = array(queries_NX), array(values_NX)
        at = values.shape[1] - self.width
        self.keep(layer, queries_NX, self.width, values_NX)
        attention.attend_context(
            keys,
            keys,
            self.width,
            values,
            at,
            self.lengths_R,
            self._heads,
            array(self.mixed_ND),
            self._room_X,
        )
        return self.mixed_ND

    def keep(self, layer: int, keys_NX: Tensor, key_at: int, values_NX: Tensor) -> None:
        """Cache a layer's keys, from column `key_at` on, and its values, the last D columns."""
        attention.keep(
            array(keys_NX), key_at, array(values_NX), values_NX.shape[1] - self.width, self.lengths_R,
            *self.cached[layer],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bf16Context:
    """All products in bf16."""

    network: Network
    layers: ContextLayers

    @staticmethod
    def of(network: Network, tokens: int) -> Bf16Context:
        """Prepare a network's products, for histories of tokens below `tokens`."""
        layers = prepare_layers(network, BF16)
        return Bf16Context(
            network=network,
            layers=prepare_context(network, layers, lambda weight, bias: Linear(weight, bias, BF16), tokens),
        )

    def fill(self, prefix_RD: Tensor, tokens_RS: Tensor, cache: Cache) -> None:
        """Fill a new cache from position 0 and the S items after it, with zeros after each row's length."""
        if tokens_RS.shape[1] >= FUSED_FROM:
            fill_context(self.network, self.layers, prefix_RD, tokens_RS, cache)
            return
        a_pass = _Pass(self.network, prefix_RD, tokens_RS, cache, BF16)
        prefix = prefix_RD, self.layers.layers[0].qkv(prefix_RD)
        qkv_N3D = a_pass.embed(self.network, self.layers, prefix, tokens_RS)
        half_ND = roomy(len(a_pass.mixed_ND), a_pass.width, BF16)
        for i, layer in enumerate(self.layers.layers):
            qkv_N3D = layer.qkv(half_ND) if i else qkv_N3D
            self._add_norm(a_pass, layer.out(a_pass.attend(i, qkv_N3D, qkv_N3D)), layer.norm1, half_ND)
            self._add_norm(a_pass, layer.down(layer.up(half_ND, relu=True)), layer.norm2, half_ND)
        kv_N2D = self.layers.last(half_ND)
        a_pass.keep(-1, kv_N2D, 0, kv_N2D)

    def _add_norm(self, a_pass: _Pass, more_ND: Tensor, norm: Norm, half_ND: Tensor) -> None:
        row_kernels.add_norm_half(a_pass.x_ND.numpy(), array(more_ND), *norm_arrays(norm), array(half_ND))


@dataclass(frozen=True, kw_only=True)
class _Int8Layer:
    """Queries and keys [2 D], or the last layer's keys [D], and feed-forward in int8; the rest in a form."""

    queries_keys: Int8Linear
    values: Any
    out: Any
    up: Int8Linear
    down: Int8Linear
    norm1: Norm
    norm2: Norm


@dataclass(frozen=True, kw_only=True)
class Int8Context:
    """Queries, keys and the feed-forward network in int8; values and attention's output product in a form.

    Attention carries the error of values straight to a row's last position: in plain 8-bit numbers, values would be a
    quarter of the work and most of the error, so that pairs keep close items in order and a trained model bears either.
    """

    network: Network
    plain: ContextLayers  # the tables of the first layer, and long histories
    layers: Sequence[_Int8Layer]
    first: Any  # the first layer's queries, keys and values
    form: type[Singles]

    @staticmethod
    def of(network: Network, form: type[Singles], reading: Sequence[Layer[Any]], tokens: int) -> Int8Context:
        """Prepare a network's products, as above; those of `reading`, which are in the form, are shared."""
        layers = []
        for i, layer in enumerate(network.encoder.layers):
            weight, bias = scaled_qkv(network, i)
            width, last = network.config.width, i + 1 == network.config.layers
            some = slice(width if last else 0, 2 * width)
            layers.append(
                _Int8Layer(
                    queries_keys=Int8Linear(weight[some], bias[some]),
                    values=form.product(weight[2 * width :], bias[2 * width :]),
                    out=reading[i].out,
                    up=Int8Linear(layer.linear1.weight, layer.linear1.bias),
                    down=Int8Linear(layer.linear2.weight, layer.linear2.bias, positive=True, finer=form is Pairs),
                    norm1=reading[i].norm1,
                    norm2=reading[i].norm2,
                )
            )
        plain = prepare_context(network, reading, form.product, tokens)
        return Int8Context(network=network, plain=plain, layers=layers, first=reading[0].qkv, form=form)

    def fill(self, prefix_RD: Tensor, tokens_RS: Tensor, cache: Cache) -> None:
        """Fill a new cache from position 0 and the S items after it, with zeros after each row's length."""
        if tokens_RS.shape[1] >= FUSED_FROM:
            half = cache
            if cache.keys.dtype != BF16:
                half = Cache.empty(self.network.config, cache.lengths_R, cache.keys.shape[3], 0, BF16)
            fill_context(self.network, self.plain, prefix_RD, tokens_RS, half)
            if half is not cache:
                _round(half, cache)
            return
        a_pass = _Pass(self.network, prefix_RD, tokens_RS, cache, torch.float32)
        count, width = a_pass.x_ND.shape
        one, mixed = self.form.room(count, width), self.form.room(count, width)
        single = Singles if self.form is Pairs else self.form
        plain, wide = single(one.high, one.scale), single.room(count, self.network.config.ffn)
        queries_keys_NX, values_ND = torch.empty(count, 2 * width, dtype=BF16), torch.empty(count, width, dtype=BF16)
        qkv_N3D = a_pass.embed(self.network, self.plain, (prefix_RD, self.first(prefix_RD).to(BF16)), tokens_RS)
        for i, layer in enumerate(self.layers[:-1]):
            if i:
                _scaled_half(plain.times(layer.queries_keys), one.scale, layer.queries_keys, queries_keys_NX)
                _scaled_half(one.times(layer.values), one.scale, layer.values, values_ND)
                a_pass.attend(i, queries_keys_NX, values_ND)
            else:
                a_pass.attend(i, qkv_N3D, qkv_N3D)
            mixed.fill(a_pass.mixed_ND.numpy())
            plain.fill_norm(a_pass.x_ND, mixed, layer.out, layer.norm1)
            wide.fill_relu(array(plain.times(layer.up)), plain.scale, layer.up.bias_N.numpy())
            one.fill_norm(a_pass.x_ND, wide, layer.down, layer.norm2)
        last, keys_ND = self.layers[-1], queries_keys_NX.view(-1)[: count * width].view(count, width)
        _scaled_half(plain.times(last.queries_keys), one.scale, last.queries_keys, keys_ND)
        _scaled_half(one.times(last.values), one.scale, last.values, values_ND)
        a_pass.keep(-1, keys_ND, 0, values_ND)


def _round(half: Cache, cache: Cache) -> None:
    """Round keys and values of the same rows and slots to 8-bit numbers, with zeros after each row's length."""
    rows, heads, _, size = half.keys.shape[1:]
    lengths = half.lengths_R.repeat_interleave(heads).numpy()  # a head is a row of its own
    for of_layer, into in zip(cached(half), cached(cache), strict=True):
        keys_NZ, values_NZ = (numbers.reshape(-1, size) for numbers in of_layer[::2])
        attention.keep(keys_NZ, 0, values_NZ, 0, lengths, *(x.reshape(rows * heads, 1, *x.shape[2:]) for x in into))


def _scaled_half(sums_NM: Tensor, scale_N: F32, product: Int8Linear | PairLinear, half_NX: Tensor) -> None:
    row_kernels.scaled_half(array(sums_NM), scale_N, product.bias_N.numpy(), array(half_NX))
