"""Tables as outputs: a run is one commit, seen as a whole or not at all.

By `table_output`, `table_root`, `table_log`, `delta_log` and `iceberg_log`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from genrec_batch.core.errors import ConfigError, EngineError, InputError, RetryError
from genrec_batch.io import output, table_output
from tests.io import tables
from tests.io.tables import KINDS, read, rows, write

pytest.importorskip("deltalake")
pytest.importorskip("pyiceberg")
KILLS = int(os.environ.get("TABLE_KILLS", "2"))  # 200 have been tried
RUN_1 = output.run_id({"model": "1"})


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def target(kind, monkeypatch):
    return tables.target_of(kind, monkeypatch)


def test_what_other_readers_find_is_what_was_written(kind, target):
    write(kind, target)
    wanted = pl.concat([pl.DataFrame(pl.from_arrow(rows(1, number))) for number in (0, 1)])
    assert read(kind, target).equals(wanted)
    assert read(kind, target).schema == wanted.schema
    found = duckdb.read_parquet(tables.files(kind, target)).order("user_id").pl()
    assert found.equals(wanted)
    newest = tables.properties(kind, target)[0]
    assert newest["genrec.run_id"] == RUN_1
    assert newest["genrec.rows"] == "10"
    assert newest["genrec.config"] == "{}"


def test_before_its_commit_nobody_sees_a_run(kind, target):
    first = write(kind, target)
    table = write(kind, target, 2, if_exists="overwrite", commit=False)
    assert read(kind, target)["run"].unique().to_list() == [1]
    second = write(kind, target, 2, if_exists="overwrite")
    assert read(kind, target)["run"].unique().to_list() == [2]
    assert read(kind, target, first)["run"].unique().to_list() == [1]
    assert second != first
    assert table.base.version == first


def test_a_second_commit_of_a_run_is_none(kind, target):
    write(kind, target)
    before = tables.properties(kind, target)
    assert write(kind, target, if_exists="resume") is None
    assert write(kind, target, if_exists="overwrite") is None
    assert write(kind, target, if_exists="append") is None
    assert tables.properties(kind, target) == before


def test_a_run_of_the_past_is_found_in_the_history_and_can_be_put_back(kind, target):
    write(kind, target)
    write(kind, target, 2, if_exists="overwrite")
    assert write(kind, target, 1, if_exists="append") is None
    assert write(kind, target, 1, if_exists="overwrite") is not None
    assert read(kind, target)["run"].unique().to_list() == [1]


def test_runs_are_added_to_a_table(kind, target):
    write(kind, target, if_exists="append")
    write(kind, target, 2, if_exists="append")
    assert read(kind, target)["run"].sort().to_list() == [1] * 10 + [2] * 10
    with pytest.raises(ConfigError, match="beside those of others"):
        write(kind, target, if_exists="overwrite")


def test_a_table_with_rows_is_not_written_to_unasked(kind, target):
    write(kind, target)
    for if_exists in (None, "error"):
        with pytest.raises(ConfigError, match="--if-exists resume"):
            write(kind, target, 2, if_exists=if_exists)
    with pytest.raises(ConfigError, match=f"its rows are of other runs \\({RUN_1}\\)"):
        write(kind, target, 2, if_exists="resume")
    assert read(kind, target)["run"].unique().to_list() == [1]


@pytest.mark.parametrize("if_exists", [None, "overwrite"])
def test_of_two_writers_the_second_commits_nothing_until_it_is_run_again(kind, target, if_exists):
    if if_exists:
        write(kind, target, 3)
    slow = write(kind, target, 2, if_exists=if_exists, commit=False)
    write(kind, target, 1, if_exists=if_exists)
    before = tables.properties(kind, target)
    with pytest.raises(RetryError, match="run the same command again"):
        slow.commit(output.run_id({"model": "2"}))
    assert tables.properties(kind, target) == before
    assert read(kind, target)["run"].unique().to_list() == [1]
    write(kind, target, 2, if_exists="overwrite")
    assert read(kind, target)["run"].unique().to_list() == [2]


def test_rows_of_others_are_not_replaced_and_an_empty_table_is_filled(kind, target):
    mine = pl.DataFrame(pl.from_arrow(rows(9, 0)))
    if kind == "delta":
        mine.write_delta("recs")
    else:
        table = tables.make_catalog(pytest.MonkeyPatch()).create_table("shop.recs", mine.to_arrow().schema)
        table.append(mine.to_arrow())
    with pytest.raises(ConfigError, match="has written nothing to this table"):
        write(kind, target, if_exists="overwrite")
    if kind == "delta":
        from deltalake import DeltaTable

        DeltaTable("recs").delete()
    else:
        table.delete()
    write(kind, target)
    assert read(kind, target)["run"].to_list() == [1] * 10


@pytest.mark.parametrize("fault", [pa.uint64(), pa.duration("us"), pa.timestamp("ns"), pa.list_(pa.uint8())])
def test_a_column_that_tables_do_not_have_is_refused(kind, target, fault):
    odd = lambda run, number: rows(run, number).append_column("odd", pa.nulls(5, fault))  # noqa: E731
    with pytest.raises(ConfigError, match="column 'odd' is"):
        write(kind, target, made=odd)


def test_added_rows_have_the_columns_of_the_table_and_other_rows_may_have_others(kind, target):
    write(kind, target)
    other = lambda run, number: rows(run, number).drop_columns(["arm"]).append_column("new", pa.array([1.5] * 5))  # noqa: E731
    with pytest.raises(ConfigError, match=r"'arm' is missing, and .* 'new' is .*, and missing in the table"):
        write(kind, target, 2, if_exists="append", made=other)
    write(kind, target, 2, if_exists="overwrite", made=other)
    found = read(kind, target)
    assert set(found.columns) == set(other(2, 0).column_names)
    assert found["new"].to_list() == [1.5] * 10


@pytest.mark.parametrize("column", ["arm", "cold_start", "run"])
def test_folders_are_partitions(kind, target, column):
    write(kind, target, partition_by=column)
    wanted = pl.concat([pl.DataFrame(pl.from_arrow(rows(1, number))) for number in (0, 1)])
    found = read(kind, target)
    assert found.select(wanted.columns).equals(wanted)
    if kind == "delta":
        assert len(tables.files(kind, target)) == 2 * len(wanted[column].unique())
    else:
        assert [field.name for field in tables.loaded(target).spec().fields] == [column]
    with pytest.raises(ConfigError, match=f"the table is partitioned by {column}, which no run changes"):
        write(kind, target, 2, if_exists="overwrite")


def test_a_table_without_partitions_gets_none(kind, target):
    write(kind, target)
    with pytest.raises(ConfigError, match="the table is not partitioned, which no run changes"):
        write(kind, target, 2, if_exists="overwrite", partition_by="arm")


def test_null_and_the_empty_text_are_two_partitions_of_iceberg(monkeypatch):
    target = tables.target_of("iceberg", monkeypatch)
    mixed = lambda run, number: rows(run, number).set_column(6, "arm", pa.array(["", None, "x", "x", "x"]))  # noqa: E731
    with pytest.raises(ConfigError, match="nulls and empty texts"):
        write("iceberg", target, partition_by="arm", made=mixed)


def test_an_overwriting_run_removes_what_others_left_unfinished(kind, target):
    write(kind, target)
    root = Path(table_output.opened(kind, target, "overwrite", None).log.root.path)
    left, busy = root / ".run-00.unfinished", root / ".run-01.unfinished"
    for folder in (left, busy):
        folder.mkdir()
        (folder / "part-00000.parquet").touch()
    out = output.open_output(root / "run-02", {"model": "busy"}, None)
    write(kind, target, 2, if_exists="overwrite")
    assert not left.exists()
    assert out.staging.exists()
    out.close()


@pytest.mark.parametrize(
    ("kind", "target", "said"),
    [
        ("iceberg", "recs", "needs the name of a table in a catalog"),
        ("delta", "iceberg://lake/shop.recs", "does not go with the name of a table"),
        ("parquet", "iceberg://lake/shop.recs", "does not go with the name of a table"),
        ("delta", "no/folder", "the folder no does not exist"),
        ("delta", "full", "a folder with other files"),
        ("delta", "file", "is a file"),
        ("delta", "gs://bucket/recs", "local or mounted folders"),
        ("iceberg", "iceberg://lake/else.recs", "no namespace else"),
    ],
)
def test_a_place_where_no_table_can_be_is_refused(kind, target, said, monkeypatch):
    tables.make_catalog(monkeypatch)
    Path("file").touch()
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    with pytest.raises(ConfigError, match=said):
        table_output.opened(kind, target, None, None)


@pytest.mark.parametrize("target", ["iceberg://lake/recs", "iceberg://none/shop.recs"])
def test_a_name_that_no_catalog_has_is_refused(target, monkeypatch):
    tables.make_catalog(monkeypatch)
    with pytest.raises(InputError, match=r"iceberg://CATALOG/NAMESPACE.TABLE|PYICEBERG_CATALOG__NONE__URI"):
        table_output.opened("iceberg", target, None, None)


def test_a_table_in_another_kind_of_store_is_refused(monkeypatch):
    tables.make_catalog(monkeypatch)
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__WAREHOUSE", "gs://bucket/lake")
    with pytest.raises(ConfigError, match="local or mounted folders"):
        table_output.opened("iceberg", tables.NAME, None, None)


def test_rows_are_not_added_to_files():
    with pytest.raises(ConfigError, match="--output-format delta or iceberg"):
        table_output.opened("parquet", "recs", "append", None)


@pytest.mark.parametrize(("kind", "package"), [("delta", "deltalake"), ("iceberg", "pyiceberg.catalog")])
def test_without_its_package_no_table_is_written(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=rf"pip install 'genrec-batch\[{kind}\]'"):
        table_output.opened(kind, {"delta": "recs", "iceberg": tables.NAME}[kind], None, None)


WRITER = """
import sys, warnings
warnings.simplefilter("ignore")
from tests.io import tables
kind, target, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
for run in range(first, first + 1000):
    tables.write(kind, target, run, if_exists="overwrite")
    print(run, flush=True)
"""


def test_a_kill_at_any_moment_leaves_the_old_rows_or_the_new_ones(kind, target):
    write(kind, target, 0)
    moments, done = random.Random(kind), 0
    environment = {**os.environ, **tables.environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, kind, target, str(done + 1)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert writer.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 2))
        writer.send_signal(signal.SIGKILL)
        said = [int(line) for line in writer.stdout]
        writer.wait()
        writer.stdout.close()
        found = read(kind, target)
        seen = found["run"].unique().to_list()
        assert len(found) == 10
        assert len(seen) == 1
        assert seen[0] in {*said[-1:], (said[-1] if said else done) + 1, *([] if said else [done])}
        done = seen[0]
    runs = [entry["genrec.run_id"] for entry in tables.properties(kind, target) if "genrec.run_id" in entry]
    assert len(set(runs)) == done + 1
