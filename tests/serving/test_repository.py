"""`repository`, `config_text` and `options`: a repository for Triton, checked by its own definitions."""

from __future__ import annotations

import json
import struct

import polars as pl
import pytest
from google.protobuf import text_format

from genrec_batch.core.errors import ConfigError, GenrecError, ModelError
from genrec_batch.engines.remote import wire
from genrec_batch.serving import repository
from genrec_batch.serving.arms import Arms
from genrec_batch.serving.options import ExportConfig
from genrec_batch.serving.triton import OUTPUTS
from tests.serving.conftest import SAMPLE, exported

pb = pytest.importorskip("tritonclient.grpc.model_config_pb2")


def config_of(home):
    return text_format.Parse((home / "config.pbtxt").read_text(), pb.ModelConfig())


def test_the_configuration_is_one_of_triton_s(tmp_path):
    version = exported(
        SAMPLE / "model", tmp_path, max_batch=8, instances=2, queue_delay_ms=2.5, queue_limit=9, queue_timeout_ms=40
    )
    config = config_of(version.parent)
    assert (config.name, config.backend, config.max_batch_size) == ("genrec", "python", 8)
    assert [each.name for each in config.input] == ["REQUEST", *wire.INPUTS]
    assert all(each.optional for each in config.input)
    assert config.dynamic_batching.default_priority_level < wire.PRIORITY == config.dynamic_batching.priority_levels
    assert {each.name for each in config.output} == set(OUTPUTS)
    assert {each.name: each.data_type for each in config.output}["VIDEO_ID"] == pb.TYPE_INT64
    assert config.instance_group[0].count == 2
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_CPU
    queue = config.dynamic_batching.default_queue_policy
    assert config.dynamic_batching.max_queue_delay_microseconds == 2500
    assert (queue.max_queue_size, queue.default_timeout_microseconds) == (9, 40_000)
    assert queue.timeout_action == pb.ModelQueuePolicy.REJECT
    assert config.version_policy.latest.num_versions == 1
    warm_up = config.model_warmup[0].inputs["REQUEST"]
    content = (version.parent / "warmup" / warm_up.input_data_file).read_bytes()
    assert struct.unpack("<I", content[:4])[0] == len(content) - 4
    (answer,) = Arms.open(version).answers([content[4:]])
    assert len(answer) == 10


def test_a_second_export_is_the_next_version(tmp_path):
    first, second = (exported(SAMPLE / "model", tmp_path) for _ in range(2))
    assert (first.name, second.name) == ("1", "2")
    assert sorted(each.name for each in first.parent.iterdir()) == ["1", "2", "config.pbtxt", "warmup"]


def test_texts_and_unsigned_numbers_as_ids(tmp_path, model_dir):
    for kind, expected in ((pl.String, pb.TYPE_STRING), (pl.UInt64, pb.TYPE_UINT64)):
        folder = tmp_path / str(kind)
        folder.mkdir()
        for file in ("model.safetensors", "config.json"):
            (folder / file).write_bytes((model_dir / file).read_bytes())
        stored = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**stored, "sha256": {}}))
        catalog = pl.read_parquet(model_dir / "catalog.parquet").with_columns(pl.col("video_id").cast(kind))
        catalog.write_parquet(folder / "catalog.parquet")
        version = exported(folder, tmp_path / f"{kind} repository")
        outputs = {each.name: each.data_type for each in config_of(version.parent).output}
        assert outputs["VIDEO_ID"] == expected
        assert len(Arms.open(version).answers([b"{}"])[0]) == 10


def test_the_command_adds_a_version(run, tmp_path):
    ran = run("model", "export", SAMPLE / "model", "--format", "triton", "--out", tmp_path / "repo", "--name", "feed")
    assert ran.code == 0, ran.err
    assert (tmp_path / "repo" / "feed" / "1" / "model.py").is_file()
    assert "version 1 of feed" in ran.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "--format triton needs --out"),
        ({"out": "repo", "format": "onnx"}, "--out goes with --format triton"),
        ({"out": "repo", "name": "../x"}, "--name '../x'"),
        ({"out": "repo", "precision": "int4"}, "--precision int4: onnxruntime computes in"),
        ({"out": "repo", "max_events": 600}, "the model has 512"),
        ({"out": "repo", "timezone": "Europe/Berlim"}, "no such time zone"),
        ({"out": "repo", "schema": "kuairnd"}, "neither a TOML file nor built in"),
        ({"out": "repo", "videos": "none.parquet"}, "none.parquet"),
        ({"out": "repo", "top_k": 200}, "--top-k 200 is more than --most-top-k 100"),
        ({"out": "repo", "queue_timeout_ms": 0.0}, "--queue-timeout-ms"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GenrecError) as refused:
        repository.export(SAMPLE / "model", ExportConfig(**{"format": "triton", **options}))
    assert said in str(refused.value)
    assert not list(tmp_path.rglob("*"))


def test_a_model_without_a_catalog_cannot_be_served(tmp_path, model_dir):
    for file in ("model.safetensors", "config.json"):
        (tmp_path / file).write_bytes((model_dir / file).read_bytes())
    with pytest.raises(ModelError, match=r"catalog\.parquet is missing"):
        exported(tmp_path, tmp_path / "repo")


def test_a_damaged_version_is_not_opened(tmp_path):
    version = exported(SAMPLE / "model", tmp_path)
    (version / "serving.json").write_text("{}")
    with pytest.raises(ModelError, match=r"serving\.json: missing or damaged"):
        Arms.open(version)


def test_an_onnx_export_keeps_its_own_checks():
    with pytest.raises(ConfigError, match="fp32 or fp16"):
        ExportConfig(precision="int8")
