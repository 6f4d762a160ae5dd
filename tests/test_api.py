"""The Python API: the same rows as the command, from any process, for any sequence of tables.

Also tests `genrec_batch`.
"""

from __future__ import annotations

import pickle

import polars as pl
import pytest

from genrec_batch import Scorer, score
from genrec_batch.core.errors import ConfigError, GateError, InputError, NothingToScoreError
from tests.conftest import small_log


@pytest.fixture
def no_catalog(model_dir, tmp_path):
    """The tiny model without its catalog: each table brings its own."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare").mkdir(exist_ok=True)
        (tmp_path / "bare" / name).write_bytes((model_dir / name).read_bytes())
    return str(tmp_path / "bare")


def frame(table):
    return pl.from_arrow(table)


def test_scorer_gives_what_score_writes(log, log_file, model_dir):
    summary = score(str(log_file), "recs.parquet", model=str(model_dir), top_k=4)
    assert summary["rows"] == 160
    scorer = pickle.loads(pickle.dumps(Scorer(model=str(model_dir), top_k=4)))  # noqa: S301 (our own object)
    assert frame(scorer(log.to_arrow())).equals(pl.read_parquet("recs.parquet"))


def test_a_scorer_of_many_tables_equals_one_for_each(no_catalog):
    small, large = small_log(users=20, videos=30).to_arrow(), small_log(users=20, videos=400, seed=2).to_arrow()
    for tables in ((small, large, small), (large, small)):
        scorer = Scorer(model=no_catalog, precision="fp32")
        for table in tables:
            assert frame(scorer(table)).equals(frame(Scorer(model=no_catalog, precision="fp32")(table)))


def test_bad_tables(log, model_dir):
    scorer = Scorer(model=str(model_dir))
    with pytest.raises(NothingToScoreError):
        scorer(log.clear().to_arrow())
    with pytest.raises(InputError, match="'user_id' is missing"):
        scorer(log.drop("user_id").to_arrow())
    with pytest.raises(GateError, match="--max-rejects"):
        scorer(log.with_columns(user_id=pl.when(pl.int_range(pl.len()) > 9).then(None).otherwise("user_id")).to_arrow())


def test_python_callers_get_sentences(log, model_dir):
    for options, message in (({"top_k": "5"}, "top_k='5': expected int"), ({"user": 7}, "user=7: expected tuple")):
        with pytest.raises(ConfigError, match=message):
            Scorer(**options)
    with pytest.raises(TypeError, match=r"takes a pyarrow\.Table of events, not DataFrame"):
        Scorer(model=str(model_dir))(log)
