"""An export: the files, the index that describes them, and that it is written whole or not at all."""

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
    assert exported.graph_path(tmp_path, index, "score").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_baked_sizes_stand_in_the_graph_and_in_the_index(tiny, tmp_path):
    prefill, *_, index_path = export.export(tiny, tmp_path, precision="fp16", sizes={"batch": 8, "tokens": 10})
    tokens = next(value for value in onnx.load(prefill).graph.input if value.name == "tokens")
    assert [size.dim_value for size in tokens.type.tensor_type.shape.dim] == [8, 10]
    assert json.loads(index_path.read_text())["sizes"]["batch"] == 8
    index = exported.read_index(tmp_path)
    assert not exported.fits(index, model=tiny.fingerprint, precision="fp16")  # a dynamic engine cannot use it


def test_an_export_that_fails_leaves_the_older_one(tiny, tmp_path, monkeypatch):
    before = [path.read_bytes() for path in export.export(tiny, tmp_path, precision="fp32")]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RetryError, match="the export: the disk is full"):
        export.export(tiny, tmp_path, precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    assert [(tmp_path / "onnx" / name).read_bytes() for name in FILES] == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "'int4': an export is fp32 or fp16"),
        ({"precision": "fp32", "sizes": {"bach": 4}}, "bach=4"),
        ({"precision": "fp32", "sizes": {"batch": 0}}, "batch=0"),
    ],
)
def test_wrong_options_name_themselves(tiny, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        export.export(tiny, tmp_path, **options)


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
