"""`option_file`: option files that are pipes, as `--config <(command)` is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.cli import option_file


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "options")
    return tmp_path / "options"


def test_a_pipe_that_gives_nothing_ends_the_command(run, pipe, log_file, model_dir, monkeypatch):
    monkeypatch.setattr(option_file, "PIPE_S", 0.2)
    for held in (False, True):  # by nobody, and by a writer that writes nothing
        writer = os.open(pipe, os.O_RDWR) if held else None
        done = run("--config", pipe, "score", log_file, "o.parquet", "--model", model_dir)
        assert done.code == 75, done.err
        assert f"--config {pipe}: a pipe, and nothing came from it for 0.2 seconds; look at the command" in done.err
        if writer is not None:
            os.close(writer)
    assert not Path("o.parquet").exists()


def test_options_that_come_through_a_pipe_in_parts_are_read(run, pipe, log_file, model_dir):
    def write():
        with pipe.open("w") as opened:
            for part in ("top-", "k = 2\nlimit", " = 3\n"):
                opened.write(part)
                opened.flush()
                time.sleep(0.05)

    thread = threading.Thread(target=write, name="writer")
    thread.start()
    done = run("--config", pipe, "score", log_file, "o.parquet", "--model", model_dir)
    thread.join()
    assert done.code == 0, done.err
    assert len(pl.read_parquet("o.parquet")) == 6


def test_a_process_substitution_is_read(log_file, model_dir):
    command = f"{sys.executable} -m genrec_batch --config <(echo top-k = 2) score {log_file} o.parquet --limit 3"
    done = subprocess.run(["bash", "-c", f"{command} --model {model_dir}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(pl.read_parquet("o.parquet")) == 6
