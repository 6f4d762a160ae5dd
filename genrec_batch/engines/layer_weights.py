"""The weights as the ONNX graphs take them.

Owns: which weights belong to an encoder layer and to the heads, and the attention scale folded into the queries. Must
not know: graphs, engines, files. Weights are [out, in], as PyTorch stores them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from genrec_batch.core.arrays import F32, HEADS
from genrec_batch.model.weights import ModelConfig, Weights


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """The parameters of one encoder layer, each as (weight, bias)."""

    qkv: tuple[F32, F32]  # query, key and value stacked; 1 / sqrt(head size) is folded into the query
    out: tuple[F32, F32]
    norm1: tuple[F32, F32]
    norm2: tuple[F32, F32]
    linear1: tuple[F32, F32]
    linear2: tuple[F32, F32]


def layer_weights(config: ModelConfig, weights: Weights, layer: int) -> LayerWeights:
    """Return the parameters of an encoder layer."""
    name = f"encoder.layers.{layer}"
    scale_O = np.ones(3 * config.width, np.float32)
    scale_O[: config.width] = 1 / math.sqrt(config.head_size)
    return LayerWeights(
        qkv=(
            weights[f"{name}.self_attn.in_proj_weight"] * scale_O[:, None],
            weights[f"{name}.self_attn.in_proj_bias"] * scale_O,
        ),
        out=affine(weights, f"{name}.self_attn.out_proj"),
        norm1=affine(weights, f"{name}.norm1"),
        norm2=affine(weights, f"{name}.norm2"),
        linear1=affine(weights, f"{name}.linear1"),
        linear2=affine(weights, f"{name}.linear2"),
    )


def affine(weights: Weights, name: str) -> tuple[F32, F32]:
    """Return the weight and bias of a module."""
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def head_weights(weights: Weights) -> tuple[F32, F32]:
    """Return the weights of all heads stacked, [H, D], and their biases, [H]."""
    heads = [affine(weights, f"{head}_head") for head in HEADS]
    return np.concatenate([weight for weight, _ in heads]), np.concatenate([bias for _, bias in heads])
