"""The network as it is trained: the arithmetic of `engines/torch/network.py`, over a plain dictionary of tensors.

Owns: initial weights, dropout, the forward pass. Must not know: users, files, the optimizer. Parameters have the names
and shapes of `model.safetensors`, but for one: token embedding and output rows are a single matrix, so there is no
`output_projection.weight`. Position 0 of a row without features is what features at their mean give.

The residual stream is fp32; products are in `dtype`. Shapes: N = B * (S + 1) positions laid end to end, D width, G
heads of attention, Z head size, W positions whose hidden states are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from genrec_batch.core.arrays import HEADS
from genrec_batch.model.weights import EPSILON, ModelConfig, parameter_shapes
from genrec_batch.training.rows import generator

Parameters = Mapping[str, Tensor]
Drop = Callable[[Tensor], Tensor]

TOKENS, OUTPUT_BIAS, OUTPUT = "token_embedding.weight", "output_projection.bias", "output_projection.weight"
LAYER = (
    "self_attn.in_proj_weight",
    "self_attn.in_proj_bias",
    *(
        f"{name}.{part}"
        for name in ("self_attn.out_proj", "norm1", "linear1", "linear2", "norm2")
        for part in ("weight", "bias")
    ),
)
EMBEDDING_DEVIATION = 0.02
NOISE = 3  # stream of random numbers


def initial(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Return seeded initial parameters, fp32, the same on every machine."""
    random = generator(seed, NOISE)
    made: dict[str, Tensor] = {}
    for name, shape in parameter_shapes(config).items():
        if name == OUTPUT:
            continue
        if ".norm" in name:
            array = np.full(shape, name.endswith("weight"), np.float32)
        elif name.endswith("bias"):
            array = np.zeros(shape, np.float32)
        elif "embedding" in name:
            array = random.standard_normal(shape, np.float32) * np.float32(EMBEDDING_DEVIATION)
        elif name.endswith("in_proj_weight"):
            array = _uniform(random, shape, (6 / sum(shape)) ** 0.5)
        else:
            array = _uniform(random, shape, shape[1] ** -0.5)
        made[name] = torch.from_numpy(array)
    return made


def _uniform(random: np.random.Generator, shape: tuple[int, ...], bound: float) -> Any:
    return (random.random(shape, np.float32) * 2 - 1) * np.float32(bound)


class Noise:
    """Dropout whose masks are the same for the same seed, epoch and batch; none for a share of 0."""

    def __init__(self, share: float, seed: int = 0, *stream: int) -> None:
        self.share = share
        self._below = round(share * 256)
        self._scale = 256 / (256 - self._below)
        self._sequence = np.random.SeedSequence([seed, NOISE, *stream])
        self._random = np.random.Generator(np.random.SFC64(self._sequence))

    def start(self, device: torch.device) -> None:
        """Begin: a GPU draws its masks itself, from a seed of this step."""
        if device.type == "cuda":
            torch.cuda.manual_seed(int(self._sequence.generate_state(1)[0]))

    def __call__(self, x: Tensor) -> Tensor:
        """Return x with a share of its entries set to 0, the others scaled up."""
        if not self._below:
            return x
        if x.device.type == "cuda":
            return functional.dropout(x, self.share)
        drawn = np.frombuffer(self._random.bytes(x.numel()), np.uint8)
        kept = torch.from_numpy((drawn >= self._below).reshape(x.shape))
        dropped: Tensor = _Drop.apply(x, kept, self._scale)  # type: ignore[no-untyped-call]
        return dropped


class _Drop(torch.autograd.Function):
    """x * kept * scale; keeps a byte an entry for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (x * kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return (gradients[0] * kept).mul_(ctx.scale), None, None


@dataclass(frozen=True, kw_only=True)
class Read:
    """What the network reads, as tensors; see `inputs.TrainingBatch`."""

    tokens_BS: Tensor
    rows_K: Tensor
    dense_KF: Tensor
    profile: tuple[Tensor, Tensor] | None
    video: tuple[Tensor, Tensor] | None
    wanted_W: Tensor  # positions whose hidden states are wanted


def hidden(
    weights: Parameters,
    config: ModelConfig,
    read: Read,
    dtype: torch.dtype,
    noise: Noise,
    layer: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Return the hidden states of the wanted positions, [W, D], fp32; `layer` is a compiled one for a GPU."""
    layer = layer or encoder_layer
    rows, count = read.tokens_BS.shape[0], read.tokens_BS.shape[1] + 1
    noise.start(read.tokens_BS.device)
    items = functional.embedding(read.tokens_BS, weights[TOKENS]) + weights["position_embedding.weight"][1:count]
    x = torch.cat([_prefix(weights, read, dtype)[:, None], items], 1)
    x = noise(x).reshape(rows * count, config.width)
    causal = torch.full((count, count), -torch.inf, dtype=dtype, device=x.device).triu_(1)
    for i in range(config.layers):
        own = [weights[f"encoder.layers.{i}.{name}"] for name in LAYER]
        x = layer(x, causal, rows, config.heads, dtype, noise, read.wanted_W if i == config.layers - 1 else None, *own)
    return x


def _prefix(weights: Parameters, read: Read, dtype: torch.dtype) -> Tensor:
    """Return position 0, [B, D]."""
    nothing = weights["feature_projection.bias"] + weights["position_embedding.weight"][0]
    own_KD = functional.linear(read.dense_KF.to(dtype), weights["feature_projection.weight"].to(dtype)).float()
    for name, vectors in (("user_profile_projection", read.profile), ("video_feature_projection", read.video)):
        if vectors is not None:
            product = _linear(vectors[0], weights[f"{name}.weight"], weights[f"{name}.bias"], dtype)
            own_KD = own_KD + product.float() * vectors[1][:, None]
    return nothing.expand(len(read.tokens_BS), -1).index_add(0, read.rows_K, own_KD)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    return functional.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))


def _attend(product: Tensor, rows: int, heads: int, causal: Tensor) -> Tensor:
    """[N, 3 D] -> [N, D]. On a CPU two batched products beat the fused kernel at these lengths."""
    count, width = len(causal), product.shape[1] // 3
    query, key, value = product.view(rows, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    if product.device.type != "cpu":
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        looks = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(2, 3)) + causal
        mixed = torch.matmul(torch.softmax(looks, -1), value)
    return mixed.transpose(1, 2).reshape(rows * count, width)


def encoder_layer(
    x: Tensor,
    causal: Tensor,
    rows: int,
    heads: int,
    dtype: torch.dtype,
    drop: Drop,
    wanted_W: Tensor | None,
    *weights: Tensor,
) -> Tensor:
    """Return a layer's output for all positions, or the wanted ones; `weights` are those of LAYER."""
    project, project_bias, out, out_bias, norm1, norm1_bias, up, up_bias, down, down_bias, norm2, norm2_bias = weights
    mixed = _attend(_linear(x, project, project_bias, dtype), rows, heads, causal)
    if wanted_W is not None:
        x, mixed = x.index_select(0, wanted_W), mixed.index_select(0, wanted_W)
    x = functional.layer_norm(x + drop(_linear(mixed, out, out_bias, dtype)), x.shape[-1:], norm1, norm1_bias, EPSILON)
    inner = torch.relu(_linear(x, up, up_bias, dtype))
    return functional.layer_norm(
        x + drop(_linear(inner, down, down_bias, dtype)), x.shape[-1:], norm2, norm2_bias, EPSILON
    )


def compiled_layer(share: float) -> Callable[..., Tensor]:
    """Return `encoder_layer` compiled for a GPU, with dropout of a share in place of its `drop`."""

    def dropped(x: Tensor) -> Tensor:
        return functional.dropout(x, share)

    def run(
        x: Tensor, causal: Tensor, rows: int, heads: int, dtype: torch.dtype, wanted_W: Tensor | None, *weights: Tensor
    ) -> Tensor:
        return encoder_layer(x, causal, rows, heads, dtype, dropped, wanted_W, *weights)

    compiled = torch.compile(run)

    def layer(x: Tensor, causal: Tensor, rows: int, heads: int, dtype: torch.dtype, _: Drop, *rest: Any) -> Tensor:
        made: Tensor = compiled(x, causal, rows, heads, dtype, *rest)
        return made

    return layer


def head_logits(weights: Parameters, hidden_WD: Tensor) -> Tensor:
    """Return the four heads' logits, [W, H], in the order of `arrays.HEADS`."""
    weight_HD = torch.cat([weights[f"{head}_head.weight"] for head in HEADS])
    return functional.linear(hidden_WD, weight_HD, torch.cat([weights[f"{head}_head.bias"] for head in HEADS]))
