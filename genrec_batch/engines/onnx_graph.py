"""The writer of ONNX graphs: inputs, constants, operators and outputs become one model of opset 17.

Owns: element types, the names of values, and that equal constants are stored once. Must not know: transformers, the
names of weights, engines, files. In: calls in the order of the computation. Out: a model; equal calls give equal bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

OPSET = 17
IR_VERSION = 8  # the oldest that knows opset 17
FLOAT, INT32, INT64 = int(TensorProto.FLOAT), int(TensorProto.INT32), int(TensorProto.INT64)
UINT8 = int(TensorProto.UINT8)
FLOAT16, BFLOAT16 = int(TensorProto.FLOAT16), int(TensorProto.BFLOAT16)
ELEMENTS = {"fp32": FLOAT, "fp16": FLOAT16, "bf16": BFLOAT16}
PINNED = "fp32"  # how the name of a node begins that must be computed in fp32, whatever a builder prefers

Dimension = int | str  # a static size, or the name of a dynamic one


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return fp32 values as bf16 bit patterns, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class OnnxGraph:
    """An ONNX graph under construction. Strings name its values."""

    def __init__(self, precision: str) -> None:
        """Start an empty graph of element type "fp32", "fp16" or "bf16"."""
        self.precision = precision
        self.element = ELEMENTS[precision]
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._output_names: dict[str, str] = {}
        self._constants: dict[tuple[int, tuple[int, ...], bytes], onnx.TensorProto] = {}

    def input(self, name: str, shape: Sequence[Dimension], kind: int | None = None) -> str:
        """Declare an input of an ONNX element type (the graph's own by default) and return its name."""
        self._inputs.append(helper.make_tensor_value_info(name, kind or self.element, shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[Dimension], kind: int | None = None) -> str:
        """Declare a value as the output `name` and return the value. A value can be only one output."""
        assert value not in self._output_names, value
        self._output_names[value] = name
        self._outputs.append(helper.make_tensor_value_info(name, kind or self.element, shape))
        return value

    def constant(self, array: npt.ArrayLike) -> str:
        """Return a constant. Floating-point constants take the graph's element type."""
        values: npt.NDArray[Any] = np.asarray(array)
        if values.dtype.kind != "f":
            return self._stored(values, int(helper.np_dtype_to_tensor_dtype(values.dtype)))
        if self.element == BFLOAT16:
            return self._stored(bfloat16_bits(values.astype(np.float32)), BFLOAT16)
        return self._stored(values.astype(np.float16 if self.element == FLOAT16 else np.float32), self.element)

    def float32(self, array: npt.ArrayLike) -> str:
        """Return an fp32 constant, whatever the graph's element type."""
        return self._stored(np.asarray(array, np.float32), FLOAT)

    def sizes(self, *values: int) -> str:
        """Return a constant int64 vector: a shape, axes or the bounds of a slice."""
        return self._stored(np.array(values, np.int64), INT64)

    def _stored(self, values: npt.NDArray[Any], kind: int) -> str:
        content = values.tobytes()
        key = (kind, values.shape, hashlib.sha256(content).digest())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = helper.make_tensor(name, kind, values.shape, content, raw=True)
        return str(self._constants[key].name)

    def nodes(
        self, op: str, *inputs: str, outputs: int, domain: str | None = None, pinned: bool = False, **attributes: Any
    ) -> list[str]:
        """Add an operator and return the names of its outputs; `pinned` ones must be computed in fp32."""
        name = f"{op}_{len(self._nodes)}"
        if pinned:
            name = f"{PINNED}_{name}"
        names = [f"{name}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), names, name=name, domain=domain, **attributes))
        return names

    def node(self, op: str, *inputs: str, pinned: bool = False, **attributes: Any) -> str:
        """Add an operator of one output and return that output's name."""
        return self.nodes(op, *inputs, outputs=1, pinned=pinned, **attributes)[0]

    def reshape(self, value: str, *shape: int) -> str:
        """Reshape to constant sizes; 0 keeps a size and -1 is the remaining one, as in ONNX."""
        return self.node("Reshape", value, self.sizes(*shape))

    def transpose(self, value: str, *order: int) -> str:
        """Reorder the axes."""
        return self.node("Transpose", value, perm=list(order))

    def split(self, value: str, *sizes: int, axis: int = -1) -> list[str]:
        """Split an axis, by default the last, into parts of the given sizes."""
        return self.nodes("Split", value, self.sizes(*sizes), outputs=len(sizes), axis=axis)

    def columns(self, value: str, start: int, stop: int) -> str:
        """Return columns start..stop of a matrix."""
        return self.node("Slice", value, self.sizes(start), self.sizes(stop), self.sizes(1))

    def cast(self, value: str, kind: int) -> str:
        """Cast to an ONNX element type."""
        return self.node("Cast", value, to=kind)

    def size_of(self, value: str, axis: int) -> str:
        """Return a value's size along an axis as int64 [1]."""
        return self.node("Gather", self.node("Shape", value), self.sizes(axis), axis=0)

    def model(self, name: str) -> onnx.ModelProto:
        """Return the finished model."""
        for node in self._nodes:
            node.input[:] = [self._output_names.get(value, value) for value in node.input]
            node.output[:] = [self._output_names.get(value, value) for value in node.output]
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._constants.values()))
        domains = sorted({node.domain for node in self._nodes} - {""})
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="genrec-batch")

    def serialized(self, name: str) -> bytes:
        """Return the finished model as bytes."""
        return bytes(self.model(name).SerializeToString(deterministic=True))
