"""The watch over reading: what never answers ends the run, what goes on slowly does not."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genrec_batch.runtime import progress, threads
from genrec_batch.runtime.clock import Stages


def test_steps_and_growing_files_are_signs(tmp_path):
    file, before = tmp_path / "x", progress.signs()
    progress.step()
    assert progress.signs() != before
    with progress.growing(file):
        before = progress.signs()
        file.write_bytes(b"more")
        assert progress.signs() != before


def test_work_without_signs_ends_and_slow_work_goes_on():
    stages, said = Stages(), r"no progress for 0\.1 s .* during: open"
    with pytest.raises(threads.StalledError, match=said), stages.watched(0.1), stages.time("open"):
        time.sleep(5)
    with Stages().watched(0.5):
        for _ in range(8):
            time.sleep(0.1)
            progress.step()


@pytest.mark.parametrize("command", ["score", "evaluate"])
def test_a_server_that_accepts_and_never_answers_is_another_time(tmp_path, model_dir, command):
    pytest.importorskip("obstore")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/log.parquet"
        patched = "from genrec_batch.runtime import threads; threads.GRACE_S = 1"
        code = f"{patched}; from genrec_batch.__main__ import main; main()"
        arguments = [command, address, *([str(tmp_path / "o.parquet")] if command == "score" else [])]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--model", model_dir, "--stall-limit", "1"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    told = "stalled during" in done.stderr or "no progress for" in done.stderr
    assert (done.returncode, told) == (75, True), done.stderr


def test_a_command_that_waits_for_nothing_ends_and_one_that_computes_goes_on():
    stalled = pytest.raises(threads.StalledError, match="during: opening the engine")
    with stalled, progress.watched(0.3), progress.titled("opening the engine"):
        time.sleep(5)
    with progress.watched(0.3), progress.titled("building"):  # as TensorRT does, for an hour without a step
        until = time.monotonic() + 1
        while time.monotonic() < until:
            sum(range(1000))


STUCK = """
import sys, time
from genrec_batch.runtime import threads
threads.GRACE_S = 1
from genrec_batch.engines import registry
registry.Entry.check_room = lambda self: time.sleep(60)  # such as a driver that never answers
from genrec_batch.__main__ import main
main()
"""
WAITING = """
import sys, time
from genrec_batch.runtime import threads
threads.GRACE_S = 1
from genrec_batch.io import read
read.scan = lambda *arguments, **options: time.sleep(60)
from genrec_batch.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (STUCK, "score {log} {out} --model {model} --engine onnxruntime"),
        (STUCK, "score {log} --explain 100 --model {model} --engine onnxruntime"),
        (STUCK, "evaluate {log} --model {model} --engine onnxruntime"),
        (STUCK, "verify {log} --model {model} --engine onnxruntime"),
        (STUCK, "profile --model {model} --engines onnxruntime --data {log}"),
        (WAITING, "model init {out} --preset tiny --catalog-from {log}"),
        (WAITING, "features {log} {out} --model {model}"),
    ],
)
def test_every_command_ends_where_nothing_moves(tmp_path, log_file, model_dir, code, command):
    arguments = command.format(log=log_file, model=model_dir, out=tmp_path / "out").split()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--stall-limit", "2"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, "no progress for 2 s" in done.stderr) == (75, True), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run, log_file, model_dir, tmp_path):
    model = tmp_path / "m"
    shutil.copytree(model_dir, model)
    (model / "catalog.parquet").unlink()
    os.mkfifo(model / "catalog.parquet")
    done = run("score", log_file, "recs", "--model", model, "--stall-limit", "5")
    assert (done.code, "catalog.parquet: not a file" in done.err) == (4, True), done.err
    assert run("score", log_file, "recs", "--model", model_dir).code == 0
    Path("recs/_manifest.json").unlink()
    os.mkfifo("recs/_manifest.json")
    assert run("inspect", "recs", "--stall-limit", "5").code == 3
    assert run("score", log_file, "recs", "--model", model_dir, "--if-exists", "resume", "--stall-limit", "5").code == 2
