"""The ONNX graphs beside the greedy loop: several choices, given items, parallel scores, and copying rows.

Owns: graphs that beam search, `--decode candidates` and explicit tokens need. Must not know: TensorRT, CUDA. Same
names, shapes and variants as `tensorrt_graphs.py`, whose caches they read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import F32, HEADS, I32
from genrec_batch.engines.tensorrt import graphs as loop
from genrec_batch.engines.tensorrt import layers as nodes
from genrec_batch.engines.tensorrt.layers import BANNED, FLOAT, INT32, Graph, linear
from genrec_batch.engines.tensorrt.network import Network, Shape, cache_shapes


def padded_count(count: int) -> int:
    """Return a number of candidates as a power of two, at least 8, so that few engines serve all numbers."""
    return max(8, 1 << (count - 1).bit_length())


def choose(network: Network, shape: Shape, count: int) -> bytes:
    """Several best items of the next position.

    Inputs: hidden [B, D], seen [B, X], read [T+1, B], step [1] (rows of `read` up to it are banned; -1 for none).
    Outputs: tokens [B, count], values [B, count] (logits, BANNED where nothing is left), log_sum [B, 1].
    """
    graph, rows = network.graph(), shape.rows
    hidden = graph.input("hidden", [rows, network.config.width])
    seen = graph.input("seen", [rows, shape.seen], INT32)
    read, step = graph.input("read", [shape.steps + 1, rows], INT32), graph.input("step", [1], INT32)
    logits = loop.item_logits(network, graph, hidden)
    _, log_sum = nodes.log_sum_exp(graph, logits)
    graph.output(graph.add("Identity", log_sum, name="log_sum"), [rows, 1], FLOAT)
    left = loop.allowed_logits(network, graph, shape, logits, seen, (read, step))
    names = ("best_values", "best_tokens")
    values, tokens = graph.add_many("TopK", left, graph.ints(count), names=names, axis=1)
    graph.output(graph.cast(values, FLOAT, name="values"), [rows, count], FLOAT)
    graph.output(graph.cast(tokens, INT32, name="tokens"), [rows, count], INT32)
    return graph.serialize("choose")


def best_first(found: Mapping[str, npt.NDArray[Any]], choices: int) -> tuple[I32, F32]:
    """Return tokens and log-probabilities [B, choices] from the outputs of `choose`; token 0 and -inf fill the rest."""
    order = np.lexsort((found["tokens"], -found["values"]), axis=1)  # equal logits: the lower token first
    tokens, values = (np.take_along_axis(found[name], order, 1) for name in ("tokens", "values"))
    gone = values <= BANNED / 2
    log_prob = np.where(gone, np.float32(-np.inf), values - found["log_sum"])
    spare = ((0, 0), (0, choices - tokens.shape[1]))  # more choices than items
    tokens = np.pad(np.where(gone, 0, tokens), spare).astype(np.int32)
    return tokens, np.pad(log_prob, spare, constant_values=-np.inf).astype(np.float32)


def lookup(network: Network, shape: Shape, count: int) -> bytes:
    """Log-probabilities of given items: hidden [B, D], tokens [B, count] -> log_prob [B, count]."""
    graph, rows = network.graph(), shape.rows
    hidden = graph.input("hidden", [rows, network.config.width])
    tokens = graph.input("tokens", [rows, count], INT32)
    wide, log_sum = nodes.log_sum_exp(graph, loop.item_logits(network, graph, hidden))
    given = graph.add("GatherElements", wide, tokens, axis=1)
    graph.output(graph.add("Sub", given, log_sum, name="log_prob"), [rows, count], FLOAT)
    return graph.serialize("lookup")


def score(network: Network, shape: Shape, count: int) -> bytes:
    """Heads of several items per row, each read alone right after the history.

    Inputs: tokens [B, count], lengths [B], and prefill's caches. Output: heads [B, count, 4].
    """
    config, graph, rows = network.config, network.graph(), shape.rows
    tokens, lengths = graph.input("tokens", [rows, count], INT32), graph.input("lengths", [rows], INT32)
    table = graph.constant(network.weights["token_embedding.weight"], "token_table")
    places = graph.constant(network.weights["position_embedding.weight"][1:], "position_table")
    place = graph.reshape(graph.add("Gather", places, lengths, axis=0), rows, 1, config.width)
    x = graph.reshape(graph.add("Add", graph.add("Gather", table, tokens, axis=0), place), rows * count, config.width)
    limit = graph.reshape(lengths, rows, 1)
    mask = nodes.visible(graph, limit, shape.positions, [rows, 1, 1, shape.positions], inclusive=True)
    for index in range(config.layers):
        product = linear(graph, x, *network.attention_input(index), plugin=network.plugin)
        fresh = graph.split(product, 3, config.width)
        caches = loop.cache_inputs(network, graph, shape, index)
        if network.plugin:
            caches = [loop.by_head(network, graph, shape, part) for part in graph.split(caches[0], 3, config.width)[1:]]
        context = _alone_after_history(network, graph, shape, count, fresh, caches, mask)
        x = loop.after_attention(network, graph, index, x, context)
    weight = np.concatenate([network.weights[f"{head}_head.weight"] for head in HEADS])
    bias = np.concatenate([network.weights[f"{head}_head.bias"] for head in HEADS])
    logits = graph.cast(linear(graph, x, weight, bias, plugin=False), FLOAT, name="fp32_heads")
    heads = graph.reshape(graph.add("Sigmoid", logits), rows, count, len(HEADS), name="heads")
    graph.output(heads, [rows, count, len(HEADS)], FLOAT)
    return graph.serialize("score")


def _alone_after_history(
    network: Network, graph: Graph, shape: Shape, count: int, fresh: Sequence[str], caches: Sequence[str], mask: str
) -> str:
    """Attention of `count` positions per row over the cache and, each, itself: [B·count, D]."""
    config, rows = network.config, shape.rows

    beside = [rows, count, config.heads, config.head_size]
    query, key, value = (graph.transpose(graph.reshape(part, *beside), 0, 2, 1, 3) for part in fresh)
    keys, values = caches
    history = graph.add("Add", graph.add("MatMul", query, graph.transpose(keys, 0, 1, 3, 2)), mask)
    itself = graph.add("ReduceSum", graph.add("Mul", query, key), graph.ints(3), keepdims=1)
    share = graph.add("Softmax", graph.add("Concat", history, itself, axis=3), axis=-1)
    names = (f"{share}_history", f"{share}_self")
    graph.add_many("Split", share, graph.ints(shape.positions, 1), names=names, axis=3)
    mean = graph.add("Add", graph.add("MatMul", names[0], values), graph.add("Mul", names[1], value))
    return graph.reshape(graph.transpose(mean, 0, 2, 1, 3), rows * count, config.width)


def state_tensors(network: Network, shape: Shape) -> dict[str, tuple[list[int], int | None, int]]:
    """Return what a decode state holds: name -> sizes, element type (None: the precision), axis of the rows."""
    config, rows, steps = network.config, shape.rows, shape.steps
    found: dict[str, tuple[list[int], int | None, int]] = {
        "lengths": ([rows], INT32, 0),
        "seen": ([rows, shape.seen], INT32, 0),
        "read": ([steps + 1, rows], INT32, 1),
        "log_prob": ([steps + 1, rows], FLOAT, 1),
        "heads": ([steps, rows, len(HEADS)], FLOAT, 1),
        "hidden": ([rows, config.width], None, 0),
        "first_hidden": ([rows, config.width], None, 0),
    }
    for name, sizes in cache_shapes(network, shape).items():
        by_row = [rows, shape.positions, sizes[-1]] if network.plugin and not shape.packed else sizes
        found[name] = (by_row, None, 0)
    found |= {f"recent_{index}": ([steps, rows, 3 * config.width], None, 1) for index in range(config.layers)}
    return found


def between(network: Network, shape: Shape) -> dict[str, list[int]]:
    """Return what the engines of consecutive pieces hand on: name -> sizes."""
    found = {}
    for piece in range(len(network.pieces()) - 1):
        found[f"left_{piece}"] = [shape.places, network.config.width]
        found[f"passed_{piece}"] = [shape.rows, network.config.width]
    return found


def select(network: Network, shape: Shape, rows_out: int) -> bytes:
    """Copy rows of a whole state: every tensor of `state_tensors`, and rows [rows_out] -> chosen_<name>."""
    graph = network.graph()
    rows = graph.input("rows", [rows_out], INT32)
    for name, (sizes, kind, axis) in state_tensors(network, shape).items():
        taken = graph.add("Gather", graph.input(name, sizes, kind), rows, axis=axis, name=f"chosen_{name}")
        graph.output(taken, [rows_out if i == axis else size for i, size in enumerate(sizes)], kind)
    return graph.serialize("select")
