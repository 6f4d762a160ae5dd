"""Tables in a store as outputs: those of a disk, by `table_output`, `table_root` and `table_runs`; a real S3 server."""

from __future__ import annotations

import itertools

import duckdb
import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError, InputError, RetryError
from genrec_batch.io import fetched, output, published, stored_output, table_output, table_runs
from genrec_batch.io.read import scan
from genrec_batch.stores.bucket import Bucket
from tests import s3 as servers
from tests.io import tables
from tests.io.tables import KINDS, read, rows, write

pytest.importorskip("obstore")
pytest.importorskip("deltalake")
pytest.importorskip("pyiceberg")
NUMBERS = itertools.count()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(s3):
    """A folder of the store that no other test has."""
    return f"{s3}/tables-{next(NUMBERS)}"


@pytest.fixture
def target(kind, folder, monkeypatch):
    return tables.target_of(kind, monkeypatch, folder)


def wanted_of(run):
    return pl.concat([pl.DataFrame(pl.from_arrow(rows(run, number))) for number in (0, 1)])


def keys(folder):
    store = Bucket(folder, "OUTPUT")
    return [each.key.removeprefix(f"{store.key}/") for each in store.below(store.key)]


@pytest.mark.parametrize("column", [None, "cold_start", "run"])
def test_what_other_readers_find_is_what_was_written(kind, target, folder, tmp_path, column):
    write(kind, target, partition_by=column)
    wanted = wanted_of(1)
    assert read(kind, target).select(wanted.columns).equals(wanted)
    store = Bucket(folder, "OUTPUT")
    for number, file in enumerate(tables.files(kind, target)):
        store.fetch([(file.removeprefix(f"{store.root}/"), tmp_path / f"{number}.parquet")])
    columns = [name for name in wanted.columns if name != column]
    found = duckdb.read_parquet(str(tmp_path / "*.parquet")).order("user_id").pl()
    assert found.select(columns).equals(wanted.select(columns))
    assert tables.properties(kind, target)[0]["genrec.rows"] == "10"
    assert not [key for key in keys(folder) if "unfinished" in key or "probe" in key]


def test_a_delta_table_whose_folders_have_escaped_names_is_read(folder, monkeypatch):
    """Polars asks a store for the names that the log has, which are escaped."""
    target = tables.target_of("delta", monkeypatch, folder)
    write("delta", target, partition_by="arm")
    found = scan(target, "INPUT").frame().collect().sort("user_id")
    assert found.select(wanted_of(1).columns).equals(wanted_of(1))


def test_a_run_is_one_commit_and_is_not_repeated(kind, target):
    first = write(kind, target)
    table = write(kind, target, 2, if_exists="overwrite", commit=False)
    assert read(kind, target)["run"].unique().to_list() == [1]
    second = write(kind, target, 2, if_exists="overwrite")  # as after a kill between the files and the commit
    assert read(kind, target)["run"].unique().to_list() == [2]
    assert read(kind, target, first)["run"].unique().to_list() == [1]
    before = tables.properties(kind, target)
    for if_exists in ("resume", "overwrite", "append"):
        assert write(kind, target, 2, if_exists=if_exists) is None
    with pytest.raises(RetryError, match="run the same command again"):
        table.commit(output.run_id({"model": "2"}))
    assert tables.properties(kind, target) == before
    write(kind, target, 3, if_exists="append")
    assert read(kind, target)["run"].sort().to_list() == [2] * 10 + [3] * 10
    assert second != first


def test_what_reads_an_output_reads_the_newest_run(kind, target):
    first = write(kind, target)
    write(kind, target, 2, if_exists="overwrite")
    for place, run in ((target, 2), (f"{target}@{first}", 1)):
        copy = fetched.local(table_runs.newest(place, "OUT"), "OUT")
        published.check_whole(copy)
        assert pl.concat(map(pl.read_parquet, published.files_of(copy)[0])).equals(wanted_of(run))
    with pytest.raises(InputError, match=r"no (version|snapshot) 77"):
        table_runs.newest(f"{target}@77", "OUT")


def test_columns_that_the_table_does_not_have_are_refused_with_the_first_part(kind, target, folder):
    write(kind, target)
    other = lambda run, number: rows(run, number).drop_columns(["arm"])  # noqa: E731
    with pytest.raises(ConfigError, match="'arm' is missing"):
        write(kind, target, 2, if_exists="append", made=other)
    run = output.run_id({"model": "2"})
    assert not [key for key in keys(folder) if f"/run-{run}/" in key]


def test_an_overwriting_run_removes_what_others_left_unfinished(kind, target, tmp_path):
    write(kind, target)
    root = table_output.opened(kind, target, "overwrite", None).log.root
    left, busy = (
        stored_output.open_output(root.run(name), {"model": name}, None, None, tmp_path) for name in ("left", "busy")
    )
    left.close()
    write(kind, target, 2, if_exists="overwrite")
    assert root.unfinished() == ["busy"]
    busy.close()


def test_a_place_that_may_not_be_written_or_has_other_files_is_refused(folder, monkeypatch):
    Bucket(folder, "OUTPUT").put(f"{Bucket(folder, 'OUTPUT').key}/recs/mine.txt", b"mine")
    with pytest.raises(ConfigError, match=r"a folder with other files \(mine.txt\), no Delta table"):
        table_output.opened("delta", f"{folder}/recs", None, None)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(ConfigError, match="may not be written with these credentials") as found:
        table_output.opened("delta", f"{folder}/new", None, None)
    assert servers.SECRET not in str(found.value)
