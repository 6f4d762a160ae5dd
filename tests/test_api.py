"""The Python API: the same rows as the command, from any process, for any sequence of tables.

Also tests `genrec_batch`.
"""

from __future__ import annotations

import pickle

import polars as pl
import pyarrow as pa
import pytest

from genrec_batch import Scorer, score
from genrec_batch.core.errors import ConfigError, GateError, InputError
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
    with pytest.raises(InputError, match="'user_id' is missing"):
        scorer(log.drop("user_id").to_arrow())
    with pytest.raises(GateError, match="--max-rejects"):
        scorer(log.with_columns(user_id=pl.when(pl.int_range(pl.len()) > 9).then(None).otherwise("user_id")).to_arrow())


def test_python_callers_get_sentences(model_dir):
    for options, message in (({"top_k": "5"}, "top_k='5': expected int"), ({"user": 7}, "user=7: expected tuple")):
        with pytest.raises(ConfigError, match=message):
            Scorer(**options)
    with pytest.raises(TypeError, match=r"a Scorer takes a table of events.* not PosixPath"):
        Scorer(model=str(model_dir))(model_dir)


def with_strings(log):
    return log.with_columns(user_id=pl.format("u{}", "user_id"))


TABLES = {
    "Table": lambda log: log.to_arrow(),
    "Table with old strings": lambda log: log.to_arrow(compat_level=pl.CompatLevel.oldest()),
    "RecordBatch": lambda log: pa.record_batch(log.to_arrow().to_pydict(), schema=log.to_arrow().schema),
    "RecordBatchReader": lambda log: log.to_arrow().to_reader(),
    "Polars": lambda log: log,
    "lazy Polars": lambda log: log.lazy(),
    "pandas": lambda log: log.to_pandas(),
    "pandas with an index": lambda log: (
        log.to_pandas().sample(frac=1, random_state=3).sort_index(ascending=False)[::-1]
    ),
    "pandas of Arrow": lambda log: log.to_pandas(use_pyarrow_extension_array=True),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("of", [lambda log: log, with_strings], ids=["integers", "strings"])
def test_a_scorer_takes_every_kind_of_table(log, model_dir, kind, of):
    if "pandas" in kind:
        pytest.importorskip("pandas")
    scorer = Scorer(model=str(model_dir), top_k=3, engine="onnxruntime", precision="fp32")
    events = of(log)
    assert frame(scorer(TABLES[kind](events))).equals(frame(scorer(events.to_arrow())))


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("layout", ["long", "nested"])
def test_an_empty_block_has_no_rows_of_the_right_types(log, model_dir, kind, layout):
    if "pandas" in kind:
        pytest.importorskip("pandas")
    scorer = Scorer(model=str(model_dir), top_k=3, layout=layout, engine="onnxruntime", precision="fp32")
    for events in (log, with_strings(log)):
        empty = events.clear()
        none = scorer(TABLES[kind](empty))
        assert (len(none), none.schema) == (0, scorer(events.to_arrow()).schema)


def test_a_block_without_an_event_up_to_as_of_has_no_rows(log, model_dir):
    assert len(Scorer(model=str(model_dir), as_of="2001-01-01")(log)) == 0
