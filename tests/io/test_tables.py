"""`tables`, `delta_copy`, `catalogs`: tables with a log of changes, which are more than the files in their folder."""

from __future__ import annotations

import builtins
import datetime as dt
import json
import sys
import warnings
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from genrec_batch.core.errors import EngineError, InputError
from genrec_batch.io import tables
from genrec_batch.io.read import scan
from genrec_batch.runtime import leftovers
from tests.io.tables import make_catalog

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


@pytest.mark.timeout(180)
def test_a_delta_table_in_a_store_is_read_as_one_on_disk(s3):
    deltalake = pytest.importorskip("deltalake")
    options = {"allow_http": "true"}
    EVENTS.write_delta(f"{s3}/delta/t", storage_options=options)
    deltalake.DeltaTable(f"{s3}/delta/t", storage_options=options).delete("user_id = 1")
    assert sorted(scan(f"{s3}/delta/t", "INPUT").frame().collect()["user_id"]) == [2, 3]
    with pytest.raises(InputError, match="name the table"):
        scan(f"{s3}/delta/t/*.parquet", "INPUT")


@pytest.mark.timeout(180)
def test_an_iceberg_table_in_a_store_is_read_by_its_folder_and_by_its_name_in_a_catalog(s3, s3_server, monkeypatch):
    sql = pytest.importorskip("pyiceberg.catalog.sql")
    uri = f"sqlite:///{Path.cwd()}/c.db"
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", uri)
    names = {"s3.access-key-id": "AWS_ACCESS_KEY_ID", "s3.secret-access-key": "AWS_SECRET_ACCESS_KEY"}
    of_store = {name: s3_server[variable] for name, variable in names.items()} | {"s3.region": "us-east-1"}
    with warnings.catch_warnings(action="ignore"):
        of_store["s3.endpoint"] = s3_server["AWS_ENDPOINT_URL"]
        catalog = sql.SqlCatalog("lake", uri=uri, warehouse=f"{s3}/w", **of_store)
        catalog.create_namespace("n")
        catalog.create_table("n.t", schema=EVENTS.to_arrow().schema).append(EVENTS.to_arrow())
        catalog.load_table("n.t").delete("user_id = 1")
        catalog.close()
        found = scan(f"{s3}/w/n/t", "INPUT"), scan("iceberg://lake/n.t", "INPUT")
        assert [sorted(source.frame().collect()["user_id"]) for source in found] == [[2, 3]] * 2
        assert found[0].fingerprint == found[1].fingerprint
        with pytest.raises(InputError, match=r"the catalog lake has no table n\.other"):
            scan("iceberg://lake/n.other", "INPUT")
        monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", "sqlite:////none/c.db")
        with pytest.raises(InputError, match="the catalog lake cannot be used"):
            scan("iceberg://lake/n.t", "INPUT")


@pytest.mark.parametrize("path", ["lake", "lake/t", "/n.t"])
def test_a_table_of_a_catalog_is_named_in_one_way(path):
    pytest.importorskip("pyiceberg.table")
    with pytest.raises(InputError, match=r"iceberg://CATALOG/NAMESPACE\.TABLE"):
        scan(f"iceberg://{path}", "INPUT")


def test_a_catalog_without_settings_is_told_where_they_are():
    pytest.importorskip("pyiceberg.table")
    with pytest.raises(InputError, match="PYICEBERG_CATALOG__NOWHERE__URI"):
        scan("iceberg://nowhere/n.t", "INPUT")


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


def test_a_version_of_a_delta_table_is_named_by_its_number_or_a_moment(delta):
    source = scan("t@0", "INPUT")
    assert sorted(source.frame().collect()["user_id"]) == [1, 2, 3]
    assert source.snapshot()["table"]["version"] == 0
    assert source.fingerprint != scan(delta, "INPUT").fingerprint
    assert scan("t@2", "INPUT").fingerprint == scan(delta, "INPUT").fingerprint
    assert scan("t@2100-01-01", "INPUT").fingerprint == scan(delta, "INPUT").fingerprint
    assert scan(f"{Path.cwd()}/t@1", "INPUT").rows == 2


def test_a_version_of_an_iceberg_table_is_named_by_its_snapshot_a_tag_or_a_moment(monkeypatch):
    catalog = make_catalog(monkeypatch)
    table = catalog.create_table("shop.events", schema=EVENTS.to_arrow().schema)
    table.append(EVENTS.to_arrow())
    first = table.current_snapshot()
    table.manage_snapshots().create_tag(first.snapshot_id, "before").commit()
    table.append(EVENTS.head(1).to_arrow())
    newest = scan("iceberg://lake/shop.events", "INPUT")
    assert newest.rows == 4
    assert scan(table.location().removeprefix("file://"), "INPUT").fingerprint == newest.fingerprint
    moment = dt.datetime.fromtimestamp(first.timestamp_ms / 1000, dt.timezone.utc).isoformat()
    for version in (first.snapshot_id, "before", moment):
        source = scan(f"iceberg://lake/shop.events@{version}", "INPUT")
        assert source.rows == 3
        assert source.snapshot()["table"] == {
            "format": "Iceberg",
            "id": str(table.metadata.table_uuid),
            "version": first.snapshot_id,
        }
    assert scan(f"{table.location().removeprefix('file://')}@before", "INPUT").rows == 3
    assert scan("iceberg://lake/shop.events@main", "INPUT").rows == 4


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("t@3", "no version 3; the newest is 2"),
        ("t@2001-01-01", "no version as of 2001-01-01"),
        ("t@yesterday", "'yesterday' is not a version"),
        ("iceberg://lake/shop.events@1", "no snapshot 1"),
        ("iceberg://lake/shop.events@2001-01-01", "no snapshot 2001-01-01"),
        ("iceberg://lake/shop.events@other", r"a tag, a branch \(main\) or a moment"),
        ("iceberg://lake/shop.none", "shop.none"),
        ("e.parquet@1", "only a table has versions"),
        ("none@1", "no such file"),
    ],
)
@pytest.mark.usefixtures("delta")
def test_a_version_that_is_not_there_is_refused(path, said, monkeypatch):
    make_catalog(monkeypatch).create_table("shop.events", schema=EVENTS.to_arrow().schema).append(EVENTS.to_arrow())
    EVENTS.write_parquet("e.parquet")
    with pytest.raises(InputError, match=said):
        scan(path, "INPUT")


@pytest.mark.usefixtures("delta")
def test_a_file_whose_name_has_an_at_sign_is_that_file():
    EVENTS.write_parquet("t@0")
    assert scan("t@0", "INPUT").bytes == Path("t@0").stat().st_size


def test_the_version_of_a_table_is_part_of_the_lineage(run, model_dir, log, log_file):
    pytest.importorskip("deltalake")
    log.write_delta("t")
    log.head(50).write_delta("t", mode="append")
    done = run("score", "t@0", "table.parquet", "--model", model_dir)
    assert done.code == 0, done.err
    about = json.loads(pq.read_metadata("table.parquet").metadata[b"genrec.input"])["events"]
    assert about["path"] == "t@0"
    assert about["table"]["format"] == "Delta"
    assert about["table"]["version"] == 0
    run("score", log_file, "file.parquet", "--model", model_dir)
    assert pl.read_parquet("table.parquet").equals(pl.read_parquet("file.parquet"))


def test_a_delta_table_with_renamed_columns_is_read_from_a_copy(tmp_path):
    """As Databricks writes them (column mapping), with a row that a deletion vector removes; Polars reads neither."""
    pytest.importorskip("deltalake")
    named = {"user_id": "col-1", "video_id": "col-2", "timestamp": "col-3", "day": "col-4"}
    for number, part in enumerate((EVENTS, EVENTS.with_columns(user_id=pl.col("user_id") + 10))):
        Path("t/_delta_log").mkdir(parents=True, exist_ok=True)
        part.rename(named).write_parquet(f"t/{number}.parquet")
    features = ["columnMapping", "deletionVectors"]
    fields = [
        {
            "name": name,
            "type": "long",
            "nullable": True,
            "metadata": {"delta.columnMapping.id": at, "delta.columnMapping.physicalName": physical},
        }
        for at, (name, physical) in enumerate(named.items())
    ]
    adds = [
        {"path": f"{number}.parquet", "size": Path(f"t/{number}.parquet").stat().st_size, "partitionValues": {}}
        | {"modificationTime": 0, "dataChange": True, "stats": json.dumps({"numRecords": 3})}
        for number in range(2)
    ]
    second_row = (
        "^Bg9^0rr910000000000iXQKl0rr91000005c8Xg0rr91"  # a bitmap of row 1, as the format's specification has it
    )
    adds[1]["deletionVector"] = {"storageType": "i", "pathOrInlineDv": second_row, "sizeInBytes": 34, "cardinality": 1}
    log = [
        {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7}},
        {"metaData": {"id": "t", "format": {"provider": "parquet", "options": {}}, "partitionColumns": []}},
        *({"add": add} for add in adds),
    ]
    log[0]["protocol"] |= {"readerFeatures": features, "writerFeatures": features}
    log[1]["metaData"] |= {"configuration": {"delta.columnMapping.mode": "name"}, "createdTime": 0}
    log[1]["metaData"] |= {"schemaString": json.dumps({"type": "struct", "fields": fields})}
    Path("t/_delta_log/00000000000000000000.json").write_text("\n".join(map(json.dumps, log)))
    spill = tmp_path / "spill"
    spill.mkdir()
    found = [scan("t", "INPUT", spill_to=spill).frame().collect() for _ in range(2)]
    assert found[0].columns == EVENTS.columns
    assert sorted(found[0]["user_id"]) == [1, 2, 3, 11, 13]
    assert found[0].equals(found[1])
    leftovers.remove()
    assert not list(spill.iterdir())


def test_an_iceberg_table_whose_rows_are_removed_by_values_is_told_the_way_out(iceberg, monkeypatch):
    def refuses(*_, **__):
        raise ValueError("PyIceberg does not yet support equality deletes: https://...")

    monkeypatch.setattr(pl, "scan_iceberg", refuses)
    with pytest.raises(InputError, match=r"support equality deletes.*; rewrite its data files first"):
        scan(iceberg, "INPUT")
