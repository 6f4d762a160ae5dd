"""The phases of the torch engine in bf16 and int8 on a CPU, with compiled kernels between the products.

Owns: the order of products and kernels. Must not know: lanes, threads, how a kernel works. Needs numba and 8-bit
products (`device.fast_int8`), so it is imported only where both are there. The slow twin is `phases.PlainPhases`.

The context is computed by `context`. Positions that are read one at a time, and the logits, are products of pairs of
8-bit numbers (`linear.PairLinear`), which keep close items in order and cost a quarter of fp32 on a processor with AMX.
Shapes as in `network`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
    HalfSums,
    Int8Context,
    Pairs,
    Singles,
    assert_within,
    cached,
)
from genrec_batch.engines.torch.eight_bits import prepare_pairs, prepare_single
from genrec_batch.engines.torch.network import (
    Layer,
    Network,
)
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
    form: type[Singles]  # of rows that are read one position at a time
    reading: Sequence[Layer[Any]]  # in that form, as the logits are
    output: Any
    exact: tuple[F32, float, float]  # see `row_kernels.choose`: weight, step and norm, no lines for pairs
    cache_dtype: torch.dtype

    @staticmethod
    def of(network: Network, dtype: torch.dtype, tokens: int, *, single: bool = False) -> CompiledPhases:
        """Prepare a network's products: context in `dtype`, bf16 or int8, for histories of tokens below `tokens`."""
        warn_if_not_cached()
        form: type[Singles] = Singles if single else Pairs
        output = network.output_projection
        weight_VD = output.weight if single else output.weight[:0]
        step = float(weight_VD.abs().max()) / 127 if single else 0.0
        norm = float(weight_VD.norm(dim=1).max()) if single else 0.0
        reading: Sequence[Layer[Any]] = prepare_single(network) if single else prepare_pairs(network)
        return CompiledPhases(
            network=network,
            contexts=(
                Int8Context.of(network, HalfSums if single else Pairs, reading, tokens)
                if dtype == torch.int8
                else Bf16Context.of(network, tokens)
            ),
            form=form,
            reading=reading,
            output=form.product(output.weight, output.bias),
            exact=(weight_VD.numpy(), step, norm),
            cache_dtype=torch.int8 if single and dtype == torch.int8 else torch.bfloat16,
        )

    def context(self, prefix_RD: Tensor, tokens_RS: Tensor, cache: Cache) -> None:
        """Fill a new cache from position 0 and the S items after it, with zeros after each row's length."""
        self.contexts.fill(prefix_RD, tokens_RS, cache)

    def read(self, x_BD: Tensor, caches: Sequence[Cache], step: int) -> Tensor:
        """Read one more position per row; see `network.read`."""
        seen = [(cache.lengths_R.numpy(), cached(cache)) for cache in caches]

        def attend(layer: int, sums: F32, scale: F32, bias_3D: F32, mixed_ND: F32) -> None:
            first = 0
            for lengths_R, layers in seen:
                attention.attend_next(sums, scale, bias_3D, first, step, lengths_R, *layers[layer], mixed_ND)
                first += len(lengths_R)

        return self._through(x_BD.clone(), attend)

    def read_aside(self, x_RCD: Tensor, cache: Cache) -> Tensor:
        """Read C positions per row, each alone; see `network.read_aside`."""
        lengths_R, layers = cache.lengths_R.numpy(), cached(cache)

        def attend(layer: int, sums: F32, scale: F32, bias_3D: F32, mixed_ND: F32) -> None:
            attention.attend_aside(sums, scale, bias_3D, lengths_R, *layers[layer], mixed_ND)

        return self._through(x_RCD.flatten(0, 1).clone(), attend).view(x_RCD.shape)

    def _through(self, x_ND: Tensor, attend: Callable[[int, F32, F32, F32, F32], None]) -> Tensor:
        """Take positions through all layers, in place; `attend` gets sums, their scale and bias, and what to fill."""
        rows, width = x_ND.shape
        one, other = self.form.room(rows, width), self.form.room(rows, width)
        wide, mixed_ND = self.form.room(rows, self.network.config.ffn), np.empty((rows, width), np.float32)
        one.fill(x_ND.numpy())
        for i, layer in enumerate(self.reading):
            attend(i, one.times(layer.qkv).numpy(), one.scale, layer.qkv.bias_N.numpy(), mixed_ND)
            other.fill(mixed_ND)
            one.fill_norm(x_ND, other, layer.out, layer.norm1)
            wide.fill_relu(one.times(layer.up).numpy(), one.scale, layer.up.bias_N.numpy())
            one.fill_norm(x_ND, wide, layer.down, layer.norm2)
        return x_ND

    def choose(
        self, hidden_BD: Tensor, banned_BX: Tensor, *, tokens: int, choices: int, masks: RowMasks | None = None
    ) -> Choice:
        """Choose the items after hidden states; see `choice.choose`."""
        assert_within(banned_BX, len(self.output.bias_N))
        rows = len(hidden_BD)
        hidden = self.form.room(rows, hidden_BD.shape[1])
        hidden.fill(hidden_BD.numpy())
        logits_BV = hidden.times(self.output)
        log_sum_B, value_B = torch.empty(rows), torch.empty(rows)
        best_B = torch.empty(rows, dtype=torch.int64)
        unmasked = choices > 1 and self.form is Pairs  # what is not the best choice is not masked here
        bans = NO_BANS if masks is None or unmasked else _bans(masks)
        row_kernels.choose(
            logits_BV.numpy(), hidden.scale, self.output.bias_N.numpy(), banned_BX.numpy(), *bans, tokens,
            hidden_BD.numpy(), *self.exact, log_sum_B.numpy(), best_B.numpy(), value_B.numpy(),
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
