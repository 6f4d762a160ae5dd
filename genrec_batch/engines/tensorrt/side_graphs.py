"""The ONNX graphs beside prefill and decode: several choices, given items, parallel scores, and copies of rows.

Owns: the graphs that beam search, `--decode candidates` and given tokens need. Must not know: TensorRT, CUDA. Names,
shapes and variants are those of `graphs`, whose caches these graphs read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import F32, HEADS, I32
from genrec_batch.engines.layer_weights import head_weights
from genrec_batch.engines.onnx_graph import FLOAT, INT32, OnnxGraph
from genrec_batch.engines.tensorrt import graphs, layers
from genrec_batch.engines.tensorrt.layers import BANNED, linear
from genrec_batch.engines.tensorrt.network import Shape, TensorRtNetwork, cache_shapes, mask_words


def padded_count(count: int) -> int:
    """Return a number of candidates rounded up to a power of two, at least 8, so that few engines serve all numbers."""
    return max(8, 1 << (count - 1).bit_length())


def choose(network: TensorRtNetwork, shape: Shape, count: int) -> bytes:
    """Return the graph that chooses several best items of the next position.

    Inputs: hidden [B, D], seen [B, X], read [T+1, B], step [1] (rows of `read` up to it are banned; -1 for none), and
    those of `graphs.mask_inputs`.
    Outputs: tokens [B, count], values [B, count] (logits, BANNED where nothing is left), log_sum [B, 1].
    """
    graph, rows = network.graph(), shape.rows
    hidden = graph.input("hidden", [rows, network.config.width])
    seen = graph.input("seen", [rows, shape.seen], INT32)
    read, step = graph.input("read", [shape.steps + 1, rows], INT32), graph.input("step", [1], INT32)
    logits = graphs.item_logits(network, graph, hidden)
    _, log_sum = layers.log_sum_exp(graph, logits)
    graph.output(graph.node("Identity", log_sum), "log_sum", [rows, 1], FLOAT)
    left = graphs.allowed_logits(network, graph, shape, logits, seen, (read, step))
    values, tokens = graph.nodes("TopK", left, graph.sizes(count), outputs=2, axis=1)
    graph.output(graph.cast(values, FLOAT), "values", [rows, count], FLOAT)
    graph.output(graph.cast(tokens, INT32), "tokens", [rows, count], INT32)
    return graph.serialized("choose")


def best_first(found: Mapping[str, npt.NDArray[Any]], choices: int) -> tuple[I32, F32]:
    """Return tokens and log-probabilities [B, choices] from the outputs of `choose`; token 0 and -inf fill the rest."""
    order = np.lexsort((found["tokens"], -found["values"]), axis=1)  # equal logits: the lower token first
    tokens, values = (np.take_along_axis(found[name], order, 1) for name in ("tokens", "values"))
    gone = values <= BANNED / 2
    log_prob = np.where(gone, np.float32(-np.inf), values - found["log_sum"])
    spare = ((0, 0), (0, choices - tokens.shape[1]))  # more choices than items
    tokens = np.pad(np.where(gone, 0, tokens), spare).astype(np.int32)
    return tokens, np.pad(log_prob, spare, constant_values=-np.inf).astype(np.float32)


def lookup(network: TensorRtNetwork, shape: Shape, count: int) -> bytes:
    """Return the graph of the log-probabilities of given items.

    Inputs: hidden [B, D], tokens [B, count]. Output: log_prob [B, count].
    """
    graph, rows = network.graph(), shape.rows
    hidden = graph.input("hidden", [rows, network.config.width])
    tokens = graph.input("tokens", [rows, count], INT32)
    wide, log_sum = layers.log_sum_exp(graph, graphs.item_logits(network, graph, hidden))
    given = graph.node("GatherElements", wide, tokens, axis=1)
    graph.output(graph.node("Sub", given, log_sum), "log_prob", [rows, count], FLOAT)
    return graph.serialized("lookup")


def score(network: TensorRtNetwork, shape: Shape, count: int) -> bytes:
    """Return the graph of the heads of several items per row, each read alone right after the history.

    Inputs: tokens [B, count], lengths [B], and prefill's caches. Output: heads [B, count, task heads].
    """
    config, graph, rows = network.config, network.graph(), shape.rows
    tokens, lengths = graph.input("tokens", [rows, count], INT32), graph.input("lengths", [rows], INT32)
    table = graph.constant(network.weights["token_embedding.weight"])
    places = graph.constant(network.weights["position_embedding.weight"][1:])
    place = graph.reshape(graph.node("Gather", places, lengths, axis=0), rows, 1, config.width)
    x = graph.reshape(graph.node("Add", graph.node("Gather", table, tokens, axis=0), place), rows * count, config.width)
    limit = graph.reshape(lengths, rows, 1)
    mask = layers.visible(graph, limit, shape.positions, [rows, 1, 1, shape.positions], inclusive=True)
    for index in range(config.layers):
        product = linear(graph, x, *network.layer(index).qkv, plugin=network.plugin)
        fresh = graph.split(product, *[config.width] * 3)
        caches = graphs.cache_inputs(network, graph, shape, index)
        if network.plugin:
            _, *packed = graph.split(caches[0], *[config.width] * 3)
            caches = [graphs.by_head(network, graph, shape, part) for part in packed]
        context = _alone_after_history(network, graph, shape, count, fresh, caches, mask)
        x = graphs.after_attention(network, graph, index, x, context)
    logits = graph.node("Cast", linear(graph, x, *head_weights(network.weights), plugin=False), pinned=True, to=FLOAT)
    heads = graph.reshape(graph.node("Sigmoid", logits), rows, count, len(HEADS))
    graph.output(heads, "heads", [rows, count, len(HEADS)], FLOAT)
    return graph.serialized("score")


def _alone_after_history(
    network: TensorRtNetwork,
    graph: OnnxGraph,
    shape: Shape,
    count: int,
    fresh: Sequence[str],
    caches: Sequence[str],
    mask: str,
) -> str:
    """Attend from `count` positions per row to the cache and, each, to itself: [B·count, D]."""
    config, rows = network.config, shape.rows

    beside = [rows, count, config.heads, config.head_size]
    query, key, value = (graph.transpose(graph.reshape(part, *beside), 0, 2, 1, 3) for part in fresh)
    keys, values = caches
    history = graph.node("Add", graph.node("MatMul", query, graph.transpose(keys, 0, 1, 3, 2)), mask)
    itself = graph.node("ReduceSum", graph.node("Mul", query, key), graph.sizes(3), keepdims=1)
    share = graph.node("Softmax", graph.node("Concat", history, itself, axis=3), axis=-1)
    of_history, of_itself = graph.split(share, shape.positions, 1, axis=3)
    mean = graph.node("Add", graph.node("MatMul", of_history, values), graph.node("Mul", of_itself, value))
    return graph.reshape(graph.transpose(mean, 0, 2, 1, 3), rows * count, config.width)


def state_tensors(network: TensorRtNetwork, shape: Shape) -> dict[str, tuple[list[int], int | None, int]]:
    """Return the tensors of a decode state: name -> sizes, element type (None: the precision), axis of the rows."""
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
    if shape.masked:
        found |= {"mask": ([rows], INT32, 0), "masks": ([rows, mask_words(config)], INT32, 0)}
    return found


def between(network: TensorRtNetwork, shape: Shape) -> dict[str, list[int]]:
    """Return the tensors between the engines of consecutive segments: name -> sizes."""
    found = {}
    for segment in range(len(network.segments()) - 1):
        found[f"left_{segment}"] = [shape.places, network.config.width]
        found[f"passed_{segment}"] = [shape.rows, network.config.width]
    return found


def select(network: TensorRtNetwork, shape: Shape, rows_out: int) -> bytes:
    """Return the graph that copies rows of a whole state.

    Inputs: every tensor of `state_tensors`, and rows [rows_out]. Outputs: chosen_<name>. Each chosen row gets a mask of
    its own: there is room for as many as there are rows.
    """
    graph = network.graph()
    rows = graph.input("rows", [rows_out], INT32)
    for name, (sizes, kind, axis) in state_tensors(network, shape).items():
        taken = graph.node("Gather", graph.input(name, sizes, kind), rows, axis=axis)
        if name == "mask":
            of_rows, taken = taken, graph.node("Identity", graph.constant(np.arange(rows_out, dtype=np.int32)))
        if name == "masks":
            taken = graph.node("Gather", name, of_rows, axis=0)
        sizes_out = [rows_out if i == axis else size for i, size in enumerate(sizes)]
        graph.output(taken, f"chosen_{name}", sizes_out, kind)
    return graph.serialized("select")
