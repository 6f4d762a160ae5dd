"""The writer of ONNX graphs, which both kinds of graphs use; their layers and weights are tested with the graphs."""

import numpy as np
import onnx
import pytest

from genrec_batch.engines.onnx_graph import FLOAT, INT32, OnnxGraph, bfloat16_bits


def test_equal_constants_are_stored_once():
    g = OnnxGraph("fp32")
    assert g.constant(np.ones((4, 4))) == g.constant(np.ones((4, 4), np.float32)) == g.float32(np.ones((4, 4)))
    assert len({g.constant(np.ones((4, 4))), g.constant(np.ones((2, 8))), g.constant(np.ones((4, 4), np.int32))}) == 3


@pytest.mark.parametrize(("precision", "kind"), [("fp32", 1), ("fp16", 10), ("bf16", 16)])
def test_only_floats_take_the_element_type_of_the_graph(precision, kind):
    g = OnnxGraph(precision)
    g.constant(np.array([1.5])), g.constant(np.array([7], np.int32)), g.float32([2.5])
    stored = g.model("stored").graph.initializer
    kinds = [tensor.data_type for tensor in stored]
    assert kinds == [kind, INT32, FLOAT]
    assert [float(onnx.numpy_helper.to_array(tensor)[0]) for tensor in stored] == [1.5, 7, 2.5]


def test_constants_in_bf16_are_rounded_to_nearest_even():
    values = np.array([1.0, -2.5, 1.00390625, 1.01171875, 3e38], np.float32)  # two of them halfway between neighbours
    assert [hex(bits) for bits in bfloat16_bits(values)] == ["0x3f80", "0xc020", "0x3f80", "0x3f82", "0x7f62"]


def test_an_output_has_its_name_and_can_be_read_on():
    g = OnnxGraph("fp32")
    doubled = g.output(g.node("Add", g.input("x", ["B"]), "x"), "doubled", ["B"])
    g.output(g.node("Neg", doubled, pinned=True), "negated", ["B"])
    model = g.model("twice")
    onnx.checker.check_model(model, full_check=True)
    add, negate = model.graph.node
    assert (list(add.output), list(negate.input), list(negate.output)) == (["doubled"], ["doubled"], ["negated"])
    assert negate.name.startswith("fp32")
    assert not add.name.startswith("fp32")


def test_only_a_graph_with_kernels_of_ours_names_their_domain():
    plain, plugged = OnnxGraph("fp16"), OnnxGraph("fp16")
    plain.node("Neg", plain.input("x", [1]))
    plugged.nodes("GenrecKernel", plugged.input("x", [1]), outputs=1, domain="genrec", kind="linear")
    assert [opset.domain for opset in plain.model("plain").opset_import] == [""]
    assert [opset.domain for opset in plugged.model("plugged").opset_import] == ["", "genrec"]
