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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec_batch.arrays import F32, HEADS
from genrec_batch.engines import tensorrt_nodes as nodes
from genrec_batch.engines.tensorrt_nodes import FLOAT, INT32, Graph, linear, residual_norm
from genrec_batch.model import ModelConfig, Weights


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The static sizes of one set of engines."""

    rows: int  # B, users
    positions: int  # S, prefix and tokens
    seen: int  # X, banned items per user; padding and unknown take two
    steps: int  # T, items that can be read
    profile: bool = False  # the run has user profiles
    video: bool = False  # the run has video vectors


@dataclass(frozen=True, kw_only=True)
class Network:
    """What every graph is made from."""

    config: ModelConfig
    weights: Weights
    tokens: int  # items from here on are in no catalog: they count in log_prob and are never chosen
    precision: str
    plugin: bool
    piece: int = 0  # layers of one engine; 0: all of them

    def pieces(self) -> list[range]:
        """Return the layers of each engine, first to last; what one leaves, the next takes."""
        size, layers = self.piece or self.config.layers, self.config.layers
        return [range(start, min(start + size, layers)) for start in range(0, layers, size)]

    def titles(self, name: str) -> list[str]:
        """Return what the engines are called that prefill or decode consists of."""
        count = len(self.pieces())
        return [name] if count == 1 else [f"{name}_{number}" for number in range(count)]

    def layer(self, index: int, name: str) -> F32:
        """Return a weight of an encoder layer."""
        return self.weights[f"encoder.layers.{index}.{name}"]

    def attention_input(self, index: int) -> tuple[F32, F32]:
        """Return the stacked q, k, v product [3D, D] and bias, with 1 / sqrt(head size) folded into q's part."""
        weight, bias = (self.layer(index, f"self_attn.in_proj_{name}") for name in ("weight", "bias"))
        scale = np.ones(len(bias), np.float32)
        scale[: self.config.width] = 1 / math.sqrt(self.config.head_size)
        return weight * scale[:, None], bias * scale

    def graph(self) -> Graph:
        """Return an empty graph of this precision."""
        return Graph(precision=self.precision)


def feature_columns(config: ModelConfig, shape: Shape) -> int:
    """Return the width of the `features` input: features | profile, has | video, has, padded to a multiple of 16."""
    count = config.features + (config.profile + 1) * shape.profile + (config.video + 1) * shape.video
    return -(-count // 16) * 16


def prefix_product(network: Network, shape: Shape) -> tuple[F32, F32]:
    """Return weight [D, columns] and bias [D] of position 0: a row without a profile gets neither product nor bias.

    The biases of the optional projections are columns of the weight, multiplied by the input's 0 or 1.
    """
    parts = [network.weights["feature_projection.weight"]]
    for wanted, name in ((shape.profile, "user_profile_projection"), (shape.video, "video_feature_projection")):
        if wanted:
            parts += [network.weights[f"{name}.weight"], network.weights[f"{name}.bias"][:, None]]
    weight = np.concatenate(parts, axis=1)
    spare = feature_columns(network.config, shape) - weight.shape[1]
    return np.pad(weight, ((0, 0), (0, spare))), network.weights["feature_projection.bias"]


def prefill(network: Network, shape: Shape, piece: int = 0) -> bytes:
    """Read features and histories.

    Inputs: features [B, columns] in fp32, tokens [B, S-1], lengths [B], seen [B, X]. Outputs: hidden [B, D],
    next_token [B], next_log_prob [B, 1], and the caches: cache_<layer> [B, S, 3D] with the plugin, else keys_<layer>
    and values_<layer> [B, H, S, HD]. Between pieces: left_<piece> [B·S, D].
    """
    config, graph, layers = network.config, network.graph(), network.pieces()[piece]
    rows, positions = shape.rows, shape.positions
    if piece == 0:
        columns = feature_columns(config, shape)
        features = graph.cast(graph.input("features", [rows, columns], FLOAT), graph.element)
        tokens = graph.input("tokens", [rows, positions - 1], INT32)
        x = _embed_history(network, graph, shape, features, tokens)
    else:
        x = graph.input(f"left_{piece - 1}", [rows * positions, config.width])
    final = layers[-1] == config.layers - 1
    lengths = graph.input("lengths", [rows], INT32) if final or network.plugin else ""
    for index in layers[:-1] if final else layers:
        x = _full_layer(network, graph, shape, index, x, lengths)
    if not final:
        graph.output(graph.add("Identity", x, name=f"left_{piece}"), [rows * positions, config.width])
        return graph.serialize("prefill")
    seen = graph.input("seen", [rows, shape.seen], INT32)
    x = _last_layer(network, graph, shape, x, lengths)
    graph.output(graph.add("Identity", x, name="hidden"), [rows, config.width])
    _choose_item(network, graph, shape, x, seen, None)
    return graph.serialize("prefill")


def decode(network: Network, shape: Shape, piece: int = 0) -> bytes:
    """Read one item per row.

    Inputs: token [B], lengths [B], step [1] (0 for the first item), read [T+1, B] (the items; rows up to `step` count),
    seen [B, X], recent_<layer> [T, B, 3D] (rows before `step` count), prefill's caches. Outputs: fresh_<layer> [B, 3D],
    heads [B, 4], hidden, next_token, next_log_prob as in prefill. Between pieces: passed_<piece> [B, D].
    """
    config, graph, layers = network.config, network.graph(), network.pieces()[piece]
    rows, width = shape.rows, config.width
    lengths, step = graph.input("lengths", [rows], INT32), graph.input("step", [1], INT32)
    if piece == 0:
        x = _embed_item(network, graph, graph.input("token", [rows], INT32), lengths, step)
    else:
        x = graph.input(f"passed_{piece - 1}", [rows, width])
    masks = [] if network.plugin else _decode_masks(graph, shape, lengths, step)
    for index in layers:
        fresh = linear(graph, x, *network.attention_input(index), name=f"fresh_{index}")
        graph.output(fresh, [rows, 3 * width])
        caches = cache_inputs(network, graph, shape, index)
        recent = graph.input(f"recent_{index}", [shape.steps, rows, 3 * width])
        if network.plugin:
            context = graph.kernel("decode_attention", fresh, *caches, recent, lengths, step)[0]
        else:
            context = _cached_attention(network, graph, shape, fresh, caches, recent, masks)
        x = after_attention(network, graph, index, x, context)
    if layers[-1] < config.layers - 1:
        graph.output(graph.add("Identity", x, name=f"passed_{piece}"), [rows, width])
        return graph.serialize("decode")
    read = graph.input("read", [shape.steps + 1, rows], INT32)
    seen = graph.input("seen", [rows, shape.seen], INT32)
    graph.output(graph.add("Identity", x, name="hidden"), [rows, width])
    _choose_item(network, graph, shape, x, seen, (read, step))
    return graph.serialize("decode")


def _embed_history(network: Network, graph: Graph, shape: Shape, features: str, tokens: str) -> str:
    weight, bias = prefix_product(network, shape)
    places = network.weights["position_embedding.weight"][: shape.positions]
    table = graph.constant(network.weights["token_embedding.weight"], "token_table")
    rows, width = shape.rows, network.config.width
    if network.plugin:
        prefix = linear(graph, features, weight, bias)
        x = graph.kernel("embed_history", tokens, prefix, table, graph.constant(places))[0]
    else:
        prefix = graph.reshape(linear(graph, features, weight, bias + places[0]), rows, 1, width)
        items = graph.add("Add", graph.add("Gather", table, tokens, axis=0), graph.constant(places[None, 1:]))
        x = graph.add("Concat", prefix, items, axis=1)
    return graph.reshape(x, rows * shape.positions, width)


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

    y = linear(graph, context, *weight("self_attn.out_proj"))
    x = residual_norm(graph, x, y, *weight("norm1"), plugin=network.plugin)
    inner = graph.add("Relu", linear(graph, x, *weight("linear1")))
    return residual_norm(graph, x, linear(graph, inner, *weight("linear2")), *weight("norm2"), plugin=network.plugin)


def _full_layer(network: Network, graph: Graph, shape: Shape, index: int, x: str, lengths: str) -> str:
    config, (rows, positions) = network.config, (shape.rows, shape.positions)
    qkv = linear(graph, x, *network.attention_input(index))
    if network.plugin:
        packed = graph.reshape(qkv, rows, positions, 3 * config.width, name=f"cache_{index}")
        graph.output(packed, [rows, positions, 3 * config.width])
        context = graph.reshape(graph.kernel("causal_attention", packed, lengths)[0], rows * positions, config.width)
    else:
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


def cache_shapes(network: Network, shape: Shape) -> dict[str, list[int]]:
    """Return the caches that prefill writes: per layer one [B, S, 3D] with the plugin, else two of [B, H, S, HD]."""
    config, layers = network.config, range(network.config.layers)
    if network.plugin:
        return {f"cache_{index}": [shape.rows, shape.positions, 3 * config.width] for index in layers}
    by_head = [shape.rows, config.heads, shape.positions, config.head_size]
    return {f"{name}_{index}": by_head for index in layers for name in ("keys", "values")}


def cache_inputs(network: Network, graph: Graph, shape: Shape, index: int) -> list[str]:
    """Declare a layer's caches as inputs."""
    mine = [entry for entry in cache_shapes(network, shape).items() if entry[0].endswith(f"_{index}")]
    return [graph.input(name, sizes) for name, sizes in mine]


def _last_layer(network: Network, graph: Graph, shape: Shape, x: str, lengths: str) -> str:
    """The last layer needs keys and values of every position, and all else of the last real one only: [B, D]."""
    config, (rows, positions), index = network.config, (shape.rows, shape.positions), network.config.layers - 1
    starts = graph.constant((np.arange(rows) * positions).astype(np.int32))
    last = graph.add("Gather", x, graph.add("Add", starts, lengths), axis=0)
    weight, bias = network.attention_input(index)
    if network.plugin:
        packed = graph.reshape(linear(graph, x, weight, bias), rows, positions, 3 * config.width, name=f"cache_{index}")
        graph.output(packed, [rows, positions, 3 * config.width])
        context = graph.kernel("last_attention", packed, lengths)[0]
    else:
        width = config.width
        query = linear(graph, last, weight[:width], bias[:width])
        parts = graph.split(linear(graph, x, weight[width:], bias[width:]), 2, width)
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
    return linear(graph, hidden, np.pad(weight, ((0, spare), (0, 0))), np.pad(bias, (0, spare)))


def item_logits(network: Network, graph: Graph, hidden: str) -> str:
    """Return the logits of the items alone, [B, V]."""
    return graph.columns(_logits(network, graph, hidden), 0, network.config.vocabulary)


def _choose_item(
    network: Network, graph: Graph, shape: Shape, hidden: str, seen: str, read: tuple[str, str] | None
) -> None:
    """Write heads (decode only), next_token and next_log_prob."""
    rows, vocabulary = shape.rows, network.config.vocabulary
    every = _logits(network, graph, hidden)
    if network.plugin:
        nothing = (graph.constant(np.zeros((1, rows), np.int32)), graph.constant(np.full(1, -1, np.int32)))
        token, log_prob, heads = graph.kernel(
            "rank_items", every, seen, *(read or nothing), outputs=3, items=vocabulary, limit=network.tokens
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
