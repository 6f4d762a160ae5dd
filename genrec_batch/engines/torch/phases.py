"""The phases of the torch engine, as a lane calls them: fill a cache, read a position, choose the next item.

Owns: the protocol, and the phases in plain PyTorch on any device. Must not know: lanes, groups of rows, threads.
Shapes as in `network`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from genrec_batch.engines.torch.cache import Cache
from genrec_batch.engines.torch.choice import Choice, RowMasks, choose
from genrec_batch.engines.torch.eight_bits import prepare_single
from genrec_batch.engines.torch.linear import Int8Linear, Linear
from genrec_batch.engines.torch.network import (
    ContextLayers,
    Layer,
    Network,
    Product,
    context,
    prepare_context,
    prepare_layers,
    read,
    read_aside,
    with_values,
)


class Phases(Protocol):
    """What is computed for the rows of a lane."""

    @property
    def cache_dtype(self) -> torch.dtype:
        """The type of keys and values."""
        ...

    def context(self, prefix_RD: Tensor, tokens_RS: Tensor, cache: Cache) -> None:
        """Fill a new cache from position 0 and the S items after it."""
        ...

    def read(self, x_BD: Tensor, caches: Sequence[Cache], step: int) -> Tensor:
        """Read one more position per row; see `network.read`."""
        ...

    def read_aside(self, x_RCD: Tensor, cache: Cache) -> Tensor:
        """Read C positions per row, each alone; see `network.read_aside`."""
        ...

    def choose(
        self, hidden_BD: Tensor, banned_BX: Tensor, *, tokens: int, choices: int, masks: RowMasks | None = None
    ) -> Choice:
        """Choose the items after hidden states; see `choice.choose`."""
        ...


def items(network: Network, tokens: Tensor, positions: Tensor) -> Tensor:
    """Return the network's input for items at positions, [..., D]."""
    read_items: Tensor = network.token_embedding(tokens) + network.position_embedding(positions)
    return read_items


def fill_context(network: Network, layers: ContextLayers, prefix_RD: Tensor, tokens_RS: Tensor, cache: Cache) -> None:
    """Fill a new cache from position 0 and the S items after it."""
    cache.clear()
    positions = torch.arange(1, tokens_RS.shape[1] + 1, device=tokens_RS.device)
    x_RSD = torch.cat([prefix_RD[:, None], items(network, tokens_RS, positions)], 1)
    context(layers, x_RSD, tokens_RS, cache)


@dataclass(frozen=True, kw_only=True)
class PlainPhases:
    """The phases as `network` computes them."""

    network: Network
    layers: ContextLayers  # read the positions before the newest event
    reading: Sequence[Layer[Product]]  # read the newest event and decoded items
    output: Linear
    cache_dtype: torch.dtype

    @staticmethod
    def of(network: Network, *, dtype: torch.dtype, reading_dtype: torch.dtype, tokens: int) -> PlainPhases:
        """Prepare a network's products: context in `dtype`, reading in `reading_dtype`, logits in fp32.

        The cache is in `dtype` too, except for int8, whose sums are fp32. Histories have tokens below `tokens`.
        """
        reading = prepare_layers(network, reading_dtype)
        layers = reading if dtype == reading_dtype else prepare_layers(network, dtype)
        return PlainPhases(
            network=network,
            layers=prepare_context(network, layers, lambda weight, bias: with_values(weight, bias, dtype), tokens),
            reading=reading,
            output=Linear(network.output_projection.weight, network.output_projection.bias, torch.float32),
            cache_dtype=torch.float32 if dtype == torch.int8 else dtype,
        )

    @staticmethod
    def single(network: Network, *, dtype: torch.dtype, tokens: int) -> PlainPhases:
        """Prepare a network's products: context in `dtype`, bf16 or int8, reading in 8-bit numbers, logits in fp32."""
        reading, whole = prepare_single(network), dtype == torch.int8
        layers: Sequence[Layer[Product]] = reading if whole else prepare_layers(network, dtype)
        return PlainPhases(
            network=network,
            layers=prepare_context(network, layers, Int8Linear if whole else partial(Linear, dtype=dtype), tokens),
            reading=reading,
            output=Linear(network.output_projection.weight, network.output_projection.bias, torch.float32),
            cache_dtype=torch.bfloat16,
        )

    def context(self, prefix_RD: Tensor, tokens_RS: Tensor, cache: Cache) -> None:
        """Fill a new cache from position 0 and the S items after it."""
        fill_context(self.network, self.layers, prefix_RD, tokens_RS, cache)

    def read(self, x_BD: Tensor, caches: Sequence[Cache], step: int) -> Tensor:
        """Read one more position per row; see `network.read`."""
        return read(self.reading, x_BD, caches, step)

    def read_aside(self, x_RCD: Tensor, cache: Cache) -> Tensor:
        """Read C positions per row, each alone; see `network.read_aside`."""
        return read_aside(self.reading, x_RCD, cache)

    def choose(
        self, hidden_BD: Tensor, banned_BX: Tensor, *, tokens: int, choices: int, masks: RowMasks | None = None
    ) -> Choice:
        """Choose the items after hidden states; see `choice.choose`."""
        return choose(self.output(hidden_BD), banned_BX, tokens=tokens, choices=choices, masks=masks)
