"""What the fuzzers found stays found; a whole file is accepted, and a damaged one raises errors of ours only."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.harnesses import harnesses, remove
from tests.fuzz.run import edited
from tests.fuzz.watched import ended_by_command_line, is_explained

SEEDS = sorted(path for path in (Path(__file__).parent / "seeds").glob("*/*") if path.is_file())
ABORTS = sorted((Path(__file__).parent / "seeds" / "aborts").glob("*/*"))
NAMES = ("schema", "parquet", "catalog", "weights", "config", "manifest")


@pytest.fixture(scope="module", autouse=True)
def _removed():
    yield
    remove()


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_file_is_accepted_and_a_damaged_one_raises_our_errors_only(name):
    harness = harnesses()[name]
    assert all(harness.tried(whole) for whole in harness.wholes)
    for seed in range(30):
        harness.tried(edited(harness.wholes, random.Random(seed).randint))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once_is_an_error_of_ours(seed):
    harnesses()[seed.parent.name].tried(seed.read_bytes())


@pytest.mark.parametrize("seed", ABORTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_ends_a_process_ends_the_command_line_with_an_error_of_ours(seed):
    code, words = ended_by_command_line(seed.parent.name, seed.read_bytes())
    assert is_explained(code, words), words
