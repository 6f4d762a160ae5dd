"""The model's sizes, names, seeded weights, and the directory that holds it.

Also tests `places`.
"""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genrec_batch.core.errors import ConfigError, ModelError
from genrec_batch.model.weights import (
    BYTES,
    PRESETS,
    ModelConfig,
    demo_model,
    initial_weights,
    load,
    parameter_groups,
    parameter_shapes,
    parameters,
    preset,
    save,
    weights_fingerprint,
)

SMALL = ModelConfig(vocabulary=50, width=32, ffn=48, layers=2, positions=30, heads=4)


@pytest.fixture
def directory(tmp_path):
    save(tmp_path / "model", SMALL, initial_weights(SMALL, 1), trained=True, card="# A model\n")
    return tmp_path / "model"


def test_the_reference_has_the_published_number_of_parameters():
    assert parameters(PRESETS["reference"]) == 24_836_372


def test_the_reference_has_the_published_groups():
    d, f = 512, 1024
    attention, feed_forward, norms = 4 * (d * d + d), 2 * d * f + f + d, 2 * 2 * d
    groups = parameter_groups(PRESETS["reference"])
    assert groups == {
        "token embedding": 10_000 * 512,
        "position embedding": 2_048 * 512,
        "feature projection": 1024 * 512 + 512,
        "user profile projection": 256 * 512 + 512,
        "video feature projection": 512 * 512 + 512,
        "encoder layers": 6 * (attention + feed_forward + norms),
        "output projection": 512 * 10_000 + 10_000,
        "recommendation head": 513,
        "engagement head": 513,
        "retention head": 513,
        "monetization head": 513,
    }


@pytest.mark.parametrize(("precision", "megabytes"), [("fp32", 94.7), ("fp16", 47.4), ("int8", 23.7)])
def test_the_reference_takes_the_published_memory(precision, megabytes):
    total = parameters(PRESETS["reference"]) * BYTES[precision]
    assert round(total / 2**20, 1) == megabytes


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_the_sum_of_the_shapes(name):
    config = preset(name)
    shapes = parameter_shapes(config)
    assert parameters(config) == sum(math.prod(shape) for shape in shapes.values())
    assert config.heads == 16
    assert config.features == 1024


def test_an_unknown_preset_says_which_there_are():
    with pytest.raises(ConfigError, match=r"lightweight.*Did you mean 'reference'"):
        preset("referense")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 30}, "width 30 is not a multiple of heads 4"),
        ({"layers": 0}, "layers"),
        ({"vocabulary": 2}, "no item"),
    ],
)
def test_sizes_that_make_no_model_are_refused(change, message):
    sizes = {"vocabulary": 50, "width": 32, "ffn": 48, "layers": 2, "positions": 30, "heads": 4} | change
    with pytest.raises(ModelError, match=message):
        ModelConfig(**sizes)


def test_seeded_weights_are_the_same_bytes_everywhere():
    first, again, other = (initial_weights(SMALL, seed) for seed in (7, 7, 8))
    assert list(first) == list(parameter_shapes(SMALL))
    assert weights_fingerprint(first) == weights_fingerprint(again)
    assert weights_fingerprint(first) != weights_fingerprint(other)
    assert weights_fingerprint(first) == "127ff432dd09a7751c1b535f91d7fdd0aa8cd94d399f10f6a1520b10100468ad"


def test_a_saved_model_is_read_back_whole(directory):
    loaded = load(directory)
    assert loaded.config == SMALL
    assert loaded.trained
    assert loaded.tokens == SMALL.vocabulary
    for name, weight in initial_weights(SMALL, 1).items():
        np.testing.assert_array_equal(loaded.weights[name], weight)
    assert sorted(path.name for path in directory.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_the_fingerprint_follows_weights_and_sizes():
    assert demo_model(SMALL).fingerprint == demo_model(SMALL).fingerprint
    assert demo_model(SMALL).fingerprint != demo_model(SMALL, 5).fingerprint
    fewer_heads = ModelConfig(vocabulary=50, width=32, ffn=48, layers=2, positions=30, heads=2)
    assert demo_model(SMALL).fingerprint != demo_model(fewer_heads).fingerprint


def test_a_second_model_does_not_overwrite_the_first(directory):
    with pytest.raises(ModelError, match="holds a model already"):
        save(directory, SMALL, initial_weights(SMALL, 2), trained=False, card="")


def test_weights_of_half_precision_are_read_as_fp32(directory):
    path = directory / "model.safetensors"
    save_file({name: weight.astype(np.float16) for name, weight in load_file(path).items()}, path)
    config = json.loads((directory / "config.json").read_text())
    del config["sha256"]  # of the file that was there
    (directory / "config.json").write_text(json.dumps(config))
    loaded = load(directory)
    assert {weight.dtype for weight in loaded.weights.values()} == {np.dtype(np.float32)}


def test_a_missing_directory_says_how_to_make_one(tmp_path):
    with pytest.raises(ModelError, match=r"no such directory.*model init"):
        load(tmp_path / "nowhere")


def test_a_directory_without_config_is_not_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path)


def test_truncated_weights_are_one_clear_error(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load(directory)


def test_weights_that_are_no_safetensors_are_one_clear_error(directory):
    (directory / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelError, match="never read"):
        load(directory)


def test_missing_weights_are_one_clear_error(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no such weights file"):
        load(directory)


def test_weights_that_do_not_fit_are_all_named(directory):
    path = directory / "model.safetensors"
    weights = load_file(path)
    weights["encoder.layers.0.linear1.weights"] = weights.pop("encoder.layers.0.linear1.weight")
    weights["output_projection.bias"] = weights["output_projection.bias"][:-1]
    weights["retention_head.bias"] = np.array([np.nan], np.float32)
    save_file(weights, path)
    with pytest.raises(ModelError) as caught:
        load(directory)
    text = str(caught.value)
    assert "output_projection.bias: shape (49,), expected (50,)" in text
    assert "encoder.layers.0.linear1.weight: missing. Did you mean 'encoder.layers.0.linear1.weights'?" in text
    assert "encoder.layers.0.linear1.weights: not a parameter of this model" in text
    assert "retention_head.bias: holds NaN or infinity" in text


def test_weights_of_whole_numbers_are_refused(directory):
    path = directory / "model.safetensors"
    weights = load_file(path)
    weights["retention_head.bias"] = np.array([3], np.int64)
    save_file(weights, path)
    with pytest.raises(ModelError, match=r"'retention_head.bias' has type I64"):
        load(directory)


def change_config(directory, change):
    path = directory / "config.json"
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored.update(layout="0" * 64), "made for feature layout 000000000000"),
        (lambda stored: stored.pop("trained"), "not a config.json of genrec-batch"),
        (lambda stored: stored["model"].pop("ffn"), "must hold exactly"),
        (lambda stored: stored["model"].update(layers=3), "missing"),
    ],
)
def test_a_config_that_does_not_fit_is_one_clear_error(directory, change, message):
    change_config(directory, change)
    with pytest.raises(ModelError, match=message):
        load(directory)


def test_a_damaged_config_is_one_clear_error(directory):
    (directory / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"not a config\.json"):
        load(directory)


def test_bfloat16_weights_are_read_without_torch(tmp_path):
    import torch
    from safetensors.torch import save_file

    values = torch.tensor([[1.0, -2.5], [3.140625, 1e30]])
    save_file({"a.weight": values.bfloat16(), "b.weight": values}, tmp_path / "w.safetensors")
    code = (
        "import sys\nfrom pathlib import Path\nfrom genrec_batch.model import weights\n"
        "w = weights.read_weights(Path(sys.argv[1]))\n"
        "assert not {'torch', 'ml_dtypes', 'onnx'} & set(sys.modules)\nprint(w['a.weight'].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "w.safetensors")], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == values.bfloat16().float().tolist()


def test_a_number_of_layers_beyond_all_models_is_refused_before_anything_is_counted_up_to_it(directory):
    config = directory / "config.json"
    stored = json.loads(config.read_text())
    stored["model"]["layers"] = 10**60
    config.write_text(json.dumps(stored))
    with pytest.raises(ModelError, match="layers at most 1,000: layers"):
        load(directory)
