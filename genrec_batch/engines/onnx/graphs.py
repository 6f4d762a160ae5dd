"""The model as ONNX graphs - prefill, decode, score, and two that move caches - from its sizes and weights alone.

Owns: which graphs there are, their inputs and outputs, and where each parameter enters. Must not know: sessions,
devices, files, torch. The parts of a transformer are in `graph_blocks`, with the shape legend.

Rows are left-aligned, so prefill needs no padding mask: a real position sees only positions before it. Behind a row's
last real position the prefix cache holds what padding gave; `lengths` masks that wherever the cache is read. Decode
reads a suffix cache with room for T items, of which the first `step` count, and returns the new item's column of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from genrec_batch.core.arrays import F32, HEADS
from genrec_batch.engines.onnx import layers as blocks
from genrec_batch.engines.onnx.layers import FLOAT, INT32, Dimension, Graph
from genrec_batch.model.weights import EPSILON, ModelConfig, Weights


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes to bake into a graph; None stays dynamic."""

    batch: int | None = None  # B, rows
    tokens: int | None = None  # S, tokens of the longest history
    banned: int | None = None  # X, tokens of a row that must not be chosen
    steps: int | None = None  # T, decoded items there is room for
    candidates: int | None = None  # C, candidates of a row
    choices: int | None = None  # K, items chosen per position; dynamic: an input of the graph
    items: int | None = None  # first token beyond the catalog; dynamic: an input of the graph

    def __getitem__(self, letter: str) -> Dimension:
        """Return the size that a letter of the legend stands for, the letter itself where it is dynamic."""
        if letter == "P":
            return "P" if self.tokens is None else self.tokens + 1
        fields = {"B": "batch", "S": "tokens", "X": "banned", "T": "steps", "C": "candidates", "K": "choices"}
        size = getattr(self, fields[letter])
        return letter if size is None else int(size)


DYNAMIC = Sizes()


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One encoder layer's parameters as (weight, bias); weights are [out, in]."""

    qkv: tuple[F32, F32]  # query, key and value stacked, 1 / sqrt(E) folded into the query's
    out: tuple[F32, F32]
    norm1: tuple[F32, F32]
    norm2: tuple[F32, F32]
    linear1: tuple[F32, F32]
    linear2: tuple[F32, F32]


def layer_weights(config: ModelConfig, weights: Weights, layer: int) -> LayerWeights:
    """Return the parameters of encoder layer `layer`, ready for a graph."""
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
    """Return the weight and bias of one module."""
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def cache_names(kind: str, config: ModelConfig) -> list[str]:
    """Return a cache's tensors, key and value of each layer; `kind` is prefix, suffix or column."""
    return [f"{kind}_{part}_{layer}" for layer in range(config.layers) for part in ("key", "value")]


def embed_prefix(g: Graph, config: ModelConfig, weights: Weights, sizes: Sizes) -> str:
    """Declare what is read and return the embedded positions, [B, P, D]: the dense prefix, then the tokens."""
    prefix_BD = blocks.linear(
        g, g.input("dense", [sizes["B"], config.features]), *affine(weights, "feature_projection")
    )
    for name, width, projection in (
        ("profile", config.profile, "user_profile_projection"),
        ("video", config.video, "video_feature_projection"),
    ):
        given_BD = blocks.linear(g, g.input(name, [sizes["B"], width]), *affine(weights, projection))
        prefix_BD = g.node("Add", prefix_BD, g.node("Mul", given_BD, g.input(f"has_{name}", [sizes["B"], 1])))
    positions_PD = weights["position_embedding.weight"]
    prefix_BD = g.node("Add", prefix_BD, g.constant(positions_PD[:1]))
    tokens_BS = g.input("tokens", [sizes["B"], sizes["S"]], INT32)
    if sizes.tokens is None:
        length_1 = g.size_of(tokens_BS, 1, "S")
        positions_SD = g.node("Slice", g.constant(positions_PD[1:]), g.sizes(0), length_1, g.sizes(0))
    else:
        positions_SD = g.constant(positions_PD[1 : 1 + sizes.tokens])
    table_VD = g.constant(weights["token_embedding.weight"])
    token_BSD = g.node("Add", g.node("Gather", table_VD, tokens_BS, axis=0), positions_SD)
    return g.node("Concat", g.reshape(prefix_BD, -1, 1, config.width), token_BSD, axis=1)


def unflatten(g: Graph, x_MD: str, like: str, length: Dimension, *tail: int) -> str:
    """Return rows [B * L, ..] as [B, L, *tail], where `like` [B, L, ..] says what L is unless it is baked."""
    if isinstance(length, int):
        return g.reshape(x_MD, -1, length, *tail)
    rows_2 = g.node("Slice", g.node("Shape", like), g.sizes(0), g.sizes(2), g.sizes(0))
    return g.node("Reshape", x_MD, g.join(rows_2, g.sizes(*tail)))


def split_heads(g: Graph, config: ModelConfig, x_MD: str, like: str, length: Dimension) -> str:
    """Return rows [B * L, D] as [B, A, L, E]."""
    x_BLAE = unflatten(g, x_MD, like, length, config.heads, config.head_size)
    return g.node("Transpose", x_BLAE, perm=[0, 2, 1, 3])


def after_attention(g: Graph, x_MD: str, context_MD: str, layer: LayerWeights) -> str:
    """Return the rest of a post-norm layer, [M, D]: out product, residual, norm, ReLU block, residual, norm."""
    attended_MD = blocks.linear(g, context_MD, *layer.out)
    x_MD = blocks.layer_norm(g, g.node("Add", x_MD, attended_MD), *layer.norm1, EPSILON)
    inner_MF = blocks.linear(g, x_MD, *layer.linear1, relu=True)
    read_MD = blocks.linear(g, inner_MF, *layer.linear2)
    return blocks.layer_norm(g, g.node("Add", x_MD, read_MD), *layer.norm2, EPSILON)


def task_heads(g: Graph, hidden_MD: str, weights: Weights, token: str) -> str:
    """Return the sigmoid of the four heads in fp32, [M, H]; 0 where token 0 was read."""
    weight_HD = np.concatenate([weights[f"{head}_head.weight"] for head in HEADS])
    bias_H = np.concatenate([weights[f"{head}_head.bias"] for head in HEADS])
    heads_MH = g.node("Sigmoid", g.cast(blocks.linear(g, hidden_MD, weight_HD, bias_H), FLOAT))
    is_item_M1 = g.cast(g.node("Min", g.reshape(token, -1, 1), g.constant(np.int32(1))), FLOAT)
    return g.node("Mul", heads_MH, is_item_M1)


def next_items(g: Graph, hidden_BD: str, weights: Weights, banned_BX: str, sizes: Sizes) -> None:
    """Add the logits of the next position and the outputs `next_tokens`, `next_log_prob` and `log_probs`."""
    logits_BV = blocks.linear(g, hidden_BD, *affine(weights, "output_projection"))
    tokens_BK, log_prob_BK, log_probs_BV = blocks.choose(g, logits_BV, banned_BX, sizes.choices, sizes.items)
    g.output(tokens_BK, "next_tokens", [sizes["B"], sizes["K"]], INT32)
    g.output(log_prob_BK, "next_log_prob", [sizes["B"], sizes["K"]], FLOAT)
    g.output(log_probs_BV, "log_probs", [sizes["B"], len(weights["output_projection.bias"])], FLOAT)


def prefill(config: ModelConfig, weights: Weights, *, precision: str, sizes: Sizes = DYNAMIC) -> onnx.ModelProto:
    """Return the graph that reads features and histories.

    Inputs: `dense` [B, F], `profile` [B, P'], `has_profile` [B, 1], `video` [B, V'], `has_video` [B, 1] in the graph's
    element type (0 or 1 where `has_`), `tokens` [B, S], `lengths` [B] and `banned` [B, X] int32; `choices` and `items`
    int64 [1] where not baked. Outputs: `prefix_key_i` and `prefix_value_i` [B, A, P, E] of each layer, `next_tokens`
    [B, K] int32, `next_log_prob` [B, K] and `log_probs` [B, vocabulary] fp32, as `graph_blocks.choose` says.

    The last layer computes keys and values for all positions and everything else for each row's last real one only.
    """
    g = Graph(precision)
    batch, length, width = sizes["B"], sizes["P"], config.width
    x_BPD = embed_prefix(g, config, weights, sizes)
    lengths_B = g.input("lengths", [batch], INT32)
    banned_BX = g.input("banned", [batch, sizes["X"]], INT32)
    length_1 = g.size_of(x_BPD, 1, length)
    mask = blocks.causal_mask(g, length, length_1, config.positions)
    x_MD = g.reshape(x_BPD, -1, width)
    for i in range(config.layers):
        layer = layer_weights(config, weights, i)
        qkv_weight, qkv_bias = layer.qkv
        if i < config.layers - 1:
            rows = g.nodes(
                "Split", blocks.linear(g, x_MD, *layer.qkv), g.sizes(width, width, width), outputs=3, axis=-1
            )
            query, key, value = (split_heads(g, config, x, x_BPD, length) for x in rows)
        else:
            kv_M2D = blocks.linear(g, x_MD, qkv_weight[width:], qkv_bias[width:])
            rows = g.nodes("Split", kv_M2D, g.sizes(width, width), outputs=2, axis=-1)
            key, value = (split_heads(g, config, x, x_BPD, length) for x in rows)
            x_MD = blocks.pick_position(g, unflatten(g, x_MD, x_BPD, length, width), lengths_B)  # M is B from here
            query_BD = blocks.linear(g, x_MD, qkv_weight[:width], qkv_bias[:width])
            query = g.reshape(query_BD, -1, config.heads, 1, config.head_size)
            key_P = blocks.counting(g, length, length_1, config.positions)
            mask = blocks.row_mask(g, key_P, g.node("Add", lengths_B, g.constant(np.int32(1))))
        for part, cache in (("key", key), ("value", value)):
            g.output(cache, f"prefix_{part}_{i}", [batch, config.heads, length, config.head_size])
        context_MD = blocks.merge_heads(g, blocks.self_attention(g, query, key, value, mask), width)
        x_MD = after_attention(g, x_MD, context_MD, layer)
    next_items(g, x_MD, weights, banned_BX, sizes)
    return g.model("prefill")


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A cache that decoded items attend to."""

    kind: str  # prefix or suffix
    length: Dimension  # L
    length_1: str  # L as int64 [1]
    mask: str  # additive, [B, 1, 1, L]


def declare_cache(g: Graph, config: ModelConfig, kind: str, batch: Dimension, length: Dimension) -> str:
    """Declare the inputs of a cache, [B, A, L, E] each, and return L as int64 [1]."""
    names = cache_names(kind, config)
    for name in names:
        g.input(name, [batch, config.heads, length, config.head_size])
    return g.size_of(names[0], 2, length)


def prefix_cache(g: Graph, config: ModelConfig, sizes: Sizes, lengths_B: str) -> Cache:
    """Declare the prefix cache; a row sees its dense prefix and its real tokens."""
    length_1 = declare_cache(g, config, "prefix", sizes["B"], sizes["P"])
    key_P = blocks.counting(g, sizes["P"], length_1, config.positions)
    mask = blocks.row_mask(g, key_P, g.node("Add", lengths_B, g.constant(np.int32(1))))
    return Cache(kind="prefix", length=sizes["P"], length_1=length_1, mask=mask)


def suffix_cache(g: Graph, config: ModelConfig, sizes: Sizes, step_1: str) -> Cache:
    """Declare the suffix cache; every row sees the items of the steps before this one."""
    length_1 = declare_cache(g, config, "suffix", sizes["B"], sizes["T"])
    key_T = blocks.counting(g, sizes["T"], length_1, config.positions)
    return Cache(kind="suffix", length=sizes["T"], length_1=length_1, mask=blocks.row_mask(g, key_T, step_1))


def read_items(
    g: Graph,
    config: ModelConfig,
    weights: Weights,
    items_BQ: str,
    count: Dimension,
    position_B: str,
    caches: list[Cache],
) -> tuple[str, list[tuple[str, str]]]:
    """Read items that do not see each other, all of a row at the same position.

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
        rows = g.nodes("Split", blocks.linear(g, x_MD, *layer.qkv), g.sizes(width, width, width), outputs=3, axis=-1)
        query, key, value = (split_heads(g, config, x, x_BQD, count) for x in rows)
        columns.append((key, value))
        seen = [(f"{cache.kind}_key_{i}", f"{cache.kind}_value_{i}", cache.mask) for cache in caches]
        context = blocks.cached_attention(g, query, (key, value), seen, [cache.length_1 for cache in caches])
        x_MD = after_attention(g, x_MD, blocks.merge_heads(g, context, width), layer)
    return x_MD, columns


def decode(config: ModelConfig, weights: Weights, *, precision: str, sizes: Sizes = DYNAMIC) -> onnx.ModelProto:
    """Return the graph that reads one item per row and chooses the next.

    Inputs: `token` [B, 1], `lengths` [B], `step` [1] (items read before this one), `banned` [B, X] and `read` [B, T]
    int32 (0 where nothing was read yet), `prefix_*_i` [B, A, P, E], `suffix_*_i` [B, A, T, E], whose columns from
    `step` on may hold any finite number; `choices` and `items` int64 [1] where not baked. Outputs: `heads` [B, H] fp32,
    `read_next` [B, T] (with this item), `column_*_i` [B, A, 1, E] (this item's place in the suffix cache), and
    `next_tokens`, `next_log_prob`, `log_probs` as in prefill; what was read cannot be chosen.
    """
    g = Graph(precision)
    batch = sizes["B"]
    token_B1 = g.input("token", [batch, 1], INT32)
    lengths_B, step_1 = g.input("lengths", [batch], INT32), g.input("step", [1], INT32)
    banned_BX = g.input("banned", [batch, sizes["X"]], INT32)
    read_BT = g.input("read", [batch, sizes["T"]], INT32)
    caches = [prefix_cache(g, config, sizes, lengths_B), suffix_cache(g, config, sizes, step_1)]
    position_B = g.node("Add", g.node("Add", lengths_B, g.constant(np.int32(1))), step_1)
    hidden_BD, columns = read_items(g, config, weights, token_B1, 1, position_B, caches)
    for i, parts in enumerate(columns):
        for part, column in zip(("key", "value"), parts, strict=True):
            g.output(column, f"column_{part}_{i}", [batch, config.heads, 1, config.head_size])
    step_T = blocks.counting(g, sizes["T"], caches[1].length_1, config.positions)
    read_BT = g.node("Where", g.node("Equal", step_T, step_1), token_B1, read_BT)
    next_items(g, hidden_BD, weights, g.node("Concat", banned_BX, read_BT, axis=1), sizes)
    g.output(read_BT, "read_next", [batch, sizes["T"]], INT32)
    g.output(task_heads(g, hidden_BD, weights, token_B1), "heads", [batch, len(HEADS)], FLOAT)
    return g.model("decode")


def score(config: ModelConfig, weights: Weights, *, precision: str, sizes: Sizes = DYNAMIC) -> onnx.ModelProto:
    """Return the graph that reads candidates, each alone right after the history.

    Inputs: `candidates` [B, C], `lengths` [B] int32, `prefix_*_i` [B, A, P, E]. Output: `heads` [B, C, H] fp32.
    """
    g = Graph(precision)
    candidates_BC = g.input("candidates", [sizes["B"], sizes["C"]], INT32)
    lengths_B = g.input("lengths", [sizes["B"]], INT32)
    caches = [prefix_cache(g, config, sizes, lengths_B)]
    position_B = g.node("Add", lengths_B, g.constant(np.int32(1)))
    hidden_MD, _ = read_items(g, config, weights, candidates_BC, sizes["C"], position_B, caches)
    heads_MH = task_heads(g, hidden_MD, weights, candidates_BC)
    heads_BCH = unflatten(g, heads_MH, candidates_BC, sizes["C"], len(HEADS))
    g.output(heads_BCH, "heads", [sizes["B"], sizes["C"], len(HEADS)], FLOAT)
    return g.model("score")


def select(kind: int, rank: int) -> onnx.ModelProto:
    """Return the graph that takes rows of one tensor: `values` [B, ..] and `rows` [R] int32 give `selected` [R, ..].

    Args:
        kind: ONNX element type of the tensor.
        rank: its number of dimensions.
    """
    g = Graph("fp32")
    tail: list[Dimension] = [f"axis_{axis}" for axis in range(1, rank)]
    values, rows_R = g.input("values", ["B", *tail], kind), g.input("rows", ["R"], INT32)
    g.output(g.node("Gather", values, rows_R, axis=0), "selected", ["R", *tail], kind)
    return g.model("select")


def append(config: ModelConfig, *, precision: str) -> onnx.ModelProto:
    """Return the graph that puts an item's columns into the suffix cache, for devices where nothing writes in place.

    Inputs: `step` [1] int32, `suffix_*_i` [B, A, T, E], `column_*_i` [B, A, 1, E]. Outputs: `appended_*_i`, the suffix
    cache with the column at `step`.
    """
    g = Graph(precision)
    shape: list[Dimension] = ["B", config.heads, "T", config.head_size]
    step_1 = g.input("step", [1], INT32)
    length_1 = declare_cache(g, config, "suffix", "B", "T")
    step_T1 = g.reshape(blocks.counting(g, "T", length_1, config.positions), -1, 1)
    here_T1 = g.node("Equal", step_T1, step_1)
    for suffix, name in zip(cache_names("suffix", config), cache_names("appended", config), strict=True):
        column = g.input(suffix.replace("suffix", "column"), ["B", config.heads, 1, config.head_size])
        g.output(g.node("Where", here_T1, column, suffix), name, shape)
    return g.model("append")


def build(name: str, config: ModelConfig, weights: Weights, *, precision: str) -> onnx.ModelProto:
    """Return a graph with dynamic sizes by name: prefill, decode, score, append, or `select KIND RANK`."""
    if name.startswith("select "):
        _, kind, rank = name.split()
        return select(int(kind), int(rank))
    if name == "append":
        return append(config, precision=precision)
    return {"prefill": prefill, "decode": decode, "score": score}[name](config, weights, precision=precision)
