"""`model build` with the real builder where it is installed, and its messages where something is missing.

Also tests `options`.
"""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.engines import driver
from genrec_batch.engines.tensorrt import builder, prebuild
from genrec_batch.engines.tensorrt.engine import TensorRtEngine
from genrec_batch.engines.tensorrt.plugin.library import VARIABLE
from genrec_batch.engines.tensorrt.shapes import LENGTHS, ShapeRule
from genrec_batch.model.weights import preset
from tests.fakes.cuda import FakeRuntime
from tests.fakes.tensorrt import FakeTensorRt

SMALL = ("--batch-size", "64", "--max-events", "8")
ELSEWHERE = ("--compute-capability", "8.9")


@pytest.fixture
def rtx(monkeypatch, tmp_path):
    if not importlib.util.find_spec("tensorrt_rtx_bindings"):
        pytest.skip(f"the real builder is not installed: {builder.RTX_INSTALL}")
    monkeypatch.setenv("GENREC_BATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Pretend that this machine has a GPU and TensorRT 8.6."""
    runtime = FakeRuntime()
    library = builder.wrap("tensorrt", FakeTensorRt(runtime))
    monkeypatch.setattr(driver, "load_runtime", lambda: runtime)
    monkeypatch.setattr(builder, "load_library", lambda _name=None: library)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("GENREC_BATCH_CACHE", str(tmp_path / "cache"))
    return library


def test_the_real_builder_builds_once_and_says_so(run, rtx, model_dir):
    done = run("model", "build", model_dir, *ELSEWHERE, *SMALL, "--precision", "fp16")
    assert done.code == 0, done.err
    shapes = {(engine["name"], engine["events"], engine["seen"]) for engine in done.summary["engines"]}
    assert shapes == {(name, 8, seen) for name in ("prefill", "decode") for seen in (64, 256, 1024)}
    assert done.summary["built"] == 6
    assert "tensorrt_rtx" in done.summary["library"]
    assert "sm_89" in done.summary["library"]
    assert "1 of 6: prefill in fp16, 64 users x 8 events, 64 seen: built in" in done.err
    assert len(list(rtx.glob("*.engine"))) == 6
    again = run("model", "build", model_dir, *ELSEWHERE, *SMALL, "--precision", "fp16")
    assert again.summary["built"] == 0
    assert "already built: all 6 engines" in again.err


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--beam-width", "3"), ["prefill", "select_192", "decode", "choose_3", "lookup_8", "select_192"]),
        (("--decode", "candidates", "--num-candidates", "40"), ["prefill", "choose_40", "score_64"]),
        (("--profile-vectors", "--video-vectors", "--precision", "bf16"), ["prefill", "decode"]),
    ],
)
def test_the_real_builder_builds_every_way_of_decoding(run, rtx, model_dir, options, names):
    given = ("--precision", "fp16", "--seen-limit", "20", *options)
    done = run("model", "build", model_dir, *ELSEWHERE, *SMALL, *given)
    assert done.code == 0, done.err
    assert [engine["name"] for engine in done.summary["engines"]] == names
    assert len(list(rtx.glob("*.engine"))) == len(names)


@pytest.mark.usefixtures("rtx")
@pytest.mark.slow
def test_the_real_builder_builds_the_reference_model(run, tmp_path, log_file):
    assert run("model", "init", tmp_path / "reference", "--catalog-from", log_file).code == 0
    given = ("--precision", "fp16", "--seen-limit", "0", "--batch-size", "64", "--max-events", "8")
    done = run("model", "build", tmp_path / "reference", *ELSEWHERE, *given)
    assert done.code == 0, done.err
    assert all(engine["megabytes"] > 40 for engine in done.summary["engines"])


def test_two_processes_that_build_at_once_build_each_engine_once(rtx, model_dir):
    command = [sys.executable, "-m", "genrec_batch", "model", "build", str(model_dir), *ELSEWHERE, *SMALL]
    command += ["--precision", "fp16", "--seen-limit", "20"]

    def call(_number):
        return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)

    with ThreadPoolExecutor(2) as pool:
        done = [json.loads(ran.stdout.splitlines()[-1]) for ran in pool.map(call, range(2))]
    for name in ("prefill", "decode"):
        found = [engine["built"] for ran in done for engine in ran["engines"] if engine["name"] == name]
        assert sorted(found) == [False, True]
    assert not list(rtx.glob(".*"))


def test_what_was_built_is_what_a_run_takes(run, gpu, model_dir):
    """The same options: `score` finds every engine, for every history length, and builds none."""
    done = run("model", "build", model_dir, "--batch-size", "64", "--max-events", "20", "--top-k", "3")
    assert done.code == 0, done.err
    assert done.summary["variant"].startswith("plain ONNX engines")
    built = len(gpu.api.builds)
    assert built == done.summary["built"] > 0
    loaded = prebuild._with_catalog(model_dir)
    for precision in ("fp32", "fp16"):
        engine = TensorRtEngine(loaded, precision=precision, batch_size=64, library=gpu)
        lengths = range(21) if precision == "fp16" else [20]  # fp32 is but compared with
        for length, seen in [*((length, 8) for length in lengths), *((20, seen) for seen in (20, 62, 63, 300, 1000))]:
            engine._program(engine.shapes.shape(rows=64, length=length, steps=3, seen=seen)).load()
    assert len(gpu.api.builds) == built


@pytest.mark.usefixtures("gpu")
def test_more_seen_videos_than_the_catalog_has(run, model_dir):
    """TensorRT scatters at most as many indices as there are columns."""
    done = run("model", "build", model_dir, *SMALL, "--precision", "fp16", "--seen-limit", "3000")
    assert done.code == 0, done.err
    assert {4096} < {engine["seen"] for engine in done.summary["engines"]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "int8"), "int8: the tensorrt engine has fp32, fp16 with tensorrt 8.6.0; int8 needs scales"),
        (("--precision", "fp8"), "fp8 needs scales"),
        (("--precision", "bf16"), "bf16 needs TensorRT 9 or newer"),
        (
            ("--compute-capability", "8.9"),
            "builds only for the GPU of this machine, not for sm_89; tensorrt_rtx can: pip install",
        ),
        (("--device", "cuda:3"), "--device cuda:3: no such NVIDIA GPU"),
    ],
)
def test_what_is_not_there_is_named_with_the_way_out(run, gpu, model_dir, options, words):
    done = run("model", "build", model_dir, *options)
    assert done.code == 5
    assert words in done.err
    assert gpu.api.builds == []


@pytest.mark.usefixtures("gpu")
def test_no_gpu_says_how_to_build_for_another_machine(run, model_dir):
    driver.load_runtime().devices = 0
    done = run("model", "build", model_dir)
    assert done.code == 5
    assert "pip install 'genrec-batch[gpu]'" in done.err
    assert "--compute-capability 8.9" in done.err


def test_no_library_gives_the_install_line(run, monkeypatch, model_dir):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(builder.importlib, "import_module", missing)
    done = run("model", "build", model_dir)
    assert done.code == 5
    assert "pip install" in done.err


@pytest.mark.usefixtures("rtx")
def test_a_gpu_that_the_builder_does_not_know(run, model_dir):
    done = run("model", "build", model_dir, "--compute-capability", "9.0")
    assert done.code == 5
    assert "cannot build for sm_90; it knows sm_75" in done.err


@pytest.mark.usefixtures("gpu")
def test_a_model_without_its_catalog(run, model_dir, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model_dir / name).read_bytes())
    done = run("model", "build", bare)
    assert done.code == 4
    assert "catalog.parquet is missing" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--compute-capability", "89"), "--compute-capability '89': two numbers"),
        (("--device", "cpu"), "run on a GPU"),
        (("--batch-size", "many"), "--batch-size 'many'"),
        (("--library", "trt"), "--library 'trt' is not one of auto, tensorrt, tensorrt_rtx"),
    ],
)
def test_a_bad_option_is_named(run, model_dir, options, words):
    done = run("model", "build", model_dir, *options)
    assert done.code == ConfigError.exit_code
    assert words in done.err


@pytest.mark.parametrize(("max_events", "seen_limit"), [(50, 1000), (50, 0), (20, 1000), (2000, 1000), (50, 3000)])
def test_all_shapes_are_the_shapes_of_any_batch(max_events, seen_limit):
    rule = ShapeRule(preset("reference"), 2048, LENGTHS)
    known = set(rule.all(max_events=max_events, steps=10, seen_limit=seen_limit))
    for length in range(max_events + 1):
        most = seen_limit if length == max_events else min(length, seen_limit)
        for seen in {
            0,
            min(length, most) // 2,
            min(length, most),
            *(s for s in (62, 63, 254, 255, 900) if s <= most),
            most,
        }:
            shape = rule.shape(rows=1 + length, length=length, steps=10, seen=seen)
            assert shape in known, (length, seen)


def test_histories_beyond_the_model_are_an_error():
    with pytest.raises(ConfigError, match="the model has 512: at most --max-events 501"):
        ShapeRule(preset("tiny"), 64, LENGTHS).all(max_events=preset("tiny").positions, steps=10, seen_limit=10)
