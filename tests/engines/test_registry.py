"""Each engine's entry: what is refused before anything opens, and that the other lists of names agree with it."""

from __future__ import annotations

import dataclasses
import re

import pytest

from genrec_batch.core import options, verify_options
from genrec_batch.core.errors import ConfigError, EngineError
from genrec_batch.engines import registry
from genrec_batch.model import weights

TINY = weights.demo_model(weights.PRESETS["tiny"])
NAMES = {entry.name for entry in registry.ENTRIES}


@pytest.mark.parametrize(("name", "extra"), [("torch", "torch"), ("onnxruntime", "cpu"), ("tensorrt", "gpu")])
def test_an_engine_that_is_not_installed_says_how_to_get_it(monkeypatch, name, extra):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda _: None)
    install = re.escape(f"pip install 'genrec-batch[{extra}]'")
    with pytest.raises(EngineError, match=rf"--engine {name}: the package {name} is not installed; {install}"):
        registry.open_engine(TINY, name=name, device="cuda:0", precision="fp32")


def test_servers_without_their_client_say_how_to_get_it(monkeypatch):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda _: None)
    said = r"--engine triton: the package tritonclient is not installed; pip install 'genrec-batch\[triton\]'"
    with pytest.raises(EngineError, match=said):
        registry.open_engine(TINY, name="triton://127.0.0.1:1", device="cpu", precision="auto")


@pytest.mark.parametrize(
    ("name", "device", "precision", "message"),
    [
        (
            "torch",
            "cpu",
            "fp16",
            "--precision fp16: the torch engine has fp32, bf16, bf16-fast, int8, int8-fast on cpu",
        ),
        ("torch", "cuda:0", "int8", "--precision int8: the torch engine has fp32, bf16, fp16, fp16-fast, fp8 on cuda"),
        ("torch", "cpu", "fp8", "--precision fp8: the torch engine has fp32, bf16, bf16-fast, int8, int8-fast on cpu"),
        ("torch", "cpu", "bf61", "Did you mean 'bf16'"),
        ("torch", "tpu", "fp32", "--device tpu: the torch engine runs on cpu and cuda"),
        ("onnxruntime", "cpu", "bf16", "--precision bf16: the onnxruntime engine has fp32 on cpu"),
        ("onnxruntime", "cuda:1", "bf16", "the onnxruntime engine has fp32, fp16 on cuda"),
        ("tensorrt", "cpu", "fp16", "--device cpu: the tensorrt engine runs on cuda"),
    ],
)
def test_what_an_engine_does_not_have_is_refused(monkeypatch, name, device, precision, message):
    monkeypatch.setattr(registry.Entry, "module", lambda self: self.modules[0])
    with pytest.raises(EngineError, match=message):
        registry.open_engine(TINY, name=name, device=device, precision=precision)


def test_an_unknown_name_is_met_with_the_nearest():
    with pytest.raises(ConfigError, match=r"--engines 'torhc' is not one of .*Did you mean 'torch'"):
        registry.entry("torhc", "--engines")


def test_the_choices_of_the_command_line_are_the_engines_that_are_registered():
    assert set(options.ENGINES) == {"auto", *NAMES}
    offered = {precision for entry in registry.ENTRIES for known in entry.precisions.values() for precision in known}
    assert offered <= set(options.PRECISIONS)
    (against,) = (field for field in dataclasses.fields(verify_options.VerifyConfig) if field.name == "against")
    assert set(against.metadata["choices"]) == {"auto", *(e.name for e in registry.ENTRIES if "cpu" in e.precisions)}
