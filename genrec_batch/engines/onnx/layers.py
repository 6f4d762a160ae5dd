"""Building blocks of ONNX graphs: one small function per part of a transformer, each adding nodes to a growing graph.

Owns: `Graph`, and linear, LayerNorm, attention and choice as ONNX operators of opset 17. Must not know: which graphs an
engine needs, parameter names, sessions, devices, torch.

The forms follow what TensorRT 8.6 takes and runs well: rows flattened into one matrix product, additive finite masks,
LayerNorm from primitive operators, no Boolean constants, int32 at every border. int64 stands only in shapes and in the
indices where ONNX asks for it.

Shape legend beside that of `arrays`: P positions of the prefix (1 + S), Q queries per row, L keys of a cache, T decoded
items there is room for, D width, A attention heads, E width of one, M rows of a matrix product (such as B * P).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from genrec_batch.core.arrays import F32, FIRST_ITEM

OPSET = 17
IR_VERSION = 8  # the oldest that knows opset 17
MASKED = -60_000.0  # added to a masked score: far below any real one, exact and finite in fp16
ELEMENTS: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}
FLOAT, INT32, INT64 = int(TensorProto.FLOAT), int(TensorProto.INT32), int(TensorProto.INT64)

Dimension = int | str  # a baked size, or the name of a dynamic one


class Graph:
    """An ONNX graph in the making. Values are named by strings; the same calls give the same bytes."""

    def __init__(self, precision: str) -> None:
        self.element: np.dtype[Any] = ELEMENTS[precision]
        self.element_type = int(helper.np_dtype_to_tensor_dtype(self.element))
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._output_names: dict[str, str] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._sizes: dict[str, tuple[int, ...]] = {}  # constants that `sizes` made
        self._initializers: list[onnx.TensorProto] = []

    def input(self, name: str, shape: Sequence[Dimension] | None, kind: int | None = None) -> str:
        """Declare an input of an ONNX element type (the graph's own by default) and return its name."""
        self._inputs.append(helper.make_tensor_value_info(name, kind or self.element_type, shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[Dimension] | None, kind: int | None = None) -> None:
        """Declare a value, which no other output is, as the output `name`."""
        assert value not in self._output_names, value
        self._output_names[value] = name
        self._outputs.append(helper.make_tensor_value_info(name, kind or self.element_type, shape))

    def constant(self, array: npt.ArrayLike) -> str:
        """Return a constant; floating-point ones take the graph's element type."""
        values: npt.NDArray[Any] = np.asarray(array)
        return self._stored(values.astype(self.element) if values.dtype.kind == "f" else values)

    def float32(self, value: float) -> str:
        """Return an fp32 scalar, whatever the graph's element type."""
        return self._stored(np.asarray(value, np.float32))

    def sizes(self, *values: int) -> str:
        """Return a constant int64 vector: a shape, axes or the bounds of a slice."""
        name = self._stored(np.array(values, np.int64))
        self._sizes[name] = values
        return name

    def join(self, *vectors: str) -> str:
        """Return int64 vectors as one: a constant where all of them are, since a parser may ask for that."""
        if all(vector in self._sizes for vector in vectors):
            return self.sizes(*(size for vector in vectors for size in self._sizes[vector]))
        return self.node("Concat", *vectors, axis=0)

    def _stored(self, values: npt.NDArray[Any]) -> str:
        key = (values.dtype.str, values.shape, hashlib.sha256(values.tobytes()).digest())  # equal ones are stored once
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(values, self._constants[key]))
        return self._constants[key]

    def nodes(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add an operator and return the names of its outputs."""
        name = f"{op}_{len(self._nodes)}"
        names = [f"{name}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return names

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator of one output and return that output's name."""
        return self.nodes(op, *inputs, outputs=1, **attributes)[0]

    def reshape(self, value: str, *shape: int) -> str:
        """Reshape to constant sizes; 0 keeps one and -1 stands for the rest, as ONNX has it."""
        return self.node("Reshape", value, self.sizes(*shape))

    def cast(self, value: str, kind: int) -> str:
        """Cast to an ONNX element type."""
        return self.node("Cast", value, to=kind)

    def size_of(self, value: str, axis: int, size: Dimension) -> str:
        """Return a value's size along an axis as int64 [1]: a constant where it is baked."""
        if isinstance(size, int):
            return self.sizes(size)
        return self.node("Gather", self.node("Shape", value), self.sizes(axis), axis=0)

    def model(self, name: str) -> onnx.ModelProto:
        """Return the finished model."""
        for node in self._nodes:
            node.input[:] = [self._output_names.get(value, value) for value in node.input]
            node.output[:] = [self._output_names.get(value, value) for value in node.output]
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._initializers)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="genrec-batch")


def linear(g: Graph, x_MI: str, weight_OI: F32, bias_O: F32, *, relu: bool = False) -> str:
    """Return x W^T + b of PyTorch's [out, in] weight, [M, O]; ReLU on it where asked."""
    y_MO = g.node("Gemm", x_MI, g.constant(np.ascontiguousarray(weight_OI.T)), g.constant(bias_O))
    return g.node("Relu", y_MO) if relu else y_MO


def layer_norm(g: Graph, x_MD: str, scale_D: F32, shift_D: F32, epsilon: float) -> str:
    """Return LayerNorm over the last axis (Ba et al. 2016), from primitive operators, [M, D]."""
    centred_MD = g.node("Sub", x_MD, g.node("ReduceMean", x_MD, axes=[-1], keepdims=1))
    square_MD = g.node("Pow", centred_MD, g.constant(np.float32(2)))
    variance_M1 = g.node("ReduceMean", square_MD, axes=[-1], keepdims=1)
    deviation_M1 = g.node("Sqrt", g.node("Add", variance_M1, g.constant(np.float32(epsilon))))
    normal_MD = g.node("Div", centred_MD, deviation_M1)
    return g.node("Add", g.node("Mul", normal_MD, g.constant(scale_D)), g.constant(shift_D))


def counting(g: Graph, size: Dimension, length_1: str, at_most: int) -> str:
    """Return int32 0, 1, 2, ..: `size` of them where that is baked, else `length_1` of `at_most`."""
    if isinstance(size, int):
        return g.constant(np.arange(size, dtype=np.int32))
    return g.node("Slice", g.constant(np.arange(at_most, dtype=np.int32)), g.sizes(0), length_1, g.sizes(0))


def masked_unless(g: Graph, kept: str) -> str:
    """Return what to add to scores: 0 where `kept` (Boolean, computed) is true, else MASKED."""
    return g.node("Where", kept, g.constant(np.float32(0)), g.constant(np.float32(MASKED)))


def causal_mask(g: Graph, size: Dimension, length_1: str, at_most: int) -> str:
    """Return the additive mask [P, P] under which a position sees itself and those before it."""
    if isinstance(size, int):
        return g.constant(np.triu(np.full((size, size), MASKED, np.float32), 1))
    key_P = counting(g, size, length_1, at_most)
    return masked_unless(g, g.node("LessOrEqual", key_P, g.reshape(key_P, -1, 1)))


def row_mask(g: Graph, key_L: str, past_B: str) -> str:
    """Return the additive mask [B, 1, 1, L] under which each row sees the keys below its own `past_B` (int32)."""
    mask_BL = masked_unless(g, g.node("Less", key_L, g.reshape(past_B, -1, 1)))
    return g.node("Unsqueeze", mask_BL, g.sizes(1, 2))


def self_attention(g: Graph, query_BAQE: str, key_BAPE: str, value_BAPE: str, mask: str) -> str:
    """Return softmax(Q K^T + mask) V (Vaswani et al. 2017), [B, A, Q, E]; 1 / sqrt(E) is in the queries already."""
    score_BAQP = g.node("Add", _scores(g, query_BAQE, key_BAPE), mask)
    return g.node("MatMul", g.node("Softmax", score_BAQP, axis=-1), value_BAPE)


def cached_attention(
    g: Graph, query_BAQE: str, own: tuple[str, str], caches: Sequence[tuple[str, str, str]], sizes: Sequence[str]
) -> str:
    """Return the attention of queries that each see their own key and value and every cache, [B, A, Q, E].

    Args:
        g: the graph.
        query_BAQE: queries, scaled already.
        own: the queries' own key and value, [B, A, Q, E]; no query sees another's.
        caches: key [B, A, L, E], value [B, A, L, E] and additive mask [B, 1, 1, L] of each cache.
        sizes: L of each cache, int64 [1].
    """
    own_key, own_value = own
    parts = [g.node("Add", _scores(g, query_BAQE, key), mask) for key, _, mask in caches]
    parts.append(g.node("ReduceSum", g.node("Mul", query_BAQE, own_key), g.sizes(-1), keepdims=1))
    weights = g.node("Softmax", g.node("Concat", *parts, axis=-1), axis=-1)
    split = g.join(*sizes, g.sizes(1))
    *shared, own_weight = g.nodes("Split", weights, split, outputs=len(parts), axis=-1)
    context_BAQE = g.node("Mul", own_weight, own_value)
    for weight, (_, value, _) in zip(shared, caches, strict=True):
        context_BAQE = g.node("Add", context_BAQE, g.node("MatMul", weight, value))
    return context_BAQE


def _scores(g: Graph, query_BAQE: str, key_BALE: str) -> str:
    return g.node("MatMul", query_BAQE, g.node("Transpose", key_BALE, perm=[0, 1, 3, 2]))


def merge_heads(g: Graph, context_BAQE: str, width: int) -> str:
    """Return [B, A, Q, E] as the rows of a matrix, [B * Q, D]."""
    return g.reshape(g.node("Transpose", context_BAQE, perm=[0, 2, 1, 3]), -1, width)


def pick_position(g: Graph, x_BPD: str, index_B: str) -> str:
    """Return one position of each row, [B, D]; the index is int32."""
    return g.node("GatherND", x_BPD, g.reshape(g.cast(index_B, INT64), -1, 1), batch_dims=1)


def choose(g: Graph, logits_BV: str, banned_BX: str, choices: int | None, items: int | None) -> tuple[str, str, str]:
    """Add the choice of the next items.

    The log-probability is the log-softmax over the whole vocabulary in fp32, taken before anything is masked; padding,
    unknown, tokens beyond the catalog and the banned tokens (0 where there is none) cannot be chosen. Equal ones: the
    lower token first.

    Args:
        g: the graph.
        logits_BV: logits of the next position.
        banned_BX: int32 tokens that must not be chosen; X may be 0.
        choices: how many to choose; None reads it from a new input `choices`, int64 [1].
        items: the first token that stands for no video; None reads it from a new input `items`, int64 [1].

    Returns:
        tokens_BK (int32; 0 where nothing is left), log_prob_BK (fp32; -inf there), log_probs_BV (fp32, nothing masked).
    """
    log_probs_BV = g.node("LogSoftmax", g.cast(logits_BV, FLOAT), axis=-1)
    no_items = np.arange(FIRST_ITEM, dtype=np.int32)[None]  # padding and unknown
    rows_and_2 = g.join(g.size_of(banned_BX, 0, "B"), g.sizes(FIRST_ITEM))
    banned_BX = g.node("Concat", banned_BX, g.node("Expand", g.constant(no_items), rows_and_2), axis=1)
    masked_BX = g.node("Expand", g.float32(MASKED), g.node("Shape", banned_BX))
    open_BV = g.node("ScatterElements", log_probs_BV, banned_BX, masked_BX, axis=1)
    beyond = g.input("items", [1], INT64) if items is None else g.sizes(items)
    open_BI = g.node("Slice", open_BV, g.sizes(0), beyond, g.sizes(1))
    count = g.input("choices", [1], INT64) if choices is None else g.sizes(choices)
    best_BK, index_BK = g.nodes("TopK", open_BI, count, outputs=2, axis=1, largest=1, sorted=1)
    left_BK = g.node("Greater", best_BK, g.float32(MASKED / 2))
    tokens_BK = g.node("Where", left_BK, g.cast(index_BK, INT32), g.constant(np.int32(0)))
    return tokens_BK, g.node("Where", left_BK, best_BK, g.float32(-np.inf)), log_probs_BV
