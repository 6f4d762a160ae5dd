"""Every damaged bit of weights or catalog is found when a model is read; models of before have no record."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.core.errors import ModelError
from genrec_batch.model import weights


@pytest.fixture
def made(run, log_file):
    done = run("model", "init", "m", "--preset", "tiny", "--catalog-from", log_file)
    assert done.code == 0, done.err
    return Path("m")


@pytest.mark.parametrize("name", ["model.safetensors", "catalog.parquet"])
def test_a_flipped_bit_is_found_wherever_it_is(made, name):
    whole, where = (made / name).read_bytes(), random.Random(7)
    for _ in range(20):
        damaged = bytearray(whole)
        damaged[where.randrange(len(whole))] ^= 1 << where.randrange(8)
        (made / name).write_bytes(damaged)
        with pytest.raises(ModelError):
            weights.load(made)
    (made / name).write_bytes(whole)
    weights.load(made)


def test_the_error_says_what_to_do_and_that_works(run, made, log_file):
    catalog = pl.read_parquet("m/catalog.parquet")
    catalog.with_columns(pl.col("count") + 1).write_parquet("m/catalog.parquet")
    done = run("score", log_file, "recs.parquet", "--model", made)
    told = " ".join(done.err.split())
    assert (done.code, "m/catalog.parquet: not the catalog that the weights were trained with" in told) == (4, True)
    assert "`genrec-batch model import m/model.safetensors NEW_DIRECTORY --catalog m/catalog.parquet`" in told
    imported = run("model", "import", "m/model.safetensors", "new", "--catalog", "m/catalog.parquet")
    assert imported.code == 0, imported.err
    assert run("score", log_file, "recs.parquet", "--model", "new").code == 0
    assert set(json.loads(Path("new/config.json").read_text())["sha256"]) == {"model.safetensors", "catalog.parquet"}


def test_a_model_without_a_record_is_read_and_a_damaged_record_is_not(made):
    config = json.loads((made / "config.json").read_text())
    shutil.copy("m/catalog.parquet", "other.parquet")
    for entry, loads in ((None, True), ({}, True), (["a"], False), ({"catalog.parquet": 7}, False)):
        (made / "config.json").write_text(json.dumps({**config, "sha256": entry}))
        if loads:
            weights.load(made)
        else:
            with pytest.raises(ModelError, match="the entry `sha256` is damaged"):
                weights.load(made)
