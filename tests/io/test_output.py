"""Writing, by `output`, `published`, `identity`, `part_fingerprints`, `apart` and `parquet`: whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import re
from contextlib import suppress
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec_batch.core.errors import ConfigError, RetryError
from genrec_batch.io import output, parquet, published
from genrec_batch.io.identity import run_id

IDENTITY = {"model": "m", "config": {"top_k": 10, "precision": "fp32"}}


def rows(number):
    return pa.table({"user_id": [number * 10, number * 10 + 1], "rank": pa.array([1, 1], pa.int32())})


def write(path, identity=IDENTITY, if_exists=None, parts=3, stop=None):
    out = output.open_output(path, identity, if_exists)
    if out.complete:
        return out
    for number in range(parts):
        if number == stop:
            out.close()
            return out
        if number not in out.parts_done:
            out.write(number, rows(number))
    out.finish()
    return out


def test_single_file_holds_all_parts_in_order_with_metadata(tmp_path):
    write(tmp_path / "recs.parquet")
    table = pq.read_table(tmp_path / "recs.parquet")
    assert table["user_id"].to_pylist() == [0, 1, 10, 11, 20, 21]
    assert table.schema.metadata[b"genrec.run_id"].decode() == run_id(IDENTITY)
    assert [p.name for p in tmp_path.iterdir()] == ["recs.parquet"]


def test_directory_has_parts_manifest_and_success(tmp_path):
    write(tmp_path / "recs")
    names = sorted(p.name for p in (tmp_path / "recs").iterdir())
    assert names == ["_SUCCESS", "_manifest.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    manifest = json.loads((tmp_path / "recs" / "_manifest.json").read_text())
    for entry in manifest["files"]:
        data = (tmp_path / "recs" / entry["file"]).read_bytes()
        assert entry == {
            "file": entry["file"],
            "rows": 2,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    assert [p.name for p in tmp_path.iterdir()] == ["recs"]


@pytest.mark.parametrize("name", ["recs.parquet", "recs"])
def test_a_stopped_run_is_resumed_and_ends_with_the_same_bytes(tmp_path, name):
    for folder in ("whole", "torn"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "whole" / name)
    target = tmp_path / "torn" / name
    write(target, stop=2)
    assert not target.exists()
    again = write(target)
    assert again.parts_done == {0, 1, 2}
    whole = tmp_path / "whole" / name
    if target.is_dir():
        assert {p.name: p.read_bytes() for p in target.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}
    else:
        assert target.read_bytes() == whole.read_bytes()


def test_half_a_part_is_written_again(tmp_path):
    target = tmp_path / "recs.parquet"
    out = write(target, stop=1)
    (out.staging / "part-00001.tmp").write_bytes(b"PAR1 half")
    write(target)
    assert len(pq.read_table(target)) == 6


def test_another_configuration_does_not_resume_and_is_named(tmp_path):
    write(tmp_path / "recs.parquet", stop=1)
    other = {**IDENTITY, "config": {"top_k": 5, "precision": "fp32"}}
    with pytest.raises(ConfigError, match=r"config.top_k \(10, now 5\).*--if-exists overwrite"):
        write(tmp_path / "recs.parquet", other)
    write(tmp_path / "recs.parquet", other, if_exists="overwrite")
    assert len(pq.read_table(tmp_path / "recs.parquet")) == 6


@pytest.mark.parametrize("name", ["recs.parquet", "recs"])
def test_if_exists_on_a_finished_output(tmp_path, name):
    target = tmp_path / name
    write(target)
    for refused in (None, "error"):
        with pytest.raises(ConfigError, match=r"exists; --if-exists resume .* --if-exists overwrite"):
            write(target, if_exists=refused)
    assert write(target, if_exists="resume").complete
    with pytest.raises(ConfigError, match="of another run"):
        write(target, {"other": 1}, if_exists="resume")
    if target.is_dir():
        (target / "_SUCCESS").unlink()
        with pytest.raises(ConfigError, match="it has no _SUCCESS"):
            write(target, if_exists="resume")
        (target / "_SUCCESS").touch()
    write(target, {"other": 1}, if_exists="overwrite", parts=1)
    assert len(pq.read_table(target)) == 2


def test_overwrite_keeps_the_old_output_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "recs.parquet"
    write(target)
    before = target.read_bytes()
    write(target, {"other": 1}, if_exists="overwrite", stop=2)
    assert target.read_bytes() == before


def test_two_runs_at_once_on_one_output_are_refused(tmp_path):
    first = output.open_output(tmp_path / "recs.parquet", IDENTITY, None)
    with pytest.raises(RetryError, match="being written by another run"):
        output.open_output(tmp_path / "recs.parquet", IDENTITY, None)
    first.close()


def test_a_full_disk_can_be_tried_again_and_keeps_what_is_there(tmp_path, monkeypatch):
    out = output.open_output(tmp_path / "recs.parquet", IDENTITY, None)
    out.write(0, rows(0))

    def full(_path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(parquet, "sync", full)
        with pytest.raises(RetryError, match="disk is full"):
            out.write(1, rows(1))
    out.close()
    assert output.open_output(tmp_path / "recs.parquet", IDENTITY, None).parts_done == {0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/recs.parquet", "does not exist; make it first"),
        ("folder.parquet", "is a directory"),
        ("file", "is a file"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, name, message):
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=message):
        published.check(tmp_path / name, None)


def test_a_folder_that_refuses_files_is_found_before_the_work():
    for name in ("recs.parquet", "recs"):
        with pytest.raises(ConfigError, match=f"OUTPUT /proc/{name}: "):
            published.check(Path("/proc") / name, None)


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path)
    with pytest.raises(ConfigError, match="is a mount point"):
        published.check(tmp_path, None)


def test_a_link_to_a_folder_is_refused_before_the_work(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(ConfigError, match=f"is a link.*name the folder: {tmp_path / 'real'}"):
        published.check(tmp_path / "link", None)


def killed(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["sync", "rename"])
@pytest.mark.parametrize("before", [False, True])
def test_a_kill_while_publishing_a_directory_loses_nothing(tmp_path, monkeypatch, where, before):
    target = tmp_path / "recs"
    if before:
        write(target, {"old": 1})
    out = output.open_output(target, IDENTITY, "overwrite")
    for number in range(3):
        out.write(number, rows(number))
    with monkeypatch.context() as patched:
        if where == "sync":
            patched.setattr(output, "sync", killed)
        else:
            rename = output.Path.rename
            dies = lambda self, to: killed() if self == out.staging else rename(self, to)  # noqa: E731
            patched.setattr(output.Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            out.finish()
    out.close()
    again = output.open_output(target, IDENTITY, "overwrite")
    assert again.parts_done == {0, 1, 2}
    assert target.exists() == before, "an old output stays under its name"
    again.finish()
    assert len(pq.read_table(target)) == 6


def test_overwrite_goes_on_with_its_own_unfinished_run(tmp_path):
    target = tmp_path / "recs.parquet"
    write(target, {"old": 1})
    write(target, if_exists="overwrite", stop=2)
    assert output.open_output(target, IDENTITY, "overwrite").parts_done == {0, 1}


def test_every_file_says_how_many_rows_it_has(tmp_path):
    write(tmp_path / "recs")
    assert [pq.read_schema(p).metadata[b"genrec.rows"] for p in sorted((tmp_path / "recs").glob("*.parquet"))] == [
        b"2"
    ] * 3
    write(tmp_path / "recs.parquet")
    assert pq.read_metadata(tmp_path / "recs.parquet").metadata[b"genrec.rows"] == b"6"


def test_a_damaged_part_is_computed_again(tmp_path):
    target = tmp_path / "recs.parquet"
    out = write(target, stop=2)
    out.part(1).write_bytes(out.part(1).read_bytes()[:100])
    write(target)
    assert len(pq.read_table(target)) == 6


def test_a_finished_directory_that_lost_a_part_is_not_accepted(tmp_path):
    write(tmp_path / "recs")
    (tmp_path / "recs" / "part-00001.parquet").unlink()
    with pytest.raises(ConfigError, match=r"part-00001\.parquet is missing"):
        write(tmp_path / "recs", if_exists="resume")


def test_a_kill_after_the_last_rename_is_recognised(tmp_path, monkeypatch):
    target = tmp_path / "recs.parquet"
    out = output.open_output(target, IDENTITY, None)
    for number in range(3):
        out.write(number, rows(number))
    with monkeypatch.context() as patched:
        patched.setattr(output.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            out.finish()
    assert target.exists()
    assert write(target).complete
    assert [p.name for p in tmp_path.iterdir()] == ["recs.parquet"]


def test_what_others_wrote_is_never_overwritten(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "notes.txt").write_text("mine")
    (tmp_path / "mine.parquet").write_bytes(b"PAR1")
    for name in ("precious", "mine.parquet"):
        with pytest.raises(ConfigError, match="not written by genrec-batch"):
            write(tmp_path / name, if_exists="overwrite")
    assert (tmp_path / "precious" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", [".", "..", "x" * 300])
def test_names_that_no_output_can_have(name):
    with pytest.raises(ConfigError, match="not a name that an output can have"):
        published.check(output.Path(name), None)


def test_what_a_user_put_into_an_output_is_never_replaced(tmp_path):
    write(tmp_path / "recs")
    (tmp_path / "recs" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not written by genrec-batch"):
        write(tmp_path / "recs", {"other": 1}, if_exists="overwrite")
    with pytest.raises(ConfigError, match=r"not written by genrec-batch.*so it is not resumed"):
        write(tmp_path / "recs", if_exists="resume")
    assert (tmp_path / "recs" / "notes.txt").exists()


def test_a_damaged_page_is_found_in_parts_and_in_finished_files(tmp_path):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[30:50] = bytes(20)
        path.write_bytes(bytes(data))

    out = write(tmp_path / "recs.parquet", stop=2)
    damage(out.part(1))
    assert output.open_output(tmp_path / "recs.parquet", IDENTITY, None).parts_done == {0}
    write(tmp_path / "whole.parquet")
    damage(tmp_path / "whole.parquet")
    with pytest.raises(ConfigError, match="is damaged"):
        write(tmp_path / "whole.parquet", if_exists="resume")


@pytest.mark.parametrize("name", ["recs.parquet", "recs"])
def test_a_byte_in_a_footer_that_no_page_checksum_covers_is_found(tmp_path, name):
    def reword(path):
        path.write_bytes(path.read_bytes().replace(b"parquet-cpp", b"parquet-CPP"))

    target = tmp_path / name
    out = write(target, stop=2)
    reword(out.part(1))
    again = output.open_output(target, IDENTITY, None)
    assert again.parts_done == {0}
    again.close()
    write(target)
    reword(target if target.is_file() else target / "part-00001.parquet")
    with pytest.raises(ConfigError, match=r"damaged|does not match.*--if-exists overwrite writes"):
        write(target, if_exists="resume")
    assert not write(target, if_exists="overwrite").complete
    assert write(target, if_exists="resume").complete


def test_fingerprints_that_were_damaged_are_found(tmp_path):
    for name in ("recs.parquet", "recs"):
        out = output.open_output(tmp_path / name, IDENTITY, None)
        prints = pa.table({"user_id": [1, 2], "fingerprint_0": [3, 4]})
        out.write(0, rows(0), fingerprints=prints)
        out.finish({})
        kept = published.fingerprint_file(tmp_path / name)
        kept.write_bytes(kept.read_bytes().replace(b"parquet-cpp", b"parquet-CPP"))
        with pytest.raises(
            ConfigError, match=rf"{kept.name} is damaged; --if-exists overwrite writes the output again"
        ):
            write(tmp_path / name, if_exists="resume")
        kept.unlink()
        assert write(tmp_path / name, if_exists="resume").complete, "only --previous needs them"


@pytest.mark.parametrize("spoil", [lambda found: found.pop("sha256"), lambda found: found["files"][0].update(bytes=1)])
def test_a_manifest_without_its_own_hash_or_with_other_bytes_is_found(tmp_path, spoil):
    write(tmp_path / "recs")
    manifest = published.manifest_of(tmp_path / "recs")
    spoil(manifest)
    (tmp_path / "recs" / "_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"_manifest\.json (says 1 bytes|was changed since it was written)"):
        write(tmp_path / "recs", if_exists="resume")


def test_an_output_that_the_user_removed_does_not_come_back(tmp_path):
    (tmp_path / ".recs.old").mkdir()
    (tmp_path / ".recs.old" / "part-00000.parquet").touch()
    write(tmp_path / "recs")
    assert len(pq.read_table(tmp_path / "recs")) == 6


def test_a_directory_killed_after_its_last_rename_is_finished(tmp_path):
    write(tmp_path / "recs")
    (tmp_path / "recs" / "_run.json").write_text("{}")
    assert write(tmp_path / "recs").complete
    assert not (tmp_path / "recs" / "_run.json").exists()


def test_an_output_that_appears_meanwhile_is_left_alone(tmp_path):
    out = output.open_output(tmp_path / "recs.parquet", IDENTITY, None)
    out.write(0, rows(0))
    (tmp_path / "recs.parquet").write_bytes(b"theirs")
    with pytest.raises(ConfigError, match="appeared during the run"):
        out.finish()
    assert (tmp_path / "recs.parquet").read_bytes() == b"theirs"
    assert out.part(0).exists()


@pytest.mark.parametrize("name", ["recs", "recs.parquet"])
@pytest.mark.parametrize("moment", ["put_folder", "_join", "unlink"])
def test_a_kill_while_finishing_keeps_the_fingerprints(tmp_path, monkeypatch, name, moment):
    prints = pa.table({"user_id": [1], "fingerprint_0": pa.array([5], pa.uint64())})
    target = tmp_path / name
    out = output.open_output(target, IDENTITY, None)
    for number in range(3):
        out.write(number, rows(number), fingerprints=prints)
    with monkeypatch.context() as patched:
        if moment == "unlink":
            calls = itertools.count()
            unlink = Path.unlink

            def dies(self, missing_ok=False):
                if self.suffix == ".fingerprints" and next(calls) == 1:
                    killed()
                unlink(self, missing_ok=missing_ok)

            patched.setattr(Path, "unlink", dies)
        else:
            patched.setattr(output.Output, moment, killed)
        with suppress(KeyboardInterrupt):
            out.finish({"of": "this"})
    out.close()
    if not target.exists():
        again = output.open_output(target, IDENTITY, None)
        assert again.parts_done == {0, 1, 2}
        again.finish({"of": "this"})
        again.close()
    assert len(pq.read_table(published.fingerprint_file(target))) == 3


def test_readers_of_a_folder_see_the_parts_alone(tmp_path):
    """`_fingerprints` is Parquet too, of other columns: no name that readers take for data."""
    prints = pa.table({"user_id": [1], "fingerprint_0": pa.array([5], pa.uint64())})
    out = output.open_output(tmp_path / "recs", IDENTITY, None)
    for number in range(3):
        out.write(number, rows(number), fingerprints=prints)
    out.finish({"of": "this"})
    assert (tmp_path / "recs" / "_fingerprints").exists()
    place = str(tmp_path / "recs")
    assert len(pq.read_table(place)) == 6
    assert len(pd.read_parquet(place)) == 6
    for pattern in ("*.parquet", "**/*.parquet"):
        assert len(pl.read_parquet(f"{place}/{pattern}")) == 6
        assert duckdb.sql(f"select count(*) from '{place}/{pattern}'").fetchall() == [(6,)]  # noqa: S608


def test_a_file_that_another_program_wrote_again_is_not_finished(tmp_path):
    target = tmp_path / "recs.parquet"
    out = output.open_output(target, IDENTITY, None)
    out.write(0, rows(0))
    out.finish()
    pq.write_table(pq.read_table(target), target)
    with pytest.raises(ConfigError, match="by another program"):
        output.open_output(target, IDENTITY, "resume")


def test_an_output_on_a_server_is_refused_and_a_folder_called_so_is_no_way_out(run, log_file, model_dir, tmp_path):
    for _ in range(2):
        done = run("score", log_file, "http://host/recs/", "--model", model_dir)
        assert (done.code, "OUTPUT http://host/recs: a web server is only read" in done.err) == (2, True)
        (tmp_path / "http:" / "host").mkdir(parents=True, exist_ok=True)
    assert run("sample", "gs://b/log.parquet", "--users", "3").code == 2


def test_names_that_promise_what_an_output_is_not_are_refused_with_what_to_name(tmp_path):
    (tmp_path / "link").symlink_to("/dev/null")
    for name, says in {
        "-": "is a device or a pipe",
        "link": "is a device or a pipe",
        "recs.csv": "name recs.parquet for one file",
        "recs.JSON": "outputs are Parquet",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(says)):
            published.check(Path(name), None)


@pytest.mark.parametrize("column", [None, "user_id"])
def test_a_writer_of_a_killed_run_changes_nothing_of_the_next_one(tmp_path, column):
    path = tmp_path / "recs"
    out = output.open_output(path, IDENTITY, None, column)
    orphan = out.writer(apart=True)
    out.accept(orphan.write(0, rows(0), {}))
    out.release()  # its driver was killed, but not yet its worker
    other = output.open_output(path, {**IDENTITY, "model": "other"}, "overwrite", column)
    with pytest.raises(ConfigError, match="No such file"):
        orphan.write(1, rows(7), {})
    writer = other.writer(apart=True)
    for number in (0, 1):
        other.accept(writer.write(number, rows(number), {}))
    with pytest.raises(ConfigError, match="No such file"):
        orphan.write(0, rows(7), {})
    other.finish()
    files = sorted(path.rglob("*.parquet"))
    assert sorted(pl.read_parquet(files, hive_partitioning=True)["user_id"]) == [0, 1, 10, 11]
    assert not list(path.glob("*apart*"))
    assert not published.staging(path).exists()
