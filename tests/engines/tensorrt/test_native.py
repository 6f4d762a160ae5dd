"""The attention and KV-cache layers of TensorRT 10 and newer, which 8.6 lacks, built for the GPU of another machine.

No engine of this package uses them yet: 8.6 is the version that could be measured. These tests check that a prefill and
a decode step of the reference model's shape build with them as one fused kernel (`decomposable` is False), and fail
when a new version changes that. 8.6 needs the plugin for the same.
"""

import importlib.util

import pytest

from genrec_batch.engines.tensorrt import builder
from tests.engines.tensorrt.test_builder import declared

ROWS, HEADS, POSITIONS, HEAD_SIZE, ROOM, TOKENS = 64, 16, 51, 32, 64, 1000


@pytest.fixture(scope="module")
def rtx():
    if not importlib.util.find_spec("tensorrt_rtx_bindings"):
        pytest.skip(f"the real builder is not installed: {builder.RTX_INSTALL}")
    library = builder.load_library("tensorrt_rtx")
    if not hasattr(library.api.INetworkDefinition, "add_attention_v2"):
        pytest.skip(f"{library.label} has no attention layer")
    return library


def built(rtx, make, architecture):
    """Return a network's inputs and outputs, once it is built."""
    keeper = builder.logger(rtx)
    theirs = rtx.api.Builder(keeper)
    network = theirs.create_network(builder._network_flags(rtx))
    make(network)
    config = builder._configure(rtx, theirs, network, "fp16", architecture)
    plan = theirs.build_serialized_network(network, config)
    assert plan is not None, rtx.log.last()
    return {name: shape for name, (shape, _, _) in declared(network).items()}


def marked(network, **outputs):
    for name, tensor in outputs.items():
        tensor.name = name
        network.mark_output(tensor)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_120"])
def test_prefill_with_the_attention_layer(rtx, architecture):
    api, shape = rtx.api, (ROWS, HEADS, POSITIONS, HEAD_SIZE)

    def make(network):
        inputs = [network.add_input(name, api.DataType.HALF, shape) for name in ("query", "keys", "values")]
        softmax, causal = api.AttentionNormalizationOp.SOFTMAX, api.CausalMaskKind.UPPER_LEFT
        attention = network.add_attention_v2(*inputs, softmax, causal)
        attention.decomposable = False
        attention.key_value_lengths = network.add_input("lengths", api.DataType.INT32, (ROWS,))
        marked(network, mean=attention.get_output(0))

    assert built(rtx, make, architecture)["mean"] == shape


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_120"])
def test_packed_rows_are_in_the_interface_and_have_no_kernel_yet(rtx, architecture):
    """Rows of different length one after the other, no padding: fails when a library brings the kernel."""
    if not rtx.version.startswith("1.7."):
        pytest.skip(f"seen with tensorrt_rtx 1.7, this is {rtx.version}")
    api, shape = rtx.api, (TOKENS, HEADS, HEAD_SIZE)

    def make(network):
        inputs = [network.add_input(name, api.DataType.HALF, shape) for name in ("query", "keys", "values")]
        starts = network.add_input("starts", api.DataType.INT32, (ROWS + 1,))
        softmax, causal = api.AttentionNormalizationOp.SOFTMAX, api.CausalMaskKind.UPPER_LEFT
        attention = network.add_attention_v2(*inputs, softmax, causal)
        attention.decomposable = False
        attention.query_form = attention.key_value_form = api.AttentionIOForm.PACKED_NHD
        attention.query_lengths = attention.key_value_lengths = starts
        marked(network, mean=attention.get_output(0))

    with pytest.raises(AssertionError, match="no fused kernel is available on this target"):
        built(rtx, make, architecture)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_120"])
def test_decode_writes_its_cache_in_place(rtx, architecture):
    """One new position per row, written where the row's own length says, and attended to with all before it."""
    api, cache = rtx.api, (ROWS, HEADS, ROOM, HEAD_SIZE)

    def make(network):
        one = (ROWS, HEADS, 1, HEAD_SIZE)
        query, key, value = (network.add_input(name, api.DataType.HALF, one) for name in ("query", "key", "value"))
        place = network.add_input("place", api.DataType.INT32, (ROWS,))
        kept = []
        for name, fresh in (("keys", key), ("values", value)):
            before = network.add_input(name, api.DataType.HALF, cache)
            kept.append(network.add_kv_cache_update(before, fresh, place, api.KVCacheMode.LINEAR).get_output(0))
        softmax, causal = api.AttentionNormalizationOp.SOFTMAX, api.CausalMaskKind.NONE
        attention = network.add_attention_v2(query, *kept, softmax, causal)
        attention.decomposable = False
        attention.key_value_lengths = network.add_input("lengths", api.DataType.INT32, (ROWS,))
        marked(network, mean=attention.get_output(0), keys_after=kept[0], values_after=kept[1])

    found = built(rtx, make, architecture)
    assert found["mean"] == (ROWS, HEADS, 1, HEAD_SIZE)
    assert found["keys_after"] == found["values_after"] == found["keys"] == cache
