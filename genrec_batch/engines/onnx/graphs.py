"""The model as ONNX graphs - prefill, decode, score, and three without weights - from its sizes and weights alone.

Owns: which graphs there are, their inputs and outputs, and where each parameter enters. Must not know: sessions,
devices, files, torch. The layers and the shape legend are in `layers`. All sizes are dynamic.

Rows are left-aligned, so prefill needs no padding mask: a real position sees only positions before it. Behind a row's
last real position the prefix cache holds what padding gave; `lengths` masks that wherever the cache is read. Decode
reads a suffix cache with room for T items, of which the first `step` count, and returns the new item's column of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from genrec_batch.core.arrays import HEADS
from genrec_batch.engines.layer_weights import LayerWeights, affine, head_weights, layer_weights
from genrec_batch.engines.onnx import layers
from genrec_batch.engines.onnx.layers import (
    best_open,
    cached_attention,
    causal_mask,
    counting,
    layer_norm,
    linear,
    masked,
    merge_heads,
    pick_position,
    row_mask,
    self_attention,
)
from genrec_batch.engines.onnx_graph import FLOAT, INT32, UINT8, Dimension, OnnxGraph
from genrec_batch.model.weights import EPSILON, ModelConfig, Weights


def cache_names(kind: str, config: ModelConfig) -> list[str]:
    """Return a cache's tensors, key and value of each layer; `kind` is prefix, suffix, column or appended."""
    return [f"{kind}_{part}_{layer}" for layer in range(config.layers) for part in ("key", "value")]


def embed_prefix(g: OnnxGraph, config: ModelConfig, weights: Weights) -> str:
    """Declare features, vectors and tokens; return the embedded positions, [B, P, D]: dense prefix, then tokens."""
    prefix_BD = linear(g, g.input("dense", ["B", config.features]), *affine(weights, "feature_projection"))
    for name, width, projection in (
        ("profile", config.profile, "user_profile_projection"),
        ("video", config.video, "video_feature_projection"),
    ):
        given_BD = linear(g, g.input(name, ["B", width]), *affine(weights, projection))
        prefix_BD = g.node("Add", prefix_BD, g.node("Mul", given_BD, g.input(f"has_{name}", ["B", 1])))
    positions_PD = weights["position_embedding.weight"]
    prefix_BD = g.node("Add", prefix_BD, g.constant(positions_PD[:1]))
    tokens_BS = g.input("tokens", ["B", "S"], INT32)
    length_1 = g.size_of(tokens_BS, 1)
    positions_SD = g.node("Slice", g.constant(positions_PD[1:]), g.sizes(0), length_1, g.sizes(0))
    table_VD = g.constant(weights["token_embedding.weight"])
    token_BSD = g.node("Add", g.node("Gather", table_VD, tokens_BS, axis=0), positions_SD)
    return g.node("Concat", g.reshape(prefix_BD, -1, 1, config.width), token_BSD, axis=1)


def unflatten(g: OnnxGraph, x_MD: str, like: str, *tail: int) -> str:
    """Return rows [B * L, ..] as [B, L, *tail]; `like` [B, L, ..] has the sizes B and L."""
    rows_2 = g.node("Slice", g.node("Shape", like), g.sizes(0), g.sizes(2), g.sizes(0))
    return g.node("Reshape", x_MD, g.node("Concat", rows_2, g.sizes(*tail), axis=0))


def split_heads(g: OnnxGraph, config: ModelConfig, x_MD: str, like: str | None) -> str:
    """Return rows [B * L, D] as [B, A, L, E]; `like` [B, L, ..] has the sizes B and L, None means that L is 1."""
    by_head = (config.heads, config.head_size)
    x_BLAE = g.reshape(x_MD, -1, 1, *by_head) if like is None else unflatten(g, x_MD, like, *by_head)
    return g.transpose(x_BLAE, 0, 2, 1, 3)


def after_attention(g: OnnxGraph, x_MD: str, context_MD: str, layer: LayerWeights) -> str:
    """Return the rest of a post-norm layer, [M, D]: out product, residual, norm, two products, residual, norm."""
    attended_MD = linear(g, context_MD, *layer.out)
    x_MD = layer_norm(g, g.node("Add", x_MD, attended_MD), *layer.norm1, EPSILON)
    inner_MF = linear(g, x_MD, *layer.linear1, relu=True)
    read_MD = linear(g, inner_MF, *layer.linear2)
    return layer_norm(g, g.node("Add", x_MD, read_MD), *layer.norm2, EPSILON)


def task_heads(g: OnnxGraph, hidden_MD: str, weights: Weights, token: str) -> str:
    """Return the sigmoid of the heads in fp32, [M, H]; 0 where token 0 was read."""
    heads_MH = g.node("Sigmoid", g.cast(linear(g, hidden_MD, *head_weights(weights)), FLOAT))
    is_item_M1 = g.cast(g.node("Min", g.reshape(token, -1, 1), g.constant(np.int32(1))), FLOAT)
    return g.node("Mul", heads_MH, is_item_M1)


def next_items(g: OnnxGraph, hidden_BD: str, weights: Weights, banned_BX: str) -> None:
    """Add the logits of the next position and the outputs `next_tokens`, `next_log_prob` and `log_probs`."""
    logits_BV = linear(g, hidden_BD, *affine(weights, "output_projection"))
    tokens_BK, log_prob_BK, log_probs_BV = layers.choose(g, logits_BV, banned_BX)
    g.output(tokens_BK, "next_tokens", ["B", "K"], INT32)
    g.output(log_prob_BK, "next_log_prob", ["B", "K"], FLOAT)
    g.output(log_probs_BV, "log_probs", ["B", len(weights["output_projection.bias"])], FLOAT)


def prefill(config: ModelConfig, weights: Weights, *, precision: str) -> onnx.ModelProto:
    """Return the graph that reads features and histories.

    Inputs: `dense` [B, F], `profile` [B, P'], `has_profile` [B, 1], `video` [B, V'], `has_video` [B, 1] in the graph's
    element type (0 or 1 where `has_`), `tokens` [B, S], `lengths` [B] and `banned` [B, X] int32; `choices` and `items`
    int64 [1]. Outputs: `prefix_key_i` and `prefix_value_i` [B, A, P, E] of each layer, `next_tokens` [B, K] int32,
    `next_log_prob` [B, K] and `log_probs` [B, vocabulary] fp32, as described at `layers.choose`.

    The last layer computes keys and values for all positions and everything else for each row's last real one only.
    """
    g, width = OnnxGraph(precision), config.width
    x_BPD = embed_prefix(g, config, weights)
    lengths_B = g.input("lengths", ["B"], INT32)
    banned_BX = g.input("banned", ["B", "X"], INT32)
    length_1 = g.size_of(x_BPD, 1)
    mask = causal_mask(g, length_1, config.positions)
    x_MD = g.reshape(x_BPD, -1, width)
    for i in range(config.layers):
        layer = layer_weights(config, weights, i)
        qkv_weight, qkv_bias = layer.qkv
        if i < config.layers - 1:
            rows = g.split(linear(g, x_MD, *layer.qkv), width, width, width)
            query, key, value = (split_heads(g, config, x, x_BPD) for x in rows)
        else:
            rows = g.split(linear(g, x_MD, qkv_weight[width:], qkv_bias[width:]), width, width)
            key, value = (split_heads(g, config, x, x_BPD) for x in rows)
            x_MD = pick_position(g, unflatten(g, x_MD, x_BPD, width), lengths_B)  # M is B from here on
            query_BD = linear(g, x_MD, qkv_weight[:width], qkv_bias[:width])
            query = g.reshape(query_BD, -1, config.heads, 1, config.head_size)
            key_P = counting(g, length_1, config.positions)
            mask = row_mask(g, key_P, g.node("Add", lengths_B, g.constant(np.int32(1))))
        for part, cache in (("key", key), ("value", value)):
            g.output(cache, f"prefix_{part}_{i}", ["B", config.heads, "P", config.head_size])
        context_MD = merge_heads(g, self_attention(g, query, key, value, mask), width)
        x_MD = after_attention(g, x_MD, context_MD, layer)
    next_items(g, x_MD, weights, banned_BX)
    return g.model("prefill")


@dataclass(frozen=True, kw_only=True)
class CacheInputs:
    """A cache that decoded items attend to."""

    kind: str  # prefix or suffix
    length_1: str  # L as int64 [1]
    mask: str  # additive, [B, 1, 1, L]


def declare_cache(g: OnnxGraph, config: ModelConfig, kind: str, length: Dimension) -> str:
    """Declare the inputs of a cache, [B, A, L, E] each, and return L as int64 [1]."""
    names = cache_names(kind, config)
    for name in names:
        g.input(name, ["B", config.heads, length, config.head_size])
    return g.size_of(names[0], 2)


def prefix_cache(g: OnnxGraph, config: ModelConfig, lengths_B: str) -> CacheInputs:
    """Declare the prefix cache; a row sees its dense prefix and its real tokens."""
    length_1 = declare_cache(g, config, "prefix", "P")
    key_P = counting(g, length_1, config.positions)
    mask = row_mask(g, key_P, g.node("Add", lengths_B, g.constant(np.int32(1))))
    return CacheInputs(kind="prefix", length_1=length_1, mask=mask)


def suffix_cache(g: OnnxGraph, config: ModelConfig, step_1: str) -> CacheInputs:
    """Declare the suffix cache; every row sees the items of the steps before this one."""
    length_1 = declare_cache(g, config, "suffix", "T")
    key_T = counting(g, length_1, config.positions)
    return CacheInputs(kind="suffix", length_1=length_1, mask=row_mask(g, key_T, step_1))


def read_items(
    g: OnnxGraph,
    config: ModelConfig,
    weights: Weights,
    items_BQ: str,
    position_B: str,
    caches: list[CacheInputs],
    *,
    single: bool = False,
) -> tuple[str, list[tuple[str, str]]]:
    """Read items that do not see each other, all of a row at the same position; `single` means that Q is 1.

    Returns:
        The hidden states [B * Q, D], and each layer's key and value of the items, [B, A, Q, E].
    """
    table_VD, table_PD = g.constant(weights["token_embedding.weight"]), g.constant(weights["position_embedding.weight"])
    position_B1D = g.node("Unsqueeze", g.node("Gather", table_PD, position_B, axis=0), g.sizes(1))
    x_BQD = g.node("Add", g.node("Gather", table_VD, items_BQ, axis=0), position_B1D)
    x_MD, width = g.reshape(x_BQD, -1, config.width), config.width
    columns = []
    for i in range(config.layers):
        layer = layer_weights(config, weights, i)
        rows = g.split(linear(g, x_MD, *layer.qkv), width, width, width)
        query, key, value = (split_heads(g, config, x, None if single else x_BQD) for x in rows)
        columns.append((key, value))
        seen = [(f"{cache.kind}_key_{i}", f"{cache.kind}_value_{i}", cache.mask) for cache in caches]
        context = cached_attention(g, query, (key, value), seen, [cache.length_1 for cache in caches])
        x_MD = after_attention(g, x_MD, merge_heads(g, context, width), layer)
    return x_MD, columns


def decode(config: ModelConfig, weights: Weights, *, precision: str) -> onnx.ModelProto:
    """Return the graph that reads one item per row and chooses the next.

    Inputs: `token` [B, 1], `lengths` [B], `step` [1] (items read before this one), `banned` [B, X] and `read` [B, T]
    int32 (0 where nothing was read yet), `prefix_*_i` [B, A, P, E], `suffix_*_i` [B, A, T, E], whose columns from
    `step` on may hold any finite number; `choices` and `items` int64 [1]. Outputs: `heads` [B, H] fp32, `read_next`
    [B, T] (with this item), `column_*_i` [B, A, 1, E] (this item's place in the suffix cache), and `next_tokens`,
    `next_log_prob`, `log_probs` as in prefill; what was read cannot be chosen.
    """
    g = OnnxGraph(precision)
    token_B1 = g.input("token", ["B", 1], INT32)
    lengths_B, step_1 = g.input("lengths", ["B"], INT32), g.input("step", [1], INT32)
    banned_BX, read_BT = g.input("banned", ["B", "X"], INT32), g.input("read", ["B", "T"], INT32)
    caches = [prefix_cache(g, config, lengths_B), suffix_cache(g, config, step_1)]
    position_B = g.node("Add", g.node("Add", lengths_B, g.constant(np.int32(1))), step_1)
    hidden_BD, columns = read_items(g, config, weights, token_B1, position_B, caches, single=True)
    for i, parts in enumerate(columns):
        for part, column in zip(("key", "value"), parts, strict=True):
            g.output(column, f"column_{part}_{i}", ["B", config.heads, 1, config.head_size])
    step_T = counting(g, caches[1].length_1, config.positions)
    read_BT = g.node("Where", g.node("Equal", step_T, step_1), token_B1, read_BT)
    next_items(g, hidden_BD, weights, g.node("Concat", banned_BX, read_BT, axis=1))
    g.output(read_BT, "read_next", ["B", "T"], INT32)
    g.output(task_heads(g, hidden_BD, weights, token_B1), "heads", ["B", len(HEADS)], FLOAT)
    return g.model("decode")


def score(config: ModelConfig, weights: Weights, *, precision: str) -> onnx.ModelProto:
    """Return the graph that reads candidates, each alone right after the history.

    Inputs: `candidates` [B, C], `lengths` [B] int32, `prefix_*_i` [B, A, P, E]. Output: `heads` [B, C, H] fp32.
    """
    g = OnnxGraph(precision)
    candidates_BC = g.input("candidates", ["B", "C"], INT32)
    lengths_B = g.input("lengths", ["B"], INT32)
    caches = [prefix_cache(g, config, lengths_B)]
    position_B = g.node("Add", lengths_B, g.constant(np.int32(1)))
    hidden_MD, _ = read_items(g, config, weights, candidates_BC, position_B, caches)
    heads_BCH = unflatten(g, task_heads(g, hidden_MD, weights, candidates_BC), candidates_BC, len(HEADS))
    g.output(heads_BCH, "heads", ["B", "C", len(HEADS)], FLOAT)
    return g.model("score")


def select(kind: int, rank: int) -> onnx.ModelProto:
    """Return the graph that takes rows of one tensor: `values` [B, ..] and `rows` [R] int32 give `selected` [R, ..].

    Args:
        kind: ONNX element type of the tensor.
        rank: its number of dimensions.
    """
    g = OnnxGraph("fp32")
    tail: list[Dimension] = [f"axis_{axis}" for axis in range(1, rank)]
    values, rows_R = g.input("values", ["B", *tail], kind), g.input("rows", ["R"], INT32)
    g.output(g.node("Gather", values, rows_R, axis=0), "selected", ["R", *tail], kind)
    return g.model("select")


def choose(config: ModelConfig) -> onnx.ModelProto:
    """Return the graph that chooses the next items where there are masks, from the `log_probs` of prefill or decode.

    It has no weights, so that prefill and decode are the same with masks and without, and so is an export. Inputs:
    `log_probs` [B, vocabulary] fp32, `banned` [B, X] and `read` [B, T] as in decode, `masks` [M, vocabulary / 8] uint8
    (bit t % 8 of byte t // 8 is 1 where token t must not be chosen), `mask` [B] int32 (the one that a row obeys),
    `choices` and `items`.
    Outputs: `next_tokens` and `next_log_prob` as in prefill.
    """
    g = OnnxGraph("fp32")
    log_probs_BV = g.input("log_probs", ["B", config.vocabulary], FLOAT)
    taken = [g.input(name, ["B", width], INT32) for name, width in (("banned", "X"), ("read", "T"))]
    bytes_MC, mask_B = g.input("masks", ["M", -(-config.vocabulary // 8)], UINT8), g.input("mask", ["B"], INT32)
    open_BV = masked(g, log_probs_BV, bytes_MC, mask_B, config.vocabulary)
    tokens_BK, log_prob_BK = best_open(g, open_BV, g.node("Concat", *taken, axis=1))
    g.output(tokens_BK, "next_tokens", ["B", "K"], INT32)
    g.output(log_prob_BK, "next_log_prob", ["B", "K"], FLOAT)
    return g.model("choose")


def append(config: ModelConfig, *, precision: str) -> onnx.ModelProto:
    """Return the graph that puts an item's columns into the suffix cache, for devices where nothing writes in place.

    Inputs: `step` [1] int32, `suffix_*_i` [B, A, T, E], `column_*_i` [B, A, 1, E]. Outputs: `appended_*_i`, the suffix
    cache with the column at `step`.
    """
    g = OnnxGraph(precision)
    shape: list[Dimension] = ["B", config.heads, "T", config.head_size]
    step_1 = g.input("step", [1], INT32)
    length_1 = declare_cache(g, config, "suffix", "T")
    step_T1 = g.reshape(counting(g, length_1, config.positions), -1, 1)
    here_T1 = g.node("Equal", step_T1, step_1)
    for suffix, name in zip(cache_names("suffix", config), cache_names("appended", config), strict=True):
        column = g.input(suffix.replace("suffix", "column"), ["B", config.heads, 1, config.head_size])
        g.output(g.node("Where", here_T1, column, suffix), name, shape)
    return g.model("append")


def build(name: str, config: ModelConfig, weights: Weights, *, precision: str) -> onnx.ModelProto:
    """Return a graph by name: prefill, decode, score, choose, append, or `select KIND RANK`."""
    if name.startswith("select "):
        _, kind, rank = name.split()
        return select(int(kind), int(rank))
    if name == "choose":
        return choose(config)
    if name == "append":
        return append(config, precision=precision)
    return {"prefill": prefill, "decode": decode, "score": score}[name](config, weights, precision=precision)
