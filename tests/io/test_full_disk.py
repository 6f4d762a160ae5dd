"""`durable` on a full disk, wherever something is written: exit code 75, whole parts stay, nothing half written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.model import weights

FULL = Path("/dev/full")
COMMAND = [sys.executable, "-m", "genrec_batch"]

needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def with_a_full_stdout(*arguments, stderr=subprocess.PIPE):
    with FULL.open("w") as full:
        return subprocess.run([*COMMAND, *map(str, arguments)], stdout=full, stderr=stderr, text=True, check=False)


@needs_full
def test_a_summary_that_no_disk_takes_is_try_again(log_file, model_dir):
    done = with_a_full_stdout("score", log_file, "o.parquet", "--model", model_dir, "--limit", 3, "--quiet")
    (said,) = done.stderr.splitlines()
    assert done.returncode == 75
    assert "stdout: the disk is full" in said
    assert "the output o.parquet is whole" in said
    assert len(pl.read_parquet("o.parquet")) == 30


@needs_full
@pytest.mark.parametrize("output", [[], ["o.parquet"]], ids=["printed", "written"])
def test_rows_that_no_disk_takes_are_try_again(log_file, model_dir, output):
    done = with_a_full_stdout("score", log_file, *output, "--model", model_dir, "--user", 103, "--quiet")
    (said,) = done.stderr.splitlines()
    assert (done.returncode, "stdout: the disk is full" in said) == (75, True), said
    assert ("the output o.parquet is whole" in said) == bool(output)
    assert Path("o.parquet").exists() == bool(output)


@needs_full
@pytest.mark.parametrize("arguments", ["layout", "layout --json", "--help", "--version", "model info"])
def test_what_was_asked_for_and_no_disk_takes_is_try_again(arguments):
    done = with_a_full_stdout(*arguments.split())
    assert done.returncode == 75
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: stdout: the disk is full")


@needs_full
def test_a_model_that_is_written_is_reported_where_stdout_is_full(tmp_path):
    done = with_a_full_stdout("model", "init", "m", "--preset", "tiny")
    assert (done.returncode, "m is whole" in done.stderr) == (75, True), done.stderr
    assert weights.load(tmp_path / "m").config == weights.PRESETS["tiny"]


@needs_full
def test_a_full_stderr_does_not_end_a_run(log_file, model_dir):
    with FULL.open("w") as full:
        arguments = ["score", log_file, "o.parquet", "--model", model_dir, "--limit", "3"]
        done = subprocess.run([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=full, text=True, check=False)
        assert (done.returncode, '"status": "ok"' in done.stdout) == (0, True)
        assert with_a_full_stdout("layout", stderr=full).returncode == 75


@needs_full
@pytest.mark.parametrize(("flag", "name"), [("--report", "r.html"), ("--report", "r.json"), ("--trace", "t.json")])
def test_a_report_that_no_disk_takes_is_try_again(run, log_file, model_dir, flag, name):
    Path(f".{name}.tmp").symlink_to(FULL)  # where it is first written
    done = run("score", log_file, "o.parquet", "--model", model_dir, "--limit", 3, "--quiet", flag, name)
    assert done.code == 75, done.err
    assert f"{flag} {name}: the disk is full" in done.err
    assert "the output o.parquet is whole, and --if-exists resume accepts it" in done.err
    Path(f".{name}.tmp").unlink()
    again = ["--quiet", flag, name, "--if-exists", "resume"]
    assert run("score", log_file, "o.parquet", "--model", model_dir, "--limit", 3, *again).code == 0
    assert Path(name).exists()


@pytest.mark.parametrize("catalog", [True, False])
@pytest.mark.parametrize("there", ["", "a", "a/m"])
def test_a_model_that_no_disk_takes_leaves_nothing_behind(run, log_file, monkeypatch, there, catalog):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Path(there).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(weights, "save_file", full)
    before = sorted(Path().rglob("*"))
    flags = ["--catalog-from", log_file] if catalog else []
    done = run("model", "init", "a/m", "--preset", "tiny", *flags)
    assert (done.code, "a/m: the disk is full" in done.err) == (75, True), done.err
    assert sorted(Path().rglob("*")) == before


def test_an_import_that_no_disk_takes_leaves_nothing_behind(run, model_dir, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(weights, "save_file", full)
    done = run("model", "import", model_dir / "model.safetensors", "m", "--catalog", model_dir / "catalog.parquet")
    assert (done.code, "m: the disk is full" in done.err) == (75, True), done.err
    assert not Path("m").exists()
