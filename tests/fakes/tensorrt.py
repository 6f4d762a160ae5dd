"""A TensorRT whose plans are ONNX files, run by ONNX Runtime on the memory and streams of `fakes.cuda`.

Every tensor must be bound to live memory on a 256-byte boundary. The plugin's kernels are their NumPy twins.
"""
# ruff: noqa: ARG002 (the signatures are TensorRT's)

import enum
import types

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from genrec_batch.core.arrays import HEADS
from tests.fakes.cuda import FakeRuntime


class GenrecKernel(OpRun):
    """The plugin's kernels in NumPy: each computes what its docstring in `triton_source.py` says."""

    op_domain = "genrec"

    def _run(self, *inputs, kind="", plugin_namespace="", plugin_version="", **numbers):
        wide = [x.astype(np.float32) if x.dtype.kind == "f" else x for x in inputs]
        found = getattr(self, kind)(wide, types.SimpleNamespace(**numbers))
        return found if isinstance(found, tuple) else (found.astype(np.float16),)

    def linear(self, x, sizes):
        product = x[0] @ x[1].T + x[2]
        return np.maximum(product, 0) if sizes.relu else product

    def embed_history(self, x, sizes):
        tokens, prefix, starts, lengths, table, places = x
        rows = np.concatenate([prefix[:, None], table[tokens]], 1) + places[None, : tokens.shape[1] + 1]
        return laid(rows, starts, lengths, sizes.places, fill=sizes.fill)

    def embed_item(self, x, sizes):
        tokens, lengths, step, table, places = x
        return table[tokens] + places[lengths + step + 1]

    def add_norm(self, x, sizes):
        total = x[0] + x[1]
        centred = total - total.mean(-1, keepdims=True)
        return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * x[2] + x[3]

    def causal_attention(self, x, sizes):
        qkv, lengths, starts = x
        means = self.attended(qkv, lengths, starts, sizes.positions)
        means[np.arange(sizes.positions)[None] > lengths[:, None]] = 0
        return laid(means, starts, lengths, len(qkv), fill=sizes.fill)

    def last_attention(self, x, sizes):
        return self.attended(*x, sizes.positions)[np.arange(len(x[1])), np.maximum(x[1], 0)]

    def attended(self, qkv, lengths, starts, positions):
        rows = rows_of(qkv, lengths, starts, positions)
        q, k, v = (part.reshape(*part.shape[:2], 16, 32) for part in np.split(rows, 3, -1))
        scores = np.einsum("bqhd,bkhd->bhqk", q, k)
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
        return np.einsum("bhqk,bkhd->bqhd", softmax(scores), v).reshape(*rows.shape[:2], 512)

    def decode_attention(self, x, sizes):
        fresh, prefix, recent, lengths, starts, step = x
        rows, positions = len(fresh), sizes.positions
        before, earlier = rows_of(prefix, lengths, starts, positions), recent.transpose(1, 0, 2)
        every = np.concatenate([before, earlier, fresh[:, None]], 1).reshape(rows, -1, 3, 16, 32)
        number = np.arange(every.shape[1])[None]
        seen = np.where(number < positions, number <= lengths[:, None], number - positions < step[0])
        seen[:, -1] = True
        scores = np.einsum("bhd,bkhd->bhk", every[:, -1, 0], every[:, :, 1])
        share = softmax(np.where(seen[:, None], scores, -np.inf))
        return np.einsum("bhk,bkhd->bhd", share, np.where(seen[:, :, None, None], every[:, :, 2], 0)).reshape(rows, 512)

    def rank_items(self, x, sizes):
        return self.ranked(x, sizes, None)

    def rank_masked_items(self, x, sizes):
        mask, masks = x[5:]
        bits = np.unpackbits(np.ascontiguousarray(masks[mask]).view(np.uint8), axis=1, bitorder="little")
        return self.ranked(x[:5], sizes, bits[:, : sizes.items].astype(bool))

    def ranked(self, x, sizes, banned):
        logits, seen, seen_width, read, step = x
        items, limit, rows = sizes.items, sizes.limit, len(logits)
        seen = seen.reshape(-1)[: rows * seen_width[0]].reshape(rows, -1)  # so many columns, one row after the other
        log_sum = np.log(np.exp(logits[:, :items]).sum(1))
        heads = 1 / (1 + np.exp(-logits[:, items : items + len(HEADS)]))
        left = logits[:, :items].copy()
        left[:, limit:] = -np.inf
        if banned is not None:
            left[banned] = -np.inf
        for row in range(len(left)):
            left[row, seen[row]] = -np.inf
            left[row, read[: step[0] + 1, row]] = -np.inf
        best = left.max(1)
        tokens = np.where(best > -np.inf, left.argmax(1), 0).astype(np.int32)
        return tokens, (best - log_sum).astype(np.float32), heads.astype(np.float32)


class GatherElements(OpRun):
    """Replaces ONNX's reference, which returns one column too few where an index has more than one."""

    def _run(self, data, indices, axis=0):
        return (np.take_along_axis(data, indices, axis),)


def laid(rows, starts, lengths, places, *, fill):
    """Rows [B, S, D] end to end, [N, D]: real positions, or all with `fill`; places that are not written are NaN."""
    out = np.full((places, rows.shape[-1]), np.nan, np.float32)
    for row, start, length in zip(rows, starts, lengths, strict=True):
        count = len(row) if fill else length + 1
        out[start : start + count] = row[:count]
    return out


def rows_of(places, lengths, starts, positions):
    """The inverse of `laid`: [B, S, D], zeros past each history."""
    rows = np.zeros((len(lengths), positions, places.shape[-1]), np.float32)
    for row, start, length in zip(rows, starts, lengths, strict=True):
        row[: length + 1] = places[start : start + length + 1]
    return rows


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


class FakeTensorRt(types.ModuleType):
    """The part of `tensorrt` 8.6 that the package calls; a plan is the ONNX file itself."""

    def __init__(self, runtime: FakeRuntime) -> None:
        super().__init__("tensorrt")
        self.__version__ = "8.6.0"
        self.builds: list[str] = []
        fake = self
        self.DataType = enum.Enum("DataType", "FLOAT")
        self.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", start=0)
        self.BuilderFlag = enum.IntEnum("BuilderFlag", "FP16 OBEY_PRECISION_CONSTRAINTS TF32")
        self.flags: set[enum.IntEnum] = set()  # of the latest build
        self.TacticSource = enum.IntEnum("TacticSource", "EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS")
        self.MemoryPoolType = enum.IntEnum("MemoryPoolType", "WORKSPACE")
        self.ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", "DETAILED")
        self.LayerType = enum.Enum("LayerType", "CONSTANT CAST OTHER")

        class ILogger:
            ERROR, INTERNAL_ERROR = 1, 2

        class Network:
            num_layers = 0

            def __init__(self):
                self.model = None

        class Config:
            def __init__(self):
                fake.flags = {fake.BuilderFlag.TF32}  # the library's default

            def clear_flag(self, flag):
                fake.flags.discard(flag)

            def set_memory_pool_limit(self, pool, count):
                pass

            def set_tactic_sources(self, sources):
                pass

            def set_flag(self, flag):
                fake.flags.add(flag)

            def create_timing_cache(self, content):
                return types.SimpleNamespace(serialize=lambda: content + b"+")

            def set_timing_cache(self, cache, ignore_mismatch):
                return True

        class Builder:
            def __init__(self, logger):
                assert isinstance(logger, ILogger)

            def create_network(self, flags):
                return Network()

            def create_builder_config(self):
                return Config()

            def build_serialized_network(self, network, config):
                fake.builds.append(network.model.graph.name)
                return network.model.SerializeToString()

        class OnnxParser:
            num_errors = 1

            def __init__(self, network, logger):
                self.network = network

            def parse(self, content):
                self.network.model = onnx.load_model_from_string(content)
                return True

        class Runtime:
            def __init__(self, logger):
                pass

            def deserialize_cuda_engine(self, plan):
                return FakeEngine(runtime, plan)

        self.ILogger, self.Builder, self.OnnxParser, self.Runtime = ILogger, Builder, OnnxParser, Runtime


def described(value):
    """Shape and NumPy type of a graph's input or output."""
    kind = value.type.tensor_type
    return tuple(size.dim_value for size in kind.shape.dim), onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)


class FakeEngine:
    def __init__(self, runtime: FakeRuntime, plan: bytes) -> None:
        model = onnx.load_model_from_string(plan)
        self.runtime, self.name = runtime, model.graph.name
        self.inputs = {value.name: described(value) for value in model.graph.input}
        self.outputs = {value.name: described(value) for value in model.graph.output}
        self.all = {**self.inputs, **self.outputs}
        if any(node.domain == "genrec" for node in model.graph.node):
            evaluator = ReferenceEvaluator(model, new_ops=[GenrecKernel, GatherElements])
            self.run = lambda feeds: evaluator.run(list(self.outputs), feeds)
        else:
            options = onnxruntime.SessionOptions()
            options.log_severity_level, options.intra_op_num_threads = 3, 1
            session = onnxruntime.InferenceSession(plan, options, providers=["CPUExecutionProvider"])
            self.run = lambda feeds: session.run(list(self.outputs), feeds)

    num_io_tensors = property(lambda self: len(self.all))

    def get_tensor_name(self, index):
        return list(self.all)[index]

    def create_execution_context(self):
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.addresses = engine, {}

    def set_tensor_address(self, name, address):
        assert name in self.engine.all, f"{self.engine.name} has no tensor {name}"
        assert address % 256 == 0, f"{name} does not start on a 256-byte boundary"
        self.addresses[name] = address
        return True

    def memory(self, name, address) -> np.ndarray:
        shape, kind = self.engine.all[name]
        count = int(np.prod(shape)) * kind.itemsize
        return self.engine.runtime.memory_at(address, count).view(kind).reshape(shape)

    def execute_async_v3(self, handle):
        engine, addresses = self.engine, dict(self.addresses)
        missing = engine.all.keys() - addresses.keys()
        assert not missing, f"{engine.name}: no address for {sorted(missing)}"
        engine.runtime.launches.append(engine.name)

        def run() -> None:
            feeds = {name: self.memory(name, addresses[name]).copy() for name in engine.inputs}
            for name, values in zip(engine.outputs, engine.run(feeds), strict=True):
                self.memory(name, addresses[name])[...] = values

        engine.runtime.streams[handle].push(run)
        return True
