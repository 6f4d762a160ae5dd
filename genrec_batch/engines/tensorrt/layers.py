"""Building blocks of the ONNX graphs for TensorRT: a small graph writer and the layers in the forms that run fast.

Owns: how one linear layer, LayerNorm, causal attention, one-query attention, log-sum-exp and arg max are spelled in
ONNX (opset 17, static shapes). Must not know: the order of the layers (`tensorrt_graphs.py`), TensorRT, the engine.

Names of tensors: B rows, S positions, D width, H heads, T decode steps, V vocabulary. Nodes whose name starts with
`fp32` must not be computed in a smaller type, whatever the builder prefers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from genrec_batch.core.errors import EngineError
from genrec_batch.model.weights import EPSILON

BANNED = -6e4  # a logit no item has; finite in fp16
NOTHING = -1e30  # the log-probability of nothing; the host makes it minus infinity
HIDDEN_KEY = -3e4  # added to the score of a key that must not be seen
PLUGIN_DOMAIN = "genrec"
SHARED = 4096  # constants of up to so many numbers are stored once
ELEMENT = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
INT32, FLOAT = TensorProto.INT32, TensorProto.FLOAT

Array = npt.NDArray[Any]


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return fp32 values as bf16 bit patterns, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@dataclass(kw_only=True)
class Graph:
    """An ONNX graph being written; every method that adds a node returns the name of its output."""

    precision: str
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    @property
    def element(self) -> int:
        """ONNX element type of weights and activations."""
        return ELEMENT[self.precision]

    def constant(self, values: Array | float, name: str | None = None) -> str:
        """Add a constant: floats in the graph's precision, integers as they are; equal small ones are shared."""
        array = np.asarray(values)
        name = name or f"constant_{len(self.constants)}"
        if array.dtype.kind != "f":
            tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        elif self.precision == "bf16":
            bits = bfloat16_bits(array.astype(np.float32))
            tensor = helper.make_tensor(name, self.element, array.shape, bits.tobytes(), raw=True)
        else:
            kind = np.float16 if self.precision == "fp16" else np.float32
            tensor = numpy_helper.from_array(array.astype(kind), name)
        if array.size > SHARED:
            self.constants[name] = tensor
            return name
        same = f"{tensor.data_type} {array.shape} {tensor.raw_data.hex()}"
        return str(self.constants.setdefault(same, tensor).name)

    def fp32(self, value: float) -> str:
        """Add an fp32 constant, shape [1]."""
        name = f"fp32_{value!r}"
        self.constants.setdefault(name, numpy_helper.from_array(np.array([value], np.float32), name))
        return name

    def add(self, operator: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        return self.add_many(operator, *inputs, names=[name or self._fresh(operator)], domain=domain, **attributes)[0]

    def add_many(
        self, operator: str, *inputs: str, names: Sequence[str], domain: str = "", **attributes: Any
    ) -> Sequence[str]:
        """Add a node with the given outputs."""
        node = helper.make_node(operator, list(inputs), list(names), name=f"{names[0]}_node", domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
        self.nodes.append(node)
        return names

    def _fresh(self, operator: str) -> str:
        return f"{operator.lower()}_{len(self.nodes)}"

    def split(self, x: str, parts: int, size: int) -> Sequence[str]:
        """Split the last axis into equal parts."""
        names = [f"{self._fresh('split')}_{i}" for i in range(parts)]
        return self.add_many("Split", x, self.ints(*[size] * parts), names=names, axis=-1)

    def columns(self, x: str, start: int, stop: int) -> str:
        """Return columns start..stop of a matrix."""
        return self.add("Slice", x, self.ints(start), self.ints(stop), self.ints(1))

    def ints(self, *values: int) -> str:
        """Add a constant list of sizes or axes (ONNX wants int64 there)."""
        return self.constant(np.array(values, np.int64))

    def reshape(self, x: str, *shape: int, name: str | None = None) -> str:
        """Reshape to a static shape."""
        return self.add("Reshape", x, self.ints(*shape), name=name)

    def transpose(self, x: str, *order: int) -> str:
        """Reorder the axes."""
        return self.add("Transpose", x, perm=list(order))

    def cast(self, x: str, to: int, name: str | None = None) -> str:
        """Convert to another element type."""
        return self.add("Cast", x, name=name, to=to)

    def input(self, name: str, shape: Sequence[int], kind: int | None = None) -> str:
        """Declare an input of the graph, in its precision unless `kind` says otherwise."""
        self.inputs.append(helper.make_tensor_value_info(name, self.element if kind is None else kind, list(shape)))
        return name

    def output(self, name: str, shape: Sequence[int], kind: int | None = None) -> str:
        """Declare a tensor, already named, as an output of the graph."""
        self.outputs.append(helper.make_tensor_value_info(name, self.element if kind is None else kind, list(shape)))
        return name

    def serialize(self, name: str) -> bytes:
        """Return the finished model."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.constants.values()))
        domains = [helper.make_opsetid("", 17), helper.make_opsetid(PLUGIN_DOMAIN, 1)]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=domains, ir_version=8, producer_name="genrec")
        return bytes(model.SerializeToString())

    def kernel(
        self, kind: str, *inputs: str, outputs: int = 1, name: str | None = None, **attributes: int
    ) -> Sequence[str]:
        """Add one of the plugin's kernels; `name` is that of a single output."""
        if self.precision != "fp16":
            raise EngineError(f"the TensorRT plugin computes in fp16, not {self.precision}")
        names = [name] if name else [f"{self._fresh(kind)}_{i}" for i in range(outputs)]
        meta: dict[str, Any] = {"plugin_version": "2", "plugin_namespace": "", "kind": kind}
        meta |= dict.fromkeys(("items", "limit", "positions", "places", "fill", "relu"), 0)
        meta |= attributes
        return self.add_many("GenrecKernel", *inputs, names=names, domain=PLUGIN_DOMAIN, **meta)


def linear(
    graph: Graph,
    x: str,
    weight: Array,
    bias: Array,
    *,
    plugin: bool,
    name: str | None = None,
    relu: bool = False,
) -> str:
    """Multiply x [R, in] by weight [out, in] transposed, plus bias: [R, out]; with `relu` negatives become 0."""
    if plugin:
        given = (graph.constant(np.ascontiguousarray(weight)), graph.constant(bias))
        return graph.kernel("linear", x, *given, name=name, relu=int(relu))[0]
    product = graph.add("MatMul", x, graph.constant(np.ascontiguousarray(weight.T)))
    total = graph.add("Add", product, graph.constant(bias), name=None if relu else name)
    return graph.add("Relu", total, name=name) if relu else total


def residual_norm(graph: Graph, x: str, y: str, gain: Array, bias: Array, *, plugin: bool) -> str:
    """LayerNorm(x + y) over the last axis (Ba et al. 2016), in primitive operators: TensorRT 8.6 fuses those better."""
    if plugin:
        return graph.kernel("add_norm", x, y, graph.constant(gain), graph.constant(bias))[0]
    total = graph.add("Add", x, y)
    centred = graph.add("Sub", total, graph.add("ReduceMean", total, axes=[-1], keepdims=1))
    variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[-1], keepdims=1)
    deviation = graph.add("Sqrt", graph.add("Add", variance, graph.constant(np.array([EPSILON], np.float32))))
    scaled = graph.add("Mul", graph.add("Div", centred, deviation), graph.constant(gain))
    return graph.add("Add", scaled, graph.constant(bias))


def causal_attention(graph: Graph, qkv: Sequence[str], sizes: Sequence[int]) -> str:
    """Every position of a row sees itself and what is left of it; q, k, v [B, H, S, HD] -> [B·S, D].

    Rows are left-aligned, so padding stands right of every real position and the mask is one constant.
    """
    (q, k, v), (rows, heads, positions, head_size) = qkv, sizes
    ahead = np.triu(np.full((1, 1, positions, positions), BANNED, np.float32), 1)
    scores = graph.add("Add", graph.add("MatMul", q, graph.transpose(k, 0, 1, 3, 2)), graph.constant(ahead))
    mean = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
    return graph.reshape(graph.transpose(mean, 0, 2, 1, 3), rows * positions, heads * head_size)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of the keys that one query per row attends to: scores [B, H, n], and what weights make of the values."""

    scores: str
    weigh: Callable[[str], str]  # [B, H, n] -> [B, H, HD]


def over_cache(graph: Graph, query: str, keys: str, values: str, mask: str, sizes: Sequence[int]) -> Part:
    """One query per row, [B, D], over keys and values [B, H, S, HD]; mask [B, 1, S]."""
    rows, heads, positions, head_size = sizes
    alone = graph.reshape(query, rows, heads, 1, head_size)
    product = graph.add("MatMul", alone, graph.transpose(keys, 0, 1, 3, 2))

    def weigh(weights: str) -> str:
        mean = graph.add("MatMul", graph.reshape(weights, rows, heads, 1, positions), values)
        return graph.reshape(mean, rows, heads, head_size)

    return Part(scores=graph.add("Add", graph.reshape(product, rows, heads, positions), mask), weigh=weigh)


def over_steps(graph: Graph, query: str, keys: str, values: str, mask: str | None, sizes: Sequence[int]) -> Part:
    """One query per row, [B, D], over keys and values [n, B, H, HD], as decode steps wrote them; mask [1, 1, n]."""
    steps, rows, heads, head_size = sizes
    product = graph.add("Mul", graph.reshape(query, 1, rows, heads, head_size), keys)
    scores = graph.transpose(graph.add("ReduceSum", product, graph.ints(3), keepdims=0), 1, 2, 0)

    def weigh(weights: str) -> str:
        by_step = graph.reshape(graph.transpose(weights, 2, 0, 1), steps, rows, heads, 1)
        return graph.add("ReduceSum", graph.add("Mul", by_step, values), graph.ints(0), keepdims=0)

    return Part(scores=scores if mask is None else graph.add("Add", scores, mask), weigh=weigh)


def merged(graph: Graph, parts: Sequence[Part]) -> str:
    """Softmax attention over all parts together, [B, H, HD], with the softmax spelled out.

    A Softmax between two products is what TensorRT 8.6 takes for fused attention, and its kernel for one query row gave
    wrong items; maximum, exponentials and a division at the end do not match that pattern (and need no concatenation).
    """
    top = _fold(graph, "Max", [graph.add("ReduceMax", part.scores, axes=[2], keepdims=1) for part in parts])
    weights = [graph.add("Exp", graph.add("Sub", part.scores, top)) for part in parts]
    totals = [graph.add("ReduceSum", weight, graph.ints(2), keepdims=1) for weight in weights]
    sums = [part.weigh(weight) for part, weight in zip(parts, weights, strict=True)]
    return graph.add("Div", _fold(graph, "Add", sums), _fold(graph, "Add", totals))


def _fold(graph: Graph, operator: str, values: Sequence[str]) -> str:
    return functools.reduce(lambda x, y: graph.add(operator, x, y), values)


def visible(graph: Graph, limit: str, size: int, shape: Sequence[int], *, inclusive: bool) -> str:
    """Return what to add to attention scores: 0 where the key's number is below (or equal to) int32 `limit`."""
    number = graph.constant(np.arange(size, dtype=np.int32).reshape(1, size))
    seen = graph.add("LessOrEqual" if inclusive else "Less", number, limit)
    mask = graph.add("Where", seen, graph.constant(np.zeros(1, np.float32)), graph.constant(np.full(1, HIDDEN_KEY)))
    return graph.reshape(mask, *shape)


def log_sum_exp(graph: Graph, logits: str) -> tuple[str, str]:
    """Return logits [B, V] in fp32 and the log of their exponentials' sum [B, 1], shifted by the maximum."""
    wide = graph.cast(logits, FLOAT, name="fp32_logits")
    top = graph.add("ReduceMax", wide, axes=[1], keepdims=1, name="fp32_top")
    powers = graph.add("Exp", graph.add("Sub", wide, top, name="fp32_shifted"), name="fp32_powers")
    total = graph.add("ReduceSum", powers, graph.ints(1), keepdims=1, name="fp32_total")
    return wide, graph.add("Add", graph.add("Log", total, name="fp32_log"), top, name="fp32_log_sum")


def ban(graph: Graph, logits: str, banned: str, sizes: tuple[int, int, int]) -> str:
    """Put BANNED at the columns that int32 `banned` [B, count] names; one may be named many times.

    sizes: B, count and the columns of `logits`. TensorRT scatters at most as many as there are columns at once.
    """
    rows, count, columns = sizes
    value = graph.constant(np.full((1, 1), BANNED, np.float32))
    for start in range(0, count, columns):
        stop = min(count, start + columns)
        part = banned if stop - start == count else graph.columns(banned, start, stop)
        logits = graph.add(
            "ScatterElements", logits, part, graph.add("Expand", value, graph.ints(rows, stop - start)), axis=1
        )
    return logits


def best(graph: Graph, logits: str, log_sum: str, rows: int, vocabulary: int) -> None:
    """Write `next_token` [B] (the lowest of the best columns; 0 if all are banned) and `next_log_prob` [B, 1]."""
    top = graph.add("ReduceMax", logits, axes=[1], keepdims=1)
    number = graph.constant(np.arange(vocabulary, dtype=np.int32).reshape(1, vocabulary))
    none = graph.constant(np.full((1, 1), np.iinfo(np.int32).max, np.int32))
    lowest = graph.add("ReduceMin", graph.add("Where", graph.add("Equal", logits, top), number, none), axes=[1])
    floor = graph.constant(np.full((1, 1), HIDDEN_KEY, np.float32))
    token = graph.add("Where", graph.add("Greater", top, floor), lowest, graph.constant(np.zeros((1, 1), np.int32)))
    graph.output(graph.reshape(token, rows, name="next_token"), [rows], INT32)
    value = graph.add("Sub", graph.cast(top, FLOAT, name="fp32_best"), log_sum, name="fp32_log_prob")
    # Added rather than put in its place, so that what is not a number stays so.
    nothing = graph.add("Where", graph.add("LessOrEqual", top, floor), graph.fp32(NOTHING), graph.fp32(0.0))
    graph.output(graph.add("Add", value, nothing, name="next_log_prob"), [rows, 1], FLOAT)
