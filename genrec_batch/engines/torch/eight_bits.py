"""The encoder's layers with all their products in 8-bit numbers, plain or in pairs.

Owns: which product each weight of a layer gets. Must not know: how products are computed (`linear`), or what reads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from torch import Tensor

from genrec_batch.engines.torch.linear import Int8Linear, PairLinear
from genrec_batch.engines.torch.network import Layer, Network, scaled_qkv

E = TypeVar("E", Int8Linear, PairLinear)


def prepare_pairs(network: Network) -> list[Layer[PairLinear]]:
    """Return the encoder's layers with their products in pairs of 8-bit numbers."""
    return _eight_bits(network, PairLinear, PairLinear)


def prepare_single(network: Network) -> list[Layer[Int8Linear]]:
    """Return the encoder's layers with all their products in 8-bit numbers."""
    return _eight_bits(network, Int8Linear, partial(Int8Linear, positive=True))


def _eight_bits(
    network: Network, product: Callable[[Tensor, Tensor], E], after_relu: Callable[[Tensor, Tensor], E]
) -> list[Layer[E]]:
    return [
        Layer(
            qkv=product(*scaled_qkv(network, i)),
            out=product(layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias),
            up=product(layer.linear1.weight, layer.linear1.bias),
            down=after_relu(layer.linear2.weight, layer.linear2.bias),
            norm1=(layer.norm1.weight, layer.norm1.bias),
            norm2=(layer.norm2.weight, layer.norm2.bias),
        )
        for i, layer in enumerate(network.encoder.layers)
    ]
