"""The ONNX graphs that TensorRT builds engines from, in the formulations that measured fastest on a Hopper GPU.

Owns: the order of the layers and the names and shapes of every engine's inputs and outputs. Must not know: TensorRT,
CUDA, files. In: `ModelConfig`, weights, static sizes. Out: serialized ONNX. Nothing is dynamic: a dynamic batch costs
up to five times on 8.6.

The network comes in two variants with the same names. Plain ONNX runs anywhere; with `plugin`, attention, residual +
LayerNorm, embedding and the choice of the item are the kernels of `kernels/`, which read the packed product of q, k
and v as the cache. One decode step reads the caches, `recent_<layer>` (what earlier steps wrote) and `step`; it
writes `fresh_<layer>`, which the caller binds to the right row of `recent_<layer>`, so no cache is ever copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec_batch.core.arrays import F32, HEADS
from genrec_batch.engines.tensorrt import layers as nodes
from genrec_batch.engines.tensorrt.layers import FLOAT, INT32, Graph, linear, residual_norm
from genrec_batch.engines.tensorrt.network import Network, Shape, cache_shapes, feature_columns, prefix_product


def prefill(network: Network, shape: Shape, piece: int = 0) -> bytes:
    """Read features and histories.

    Inputs: features [B, columns] in fp32, tokens [B, S-1], lengths [B], seen [B, X]; with the plugin also starts [B],
    where each row's positions begin, and seen_width [1], the columns of `seen`. Outputs: hidden [B, D], next_token [B],
    next_log_prob [B, 1], and the caches: cache_<layer> [N, 3D] with the plugin, else keys_<layer> and values_<layer>
    [B, H, S, HD]. Between pieces: left_<piece> [N, D].
    """
    config, graph, layers = network.config, network.graph(), network.pieces()[piece]
    rows, positions = shape.rows, shape.positions
    if piece == 0:
        columns = feature_columns(config, shape)
        features = graph.cast(graph.input("features", [rows, columns], FLOAT), graph.element)
        tokens = graph.input("tokens", [rows, positions - 1], INT32)
    final = layers[-1] == config.layers - 1
    where = _where(network, graph, shape) if final or network.plugin else []
    if piece == 0:
        x = _embed_history(network, graph, shape, features, tokens, where)
    else:
        x = graph.input(f"left_{piece - 1}", [shape.places, config.width])
    for index in layers[:-1] if final else layers:
        x = _full_layer(network, graph, shape, index, x, where)
    if not final:
        graph.output(graph.add("Identity", x, name=f"left_{piece}"), [shape.places, config.width])
        return graph.serialize("prefill")
    x = _last_layer(network, graph, shape, x, where)
    graph.output(graph.add("Identity", x, name="hidden"), [rows, config.width])
    _choose_item(network, graph, shape, x, None)
    return graph.serialize("prefill")


def decode(network: Network, shape: Shape, piece: int = 0) -> bytes:
    """Read one item per row.

    Inputs: token [B], lengths [B], step [1] (0 for the first item), read [T+1, B] (the items; rows up to `step` count),
    seen [B, X], recent_<layer> [T, B, 3D] (rows before `step` count), prefill's caches. Outputs: fresh_<layer> [B, 3D],
    heads [B, 4], hidden, next_token, next_log_prob as in prefill. Between pieces: passed_<piece> [B, D].
    """
    config, graph, layers = network.config, network.graph(), network.pieces()[piece]
    rows, width = shape.rows, config.width
    where, step = _where(network, graph, shape), graph.input("step", [1], INT32)
    if piece == 0:
        x = _embed_item(network, graph, graph.input("token", [rows], INT32), where[0], step)
    else:
        x = graph.input(f"passed_{piece - 1}", [rows, width])
    masks = [] if network.plugin else _decode_masks(graph, shape, where[0], step)
    for index in layers:
        fresh = linear(graph, x, *network.attention_input(index), name=f"fresh_{index}", plugin=network.plugin)
        graph.output(fresh, [rows, 3 * width])
        caches = cache_inputs(network, graph, shape, index)
        recent = graph.input(f"recent_{index}", [shape.steps, rows, 3 * width])
        if network.plugin:
            read_so_far = (*where, step)
            context = graph.kernel("decode_attention", fresh, *caches, recent, *read_so_far, positions=shape.positions)[
                0
            ]
        else:
            context = _cached_attention(network, graph, shape, fresh, caches, recent, masks)
        x = after_attention(network, graph, index, x, context)
    if layers[-1] < config.layers - 1:
        graph.output(graph.add("Identity", x, name=f"passed_{piece}"), [rows, width])
        return graph.serialize("decode")
    read = graph.input("read", [shape.steps + 1, rows], INT32)
    graph.output(graph.add("Identity", x, name="hidden"), [rows, width])
    _choose_item(network, graph, shape, x, (read, step))
    return graph.serialize("decode")


def _where(network: Network, graph: Graph, shape: Shape) -> list[str]:
    """Declare where rows end and, for the kernels, begin: lengths [B], starts [B]."""
    names = ("lengths", "starts") if network.plugin else ("lengths",)
    return [graph.input(name, [shape.rows], INT32) for name in names]


def _embed_history(
    network: Network, graph: Graph, shape: Shape, features: str, tokens: str, where: Sequence[str]
) -> str:
    weight, bias = prefix_product(network, shape)
    places = network.weights["position_embedding.weight"][: shape.positions]
    table = graph.constant(network.weights["token_embedding.weight"], "token_table")
    rows, width = shape.rows, network.config.width
    if network.plugin:
        lengths, starts = where
        inputs = (tokens, linear(graph, features, weight, bias, plugin=True), starts, lengths, table)
        positions = graph.constant(places)
        return graph.kernel("embed_history", *inputs, positions, places=shape.places, fill=_fill(shape))[0]
    prefix = graph.reshape(linear(graph, features, weight, bias + places[0], plugin=False), rows, 1, width)
    items = graph.add("Add", graph.add("Gather", table, tokens, axis=0), graph.constant(places[None, 1:]))
    return graph.reshape(graph.add("Concat", prefix, items, axis=1), rows * shape.positions, width)


def _fill(shape: Shape) -> int:
    """Whether places past a history hold numbers: side graphs mask them, which does not take away what is none."""
    return int(not shape.packed)


def _embed_item(network: Network, graph: Graph, token: str, lengths: str, step: str) -> str:
    table = graph.constant(network.weights["token_embedding.weight"], "token_table")
    places = network.weights["position_embedding.weight"]
    if network.plugin:
        return graph.kernel("embed_item", token, lengths, step, table, graph.constant(places, "position_table"))[0]
    position = graph.add("Add", lengths, step)  # the table starts at 1: the prefix stands at 0
    place = graph.add("Gather", graph.constant(places[1:], "position_table"), position, axis=0)
    return graph.add("Add", graph.add("Gather", table, token, axis=0), place)


def after_attention(network: Network, graph: Graph, index: int, x: str, context: str) -> str:
    """Project attention's output, then the feed-forward block; each with its residual and LayerNorm (post-norm)."""

    def weight(name: str) -> tuple[F32, F32]:
        return network.layer(index, f"{name}.weight"), network.layer(index, f"{name}.bias")

    plugin = network.plugin
    y = linear(graph, context, *weight("self_attn.out_proj"), plugin=plugin)
    x = residual_norm(graph, x, y, *weight("norm1"), plugin=plugin)
    inner = linear(graph, x, *weight("linear1"), plugin=plugin, relu=True)
    y = linear(graph, inner, *weight("linear2"), plugin=plugin)
    return residual_norm(graph, x, y, *weight("norm2"), plugin=plugin)


def _cache(network: Network, graph: Graph, shape: Shape, index: int, x: str) -> str:
    """Write the product of q, k and v of every place, which is the layer's cache: [N, 3D]."""
    weight, bias = network.attention_input(index)
    return graph.output(linear(graph, x, weight, bias, name=f"cache_{index}", plugin=True), [shape.places, len(weight)])


def _full_layer(network: Network, graph: Graph, shape: Shape, index: int, x: str, where: Sequence[str]) -> str:
    config, (rows, positions) = network.config, (shape.rows, shape.positions)
    if network.plugin:
        cache = _cache(network, graph, shape, index, x)
        context = graph.kernel("causal_attention", cache, *where, positions=positions, fill=_fill(shape))[0]
    else:
        qkv = linear(graph, x, *network.attention_input(index), plugin=False)
        parts = [by_head(network, graph, shape, part) for part in graph.split(qkv, 3, config.width)]
        _output_caches(network, graph, shape, index, parts[1:])
        context = nodes.causal_attention(graph, parts, [rows, config.heads, positions, config.head_size])
    return after_attention(network, graph, index, x, context)


def by_head(network: Network, graph: Graph, shape: Shape, x: str) -> str:
    """[B·S, D] -> [B, H, S, HD]."""
    config = network.config
    return graph.transpose(graph.reshape(x, shape.rows, shape.positions, config.heads, config.head_size), 0, 2, 1, 3)


def _output_caches(network: Network, graph: Graph, shape: Shape, index: int, parts: Sequence[str]) -> list[str]:
    mine = [entry for entry in cache_shapes(network, shape).items() if entry[0].endswith(f"_{index}")]
    return [
        graph.output(graph.add("Identity", part, name=name), sizes)
        for part, (name, sizes) in zip(parts, mine, strict=True)
    ]


def cache_inputs(network: Network, graph: Graph, shape: Shape, index: int) -> list[str]:
    """Declare a layer's caches as inputs."""
    mine = [entry for entry in cache_shapes(network, shape).items() if entry[0].endswith(f"_{index}")]
    return [graph.input(name, sizes) for name, sizes in mine]


def _last_layer(network: Network, graph: Graph, shape: Shape, x: str, where: Sequence[str]) -> str:
    """The last layer needs keys and values of every position, and all else of the last real one only: [B, D]."""
    config, (rows, positions), index = network.config, (shape.rows, shape.positions), network.config.layers - 1
    lengths = where[0]
    starts = where[1] if network.plugin else graph.constant((np.arange(rows) * positions).astype(np.int32))
    last = graph.add("Gather", x, graph.add("Add", starts, lengths), axis=0)
    if network.plugin:
        cache = _cache(network, graph, shape, index, x)
        context = graph.kernel("last_attention", cache, *where, positions=positions)[0]
    else:
        weight, bias = network.attention_input(index)
        width = config.width
        query = linear(graph, last, weight[:width], bias[:width], plugin=False)
        parts = graph.split(linear(graph, x, weight[width:], bias[width:], plugin=False), 2, width)
        caches = [by_head(network, graph, shape, part) for part in parts]
        keys, values = _output_caches(network, graph, shape, index, caches)
        limit = graph.reshape(lengths, rows, 1)
        mask = nodes.visible(graph, limit, positions, [rows, 1, positions], inclusive=True)
        sizes = [rows, config.heads, positions, config.head_size]
        context = graph.reshape(
            nodes.merged(graph, [nodes.over_cache(graph, query, keys, values, mask, sizes)]), rows, width
        )
    return after_attention(network, graph, index, last, context)


def _decode_masks(graph: Graph, shape: Shape, lengths: str, step: str) -> list[str]:
    limit = graph.reshape(lengths, shape.rows, 1)
    prefix = nodes.visible(graph, limit, shape.positions, [shape.rows, 1, shape.positions], inclusive=True)
    return [prefix, nodes.visible(graph, graph.reshape(step, 1, 1), shape.steps, [1, 1, shape.steps], inclusive=False)]


def _cached_attention(
    network: Network, graph: Graph, shape: Shape, fresh: str, caches: Sequence[str], recent: str, masks: Sequence[str]
) -> str:
    """One new position per row over the prefill's keys, the items read since (recent [T, B, 3D]) and itself: [B, D]."""
    config, rows = network.config, shape.rows
    width, by_head = config.width, [rows, config.heads, config.head_size]
    query, key, value = graph.split(fresh, 3, width)
    _, keys_read, values_read = graph.split(recent, 3, width)
    earlier = [graph.reshape(part, shape.steps, *by_head) for part in (keys_read, values_read)]
    itself = [graph.reshape(part, 1, *by_head) for part in (key, value)]
    sizes = [rows, config.heads, shape.positions, config.head_size]
    parts = [
        nodes.over_cache(graph, query, caches[0], caches[1], masks[0], sizes),
        nodes.over_steps(graph, query, earlier[0], earlier[1], masks[1], [shape.steps, *by_head]),
        nodes.over_steps(graph, query, itself[0], itself[1], None, [1, *by_head]),
    ]
    return graph.reshape(nodes.merged(graph, parts), rows, width)


def _logits(network: Network, graph: Graph, hidden: str) -> str:
    """Item logits and task heads in one product, padded to a multiple of 16 columns: [B, padded]."""
    weights, vocabulary = network.weights, network.config.vocabulary
    count = vocabulary + len(HEADS)
    weight = np.concatenate([weights["output_projection.weight"], *(weights[f"{head}_head.weight"] for head in HEADS)])
    bias = np.concatenate([weights["output_projection.bias"], *(weights[f"{head}_head.bias"] for head in HEADS)])
    spare = -count % 16
    weight, bias = np.pad(weight, ((0, spare), (0, 0))), np.pad(bias, (0, spare))
    return linear(graph, hidden, weight, bias, plugin=network.plugin)


def item_logits(network: Network, graph: Graph, hidden: str) -> str:
    """Return the logits of the items alone, [B, V]."""
    return graph.columns(_logits(network, graph, hidden), 0, network.config.vocabulary)


def _choose_item(network: Network, graph: Graph, shape: Shape, hidden: str, read: tuple[str, str] | None) -> None:
    """Write heads (decode only), next_token and next_log_prob."""
    rows, vocabulary = shape.rows, network.config.vocabulary
    seen = graph.input("seen", [rows, shape.seen], INT32)
    every = _logits(network, graph, hidden)
    if network.plugin:
        banned = (seen, graph.input("seen_width", [1], INT32))
        nothing = (graph.constant(np.zeros((1, rows), np.int32)), graph.constant(np.full(1, -1, np.int32)))
        token, log_prob, heads = graph.kernel(
            "rank_items", every, *banned, *(read or nothing), outputs=3, items=vocabulary, limit=network.tokens
        )
        graph.output(graph.add("Identity", token, name="next_token"), [rows], INT32)
        graph.output(graph.reshape(log_prob, rows, 1, name="next_log_prob"), [rows, 1], FLOAT)
        if read:
            graph.output(graph.add("Identity", heads, name="heads"), [rows, len(HEADS)], FLOAT)
        return
    if read:
        _output_heads(network, graph, rows, every)
    logits = graph.columns(every, 0, vocabulary)
    _, log_sum = nodes.log_sum_exp(graph, logits)
    nodes.best(graph, allowed_logits(network, graph, shape, logits, seen, read), log_sum, rows, network.tokens)


def _output_heads(network: Network, graph: Graph, rows: int, every: str) -> None:
    vocabulary = network.config.vocabulary
    heads = graph.cast(graph.columns(every, vocabulary, vocabulary + len(HEADS)), FLOAT, name="fp32_heads")
    graph.output(graph.add("Sigmoid", heads, name="heads"), [rows, len(HEADS)], FLOAT)


def allowed_logits(
    network: Network, graph: Graph, shape: Shape, logits: str, seen: str, read: tuple[str, str] | None
) -> str:
    """Return the logits of the catalog's items, [B, tokens], with those seen or read so far banned."""
    if network.tokens < network.config.vocabulary:
        logits = graph.columns(logits, 0, network.tokens)
    if read is None:
        return nodes.ban(graph, logits, seen, (shape.rows, shape.seen, network.tokens))
    number = graph.constant(np.arange(shape.steps + 1, dtype=np.int32).reshape(-1, 1))
    done = graph.add("LessOrEqual", number, graph.reshape(read[1], 1, 1))
    known = graph.add("Less", read[0], graph.constant(np.full((1, 1), network.tokens, np.int32)))
    items = graph.add("Where", graph.add("And", done, known), read[0], graph.constant(np.zeros((1, 1), np.int32)))
    banned = graph.add("Concat", seen, graph.transpose(items, 1, 0), axis=1)
    return nodes.ban(graph, logits, banned, (shape.rows, shape.seen + shape.steps + 1, network.tokens))
