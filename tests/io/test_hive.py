"""`hive` and `partitioned`: folders that every reader takes for the column, whole or not at all."""

from __future__ import annotations

import json

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.io import hive, output, published
from genrec_batch.io.hive import NULL, Partition
from genrec_batch.io.partitioned import Folders
from genrec_batch.io.recommended import Recommended

VALUES = [
    "a/b",
    "50%",
    "ü x",
    "a=b",
    "?q",
    "#1",
    "007",
    "true",
    "\\x",
    "{y}",
    "a\tb",
    "a+b",
    "a%2Fb",
    "..",
    "*",
    "'",
    None,
]
IDENTITY = {"model": "m"}


def rows(number, values=VALUES):
    return pa.table(
        {"user_id": pa.array(range(number * 100, number * 100 + len(values))), "place": pa.array(values, pa.string())}
    )


def write(path, *, if_exists=None, stop=None, parts=3, values=VALUES):
    out = output.open_output(path, IDENTITY, if_exists, "place")
    for number in range(0 if out.complete else parts):
        if number == stop:
            out.close()
            return out
        if number not in out.parts_done:
            out.write(number, rows(number, values), {"users": 2})
    if not out.complete:
        out.finish()
    return out


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def wanted():
    return found((row["place"], row["user_id"]) for number in range(3) for row in rows(number).to_pylist())


def found(pairs):
    return sorted((str(value), user) for value, user in pairs)


def test_polars_duckdb_and_arrow_read_the_column_back(tmp_path):
    write(tmp_path / "recs")
    files = str(tmp_path / "recs" / "**" / "*.parquet")
    by_polars = pl.read_parquet(files, hive_partitioning=True, hive_schema={"place": pl.String})
    assert found(by_polars.select("place", "user_id").rows()) == wanted()
    query = "select place, user_id from read_parquet($files, hive_partitioning=true, hive_types={'place': varchar})"
    assert found(duckdb.execute(query, {"files": files}).fetchall()) == wanted()
    flavor = ds.partitioning(pa.schema([("place", pa.string())]), flavor="hive")
    by_arrow = ds.dataset(tmp_path / "recs", partitioning=flavor).to_table().to_pylist()
    assert found((row["place"], row["user_id"]) for row in by_arrow) == wanted()


def test_our_own_reader_takes_the_type_from_the_manifest_and_no_folder_above(tmp_path):
    below = tmp_path / "date=2026-01-01"
    below.mkdir()
    write(below / "recs")
    files, metadata = published.files_of(below / "recs")
    frame = Recommended.of(files, metadata).stored().collect()
    assert found(frame.select("place", "user_id").rows()) == wanted()
    assert frame.schema["place"] == pl.String


@pytest.mark.parametrize(
    ("kind", "value", "name"),
    [
        (pl.Int64(), -5, "c=-5"),
        (pl.Boolean(), True, "c=true"),
        (pl.String(), "", f"c={NULL}"),
        (pl.String(), None, f"c={NULL}"),
        (pl.Date(), "2026-01-02", "c=2026-01-02"),
    ],
)
def test_a_value_is_its_folders(kind, value, name):
    partition = Partition(column="c", kind=kind)
    assert partition.folder(value) == name
    read = pl.select(partition.literal(name)).to_series()
    assert (read.dtype, str(read[0])) == (kind, str(value or None) if value != -5 else "-5")
    assert Partition.read(json.loads(json.dumps(partition.stored()))) == partition


@pytest.mark.parametrize(
    ("kind", "said"), [(pl.Float32(), "its type is Float32"), (pl.List(pl.Int8), "its type is List")]
)
def test_a_type_that_names_no_folder_is_refused(kind, said):
    with pytest.raises(ConfigError, match=said):
        hive.check_kind("c", kind)


def test_a_text_too_long_for_a_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be the name of a folder"):
        write(tmp_path / "recs", values=["x" * 250])


def test_too_many_values_are_refused_over_all_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(hive, "MOST_VALUES", 3)
    out = output.open_output(tmp_path / "recs", IDENTITY, None, "place")
    out.write(0, rows(0, ["a", "b"]))
    out.write(1, rows(1, ["a", "c"]))
    with pytest.raises(ConfigError, match="more than 3 values"):
        out.write(2, rows(2, ["d"]))
    out.close()


def test_the_manifest_has_every_file_and_the_counts_of_all_parts(tmp_path):
    write(tmp_path / "recs", values=["x", None])
    manifest = published.manifest_of(tmp_path / "recs")
    assert [entry["file"] for entry in manifest["files"]] == [
        f"place={value}/part-{number:05d}.parquet" for number in range(3) for value in (NULL, "x")
    ]
    assert json.loads(manifest["metadata"]["genrec.counts"]) == {"users": 6}
    assert manifest["metadata"]["genrec.rows"] == "6"
    assert not list(published.manifest_faults(tmp_path / "recs", manifest))
    names = sorted(file.name for file in (tmp_path / "recs").iterdir())
    assert names == ["_SUCCESS", "_manifest.json", f"place={NULL}", "place=x"]
    assert pq.read_schema(tmp_path / "recs" / "place=x" / "part-00000.parquet").names == ["user_id"]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_killed_run_continues_and_ends_with_the_same_bytes(tmp_path, stop):
    write(tmp_path / "whole")
    target = tmp_path / "torn"
    write(target, stop=stop)
    staging = published.staging(target)
    (staging / "place=x").mkdir()
    (staging / "place=x" / "part-00002.parquet").write_bytes(b"of a part without its receipt")
    (staging / "place=x" / "part-00002.tmp").write_bytes(b"half")
    out = output.open_output(target, IDENTITY, None, "place")
    assert out.parts_done == set(range(stop))
    out.close()
    write(target)
    torn, whole = contents(target), contents(tmp_path / "whole")
    assert torn == whole


def test_a_part_with_a_damaged_file_is_written_again(tmp_path):
    target = tmp_path / "recs"
    write(target, stop=2)
    (published.staging(target) / "place=007" / "part-00001.parquet").write_bytes(b"damaged")
    out = output.open_output(target, IDENTITY, None, "place")
    assert out.parts_done == {0}
    out.close()


def test_a_run_killed_after_its_last_rename_is_tidied(tmp_path):
    target = tmp_path / "recs"
    write(target)
    before = contents(target)
    (target / published.RECEIPTS).mkdir()
    (target / published.RECEIPTS / "part-00000.json").write_text("{}")
    assert write(target, if_exists="resume").complete
    assert contents(target) == before


@pytest.mark.parametrize("fault", ["lost", "changed", "added", "added folder"])
def test_a_changed_folder_is_not_resumed(tmp_path, fault):
    target = tmp_path / "recs"
    write(target)
    file = target / "place=007" / "part-00001.parquet"
    if fault == "lost":
        file.unlink()
    elif fault == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif fault == "added":
        (file.parent / "mine.parquet").write_bytes(b"")
    else:
        (target / "mine").mkdir()
    with pytest.raises(ConfigError):
        write(target, if_exists="resume")


def test_another_output_replaces_it_once_it_is_whole(tmp_path):
    target = tmp_path / "recs"
    write(target)
    write(target, if_exists="overwrite", values=["x"], stop=1)
    assert (target / "place=007").is_dir()
    write(target, if_exists="overwrite", values=["x"])
    assert sorted(file.name for file in target.iterdir()) == ["_SUCCESS", "_manifest.json", "place=x"]


@pytest.mark.parametrize(
    "left", ["_receipts/part-00000.json.tmp", "kind=a/part-00000.tmp", "kind=a/part-00000.parquet"]
)
def test_what_a_kill_leaves_of_a_part_is_removed(tmp_path, left):
    file = tmp_path / left
    file.parent.mkdir()
    file.write_text("half of")
    folders = Folders.resumed(tmp_path, "kind")
    assert not file.exists()
    assert not folders.files()
