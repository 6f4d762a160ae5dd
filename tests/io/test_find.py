"""Paths that cannot be read or written: an error with name and reason, and no file left out."""

from __future__ import annotations

import errno
import json
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


def made(name):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    return Path(name)


@pytest.mark.parametrize("path", ["logs", "logs/*.parquet"])
def test_a_file_of_several_names_is_read_once_and_named(caplog, path):
    pl.DataFrame({"x": [1, 2]}).write_parquet(made("logs/2026-01-01.parquet"))
    Path("logs/latest.parquet").symlink_to("2026-01-01.parquet")
    Path("logs/same.parquet").hardlink_to("logs/2026-01-01.parquet")
    Path("logs/copy.parquet").write_bytes(Path("logs/latest.parquet").read_bytes())  # another file, as far as one sees
    found = read.scan(path, "INPUT")
    assert found.files == ("logs/2026-01-01.parquet", "logs/copy.parquet")
    assert "2 names are links to files of other names, which are read once: " in caplog.text
    assert "latest.parquet is 2026-01-01.parquet, same.parquet is 2026-01-01.parquet" in caplog.text


def test_a_link_in_another_partition_is_other_rows(caplog):
    pl.DataFrame({"x": [1, 2]}).write_parquet(made("logs/day=1/a.parquet"))
    made("logs/day=2/a.parquet").hardlink_to("logs/day=1/a.parquet")
    assert read.scan("logs", "INPUT").frame().collect()["day"].to_list() == [1, 1, 2, 2]
    assert "links" not in caplog.text


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_more_small_files_than_may_be_open_are_read(log, model_dir, suffix):
    for number in range(300):
        part = log[number % len(log) : number % len(log) + 3]
        made(f"logs/{number:03}.{suffix}")
        part.write_parquet(f"logs/{number:03}.parquet") if suffix == "parquet" else part.write_csv(
            f"logs/{number:03}.csv"
        )
    command = f"{sys.executable} -m genrec_batch score logs o.parquet --model {model_dir} --top-k 2 --quiet"
    done = subprocess.run(
        ["/bin/sh", "-c", f"ulimit -n 128; exec {command}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["input_rows"] == sum(
        len(log[number % len(log) : number % len(log) + 3]) for number in range(300)
    )


def test_a_file_that_was_delivered_twice_is_told_and_dedupe_takes_it(run, model_dir, log):
    big = pl.concat([log, log.with_columns(pl.col("video_id") + 1)])
    big.write_parquet(made("logs/a.parquet"), compression="uncompressed")
    assert Path("logs/a.parquet").stat().st_size > 1 << 13
    Path("logs/a (1).parquet").write_bytes(Path("logs/a.parquet").read_bytes())
    for name in ("empty", "empty too"):
        log.clear().write_parquet(f"logs/{name}.parquet")
    flags = ("--model", model_dir, "--top-k", 2, "--if-exists", "overwrite")
    done = run("score", "logs", "o.parquet", *flags)
    assert done.code == 0, done.err
    (said,) = [warning for warning in done.summary["warnings"] if "the content of others" in warning]
    assert "1 files have the content of others, so their rows count twice: a.parquet is a (1).parquet" in said
    assert run("score", "logs", "o.parquet", *flags, "--dedupe").summary["duplicates_dropped"] == len(big)
