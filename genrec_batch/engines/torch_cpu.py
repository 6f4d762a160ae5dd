"""The phases of the torch engine in bf16 on a CPU, with compiled kernels between the products.

Owns: which product and which kernel comes after which. Must not know: lanes, threads, how a kernel works. Needs numba
and 8-bit products (`torch_device.fast_int8`); loaded by name. The slow twin is `torch_phases.PlainPhases`.

Context: products and cache in bf16, the residual stream in fp32. What is read one at a time, and the logits: products of
pairs of 8-bit numbers (`torch_linear.PairLinear`), which keep close items in order at a quarter of the cost of fp32.
Shapes as in `torch_network`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec_batch.arrays import F32, PADDING
from genrec_batch.compiling import tell_if_not_kept
from genrec_batch.engines import cpu_kernels as kernels
from genrec_batch.engines.torch_cache import Cache
from genrec_batch.engines.torch_choice import Choice, choose
from genrec_batch.engines.torch_linear import PairLinear
from genrec_batch.engines.torch_network import (
    FUSED_FROM,
    ContextLayers,
    Layer,
    Network,
    Norm,
    prepare_context,
    prepare_layers,
    prepare_pairs,
    read_aside,
)
from genrec_batch.engines.torch_phases import fill_context
from genrec_batch.model import EPSILON, ModelConfig


def fits(config: ModelConfig) -> bool:
    """Whether the kernels can compute a model: they take heads in whole vectors."""
    return config.head_size % kernels.WIDTH == 0 and config.layers > 1


@dataclass(frozen=True)
class Pairs:
    """Room for rows as pairs of 8-bit numbers; see `cpu_kernels`."""

    high: Tensor
    both: Tensor
    scale: F32

    @staticmethod
    def room(rows: int, width: int) -> Pairs:
        """Return room for rows of `width` numbers."""
        high, both = (torch.empty(rows, times * width, dtype=torch.uint8) for times in (1, 2))
        return Pairs(high, both, np.empty(rows, np.float32))

    def arrays(self) -> tuple[F32, Any, Any]:
        """Return the three as kernels take them."""
        return self.scale, self.high.numpy(), self.both.numpy()

    def times(self, product: PairLinear) -> F32:
        """Return the product's sums."""
        return product.sums(self.high, self.both).numpy()


@dataclass(frozen=True, kw_only=True)
class CompiledPhases:
    """The phases, each kernel a pass over numbers that the product before has left in a core's own cache."""

    network: Network
    layers: ContextLayers  # in bf16
    reading: Sequence[Layer]  # in pairs, as the logits are
    output: PairLinear
    cache_dtype: torch.dtype = torch.bfloat16

    @staticmethod
    def of(network: Network) -> CompiledPhases:
        """Prepare a network's products."""
        tell_if_not_kept()
        bf16 = torch.bfloat16
        return CompiledPhases(
            network=network,
            layers=prepare_context(network, prepare_layers(network, bf16), bf16),
            reading=prepare_pairs(network),
            output=PairLinear(network.output_projection.weight, network.output_projection.bias),
        )

    def context(self, prefix_RD: Tensor, tokens_RS: Tensor, cache: Cache) -> None:
        """Fill a new cache from position 0 and the S items behind it, with zeros behind each row's length.

        Where S is large the time is that of attention, and PyTorch's own is made for it.
        """
        positions = tokens_RS.shape[1] + 1
        if positions > FUSED_FROM:
            fill_context(self.network, self.layers, prefix_RD, tokens_RS, cache)
            return
        (rows, width), config = prefix_RD.shape, self.network.config
        x_ND = torch.empty(rows * positions, width)
        half_ND, mixed_ND = (torch.empty_like(x_ND, dtype=torch.bfloat16) for _ in range(2))
        qkv_N3D = torch.empty(len(x_ND), 3 * width, dtype=torch.bfloat16)
        lengths_R = cache.lengths_R.numpy()
        room_X = np.empty(kernels.context_room(positions, config.head_size), np.float32)
        kernels.embed(
            prefix_RD.numpy(), _bits(self.layers.layers[0].qkv(prefix_RD)), tokens_RS.numpy(),
            self.network.token_embedding.weight.numpy(), self.network.position_embedding.weight.numpy(),
            self.layers.first_of_tokens_VN.numpy(), self.layers.first_of_positions_PN.numpy(),
            x_ND.numpy(), _bits(qkv_N3D),
        )  # fmt: skip
        for i, layer in enumerate(self.layers.layers):
            qkv_N3D = layer.qkv(half_ND) if i else qkv_N3D
            kernels.keep(_bits(qkv_N3D), width, lengths_R, _bits(cache.keys[i]), _bits(cache.values[i]))
            kernels.attend_context(_bits(qkv_N3D), lengths_R, config.heads, _bits(mixed_ND), room_X)
            _add_norm(x_ND, layer.out(mixed_ND), layer.norm1, half_ND)
            _add_norm(x_ND, layer.down(layer.up(half_ND, relu=True)), layer.norm2, half_ND)
        kernels.keep(_bits(self.layers.last(half_ND)), 0, lengths_R, _bits(cache.keys[-1]), _bits(cache.values[-1]))

    def read(self, x_BD: Tensor, caches: Sequence[Cache], step: int) -> Tensor:
        """Read one more position a row; see `torch_network.read`."""
        rows, width = x_BD.shape
        x = x_BD.clone()
        one, other = Pairs.room(rows, width), Pairs.room(rows, width)
        wide = Pairs.room(rows, self.network.config.ffn)
        kernels.split(x.numpy(), *one.arrays())
        for i, layer in enumerate(self.reading):
            sums, first = one.times(layer.qkv), 0
            for cache in caches:
                kernels.attend_next(
                    sums, one.scale, layer.qkv.bias_N.numpy(), first, step, cache.lengths_R.numpy(),
                    _bits(cache.keys[i]), _bits(cache.values[i]), *other.arrays(),
                )  # fmt: skip
                first += len(cache.lengths_R)
            _add_norm_split(x, other, layer.out, layer.norm1, one)
            kernels.relu(one.times(layer.up), one.scale, layer.up.bias_N.numpy(), *wide.arrays())
            _add_norm_split(x, wide, layer.down, layer.norm2, one)
        return x

    def read_aside(self, x_RCD: Tensor, cache: Cache) -> Tensor:
        """Read C positions a row, each alone; see `torch_network.read_aside`."""
        return read_aside(self.reading, x_RCD, cache)

    def choose(self, hidden_BD: Tensor, banned_BX: Tensor, *, tokens: int, choices: int) -> Choice:
        """Choose what comes after hidden states; see `torch_choice.choose`."""
        rows = len(hidden_BD)
        pairs = Pairs.room(rows, hidden_BD.shape[1])
        kernels.split(hidden_BD.numpy(), *pairs.arrays())
        logits_BV = self.output.sums(pairs.high, pairs.both)
        log_sum_B, value_B = torch.empty(rows), torch.empty(rows)
        best_B = torch.empty(rows, dtype=torch.int64)
        kernels.choose(
            logits_BV.numpy(), pairs.scale, self.output.bias_N.numpy(), banned_BX.numpy(), tokens,
            log_sum_B.numpy(), best_B.numpy(), value_B.numpy(),
        )  # fmt: skip
        if choices > 1:
            return choose(logits_BV, banned_BX, tokens=tokens, choices=choices, log_sum_B=log_sum_B)
        return Choice(
            logits_BV=logits_BV,
            log_sum_B=log_sum_B,
            tokens_BW=best_B.masked_fill(value_B == -torch.inf, PADDING)[:, None],
            log_prob_BW=(value_B - log_sum_B)[:, None],
        )


def _bits(x: Tensor) -> Any:
    """Return bf16 numbers as an array of their bits, in the same memory."""
    return x.view(torch.int16).numpy().view(np.uint16)


def _add_norm(x_ND: Tensor, more_ND: Tensor, norm: Norm, half_ND: Tensor) -> None:
    gain_D, shift_D = norm
    kernels.add_norm(x_ND.numpy(), _bits(more_ND), gain_D.numpy(), shift_D.numpy(), EPSILON, _bits(half_ND))


def _add_norm_split(x_ND: Tensor, rows: Pairs, product: PairLinear, norm: Norm, into: Pairs) -> None:
    gain_D, shift_D = norm
    kernels.add_norm_split(
        x_ND.numpy(), rows.times(product), rows.scale, product.bias_N.numpy(), gain_D.numpy(), shift_D.numpy(), EPSILON,
        *into.arrays(),
    )  # fmt: skip
