"""Tables with a log of changes, which are more than the files in their folder."""

from __future__ import annotations

import builtins
import sys
import warnings
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.core.errors import EngineError, InputError
from genrec_batch.io import tables
from genrec_batch.io.read import scan

EVENTS = pl.DataFrame({"user_id": [1, 2, 3], "video_id": [7, 8, 9], "timestamp": [1_760_000_000] * 3, "day": [1, 1, 2]})


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def delta():
    """A Delta table with a row that was removed and one that came later."""
    deltalake = pytest.importorskip("deltalake")
    EVENTS.write_delta("t", delta_write_options={"partition_by": ["day"]})
    deltalake.DeltaTable("t").delete("user_id = 1")
    EVENTS.head(1).with_columns(user_id=4).write_delta("t", mode="append")
    return "t"


@pytest.fixture
def iceberg():
    """The same as an Iceberg table."""
    sql = pytest.importorskip("pyiceberg.catalog.sql")
    with warnings.catch_warnings(action="ignore"):
        catalog = sql.SqlCatalog("c", uri="sqlite:///c.db", warehouse=f"file://{Path.cwd()}/w")
        catalog.create_namespace("n")
        table = catalog.create_table("n.t", schema=EVENTS.to_arrow().schema)
        table.append(EVENTS.to_arrow())
        table.delete("user_id = 1")
        table.append(EVENTS.head(1).with_columns(user_id=pl.lit(4, pl.Int64)).to_arrow())
        catalog.close()
    return "w/n/t"


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_a_table_is_read_at_its_newest_version(kind, request):
    path = request.getfixturevalue(kind)
    source = scan(path, "INPUT")
    assert sorted(source.frame().collect()["user_id"]) == [2, 3, 4]
    assert source.rows == 3
    assert scan(path, "INPUT").fingerprint == source.fingerprint


def test_a_later_version_of_a_table_changes_nothing_of_a_run_and_is_another_input(delta):
    source = scan(delta, "INPUT")
    EVENTS.write_delta(delta, mode="append")
    assert source.frame().collect().height == 3
    assert scan(delta, "INPUT").fingerprint != source.fingerprint


@pytest.mark.parametrize("path", ["t/day=1", "t/*/*.parquet", "t/day=*", "."])
def test_files_of_a_table_are_no_log(delta, path):
    with pytest.raises(InputError, match="table"):
        scan(path, "INPUT")
    assert delta


def test_a_table_is_scored_as_its_rows_in_a_file(run, model_dir, log, log_file):
    pytest.importorskip("deltalake")
    log.write_delta("t")
    for source, target in (("t", "table.parquet"), (log_file, "file.parquet")):
        done = run("score", source, target, "--model", model_dir)
        assert done.code == 0, done.err
    assert pl.read_parquet("table.parquet").equals(pl.read_parquet("file.parquet"))


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_without_its_package_a_table_is_refused_and_not_read_as_files(kind, request, monkeypatch):
    path = request.getfixturevalue(kind)
    imported = builtins.__import__

    def absent(name, *more):
        if name.startswith(tables.PACKAGES[kind.title()]):
            raise ImportError(name)
        return imported(name, *more)

    for name in [name for name in sys.modules if name.startswith(tables.PACKAGES[kind.title()])]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(EngineError, match=rf"pip install 'genrec-batch\[{kind}\]'"):
        scan(path, "INPUT")


def test_a_hudi_table_is_refused():
    Path("t/.hoodie").mkdir(parents=True)
    EVENTS.write_parquet("t/a.parquet")
    for path in ("t", "t/*.parquet"):
        with pytest.raises(InputError, match="a Hudi table, which is not read"):
            scan(path, "INPUT")
