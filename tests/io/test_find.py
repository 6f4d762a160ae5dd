"""Paths that cannot be read or written: an error with name and reason, and no file left out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.core.errors import InputError
from genrec_batch.io import find, read


def bad(run, code, *arguments, says):
    done = run(*arguments)
    assert (done.code, says in done.err) == (code, True), done.err
    assert "fault of genrec-batch" not in done.err


@pytest.fixture
def locked(log, monkeypatch):
    """A log of two days, of which this user may not list the second."""
    for day in ("ds=1", "ds=2", "lost+found"):
        Path("logs", day).mkdir(parents=True)
        log.write_parquet(f"logs/{day}/a.parquet")
    listed, access = os.scandir, os.access

    def scandir(path="."):
        if Path(path).name in ("ds=2", "lost+found"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(
        os, "access", lambda path, *more: Path(path).name not in ("ds=2", "lost+found") and access(path, *more)
    )


@pytest.mark.parametrize("path", ["logs", "logs/*/*.parquet", "logs/**/*.parquet", "logs/**", "l*/ds=2/*.parquet"])
@pytest.mark.usefixtures("locked")
def test_a_folder_that_may_not_be_listed_is_not_left_out(path):
    with pytest.raises(InputError, match="INPUT logs/ds=2: cannot be read by this user"):
        find.files(path, "INPUT")


@pytest.mark.usefixtures("locked")
def test_a_folder_that_may_not_be_listed_and_is_not_asked_for_matters_to_nobody():
    for path in ("logs/ds=1", "logs/ds=1/*.parquet", "l*/ds=1/a.parquet"):
        assert find.files(path, "INPUT") == ["logs/ds=1/a.parquet"]


def test_a_file_that_a_folder_names_and_has_not_is_not_left_out(log):
    Path("logs").mkdir()
    log.write_parquet("logs/a.parquet")
    Path("logs/_b.parquet").symlink_to("gone")
    assert find.files("logs", "INPUT") == ["logs/a.parquet"]
    Path("logs/b.parquet").symlink_to("gone")
    with pytest.raises(InputError, match=r"INPUT logs/b.parquet: a link to a file that does not exist"):
        find.files("logs", "INPUT")


def test_a_pipe_or_a_device_is_named_as_such(run, log_file, model_dir):
    os.mkfifo("p.parquet")
    model = ["--model", model_dir]
    bad(run, 3, "score", "p.parquet", "recs.parquet", *model, says="INPUT p.parquet: a pipe or a device")
    bad(run, 3, "score", "/dev/null", "recs.parquet", *model, says="INPUT /dev/null: a pipe or a device")
    for output in ("p.parquet", "/dev/null"):
        bad(run, 2, "score", log_file, output, *model, says=f"OUTPUT {output} is a device or a pipe")
    bad(
        run, 4, "model", "init", "/dev/null", "--preset", "tiny", says="/dev/null is a file, and a model is a directory"
    )
    bad(run, 4, "model", "info", "/dev/null", says="/dev/null is a file, and a model is a directory")


def test_a_name_that_no_file_system_takes_is_the_users(run, log_file, model_dir):
    """As is a folder that may not be entered, which the user who runs tests may often enter."""
    name, model = "x" * 300, ["--model", model_dir]
    why = "by this user (File name too long)"
    bad(run, 3, "score", name, "recs.parquet", *model, says=f"INPUT {name}: cannot be read {why}")
    bad(run, 3, "score", log_file, "r.parquet", *model, "--users", name, says=f"--users {name}: cannot be read {why}")
    bad(run, 4, "score", log_file, "recs.parquet", "--model", name, says=f"--model {name}: cannot be reached {why}")
    bad(run, 4, "model", "init", name, "--preset", "tiny", says=f"{name}: cannot be reached {why}")
    bad(run, 2, "sample", name, "--users", "3", says=f"{name}: cannot be reached {why}")
    bad(run, 2, "score", log_file, "recs.parquet", *model, "--report", f"{name}.html", says=f"cannot be reached {why}")


def test_a_report_into_a_folder_that_may_not_be_written_is_refused_before_the_work(run, model_dir, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: (str(path), mode) != ("closed", os.W_OK | os.X_OK))
    Path("closed").mkdir()
    arguments = ["score", "no-such-log.parquet", "recs.parquet", "--model", model_dir, "--report", "closed/r.html"]
    bad(run, 2, *arguments, says="--report closed/r.html: the folder closed may not be written by this user")


def test_a_refused_run_does_not_read_its_log_to_the_end(log):
    """Of a large log, Python waited for the fingerprint before it ended."""
    log.write_parquet("big.parquet")
    code = """if True:
        import sys, time
        from genrec_batch.io import fingerprint
        from genrec_batch.__main__ import main
        class Slow:
            def update(self, data): time.sleep(0.5)
            def hexdigest(self): return ""
        fingerprint.hashlib.sha256 = Slow
        fingerprint.HASHED_AT_ONCE = 1
        main()"""
    began = time.monotonic()
    arguments = ["score", "big.parquet", "recs.parquet", "--model", "nowhere"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, "--model nowhere: no such directory" in done.stderr) == (4, True), done.stderr
    assert time.monotonic() - began < 20
    assert len(pl.read_parquet("big.parquet"))


def test_a_program_that_calls_commands_goes_on_after_them(run, log_file):
    assert run("score", "nope.parquet", "out.parquet").code == 3
    assert read.scan(str(log_file), "INPUT").fingerprint
