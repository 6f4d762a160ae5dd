"""What the fuzzers found stays found; a whole file is accepted, and a damaged one raises errors of ours only."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.harnesses import harnesses
from tests.fuzz.run import edited

SEEDS = sorted(path for path in (Path(__file__).parent / "seeds").glob("*/*") if path.is_file())
NAMES = ("schema", "parquet", "catalog", "weights", "config", "manifest")


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_file_is_accepted_and_a_damaged_one_raises_our_errors_only(name):
    harness = harnesses()[name]
    assert harness.tried(harness.whole)
    for seed in range(30):
        harness.tried(edited(harness.whole, random.Random(seed).randint))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once_is_an_error_of_ours(seed):
    harnesses()[seed.parent.name].tried(seed.read_bytes())
