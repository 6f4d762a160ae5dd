"""`children`: a process that ends with its parent, and messages with open files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genrec_batch.runtime.children import Child

ECHO = """
import os
def main(link):
    while True:
        message, files = link.receive()
        link.send((message, [os.pread(file, 99, 0) for file in files], sorted(os.sched_getaffinity(0)), os.getpid()))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "echoes.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "echoes"


def test_messages_and_files_go_to_a_process_on_its_own_cores(module, tmp_path):
    (tmp_path / "text").write_text("in a file")
    core = min(os.sched_getaffinity(0))
    child = Child.start(module, [core])
    with (tmp_path / "text").open("rb") as file:
        child.link.send({"any": 1}, file.fileno(), file.fileno())
    (message, texts, cores, pid), files = child.link.receive()
    assert (message, texts, cores, files) == ({"any": 1}, [b"in a file"] * 2, [core], [])
    assert pid == child.process.pid
    assert child.end() == "it was ended by SIGKILL"


def test_the_end_of_a_process_is_told_in_words(tmp_path, monkeypatch):
    (tmp_path / "ends.py").write_text("def main(link):\n    raise SystemExit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = Child.start("ends", sorted(os.sched_getaffinity(0)))
    with pytest.raises(EOFError):
        child.link.receive()
    child.process.wait()
    assert child.end() == "it ended with exit code 7"


def test_a_child_ends_with_its_parent(module):
    code = (
        "import os, signal, sys\nfrom genrec_batch.runtime.children import Child\n"
        f"child = Child.start({module!r}, sorted(os.sched_getaffinity(0)))\nchild.link.send(1)\nchild.link.receive()\n"
        "print(child.process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    path = f"{Path(__file__).parent.parent.parent}{os.pathsep}{os.environ['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    place, until = Path("/proc", done.stdout.strip()), time.monotonic() + 20
    while place.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not place.exists()
