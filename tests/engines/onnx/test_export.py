"""An export: the files, the index that describes them, and that it is written whole or not at all.

Also tests `exported`.
"""

from __future__ import annotations

import hashlib
import json
import sys

import onnx
import pytest

from genrec_batch.core.errors import ConfigError, EngineError, ModelError, RetryError
from genrec_batch.engines.onnx import export, exported
from genrec_batch.model import weights

TINY = weights.ModelConfig(vocabulary=60, width=32, ffn=48, layers=2, positions=40, heads=4)
FILES = ["prefill.onnx", "decode.onnx", "score.onnx", "export.json"]


@pytest.fixture(scope="module")
def tiny():
    return weights.demo_model(TINY)


def test_it_writes_three_graphs_and_an_index_that_describes_them(tiny, tmp_path):
    written = export.export(tiny, tmp_path / "new", precision="fp32")
    assert written == [tmp_path / "new" / "onnx" / name for name in FILES]
    assert sorted(path.name for path in (tmp_path / "new").rglob("*")) == sorted([*FILES, "onnx"])
    index = json.loads(written[-1].read_text())
    assert index["model"] == tiny.fingerprint
    assert (index["precision"], index["opset"]) == ("fp32", 17)
    for path in written[:-1]:
        assert index["sha256"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
        onnx.checker.check_model(str(path), full_check=True)


def test_the_same_model_gives_the_same_bytes(tiny, tmp_path):
    first = export.export(tiny, tmp_path / "a", precision="fp16")
    second = export.export(tiny, tmp_path / "b", precision="fp16")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_later_export_takes_the_place_of_an_older_one(tiny, tmp_path):
    export.export(tiny, tmp_path, precision="fp32")
    export.export(tiny, tmp_path, precision="fp16")
    index = exported.read_index(tmp_path)
    assert index.precision == "fp16"
    assert exported.graph_bytes(tmp_path, index, "score")
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_every_size_is_dynamic_and_the_index_says_so(tiny, tmp_path):
    prefill, *_, index_path = export.export(tiny, tmp_path, precision="fp16")
    tokens = next(value for value in onnx.load(prefill).graph.input if value.name == "tokens")
    assert [size.dim_param for size in tokens.type.tensor_type.shape.dim] == ["B", "S"]
    sizes = json.loads(index_path.read_text())["sizes"]
    assert sizes.keys() == set(exported.SIZES)
    assert set(sizes.values()) == {None}


def test_an_export_that_fails_leaves_the_older_one(tiny, tmp_path, monkeypatch):
    before = [path.read_bytes() for path in export.export(tiny, tmp_path, precision="fp32")]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RetryError, match="the export: the disk is full"):
        export.export(tiny, tmp_path, precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    assert [(tmp_path / "onnx" / name).read_bytes() for name in FILES] == before


def test_an_unknown_precision_is_named(tiny, tmp_path):
    with pytest.raises(ConfigError, match="'int4': an export is fp32 or fp16"):
        export.export(tiny, tmp_path, precision="int4")


def test_without_onnx_it_says_what_to_install(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EngineError, match=r"pip install 'genrec-batch\[cpu\]'"):
        export.export(tiny, tmp_path, precision="fp32")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '"onnx"'])
def test_a_damaged_index_is_an_error(tmp_path, text):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "export.json").write_text(text)
    with pytest.raises(ModelError, match=r"export\.json: not an export's index"):
        exported.read_index(tmp_path)


def test_no_export_is_none(tmp_path):
    assert exported.read_index(tmp_path) is None


def test_tensorrts_own_parser_takes_the_exported_graphs(tmp_path):
    pytest.importorskip("tensorrt_rtx_libs", reason="pip install tensorrt_rtx_cu13_libs tensorrt_rtx_cu13_bindings")
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    log = trt.Logger(trt.Logger.ERROR)
    for path in export.export(weights.demo_model(weights.PRESETS["tiny"]), tmp_path, precision="fp32"):
        if path.suffix == ".onnx":
            builder = trt.Builder(log)
            network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            parser = trt.OnnxParser(network, log)
            assert parser.parse(path.read_bytes()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
