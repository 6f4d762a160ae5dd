"""`table_runs`: the commands that read an output read what the newest run wrote to a table, or to a version of it."""

from __future__ import annotations

import polars as pl
import pytest

from genrec_batch.core.errors import InputError
from genrec_batch.io import output, table_runs
from tests.io import tables
from tests.io.tables import KINDS, write

pytest.importorskip("deltalake")
pytest.importorskip("pyiceberg")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def target(kind, monkeypatch):
    return tables.target_of(kind, monkeypatch)


def folder(run):
    return "run-" + output.run_id({"model": str(run)})


def test_the_newest_run_of_a_version_is_found(kind, target):
    first = write(kind, target)
    second = write(kind, target, 2, if_exists="overwrite")
    write(kind, target, 3, if_exists="append")
    assert table_runs.newest(target, "OUT").endswith(folder(3))
    assert table_runs.newest(f"{target}@{second}", "OUT").endswith(folder(2))
    assert table_runs.newest(f"{target}@{first}", "OUT").endswith(folder(1))
    assert table_runs.newest("recs.parquet", "OUT") == "recs.parquet"
    with pytest.raises(InputError, match=r"no (version|snapshot) 77"):
        table_runs.newest(f"{target}@77", "OUT")


def test_a_table_that_lost_rows_since_is_refused(kind, target):
    first = write(kind, target)
    if kind == "delta":
        from deltalake import DeltaTable

        DeltaTable(target).delete("user_id = 1")
    else:
        tables.loaded(target).delete("user_id = 1")
    with pytest.raises(InputError, match=f"changed since run .* wrote to it.*{folder(1)}, which has all"):
        table_runs.newest(target, "OUT")
    assert table_runs.newest(f"{target}@{first}", "OUT").endswith(folder(1))


def test_a_compacted_table_is_refused_and_still_replaced():
    from deltalake import DeltaTable

    write("delta", "recs")
    DeltaTable("recs").optimize.compact()
    with pytest.raises(InputError, match="changed since run"):
        table_runs.newest("recs", "OUT")
    write("delta", "recs", 2, if_exists="overwrite")
    assert table_runs.newest("recs", "OUT").endswith(folder(2))


def test_a_table_whose_manifest_was_removed_is_refused(kind, target):
    write(kind, target)
    (path,) = tables.Path.cwd().rglob("_manifest.json")
    path.unlink()
    with pytest.raises(InputError, match=r"_manifest.json is missing or damaged"):
        table_runs.newest(target, "OUT")


def test_a_table_of_others_and_an_iceberg_folder_are_refused(monkeypatch):
    pl.DataFrame({"user_id": [1]}).write_delta("mine")
    with pytest.raises(InputError, match="no rows that `genrec-batch score` wrote"):
        table_runs.newest("mine", "OUT")
    write("iceberg", tables.target_of("iceberg", monkeypatch))
    with pytest.raises(InputError, match="name it by its catalog"):
        table_runs.newest("lake/shop/recs", "OUT")


@pytest.mark.parametrize(("kind", "layout"), [("delta", "wide"), ("iceberg", "nested")])
def test_every_command_reads_a_table_as_it_reads_files(kind, layout, monkeypatch, run, model_dir, log_file):
    target = tables.target_of(kind, monkeypatch)
    said = ("--model", model_dir, "--layout", layout, "--shard-users", "16")
    assert run("score", log_file, "files", *said).code == 0
    table = ("--output-format", kind)
    done = run("score", log_file, target, *said, *table)
    assert done.code == 0, done.err
    assert tables.read(kind, target).equals(pl.read_parquet("files/*.parquet"))
    assert done.summary["table"]["format"].lower() == kind
    again = run("score", log_file, target, *said, *table, "--if-exists", "resume")
    assert again.summary["already_complete"]
    assert again.summary["rows"] == done.summary["rows"]
    assert run("score", log_file, target, *said, *table).code == 2
    for recs in ("files", target):
        shown = run("inspect", recs, "--json")
        assert shown.code == 0, shown.err
        assert shown.summary["counts"]["rows"] == 400
    judged = [run("evaluate", log_file, "--recs", recs, "--test-from", "2026-04-20") for recs in ("files", target)]
    assert [each.code for each in judged] == [judged[0].code] * 2
    for name, recs in (("files.csv", "files"), ("table.csv", target)):
        done = run("export", recs, name)
        assert done.code == 0, done.err
    assert tables.Path("files.csv").read_bytes() == tables.Path("table.csv").read_bytes()


def test_the_rows_of_a_user_are_shown_beside_the_table_that_has_them(kind, target, run, model_dir, log_file):
    done = run("score", log_file, target, "--model", model_dir, "--output-format", kind, "--user", "100")
    assert done.code == 0, done.err
    assert str(tables.read(kind, target)["video_id"][0]) in done.out + done.err
    assert len(tables.read(kind, target)) == 10


def test_a_table_is_replaced_by_a_run_that_keeps_or_leaves_out_what_is_in_it(kind, target, run, model_dir, log_file):
    said = ("--model", model_dir, "--output-format", kind, "--if-exists", "overwrite")
    first = run("score", log_file, target, *said)
    assert first.code == 0, first.err
    other = run("score", log_file, target, *said, "--exclude-recommended", target, "--again-after", "7d")
    assert other.code == 0, other.err
    same = tables.read(kind, target).join(
        tables.read(kind, target, first.summary["table"]["version"]), on=["user_id", "video_id"]
    )
    assert not len(same)
    kept = run("score", log_file, target, *said, "--previous", f"{target}@{first.summary['table']['version']}")
    assert kept.code == 0, kept.err
    assert run("score", log_file, target, *said, "--top-k", "5").code == 0
    kept = run("score", log_file, target, *said, "--top-k", "5", "--carry-for", "7d", "--previous", target)
    assert kept.code == 0, kept.err
    assert kept.summary["carried_users"] == 40
