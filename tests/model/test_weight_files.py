"""Weights in one file or in several with an index, as `model import` reads them."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from genrec_batch.model.weights import PRESETS, initial_weights

INDEX = "model.safetensors.index.json"
WEIGHTS = initial_weights(PRESETS["tiny"], 3)


@pytest.fixture
def sharded(tmp_path):
    """Three files with an index, and nothing else in their folder."""
    weights, folder = initial_weights(PRESETS["tiny"], 3), tmp_path / "theirs"
    folder.mkdir()
    files = {name: f"model-0000{1 + place % 3}-of-00003.safetensors" for place, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in weights if files[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.fixture
def imported(run, model_dir, log_file):
    """Imports weights and scores with them; returns the first command that failed, else the last."""

    def call(weights):
        done = run("model", "import", weights, "made", "--catalog", model_dir / "catalog.parquet")
        return done if done.code else run("score", log_file, "o.parquet", "--model", "made", "--engine", "onnxruntime")

    return call


@pytest.mark.parametrize("name", ["", INDEX])
def test_several_files_are_read_by_their_index(sharded, imported, name):
    done = imported(sharded / name)
    assert (done.code, done.summary["users"]) == (0, 40), done.err


def test_a_folder_with_one_file_is_that_file(imported, tmp_path):
    (tmp_path / "one").mkdir()
    save_file(initial_weights(PRESETS["tiny"], 3), tmp_path / "one" / "theirs.safetensors")
    assert imported(tmp_path / "one").code == 0


def test_what_is_left_over_is_a_list_of_lines(imported, tmp_path):
    weights = {name.replace("recommendation_head", "rec_head"): w for name, w in WEIGHTS.items()}
    save_file(weights, tmp_path / "theirs.safetensors")
    done = imported(tmp_path / "theirs.safetensors")
    lines = [line.rstrip() for line in done.err.splitlines()]
    assert done.code == 4
    assert "    rec_head.bias (1,) - Did you mean 'recommendation_head.bias'?" in lines
    assert "  parameters without a tensor:" in lines


def test_one_of_several_files_names_the_index(sharded, imported):
    done = imported(sharded / "model-00001-of-00003.safetensors")
    assert done.code == 4
    assert f"give their index, {sharded / INDEX}" in done.err


def entry(folder, **changes):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= changes
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(), "00002-of-00003.safetensors: no such"),
        (lambda folder: entry(folder, strange="model-00002-of-00003.safetensors"), "without strange, which"),
        (lambda folder: entry(folder, strange="../other.safetensors"), "not beside it (../other.safetensors)"),
        (lambda folder: entry(folder, strange=7), "no file for each tensor"),
        (lambda folder: (folder / INDEX).write_text("[]"), "not an index of safetensors files"),
        (lambda folder: (folder / INDEX).write_text("{"), "not an index of safetensors files"),
    ],
)
def test_an_index_that_does_not_hold_is_refused(sharded, imported, spoil, said):
    spoil(sharded)
    done = imported(sharded)
    assert (done.code, said in done.err) == (4, True), done.err


def test_a_folder_without_weights_or_with_several_says_so(imported, tmp_path):
    (tmp_path / "none").mkdir()
    assert "neither *.safetensors nor *.safetensors.index.json" in imported(tmp_path / "none").err
    for name in ("a", "b"):
        save_file(initial_weights(PRESETS["tiny"], 3), tmp_path / "none" / f"{name}.safetensors")
    done = imported(tmp_path / "none")
    assert (done.code, "a.safetensors, b.safetensors in it" in done.err) == (4, True)


def test_counters_beside_the_weights_are_left_out_and_named(run, tmp_path):
    averaged = {f"module.{name}": array for name, array in WEIGHTS.items()} | {"n_averaged": np.array(7, np.int64)}
    save_file(averaged, tmp_path / "averaged.safetensors")
    done = run("model", "import", tmp_path / "averaged.safetensors", "made")
    assert done.code == 0, done.err
    assert "left out, no weights: n_averaged (I64)" in done.err
    name = "encoder.layers.0.linear1.weight"
    save_file({**WEIGHTS, name: WEIGHTS[name].astype(np.int8)}, tmp_path / "quantized.safetensors")
    done = run("model", "import", tmp_path / "quantized.safetensors", "other")
    assert (done.code, f"tensor '{name}' has type I8" in done.err) == (4, True), done.err


def test_the_command_about_pickled_weights_makes_a_file_that_is_imported(imported, tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "it's.pt"
    torch.save({"epoch": 3, "state_dict": {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}}, file)
    done = imported(file)
    assert done.code == 4
    command = done.err[done.err.index("python -c") :].strip().replace("python", sys.executable, 1)
    subprocess.run(["/bin/sh", "-c", command], check=True)
    done = imported(file.with_suffix(".safetensors"))
    assert done.code == 0, done.err
