"""The weights of the hand-fused engine: the model's arrays, folded and joined for its two passes.

Owns: that form, and no computation on batches. Must not know: batches, buffers, kernels, streams. Linear weights stay
[out, in]. Shapes: V vocabulary, P positions, D width, N columns of the output product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec_batch.core.arrays import FIRST_ITEM, HEADS
from genrec_batch.engines.cuda.fp8 import E4M3, SmallLayer, Units, fold, small_layers
from genrec_batch.model.weights import Model, ModelConfig

COLUMNS = 16  # the output product's columns are padded to a multiple of this, so that rows are aligned to 16 bytes


@dataclass(frozen=True, kw_only=True)
class FusedTables:
    """Embeddings, and their products with the first layer's query, key and value weights (its bias in `position_qkv`).

    The first layer's product is linear in token plus position, so both terms are computed once, for all tokens and all
    positions.
    """

    token_VD: Tensor
    position_PD: Tensor
    token_qkv_V3: Tensor
    position_qkv_P3: Tensor


@dataclass(frozen=True, kw_only=True)
class FusedLayer:
    """One encoder layer; linear weights [out, in], log2(e) / sqrt(head size) folded into the query's rows."""

    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    norm1: tuple[Tensor, Tensor]
    norm2: tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Fused:
    """The network's weights on one device in one precision, in the form of the two passes."""

    config: ModelConfig
    tables: FusedTables
    inputs: dict[str, tuple[Tensor, Tensor]]  # feature (with position 0 in its bias), profile and video projection
    layers: tuple[FusedLayer, ...]
    never_W: Tensor  # bit map of the tokens without a video: padding, unknown, all beyond the catalog
    output: tuple[Tensor, Tensor]  # vocabulary, then the heads, then zero rows up to a multiple of 16
    units: tuple[Units, ...] = ()  # of the layers, where keys and values are kept in e4m3
    small: tuple[SmallLayer, ...] = ()  # the layers' products of a prefill in e4m3; none in another precision

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, and of all buffers of the passes that are not of the other two types."""
        return self.tables.token_VD.dtype

    @property
    def product_dtype(self) -> torch.dtype:
        """The type of what layers multiply, and of the queries, keys and values of histories."""
        return E4M3 if self.small else self.dtype

    @property
    def cache_dtype(self) -> torch.dtype:
        """The type of keys and values as every later item reads them."""
        return E4M3 if self.units else self.dtype

    def score_unit(self, layer: int) -> float:
        """Return what makes products of queries and keys of a layer scores."""
        return self.units[layer].score if self.units else 1.0

    @property
    def words(self) -> int:
        """Words of a row's bit map of banned tokens."""
        return len(self.never_W)


def _never(model: Model) -> Tensor:
    token_V = np.arange(-(-model.config.vocabulary // 32) * 32)
    bits = np.packbits((token_V < FIRST_ITEM) | (token_V >= model.tokens), bitorder="little")
    return torch.from_numpy(bits.view("<i4").copy())


def fuse(
    model: Model, device: torch.device, dtype: torch.dtype, *, small: bool = False, small_cache: bool = False
) -> Fused:
    """Return a model's weights in fused form; all is computed in fp32 and then rounded once.

    With either flag, weights are in units (see `fp8`), and keys and values are kept in e4m3. With `small`, the layers'
    weights are also in e4m3.
    """
    config, raw = (
        model.config,
        {n: torch.from_numpy(np.ascontiguousarray(w)).to(device) for n, w in model.weights.items()},
    )
    scale = torch.ones(3 * config.width, device=device)
    scale[: config.width] = math.log2(math.e) / math.sqrt(config.head_size)

    def pair(weight: str, bias: str) -> tuple[Tensor, Tensor]:
        return raw[weight].to(dtype).contiguous(), raw[bias].to(dtype).contiguous()

    for i in range(config.layers):
        attention = f"encoder.layers.{i}.self_attn.in_proj_"
        raw[attention + "weight"] = raw[attention + "weight"] * scale[:, None]
        raw[attention + "bias"] = raw[attention + "bias"] * scale
    units = fold(raw, config) if small or small_cache else []
    first_w, first_b = (raw[f"encoder.layers.0.self_attn.in_proj_{kind}"] for kind in ("weight", "bias"))
    token, position = raw["token_embedding.weight"], raw["position_embedding.weight"]
    tables = FusedTables(
        token_VD=token.to(dtype).contiguous(),
        position_PD=position.to(dtype).contiguous(),
        token_qkv_V3=(token @ first_w.T).to(dtype),
        position_qkv_P3=(position @ first_w.T + first_b).to(dtype),
    )
    raw["feature_projection.bias"] = raw["feature_projection.bias"] + position[0]
    names = [f"{head}_head" for head in HEADS]
    columns = config.vocabulary + len(names)
    spare = torch.zeros(-columns % COLUMNS, config.width, device=device)
    output_w = torch.cat([raw["output_projection.weight"], *(raw[f"{n}.weight"] for n in names), spare])
    output_b = torch.cat([raw["output_projection.bias"], *(raw[f"{n}.bias"] for n in names), spare[:, 0]])
    return Fused(
        config=config,
        tables=tables,
        inputs={
            n: pair(f"{n}_projection.weight", f"{n}_projection.bias")
            for n in ("feature", "user_profile", "video_feature")
        },
        layers=tuple(
            FusedLayer(
                qkv=pair(f"{at}self_attn.in_proj_weight", f"{at}self_attn.in_proj_bias"),
                out=pair(f"{at}self_attn.out_proj.weight", f"{at}self_attn.out_proj.bias"),
                up=pair(f"{at}linear1.weight", f"{at}linear1.bias"),
                down=pair(f"{at}linear2.weight", f"{at}linear2.bias"),
                norm1=pair(f"{at}norm1.weight", f"{at}norm1.bias"),
                norm2=pair(f"{at}norm2.weight", f"{at}norm2.bias"),
            )
            for at in (f"encoder.layers.{i}." for i in range(config.layers))
        ),
        never_W=_never(model).to(device),
        output=(output_w.to(dtype), output_b.to(dtype)),
        units=tuple(units),
        small=small_layers(raw, units, dtype) if small else (),
    )
