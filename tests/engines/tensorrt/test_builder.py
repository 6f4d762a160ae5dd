"""Building engines with the real builder of `tensorrt_rtx` where it is installed, and the errors without it.

Also tests `graphs`, `side_graphs`, `layers` and `plugin.library`.
"""

import dataclasses
import enum
import importlib.util

import onnx
import pytest

from genrec_batch.core.arrays import HEADS
from genrec_batch.core.errors import EngineError
from genrec_batch.engines.plan_cache import EngineCache
from genrec_batch.engines.tensorrt import builder, graphs, side_graphs
from genrec_batch.engines.tensorrt.network import Shape, TensorRtNetwork
from genrec_batch.engines.tensorrt.plugin import library, read
from genrec_batch.model.weights import initial_weights, preset
from tests.fakes.cuda import FakeRuntime
from tests.fakes.tensorrt import FakeTensorRt

ROWS, POSITIONS, SEEN, STEPS = 64, 51, 64, 10
SHAPE = Shape(rows=ROWS, positions=POSITIONS, seen=SEEN, steps=STEPS)
TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}


def network(name="tiny", precision="fp16", *, plugged=False):
    config = preset(name)
    weights = initial_weights(config, 1)
    return TensorRtNetwork(
        config=config, weights=weights, tokens=config.vocabulary - 5, precision=precision, plugin=plugged
    )


@pytest.fixture(scope="module")
def rtx():
    if not importlib.util.find_spec("tensorrt_rtx_bindings"):
        pytest.skip(f"the real builder is not installed: {builder.RTX_INSTALL}")
    return builder.load_library("tensorrt_rtx")


@pytest.fixture
def fake():
    return builder.wrap("tensorrt", FakeTensorRt(FakeRuntime()))


def declared(network):
    """Shape, type and whether it is an input of each tensor that a network of the library declares."""
    found = {}
    for is_input, count, get in (
        (True, network.num_inputs, network.get_input),
        (False, network.num_outputs, network.get_output),
    ):
        for tensor in map(get, range(count)):
            found[tensor.name] = (tuple(tensor.shape), str(tensor.dtype).rsplit(".", 1)[-1], is_input)
    return found


def parsed(rtx, graph):
    """What the library's own parser reads from a graph."""
    keeper = builder.logger(rtx)
    theirs = rtx.api.Builder(keeper)
    network = theirs.create_network(builder._network_flags(rtx))
    assert rtx.api.OnnxParser(network, keeper).parse(graph)
    return declared(network)


def expected_prefill(config, kind):
    by_head = (ROWS, config.heads, POSITIONS, config.head_size)
    found = {
        "features": ((ROWS, config.features), "FLOAT", True),
        "tokens": ((ROWS, POSITIONS - 1), "INT32", True),
        "lengths": ((ROWS,), "INT32", True),
        "seen": ((ROWS, SEEN), "INT32", True),
        "hidden": ((ROWS, config.width), kind, False),
        "next_token": ((ROWS,), "INT32", False),
        "next_log_prob": ((ROWS, 1), "FLOAT", False),
    }
    return found | {f"{n}_{i}": (by_head, kind, False) for n in ("keys", "values") for i in range(config.layers)}


def expected_decode(config, kind):
    width, layers = config.width, range(config.layers)
    by_head = (ROWS, config.heads, POSITIONS, config.head_size)
    found = {
        "token": ((ROWS,), "INT32", True),
        "lengths": ((ROWS,), "INT32", True),
        "step": ((1,), "INT32", True),
        "read": ((STEPS + 1, ROWS), "INT32", True),
        "seen": ((ROWS, SEEN), "INT32", True),
        "heads": ((ROWS, len(HEADS)), "FLOAT", False),
        "hidden": ((ROWS, width), kind, False),
        "next_token": ((ROWS,), "INT32", False),
        "next_log_prob": ((ROWS, 1), "FLOAT", False),
    }
    found |= {f"recent_{i}": ((STEPS, ROWS, 3 * width), kind, True) for i in layers}
    found |= {f"fresh_{i}": ((ROWS, 3 * width), kind, False) for i in layers}
    return found | {f"{n}_{i}": (by_head, kind, True) for n in ("keys", "values") for i in layers}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["tiny", "reference"])
def test_the_real_builder_builds_both_engines(rtx, name, precision):
    made = network(name, precision)
    told = []
    for make, expected in ((graphs.prefill, expected_prefill), (graphs.decode, expected_decode)):
        graph = make(made, SHAPE)
        built = builder.build(
            rtx,
            graph,
            precision=precision,
            architecture="sm_89",
            progress=lambda phase, share: told.append((phase, share)),
        )
        assert parsed(rtx, graph) == expected(made.config, TYPES[precision])
        weights = made.config.vocabulary * made.config.width * (4 if precision == "fp32" else 2)
        assert len(built.plan) > 2 * weights  # the token table and the output projection are in it
    assert told[-1] == ("built", 1.0)
    assert all(0 <= share <= 1 for _, share in told)


def test_the_real_builder_builds_a_network_in_segments(rtx):
    made = dataclasses.replace(network("tiny"), segment_layers=1)
    config, kind = made.config, TYPES["fp16"]
    first, second = (parsed(rtx, graphs.prefill(made, SHAPE, segment)) for segment in range(2))
    left = (ROWS * POSITIONS, config.width)
    assert (first["left_0"], second["left_0"]) == ((left, kind, False), (left, kind, True))
    assert (first | second).keys() == {*expected_prefill(config, kind), "left_0"}
    for segment in range(2):
        for graph in (graphs.prefill(made, SHAPE, segment), graphs.decode(made, SHAPE, segment)):
            assert builder.build(rtx, graph, precision="fp16", architecture="sm_89").plan


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_real_builder_builds_masked_engines(rtx, precision):
    made, shape = network(precision=precision), dataclasses.replace(SHAPE, masked=True)
    words = -(-made.config.vocabulary // 32)
    inputs = {"mask": ((ROWS,), "INT32", True), "masks": ((ROWS, words), "INT32", True)}
    for make, expected in ((graphs.prefill, expected_prefill), (graphs.decode, expected_decode)):
        graph = make(made, shape)
        assert builder.build(rtx, graph, precision=precision, architecture="sm_89").plan
        assert parsed(rtx, graph) == expected(made.config, TYPES[precision]) | inputs
    for graph in (side_graphs.choose(made, shape, 5), side_graphs.select(made, shape, 2 * ROWS)):
        assert builder.build(rtx, graph, precision=precision, architecture="sm_89").plan
        assert inputs.items() <= parsed(rtx, graph).items()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_real_builder_builds_what_beam_search_and_candidates_need(rtx, precision):
    made = network(precision=precision)
    shape = Shape(rows=ROWS, positions=9, seen=SEEN, steps=2, profile=True, video=True)
    for graph in (
        graphs.prefill(made, shape),
        side_graphs.choose(made, shape, 5),
        side_graphs.lookup(made, shape, 8),
        side_graphs.score(made, shape, 8),
        side_graphs.select(made, shape, 2 * ROWS),
    ):
        assert builder.build(rtx, graph, precision=precision, architecture="sm_89").plan


def test_timings_are_kept_where_the_library_takes_them_back(fake):
    graph = graphs.decode(network(precision="fp32"), SHAPE)
    assert builder.build(fake, graph, precision="fp32").timings is None  # 8.6
    fake.api.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", start=1)
    first = builder.build(fake, graph, precision="fp32")
    assert builder.build(fake, graph, precision="fp32", timings=first.timings).timings == b"++"


def test_fp32_means_fp32(fake):
    """TensorFloat-32, on by default, moved log-probabilities by 0.0016 on an H200."""
    builder.build(fake, graphs.decode(network(precision="fp32"), SHAPE), precision="fp32")
    assert fake.api.flags == set()
    builder.build(fake, graphs.decode(network(precision="fp16"), SHAPE), precision="fp16")
    assert fake.api.flags == {fake.api.BuilderFlag.FP16, fake.api.BuilderFlag.OBEY_PRECISION_CONSTRAINTS}


def test_an_architecture_that_the_builder_does_not_know_is_named(rtx):
    with pytest.raises(EngineError, match=r"sm_10.*sm_89"):
        builder.build(rtx, graphs.decode(network(), SHAPE), precision="fp16", architecture="sm_10")


def test_a_broken_graph_is_an_engine_error(rtx):
    with pytest.raises(EngineError, match="cannot read the graph"):
        builder.build(rtx, b"no graph", precision="fp16", architecture="sm_89")


def test_only_rtx_builds_for_another_gpu(fake):
    with pytest.raises(EngineError, match="only for the GPU of this machine"):
        builder.build(fake, graphs.decode(network(), SHAPE), precision="fp16", architecture="sm_89")


def test_a_builder_that_cannot_start_without_a_gpu(fake, monkeypatch):
    def nothing(_logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(fake.api, "Builder", nothing)
    with pytest.raises(EngineError, match="GPU and its driver") as caught:
        builder.build(fake, b"", precision="fp16")
    assert caught.value.exit_code == 5


def test_rtx_is_taken_where_only_it_is_installed(rtx):
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("tensorrt is installed too, and comes first")
    assert builder.load_library().label == rtx.label


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx", None])
def test_a_missing_library_is_an_error_with_the_install_line(name, monkeypatch):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(builder.importlib, "import_module", missing)
    with pytest.raises(EngineError, match="pip install"):
        builder.load_library(name)


def test_progress_without_a_monitor_still_says_that_it_is_done(fake):
    told = []
    graph = graphs.decode(network(precision="fp32"), SHAPE)
    builder.build(fake, graph, precision="fp32", progress=lambda *news: told.append(news))
    assert told == [("built", 1.0)]


def test_the_plugin_graphs_use_the_kernels_and_one_cache_per_layer():
    graph = onnx.load_model_from_string(graphs.prefill(network("reference", plugged=True), SHAPE)).graph
    outputs = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in graph.output}
    assert outputs["cache_5"] == [ROWS * POSITIONS, 3 * 512]
    assert not any(name.startswith("keys") for name in outputs)
    kernels = {attribute.s for node in graph.node for attribute in node.attribute if attribute.name == "kind"}
    assert kernels == {b"embed_history", b"linear", b"causal_attention", b"last_attention", b"add_norm", b"rank_items"}


def test_why_the_plugin_does_not_fit():
    assert "width 512" in library.unfit(preset("tiny"), "fp16", "sm_90")
    assert "fp16" in library.unfit(preset("reference"), "fp32", "sm_90")
    assert "sm_75" in library.unfit(preset("reference"), "fp16", "sm_75")
    assert library.unfit(preset("reference"), "fp16", "sm_90") is None


def test_a_head_more_than_the_kernels_are_compiled_for_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(library, "HEADS", (*HEADS, "novelty"))
    why = library.unfit(preset("reference"), "fp16", "sm_90")
    assert "compiled for 4 task heads, the model has 5" in why
    assert "novelty" in why


def test_headers_that_are_not_where_they_should_be(monkeypatch, tmp_path):
    monkeypatch.setenv(library.VARIABLE, str(tmp_path))
    with pytest.raises(EngineError, match=r"NvInfer\.h"):
        library.toolchain()
    for header in library.HEADERS:
        (tmp_path / header).touch()
    found = library.toolchain()
    assert isinstance(found, str) or found.include == (str(tmp_path),)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "compiler" in library.toolchain()


def test_a_plugin_that_does_not_compile_says_what_the_compiler_said(monkeypatch, tmp_path):
    for header in library.HEADERS:
        (tmp_path / header).write_text("#error these are not the headers\n")
    monkeypatch.setenv(library.VARIABLE, str(tmp_path))
    tools = library.toolchain()
    if isinstance(tools, str):
        pytest.skip(tools)
    cache = EngineCache(tmp_path / "cache")
    with pytest.raises(EngineError, match="these are not the headers"):
        library.load(cache, tools, library="libnvinfer.so.8", version="8.6.0", architecture="sm_90")


def test_the_cubins_are_inside_the_plugin():
    header = library.cubin_header(read("sm_90"))
    assert "decode_attention_64_16" in header
    assert f"kCubinCount = {len(read('sm_90'))};" in header
    assert f"kTaskHeads = {len(HEADS)};" in header


def test_one_logger_serves_a_library_for_as_long_as_it_is_loaded(fake):
    """TensorRT writes to the first logger of a process when the engine that brought it is long gone."""
    again = builder.wrap("tensorrt", fake.api)
    first = builder.logger(fake)
    assert builder.logger(again) is first
    first.log(fake.api.ILogger.ERROR, "no room")
    assert again.log.last() == "no room"
