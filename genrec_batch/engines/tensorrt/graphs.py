"""The ONNX graphs that TensorRT builds engines from, in the formulations that measured fastest on a Hopper GPU.

Owns: the order of the layers and the names and shapes of every engine's inputs and outputs. Must not know: TensorRT,
CUDA, files. In: `ModelConfig`, weights, static sizes. Out: serialized ONNX. All sizes are static: a dynamic batch costs
up to five times the time on 8.6.

The network comes in two variants with the same names. Plain ONNX runs anywhere; with `plugin`, products, attention,
residual + LayerNorm, embedding and the choice of the item are the kernels of `plugin/`, which read the packed product
of q, k and v as the cache. One decode step reads the caches, `recent_<layer>` (what earlier steps wrote) and `step`; it
writes `fresh_<layer>`, which the caller binds to the right row of `recent_<layer>`, so no cache is ever copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec_batch.core.arrays import HEADS
from genrec_batch.engines.layer_weights import affine, head_weights
from genrec_batch.engines.onnx_graph import FLOAT, INT32, OnnxGraph
from genrec_batch.engines.tensorrt import layers
from genrec_batch.engines.tensorrt.layers import kernel, linear, residual_norm
from genrec_batch.engines.tensorrt.network import (
    Shape,
    TensorRtNetwork,
    cache_shapes,
    feature_columns,
    mask_words,
    prefix_product,
)


def prefill(network: TensorRtNetwork, shape: Shape, segment: int = 0) -> bytes:
    """Return the graph that reads features and histories.

    Inputs: features [B, columns] in fp32, tokens [B, S-1], lengths [B], seen [B, X]; with the plugin also starts [B],
    where each row's positions begin, and seen_width [1], the columns of `seen`; of a masked shape also masks [B, W],
    bit maps of what must not be chosen, and mask [B], which of them a row obeys. Outputs: hidden [B, D],
    next_token [B], next_log_prob [B, 1], and the caches: cache_<layer> [N, 3D] with the plugin, else keys_<layer> and
    values_<layer> [B, H, S, HD]. Between segments: left_<segment> [N, D].
    """
    config, graph, indices = network.config, network.graph(), network.segments()[segment]
    rows, positions = shape.rows, shape.positions
    if segment == 0:
        columns = feature_columns(config, shape)
        features = graph.cast(graph.input("features", [rows, columns], FLOAT), graph.element)
        tokens = graph.input("tokens", [rows, positions - 1], INT32)
    final = indices[-1] == config.layers - 1
    where = _where(network, graph, shape) if final or network.plugin else []
    if segment == 0:
        x = _embed_history(network, graph, shape, features, tokens, where)
    else:
        x = graph.input(f"left_{segment - 1}", [shape.places, config.width])
    for index in indices[:-1] if final else indices:
        x = _full_layer(network, graph, shape, index, x, where)
    if not final:
        graph.output(graph.node("Identity", x), f"left_{segment}", [shape.places, config.width])
        return graph.serialized("prefill")
    x = _last_layer(network, graph, shape, x, where)
    graph.output(graph.node("Identity", x), "hidden", [rows, config.width])
    _choose_item(network, graph, shape, x, None)
    return graph.serialized("prefill")


def decode(network: TensorRtNetwork, shape: Shape, segment: int = 0) -> bytes:
    """Return the graph that reads one item per row.

    Inputs: token [B], lengths [B], step [1] (0 for the first item), read [T+1, B] (the items; rows up to `step` count),
    seen, masks and mask as in prefill, recent_<layer> [T, B, 3D] (rows before `step` count), prefill's caches. Outputs:
    fresh_<layer> [B, 3D], heads [B, task heads], hidden, next_token, next_log_prob as in prefill. Between segments:
    passed_<segment> [B, D].
    """
    config, graph, indices = network.config, network.graph(), network.segments()[segment]
    rows, width = shape.rows, config.width
    where, step = _where(network, graph, shape), graph.input("step", [1], INT32)
    if segment == 0:
        x = _embed_item(network, graph, graph.input("token", [rows], INT32), where[0], step)
    else:
        x = graph.input(f"passed_{segment - 1}", [rows, width])
    masks = [] if network.plugin else _decode_masks(graph, shape, where[0], step)
    for index in indices:
        fresh = linear(graph, x, *network.layer(index).qkv, plugin=network.plugin)
        graph.output(fresh, f"fresh_{index}", [rows, 3 * width])
        caches = cache_inputs(network, graph, shape, index)
        recent = graph.input(f"recent_{index}", [shape.steps, rows, 3 * width])
        if network.plugin:
            inputs = (fresh, *caches, recent, *where, step)
            context = kernel(graph, "decode_attention", *inputs, positions=shape.positions)[0]
        else:
            context = _cached_attention(network, graph, shape, fresh, caches, recent, masks)
        x = after_attention(network, graph, index, x, context)
    if indices[-1] < config.layers - 1:
        graph.output(graph.node("Identity", x), f"passed_{segment}", [rows, width])
        return graph.serialized("decode")
    read = graph.input("read", [shape.steps + 1, rows], INT32)
    graph.output(graph.node("Identity", x), "hidden", [rows, width])
    _choose_item(network, graph, shape, x, (read, step))
    return graph.serialized("decode")


def _where(network: TensorRtNetwork, graph: OnnxGraph, shape: Shape) -> list[str]:
    """Declare the lengths [B] of rows and, for the kernels, their starts [B]."""
    names = ("lengths", "starts") if network.plugin else ("lengths",)
    return [graph.input(name, [shape.rows], INT32) for name in names]


def _embed_history(
    network: TensorRtNetwork, graph: OnnxGraph, shape: Shape, features: str, tokens: str, where: Sequence[str]
) -> str:
    weight, bias = prefix_product(network, shape)
    places = network.weights["position_embedding.weight"][: shape.positions]
    table = graph.constant(network.weights["token_embedding.weight"])
    rows, width = shape.rows, network.config.width
    if network.plugin:
        lengths, starts = where
        inputs = (tokens, linear(graph, features, weight, bias, plugin=True), starts, lengths, table)
        positions = graph.constant(places)
        return kernel(graph, "embed_history", *inputs, positions, places=shape.places, fill=_fill(shape))[0]
    prefix = graph.reshape(linear(graph, features, weight, bias + places[0], plugin=False), rows, 1, width)
    items = graph.node("Add", graph.node("Gather", table, tokens, axis=0), graph.constant(places[None, 1:]))
    return graph.reshape(graph.node("Concat", prefix, items, axis=1), rows * shape.positions, width)


def _fill(shape: Shape) -> int:
    """Return 1 where the kernels write the places past a history: side graphs mask them, but NaN stays NaN."""
    return int(not shape.packed)


def _embed_item(network: TensorRtNetwork, graph: OnnxGraph, token: str, lengths: str, step: str) -> str:
    table = graph.constant(network.weights["token_embedding.weight"])
    places = network.weights["position_embedding.weight"]
    if network.plugin:
        return kernel(graph, "embed_item", token, lengths, step, table, graph.constant(places))[0]
    position = graph.node("Add", lengths, step)  # the table starts at 1: position 0 is the prefix
    place = graph.node("Gather", graph.constant(places[1:]), position, axis=0)
    return graph.node("Add", graph.node("Gather", table, token, axis=0), place)


def after_attention(network: TensorRtNetwork, graph: OnnxGraph, index: int, x: str, context: str) -> str:
    """Add the output projection and the feed-forward network, each with its residual and LayerNorm (post-norm)."""
    plugin, layer = network.plugin, network.layer(index)
    y = linear(graph, context, *layer.out, plugin=plugin)
    x = residual_norm(graph, x, y, *layer.norm1, plugin=plugin)
    inner = linear(graph, x, *layer.linear1, plugin=plugin, relu=True)
    y = linear(graph, inner, *layer.linear2, plugin=plugin)
    return residual_norm(graph, x, y, *layer.norm2, plugin=plugin)


def _cache(network: TensorRtNetwork, graph: OnnxGraph, shape: Shape, index: int, x: str) -> str:
    """Output the product of q, k and v of every place, which is the layer's cache: [N, 3D]."""
    weight, bias = network.layer(index).qkv
    product = linear(graph, x, weight, bias, plugin=True)
    return graph.output(product, f"cache_{index}", [shape.places, len(weight)])


def _full_layer(
    network: TensorRtNetwork, graph: OnnxGraph, shape: Shape, index: int, x: str, where: Sequence[str]
) -> str:
    config, (rows, positions) = network.config, (shape.rows, shape.positions)
    if network.plugin:
        cache = _cache(network, graph, shape, index, x)
        context = kernel(graph, "causal_attention", cache, *where, positions=positions, fill=_fill(shape))[0]
    else:
        qkv = linear(graph, x, *network.layer(index).qkv, plugin=False)
        parts = [by_head(network, graph, shape, part) for part in graph.split(qkv, *[config.width] * 3)]
        _output_caches(network, graph, shape, index, parts[1:])
        context = layers.causal_attention(graph, parts, [rows, config.heads, positions, config.head_size])
    return after_attention(network, graph, index, x, context)


def by_head(network: TensorRtNetwork, graph: OnnxGraph, shape: Shape, x: str) -> str:
    """Reshape [B·S, D] to [B, H, S, HD]."""
    config = network.config
    return graph.transpose(graph.reshape(x, shape.rows, shape.positions, config.heads, config.head_size), 0, 2, 1, 3)


def _output_caches(
    network: TensorRtNetwork, graph: OnnxGraph, shape: Shape, index: int, parts: Sequence[str]
) -> list[str]:
    mine = [entry for entry in cache_shapes(network, shape).items() if entry[0].endswith(f"_{index}")]
    return [
        graph.output(graph.node("Identity", part), name, sizes) for part, (name, sizes) in zip(parts, mine, strict=True)
    ]


def cache_inputs(network: TensorRtNetwork, graph: OnnxGraph, shape: Shape, index: int) -> list[str]:
    """Declare a layer's caches as inputs."""
    mine = [entry for entry in cache_shapes(network, shape).items() if entry[0].endswith(f"_{index}")]
    return [graph.input(name, sizes) for name, sizes in mine]


def _last_layer(network: TensorRtNetwork, graph: OnnxGraph, shape: Shape, x: str, where: Sequence[str]) -> str:
    """Add the last layer: keys and values of every position, everything else of the last real one only: [B, D]."""
    config, (rows, positions), index = network.config, (shape.rows, shape.positions), network.config.layers - 1
    lengths = where[0]
    starts = where[1] if network.plugin else graph.constant((np.arange(rows) * positions).astype(np.int32))
    last = graph.node("Gather", x, graph.node("Add", starts, lengths), axis=0)
    if network.plugin:
        cache = _cache(network, graph, shape, index, x)
        context = kernel(graph, "last_attention", cache, *where, positions=positions)[0]
    else:
        weight, bias = network.layer(index).qkv
        width = config.width
        query = linear(graph, last, weight[:width], bias[:width], plugin=False)
        parts = graph.split(linear(graph, x, weight[width:], bias[width:], plugin=False), width, width)
        caches = [by_head(network, graph, shape, part) for part in parts]
        keys, values = _output_caches(network, graph, shape, index, caches)
        limit = graph.reshape(lengths, rows, 1)
        mask = layers.visible(graph, limit, positions, [rows, 1, positions], inclusive=True)
        sizes = [rows, config.heads, positions, config.head_size]
        attended = layers.merged(graph, [layers.over_cache(graph, query, keys, values, mask, sizes)])
        context = graph.reshape(attended, rows, width)
    return after_attention(network, graph, index, last, context)


def _decode_masks(graph: OnnxGraph, shape: Shape, lengths: str, step: str) -> list[str]:
    limit, count = graph.reshape(lengths, shape.rows, 1), shape.steps
    prefix = layers.visible(graph, limit, shape.positions, [shape.rows, 1, shape.positions], inclusive=True)
    return [prefix, layers.visible(graph, graph.reshape(step, 1, 1), count, [1, 1, count], inclusive=False)]


def _cached_attention(
    network: TensorRtNetwork,
    graph: OnnxGraph,
    shape: Shape,
    fresh: str,
    caches: Sequence[str],
    recent: str,
    masks: Sequence[str],
) -> str:
    """Attend from one new position per row to the prefill's keys, the items read since and itself: [B, D]."""
    config, rows = network.config, shape.rows
    width, each_head = config.width, [rows, config.heads, config.head_size]
    query, key, value = graph.split(fresh, width, width, width)
    _, keys_read, values_read = graph.split(recent, width, width, width)
    earlier = [graph.reshape(part, shape.steps, *each_head) for part in (keys_read, values_read)]
    itself = [graph.reshape(part, 1, *each_head) for part in (key, value)]
    sizes = [rows, config.heads, shape.positions, config.head_size]
    keys = [
        layers.over_cache(graph, query, caches[0], caches[1], masks[0], sizes),
        layers.over_steps(graph, query, earlier[0], earlier[1], masks[1], [shape.steps, *each_head]),
        layers.over_steps(graph, query, itself[0], itself[1], None, [1, *each_head]),
    ]
    return graph.reshape(layers.merged(graph, keys), rows, width)


def _logits(network: TensorRtNetwork, graph: OnnxGraph, hidden: str) -> str:
    """Compute item logits and heads in one product, padded to a multiple of 16 columns: [B, padded]."""
    items, heads = affine(network.weights, "output_projection"), head_weights(network.weights)
    spare = -(network.config.vocabulary + len(HEADS)) % 16
    weight = np.pad(np.concatenate([items[0], heads[0]]), ((0, spare), (0, 0)))
    bias = np.pad(np.concatenate([items[1], heads[1]]), (0, spare))
    return linear(graph, hidden, weight, bias, plugin=network.plugin)


def item_logits(network: TensorRtNetwork, graph: OnnxGraph, hidden: str) -> str:
    """Return the logits of the items alone, [B, V]."""
    return graph.columns(_logits(network, graph, hidden), 0, network.config.vocabulary)


def _choose_item(
    network: TensorRtNetwork, graph: OnnxGraph, shape: Shape, hidden: str, read: tuple[str, str] | None
) -> None:
    """Output heads (decode only), next_token and next_log_prob."""
    rows, vocabulary = shape.rows, network.config.vocabulary
    seen = graph.input("seen", [rows, shape.seen], INT32)
    every = _logits(network, graph, hidden)
    if network.plugin:
        banned = (seen, graph.input("seen_width", [1], INT32))
        nothing = (graph.constant(np.zeros((1, rows), np.int32)), graph.constant(np.full(1, -1, np.int32)))
        inputs = (every, *banned, *(read or nothing), *mask_inputs(network, graph, shape))
        kind = "rank_masked_items" if shape.masked else "rank_items"
        token, log_prob, heads = kernel(graph, kind, *inputs, outputs=3, items=vocabulary, limit=network.tokens)
        graph.output(graph.node("Identity", token), "next_token", [rows], INT32)
        graph.output(graph.reshape(log_prob, rows, 1), "next_log_prob", [rows, 1], FLOAT)
        if read:
            graph.output(graph.node("Identity", heads), "heads", [rows, len(HEADS)], FLOAT)
        return
    if read:
        _output_heads(network, graph, rows, every)
    logits = graph.columns(every, 0, vocabulary)
    _, log_sum = layers.log_sum_exp(graph, logits)
    layers.best(graph, allowed_logits(network, graph, shape, logits, seen, read), log_sum, rows, network.tokens)


def mask_inputs(network: TensorRtNetwork, graph: OnnxGraph, shape: Shape) -> list[str]:
    """Declare the inputs of a masked shape, none for another: mask [B], and masks [B, W], some of them not filled."""
    if not shape.masked:
        return []
    words = [shape.rows, mask_words(network.config)]
    return [graph.input("mask", [shape.rows], INT32), graph.input("masks", words, INT32)]


def _output_heads(network: TensorRtNetwork, graph: OnnxGraph, rows: int, every: str) -> None:
    vocabulary = network.config.vocabulary
    heads = graph.node("Cast", graph.columns(every, vocabulary, vocabulary + len(HEADS)), pinned=True, to=FLOAT)
    graph.output(graph.node("Sigmoid", heads), "heads", [rows, len(HEADS)], FLOAT)


def allowed_logits(
    network: TensorRtNetwork, graph: OnnxGraph, shape: Shape, logits: str, seen: str, read: tuple[str, str] | None
) -> str:
    """Return the logits of the catalog's items, [B, tokens], with those masked, seen or read so far banned."""
    if network.tokens < network.config.vocabulary:
        logits = graph.columns(logits, 0, network.tokens)
    if shape.masked:
        mask, masks = mask_inputs(network, graph, shape)
        logits = layers.ban_by_mask(graph, logits, graph.node("Gather", masks, mask, axis=0), network.tokens)
    if read is None:
        return layers.ban(graph, logits, seen, (shape.rows, shape.seen, network.tokens))
    number = graph.constant(np.arange(shape.steps + 1, dtype=np.int32).reshape(-1, 1))
    done = graph.node("LessOrEqual", number, graph.reshape(read[1], 1, 1))
    known = graph.node("Less", read[0], graph.constant(np.full((1, 1), network.tokens, np.int32)))
    either = graph.node("And", done, known)
    items = graph.node("Where", either, read[0], graph.constant(np.zeros((1, 1), np.int32)))
    banned = graph.node("Concat", seen, graph.transpose(items, 1, 0), axis=1)
    return layers.ban(graph, logits, banned, (shape.rows, shape.seen + shape.steps + 1, network.tokens))
