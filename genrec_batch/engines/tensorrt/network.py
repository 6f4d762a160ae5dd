"""The weights and static sizes that the ONNX graphs for TensorRT are made from.

Owns: sizes of inputs and caches, the layers of each engine, the weights of the first product. Must not know: how a
layer is written in ONNX, TensorRT, CUDA, files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genrec_batch.core.arrays import F32, MASK_BITS
from genrec_batch.engines.layer_weights import LayerWeights, layer_weights
from genrec_batch.engines.onnx_graph import OnnxGraph
from genrec_batch.engines.tensorrt.plugin import DEPTH
from genrec_batch.model.weights import ModelConfig, Weights


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The static sizes of one set of engines."""

    rows: int  # B, users
    positions: int  # S, prefix and tokens
    seen: int  # X, banned items per user; padding and unknown take two
    steps: int  # T, items that can be read
    profile: bool = False  # the run has user profiles
    video: bool = False  # the run has video vectors
    packed: int = 0  # N, places of rows packed end to end (plugin only); 0: every row has S places of its own
    masked: bool = False  # batches have masks: a bit map of what must not be chosen for each row, or one for many rows

    @property
    def places(self) -> int:
        """Return N, the positions that a prefill computes."""
        return self.packed or self.rows * self.positions


@dataclass(frozen=True, kw_only=True)
class TensorRtNetwork:
    """The weights and the variant that every graph is made from."""

    config: ModelConfig
    weights: Weights
    tokens: int  # the first that is in no catalog; from here on items count in log_prob and are never chosen
    precision: str
    plugin: bool
    segment_layers: int = 0  # of one engine; 0: all layers

    def segments(self) -> list[range]:
        """Return the layers of each engine, first to last; the output of one engine is the input of the next."""
        size, layers = self.segment_layers or self.config.layers, self.config.layers
        return [range(start, min(start + size, layers)) for start in range(0, layers, size)]

    def titles(self, name: str) -> list[str]:
        """Return the names of the engines that prefill or decode consists of."""
        count = len(self.segments())
        return [name] if count == 1 else [f"{name}_{number}" for number in range(count)]

    def layer(self, index: int) -> LayerWeights:
        """Return the weights of an encoder layer."""
        return layer_weights(self.config, self.weights, index)

    def graph(self) -> OnnxGraph:
        """Return an empty graph of this precision."""
        return OnnxGraph(self.precision)


def mask_words(config: ModelConfig) -> int:
    """Return W, the words of a bit map over the vocabulary."""
    return -(-config.vocabulary // MASK_BITS)


def feature_columns(config: ModelConfig, shape: Shape) -> int:
    """Return the width of the `features` input: features | profile, has | video, has, padded to a multiple of 64."""
    count = config.features + (config.profile + 1) * shape.profile + (config.video + 1) * shape.video
    return -(-count // DEPTH) * DEPTH


def prefix_product(network: TensorRtNetwork, shape: Shape) -> tuple[F32, F32]:
    """Return weight [D, columns] and bias [D] of position 0. A row without a profile gets neither product nor bias.

    The biases of the optional projections are columns of the weight, multiplied by the input's 0 or 1.
    """
    parts = [network.weights["feature_projection.weight"]]
    for wanted, name in ((shape.profile, "user_profile_projection"), (shape.video, "video_feature_projection")):
        if wanted:
            parts += [network.weights[f"{name}.weight"], network.weights[f"{name}.bias"][:, None]]
    weight = np.concatenate(parts, axis=1)
    spare = feature_columns(network.config, shape) - weight.shape[1]
    return np.pad(weight, ((0, 0), (0, spare))), network.weights["feature_projection.bias"]


def cache_shapes(network: TensorRtNetwork, shape: Shape) -> dict[str, list[int]]:
    """Return the caches that prefill writes: per layer one [N, 3D] with the plugin, else two of [B, H, S, HD]."""
    config, layers = network.config, range(network.config.layers)
    if network.plugin:
        return {f"cache_{index}": [shape.places, 3 * config.width] for index in layers}
    by_head = [shape.rows, config.heads, shape.positions, config.head_size]
    return {f"{name}_{index}": by_head for index in layers for name in ("keys", "values")}
