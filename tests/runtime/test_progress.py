"""The watch over reading: what never answers ends the run, what goes on slowly does not."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

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
