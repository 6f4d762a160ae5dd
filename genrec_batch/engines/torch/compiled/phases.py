"""The phases of the torch engine in bf16 and int8 on a CPU, with compiled kernels between the products.

Owns: the order of products and kernels. Must not know: lanes, threads, how a kernel works. Needs numba and 8-bit
products (`device.fast_int8`), so it is imported only where both are there. The slow twin is `phases.PlainPhases`.

The context is computed by `context`. Positions that are read one at a time, and the logits, are products of pairs of
8-bit numbers (`linear.PairLinear`), which keep close items in order and cost a quarter of fp32 on a processor with AMX.
Shapes as in `network`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec_batch.core.arrays import F32, I64
from genrec_batch.engines.torch.cache import Cache
from genrec_batch.engines.torch.choice import Choice, RowMasks, choose
from genrec_batch.engines.torch.compiled import attention, row_kernels
from genrec_batch.engines.torch.compiled.context import (
    Bf16Context,
    Int8Context,
    Pairs,
    assert_within,
    bits,
    norm_arrays,
)
from genrec_batch.engines.torch.linear import PairLinear
from genrec_batch.engines.torch.network import Layer, Network, Norm, prepare_pairs, read_aside
from genrec_batch.model.weights import ModelConfig
from genrec_batch.runtime.jit import warn_if_not_cached
from genrec_batch.runtime.simd_bf16 import WIDTH

NO_BANS = np.empty((0, 0), np.uint8), np.empty(0, np.int64), np.empty(0, np.float32)  # what `_bans` returns


def fits(config: ModelConfig) -> bool:
    """Return whether the kernels can compute a model: its heads are whole vectors, and it has more than one layer."""
    return config.head_size % WIDTH == 0 and config.layers > 1


@dataclass(frozen=True, kw_only=True)
class CompiledPhases:
    """The phases; each kernel is one pass over numbers that the product before it left in a core's own cache."""

    network: Network
    contexts: Bf16Context | Int8Context
    reading: Sequence[Layer[PairLinear]]  # in pairs, as the logits are
    output: PairLinear
    cache_dtype: torch.dtype = torch.bfloat16

    @staticmethod
    def of(network: Network, dtype: torch.dtype, tokens: int) -> CompiledPhases:
        """Prepare a network's products: context in `dtype`, bf16 or int8, for histories of tokens below `tokens`."""
        warn_if_not_cached()
        reading = prepare_pairs(network)
        return CompiledPhases(
            network=network,
            contexts=(
                Int8Context.of(network, reading, tokens) if dtype == torch.int8 else Bf16Context.of(network, tokens)
            ),
            reading=reading,
            output=PairLinear(network.output_projection.weight, network.output_projection.bias),
        )

    def context(self, prefix_RD: Tensor, tokens_RS: Tensor, cache: Cache) -> None:
        """Fill a new cache from position 0 and the S items after it, with zeros after each row's length."""
        self.contexts.fill(prefix_RD, tokens_RS, cache)

    def read(self, x_BD: Tensor, caches: Sequence[Cache], step: int) -> Tensor:
        """Read one more position per row; see `network.read`."""
        rows, width = x_BD.shape
        x = x_BD.clone()
        one, other = Pairs.room(rows, width), Pairs.room(rows, width)
        wide, mixed_ND = Pairs.room(rows, self.network.config.ffn), np.empty((rows, width), np.float32)
        seen = [(cache.lengths_R.numpy(), bits(cache.keys), bits(cache.values)) for cache in caches]
        row_kernels.split(x.numpy(), *one.arrays())
        for i, layer in enumerate(self.reading):
            sums, bias_3D, first = one.times(layer.qkv).numpy(), layer.qkv.bias_N.numpy(), 0
            for lengths_R, keys, values in seen:
                attention.attend_next(sums, one.scale, bias_3D, first, step, lengths_R, keys[i], values[i], mixed_ND)
                first += len(lengths_R)
            row_kernels.split(mixed_ND, *other.arrays())
            _add_norm_split(x, other, layer.out, layer.norm1, one)
            row_kernels.relu_split(one.times(layer.up).numpy(), one.scale, layer.up.bias_N.numpy(), *wide.arrays())
            _add_norm_split(x, wide, layer.down, layer.norm2, one)
        return x

    def read_aside(self, x_RCD: Tensor, cache: Cache) -> Tensor:
        """Read C positions per row, each alone; see `network.read_aside`."""
        return read_aside(self.reading, x_RCD, cache)

    def choose(
        self, hidden_BD: Tensor, banned_BX: Tensor, *, tokens: int, choices: int, masks: RowMasks | None = None
    ) -> Choice:
        """Choose the items after hidden states; see `choice.choose`."""
        assert_within(banned_BX, len(self.output.bias_N))
        rows = len(hidden_BD)
        pairs = Pairs.room(rows, hidden_BD.shape[1])
        row_kernels.split(hidden_BD.numpy(), *pairs.arrays())
        logits_BV = self.output.sums(pairs.high, pairs.both)
        log_sum_B, value_B = torch.empty(rows), torch.empty(rows)
        best_B = torch.empty(rows, dtype=torch.int64)
        bans = NO_BANS if masks is None or choices > 1 else _bans(masks)
        row_kernels.choose(
            logits_BV.numpy(), pairs.scale, self.output.bias_N.numpy(), banned_BX.numpy(), *bans, tokens,
            log_sum_B.numpy(), best_B.numpy(), value_B.numpy(),
        )  # fmt: skip
        if choices > 1:
            return choose(logits_BV, banned_BX, tokens=tokens, choices=choices, masks=masks, log_sum_B=log_sum_B)
        return Choice(
            logits_BV=logits_BV,
            log_sum_B=log_sum_B,
            tokens_BW=best_B[:, None],
            log_prob_BW=(value_B - log_sum_B)[:, None],
        )


def _bans(masks: RowMasks) -> tuple[npt.NDArray[np.uint8], I64, F32]:
    """Return bit maps as bytes [M, V], the bit map of each row [B], and room for a row of logits [V]."""
    assert not masks.mask_B.numel() or int(masks.mask_B.max()) < len(masks.bytes_MC), "no such mask"
    banned_MV = masks.banned_MV.numpy().view(np.uint8)
    return banned_MV, masks.mask_B.numpy(), np.empty(banned_MV.shape[1], np.float32)


def _add_norm_split(x_ND: Tensor, rows: Pairs, product: PairLinear, norm: Norm, into: Pairs) -> None:
    row_kernels.add_norm_split(
        x_ND.numpy(), rows.times(product).numpy(), rows.scale, product.bias_N.numpy(), *norm_arrays(norm),
        *into.arrays(),
    )  # fmt: skip
