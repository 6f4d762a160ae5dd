"""The 8-bit form of the hand-fused engine's weights: e4m3 numbers, and units that keep every value in their range.

Owns: the units, and the weights of the layers' products. Must not know: batches, buffers, kernels, passes.

An e4m3 number (Micikevicius et al. 2022, "FP8 formats for deep learning") has 3 bits of mantissa from 2**-6 to 448; it
saturates beyond. No scale is computed for rows, and no data is needed for calibration: LayerNorm bounds what follows
it. A row before gain and shift has the length sqrt(D), so its product with a weight is at most sqrt(D) times the length
of the weight. One power of two per kind of value, its unit, brings that bound just below 448; values in a random
direction are then near 448 / sqrt(D), in the middle of the range. Units are folded into the weights around a value, so
a power of two changes no other number. Only the first layer reads rows that are not normalised; its bound is that of
all tokens and positions with HEADROOM for the features, and what exceeds it saturates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genrec_batch.model.weights import ModelConfig

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
HEADROOM = 8.0  # of the first layer's queries, keys and values over those of tokens and positions
CAPABILITY = (9, 0)  # of the GPUs that this was measured on


@dataclass(frozen=True, kw_only=True)
class Product:
    """A product of e4m3 numbers: weights [out, in], what rows and weights are multiplied by, and the outputs' bias."""

    weight: Tensor
    of_rows: Tensor  # [], fp32: 1 / the unit of the rows
    of_weight: Tensor  # [], fp32
    bias_N: Tensor | None  # None: it is added elsewhere

    def outputs(self, start: int) -> Product:
        """Return the product for the outputs from `start` on."""
        bias_N = None if self.bias_N is None else self.bias_N[start:]
        return replace(self, weight=self.weight[start:], bias_N=bias_N)


@dataclass(frozen=True, kw_only=True)
class Units:
    """What the values of a layer are multiplied by where they are e4m3 numbers."""

    score: float  # what makes products of queries and keys scores again
    norm1: float  # rows after the first LayerNorm
    norm2: float  # rows after the second one


@dataclass(frozen=True, kw_only=True)
class SmallLayer:
    """The products of one encoder layer."""

    units: Units
    qkv: Product  # not of the first layer, which looks them up
    out: Product  # its bias and that of `down` are added before the LayerNorm
    up: Product
    down: Product


def fold(raw: dict[str, Tensor], config: ModelConfig) -> list[Units]:
    """Scale weights in place, so that queries, keys, values and inner rows come out in their units."""
    found = []
    for i in range(config.layers):
        at = f"encoder.layers.{i}."
        names = [f"{at}self_attn.in_proj_weight", f"{at}self_attn.in_proj_bias"]
        weight, bias = (raw[name] for name in names)
        if i:
            before = f"encoder.layers.{i - 1}.norm2."
            bound_3 = _bound(raw[f"{before}weight"], raw[f"{before}bias"], weight, bias)
        else:
            token, position = raw["token_embedding.weight"], raw["position_embedding.weight"]
            bound_3 = (token @ weight.T).abs().amax(0) + (position @ weight.T + bias).abs().amax(0)
            bound_3 = HEADROOM * bound_3
        query, key, value = (_unit(part) for part in bound_3.chunk(3))
        scale_3 = torch.tensor([query, key, value], device=weight.device).repeat_interleave(config.width)
        raw[names[0]], raw[names[1]] = weight * scale_3[:, None], bias * scale_3
        raw[f"{at}self_attn.out_proj.weight"] = raw[f"{at}self_attn.out_proj.weight"] / value
        norms = [(raw[f"{at}norm{n}.weight"], raw[f"{at}norm{n}.bias"]) for n in (1, 2)]
        inner = _unit(_bound(*norms[0], raw[f"{at}linear1.weight"], raw[f"{at}linear1.bias"]))
        for name, factor in (("linear1.weight", inner), ("linear1.bias", inner), ("linear2.weight", 1 / inner)):
            raw[at + name] = raw[at + name] * factor
        root = math.sqrt(config.width)
        norm1, norm2 = (_unit(gain.abs() * root + shift.abs()) for gain, shift in norms)
        found.append(Units(score=1 / (query * key), norm1=norm1, norm2=norm2))
    return found


def small_layers(raw: dict[str, Tensor], units: list[Units], dtype: torch.dtype) -> tuple[SmallLayer, ...]:
    """Return the products of folded weights, rounded once; biases in `dtype`."""
    found = []
    for i, unit in enumerate(units):
        at = f"encoder.layers.{i}."
        qkv_bias, up_bias = raw[f"{at}self_attn.in_proj_bias"], raw[f"{at}linear1.bias"]
        found.append(
            SmallLayer(
                units=unit,
                qkv=_product(raw[f"{at}self_attn.in_proj_weight"], units[i - 1].norm2, qkv_bias.to(dtype)),
                out=_product(raw[f"{at}self_attn.out_proj.weight"]),
                up=_product(raw[f"{at}linear1.weight"], unit.norm1, up_bias.to(dtype)),
                down=_product(raw[f"{at}linear2.weight"]),
            )
        )
    return tuple(found)


def _product(weight: Tensor, of_rows: float = 1.0, bias_N: Tensor | None = None) -> Product:
    scale = LARGEST / weight.abs().max().clamp(min=1e-30)
    return Product(
        weight=(weight * scale).to(E4M3).contiguous(),
        of_rows=torch.tensor(1 / of_rows, device=weight.device),
        of_weight=1 / scale,
        bias_N=bias_N,
    )


def _bound(gain_D: Tensor, shift_D: Tensor, weight_ND: Tensor, bias_N: Tensor) -> Tensor:
    """Return the largest that each output of a product can be for rows after a LayerNorm."""
    length_N = (weight_ND * gain_D).square().sum(1).sqrt()
    return length_N * math.sqrt(len(gain_D)) + (weight_ND @ shift_D + bias_N).abs()


def _unit(bound: Tensor) -> float:
    largest = float(bound.max())
    return 2.0 ** math.floor(math.log2(LARGEST / largest)) if largest > 0 else 1.0
