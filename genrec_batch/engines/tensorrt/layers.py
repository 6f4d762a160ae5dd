"""The layers of a transformer in the ONNX forms that TensorRT runs fast, and the plugin's kernels as operators.

Owns: how one linear layer, LayerNorm, causal attention, one-query attention, log-sum-exp and arg max are written in
ONNX with static shapes. Must not know: the order of the layers (`graphs`), TensorRT, the engine.

Shape legend: B rows, S positions, D width, H attention heads, HD size of one, R rows of a matrix product, T decode
steps, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32
from genrec_batch.engines.onnx_graph import FLOAT, INT32, OnnxGraph
from genrec_batch.model.weights import EPSILON

BANNED = -6e4  # a logit that no item has; finite in fp16
NOTHING = -1e30  # the log-probability where nothing is left; the host replaces it by minus infinity
HIDDEN_KEY = -3e4  # added to the score of a key that must not be seen
PLUGIN_DOMAIN = "genrec"


def kernel(graph: OnnxGraph, kind: str, *inputs: str, outputs: int = 1, **numbers: int) -> list[str]:
    """Add one of the plugin's kernels, all of which compute in fp16."""
    assert graph.precision == "fp16", graph.precision
    attributes: dict[str, Any] = dict.fromkeys(("items", "limit", "positions", "places", "fill", "relu"), 0) | numbers
    return graph.nodes(
        "GenrecKernel",
        *inputs,
        outputs=outputs,
        domain=PLUGIN_DOMAIN,
        plugin_version="2",
        plugin_namespace="",
        kind=kind,
        **attributes,
    )


def linear(graph: OnnxGraph, x: str, weight: F32, bias: F32, *, plugin: bool, relu: bool = False) -> str:
    """Multiply x [R, in] by weight [out, in] transposed, plus bias: [R, out]; with `relu` negatives become 0."""
    if plugin:
        return kernel(graph, "linear", x, graph.constant(weight), graph.constant(bias), relu=int(relu))[0]
    product = graph.node("MatMul", x, graph.constant(weight.T))
    total = graph.node("Add", product, graph.constant(bias))
    return graph.node("Relu", total) if relu else total


def residual_norm(graph: OnnxGraph, x: str, y: str, gain: F32, bias: F32, *, plugin: bool) -> str:
    """Return LayerNorm(x + y) (Ba et al. 2016), in primitive operators, which TensorRT 8.6 fuses better."""
    if plugin:
        return kernel(graph, "add_norm", x, y, graph.constant(gain), graph.constant(bias))[0]
    total = graph.node("Add", x, y)
    centred = graph.node("Sub", total, graph.node("ReduceMean", total, axes=[-1], keepdims=1))
    variance = graph.node("ReduceMean", graph.node("Mul", centred, centred), axes=[-1], keepdims=1)
    deviation = graph.node("Sqrt", graph.node("Add", variance, graph.constant(np.array([EPSILON], np.float32))))
    scaled = graph.node("Mul", graph.node("Div", centred, deviation), graph.constant(gain))
    return graph.node("Add", scaled, graph.constant(bias))


def causal_attention(graph: OnnxGraph, qkv: Sequence[str], sizes: Sequence[int]) -> str:
    """Attend from every position of a row to itself and those before it; q, k, v [B, H, S, HD] -> [B·S, D].

    Rows are left-aligned, so padding is right of every real position and the mask is one constant.
    """
    (q, k, v), (rows, heads, positions, head_size) = qkv, sizes
    ahead = np.triu(np.full((1, 1, positions, positions), BANNED, np.float32), 1)
    scores = graph.node("Add", graph.node("MatMul", q, graph.transpose(k, 0, 1, 3, 2)), graph.constant(ahead))
    mean = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), v)
    return graph.reshape(graph.transpose(mean, 0, 2, 1, 3), rows * positions, heads * head_size)


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Some of the keys that one query per row attends to: its scores, and the values under given weights."""

    scores: str  # [B, H, n]
    weigh: Callable[[str], str]  # weights [B, H, n] -> sum of the weighted values [B, H, HD]


def over_cache(graph: OnnxGraph, query: str, keys: str, values: str, mask: str, sizes: Sequence[int]) -> Keys:
    """Return one query per row, [B, D], over keys and values [B, H, S, HD]; mask [B, 1, S]."""
    rows, heads, positions, head_size = sizes
    alone = graph.reshape(query, rows, heads, 1, head_size)
    product = graph.node("MatMul", alone, graph.transpose(keys, 0, 1, 3, 2))

    def weigh(weights: str) -> str:
        mean = graph.node("MatMul", graph.reshape(weights, rows, heads, 1, positions), values)
        return graph.reshape(mean, rows, heads, head_size)

    return Keys(scores=graph.node("Add", graph.reshape(product, rows, heads, positions), mask), weigh=weigh)


def over_steps(graph: OnnxGraph, query: str, keys: str, values: str, mask: str | None, sizes: Sequence[int]) -> Keys:
    """Return one query per row, [B, D], over the keys and values of steps [n, B, H, HD]; mask [1, 1, n]."""
    steps, rows, heads, head_size = sizes
    product = graph.node("Mul", graph.reshape(query, 1, rows, heads, head_size), keys)
    scores = graph.transpose(graph.node("ReduceSum", product, graph.sizes(3), keepdims=0), 1, 2, 0)

    def weigh(weights: str) -> str:
        by_step = graph.reshape(graph.transpose(weights, 2, 0, 1), steps, rows, heads, 1)
        return graph.node("ReduceSum", graph.node("Mul", by_step, values), graph.sizes(0), keepdims=0)

    return Keys(scores=scores if mask is None else graph.node("Add", scores, mask), weigh=weigh)


def merged(graph: OnnxGraph, keys: Sequence[Keys]) -> str:
    """Return softmax attention over all keys together, [B, H, HD], with the softmax written out.

    TensorRT 8.6 replaces a Softmax between two products by fused attention, whose kernel for one query row gave wrong
    items. Maximum, exponentials and a division at the end do not match that pattern, and need no concatenation.
    """
    top = _fold(graph, "Max", [graph.node("ReduceMax", each.scores, axes=[2], keepdims=1) for each in keys])
    weights = [graph.node("Exp", graph.node("Sub", each.scores, top)) for each in keys]
    totals = [graph.node("ReduceSum", weight, graph.sizes(2), keepdims=1) for weight in weights]
    sums = [each.weigh(weight) for each, weight in zip(keys, weights, strict=True)]
    return graph.node("Div", _fold(graph, "Add", sums), _fold(graph, "Add", totals))


def _fold(graph: OnnxGraph, operator: str, values: Sequence[str]) -> str:
    return functools.reduce(lambda x, y: graph.node(operator, x, y), values)


def visible(graph: OnnxGraph, limit: str, size: int, shape: Sequence[int], *, inclusive: bool) -> str:
    """Return what to add to attention scores: 0 where the key's number is below (or equal to) int32 `limit`."""
    number = graph.constant(np.arange(size, dtype=np.int32).reshape(1, size))
    seen = graph.node("LessOrEqual" if inclusive else "Less", number, limit)
    mask = graph.node("Where", seen, graph.constant(np.zeros(1, np.float32)), graph.constant(np.full(1, HIDDEN_KEY)))
    return graph.reshape(mask, *shape)


def log_sum_exp(graph: OnnxGraph, logits: str) -> tuple[str, str]:
    """Return logits [B, V] in fp32 and the log of the sum of their exponentials [B, 1], shifted by the maximum."""
    wide = graph.node("Cast", logits, pinned=True, to=FLOAT)
    top = graph.node("ReduceMax", wide, pinned=True, axes=[1], keepdims=1)
    powers = graph.node("Exp", graph.node("Sub", wide, top, pinned=True), pinned=True)
    total = graph.node("ReduceSum", powers, graph.sizes(1), pinned=True, keepdims=1)
    return wide, graph.node("Add", graph.node("Log", total, pinned=True), top, pinned=True)


def ban(graph: OnnxGraph, logits: str, banned: str, sizes: tuple[int, int, int]) -> str:
    """Set the columns in int32 `banned` [B, count] to BANNED; a column may occur many times.

    sizes: B, count and the columns of `logits`. TensorRT scatters at most as many values as there are columns at once.
    """
    rows, count, columns = sizes
    value = graph.constant(np.full((1, 1), BANNED, np.float32))
    for start in range(0, count, columns):
        stop = min(count, start + columns)
        some = banned if stop - start == count else graph.columns(banned, start, stop)
        updates = graph.node("Expand", value, graph.sizes(rows, stop - start))
        logits = graph.node("ScatterElements", logits, some, updates, axis=1)
    return logits


def ban_by_mask(graph: OnnxGraph, logits: str, words: str, columns: int) -> str:
    """Set the columns whose bits are 1 in int32 `words` [B, W] to BANNED; bit c % 32 of word c // 32 is column c.

    TensorRT 8.6 has no operators on bits. A word is split into two halves from 0 to 65,535, and a half is divided by
    the powers of two; the integer division rounds towards zero.
    """

    def number(value: int) -> str:
        return graph.constant(np.full((1, 1, 1), value, np.int32))

    def unsigned(half: str) -> str:
        return graph.node("Where", graph.node("Less", half, number(0)), graph.node("Add", half, number(1 << 16)), half)

    whole = graph.node("Unsqueeze", words, graph.sizes(2))
    rest = graph.node("Mul", graph.node("Div", whole, number(1 << 16)), number(1 << 16))
    low = unsigned(graph.node("Sub", whole, rest))
    high = unsigned(graph.node("Div", graph.node("Sub", whole, low), number(1 << 16)))
    halves = graph.reshape(graph.node("Concat", low, high, axis=2), 0, -1, 1)
    powers = graph.constant((1 << np.arange(16, dtype=np.int32)).reshape(1, 1, 16))
    shifted = graph.node("Div", halves, powers)
    even = graph.node("Mul", graph.node("Div", shifted, number(2)), number(2))
    bits = graph.columns(graph.reshape(graph.node("Sub", shifted, even), 0, -1), 0, columns)
    gone = graph.node("Equal", bits, graph.constant(np.ones((1, 1), np.int32)))
    return graph.node("Where", gone, graph.constant(np.full((1, 1), BANNED, np.float32)), logits)


def best(graph: OnnxGraph, logits: str, log_sum: str, rows: int, vocabulary: int) -> None:
    """Output `next_token` [B] (the lowest of the best columns; 0 if all are banned) and `next_log_prob` [B, 1]."""
    top = graph.node("ReduceMax", logits, axes=[1], keepdims=1)
    number = graph.constant(np.arange(vocabulary, dtype=np.int32).reshape(1, vocabulary))
    none = graph.constant(np.full((1, 1), np.iinfo(np.int32).max, np.int32))
    lowest = graph.node("ReduceMin", graph.node("Where", graph.node("Equal", logits, top), number, none), axes=[1])
    floor = graph.constant(np.full((1, 1), HIDDEN_KEY, np.float32))
    token = graph.node("Where", graph.node("Greater", top, floor), lowest, graph.constant(np.zeros((1, 1), np.int32)))
    graph.output(graph.reshape(token, rows), "next_token", [rows], INT32)
    value = graph.node("Sub", graph.node("Cast", top, pinned=True, to=FLOAT), log_sum, pinned=True)
    # Added instead of chosen, so that NaN stays NaN.
    is_nothing = graph.node("LessOrEqual", top, floor)
    nothing = graph.node("Where", is_nothing, graph.float32([NOTHING]), graph.float32([0.0]))
    graph.output(graph.node("Add", value, nothing), "next_log_prob", [rows, 1], FLOAT)
