"""The graphs: valid ONNX that TensorRT's parser takes, the same bytes each time.

Also tests `layers` and `engines.layer_weights`.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from genrec_batch.engines.onnx import exported, graphs
from genrec_batch.model import weights
from tests.twins.network import NumpyNetwork

TINY = weights.ModelConfig(vocabulary=60, width=32, ffn=48, layers=3, positions=40, heads=4)


@pytest.fixture(scope="module")
def tiny():
    return weights.demo_model(TINY)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", [*exported.GRAPHS, "choose", "append"])
def test_onnx_accepts_every_graph(tiny, name, precision):
    built = graphs.build(name, tiny.config, tiny.weights, precision=precision)
    onnx.checker.check_model(built, full_check=True)
    assert [opset.version for opset in built.opset_import] == [17]
    assert built.graph.name == name


@pytest.mark.parametrize("name", exported.GRAPHS)
def test_it_is_of_a_form_that_tensorrt_takes(tiny, name):
    graph = graphs.build(name, tiny.config, tiny.weights, precision="fp16").graph
    assert {node.op_type for node in graph.node} <= {
        *("Add", "Cast", "Concat", "Div", "Equal", "Expand", "Gather", "GatherND", "Gemm", "Greater", "Less"),
        *("LessOrEqual", "LogSoftmax", "MatMul", "Min", "Mul", "Pow", "ReduceMean", "ReduceSum", "Relu", "Reshape"),
        *("ScatterElements", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Sub", "TopK", "Transpose"),
        *("Unsqueeze", "Where"),
    }
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    int64 = {value for value, kind in kinds.items() if kind == TensorProto.INT64}
    assert int64 == ({"choices", "items"} & kinds.keys())
    assert set(kinds.values()) <= {TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64}
    assert TensorProto.BOOL not in {constant.data_type for constant in graph.initializer}


def test_fp16_holds_half_the_bytes_and_answers_in_fp32(tiny):
    whole = graphs.prefill(tiny.config, tiny.weights, precision="fp32")
    half = graphs.prefill(tiny.config, tiny.weights, precision="fp16")
    assert half.ByteSize() < 0.6 * whole.ByteSize()
    kinds = {value.name: value.type.tensor_type.elem_type for value in half.graph.output}
    assert kinds["log_probs"] == kinds["next_log_prob"] == TensorProto.FLOAT
    assert kinds["prefix_key_0"] == TensorProto.FLOAT16


def test_the_same_model_gives_the_same_bytes(tiny):
    first, second = (
        graphs.decode(tiny.config, tiny.weights, precision="fp32").SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert first == second


def test_fp16_graphs_compute_what_the_twin_does(tiny):
    """Prefill and one decode step in half precision, on the CPU provider, against NumPy in float64."""
    onnxruntime = pytest.importorskip("onnxruntime")
    choosing = {"choices": np.array([1]), "items": np.array([TINY.vocabulary])}
    random = np.random.default_rng(0)
    tokens_BS, lengths_B = random.integers(2, 60, (2, 7)).astype(np.int32), np.array([7, 4], np.int32)
    dense_BF = random.standard_normal((2, 1024)).astype(np.float16)
    banned_BX = np.array([[5, 6, 0], [7, 0, 0]], np.int32)
    nothing = np.zeros((2, 1), np.float16)
    vectors = {"profile": np.zeros((2, 256), np.float16), "video": np.zeros((2, 512), np.float16)}

    def run(built, inputs):
        session = onnxruntime.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])
        return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))

    first = run(
        graphs.prefill(tiny.config, tiny.weights, precision="fp16"),
        {"dense": dense_BF, **vectors, "has_profile": nothing, "has_video": nothing}
        | {"tokens": tokens_BS, "lengths": lengths_B, "banned": banned_BX}
        | choosing,
    )
    empty = np.zeros((2, TINY.heads, 2, TINY.head_size), np.float16)
    second = run(
        graphs.decode(tiny.config, tiny.weights, precision="fp16"),
        {"token": first["next_tokens"], "lengths": lengths_B, "step": np.array([0], np.int32), "banned": banned_BX}
        | {"read": np.zeros((2, 2), np.int32)}
        | choosing
        | {name: first[name] for name in graphs.cache_names("prefix", TINY)}
        | dict.fromkeys(graphs.cache_names("suffix", TINY), empty),
    )
    twin = NumpyNetwork(tiny)
    for i in range(2):
        history = tokens_BS[i, : lengths_B[i]].tolist()
        log_probs_V = twin.log_probs(twin.hidden(dense_BF[i], history))
        token = int(first["next_tokens"][i, 0])
        np.testing.assert_allclose(first["log_probs"][i], log_probs_V, atol=0.03)
        assert log_probs_V[token] > np.delete(log_probs_V, [0, 1, *banned_BX[i]]).max() - 0.03
        hidden_D = twin.hidden(dense_BF[i], [*history, token])
        np.testing.assert_allclose(second["heads"][i], twin.heads(hidden_D), atol=0.01)
        np.testing.assert_allclose(second["log_probs"][i], twin.log_probs(hidden_D), atol=0.03)
        assert second["read_next"][i].tolist() == [token, 0]
        assert second["next_tokens"][i, 0] not in (0, 1, token)
