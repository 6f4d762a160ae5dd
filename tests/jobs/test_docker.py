"""jobs/docker: linted Dockerfiles, and what an image does before genrec-batch starts. No Docker engine runs it here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "jobs" / "docker"
IMAGES = sorted(DOCKER.glob("*.Dockerfile"))


@pytest.mark.parametrize("path", IMAGES, ids=lambda p: p.stem)
def test_hadolint_finds_nothing(path):
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed; `make test` installs it")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", IMAGES, ids=lambda p: p.stem)
def test_an_image_is_pinned_runs_as_nobody_special_and_copies_what_the_context_holds(path):
    text = path.read_text()
    assert all(
        re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}( AS build)?", image) for image in froms(text)
    )
    assert len(froms(text)) == 2
    assert "\nUSER 10001:10001\n" in text
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for name in line.split()}
    assert copied <= kept
    assert all((ROOT / name).exists() for name in copied)


def test_the_context_holds_nothing_that_no_image_copies():
    texts = "".join(path.read_text() for path in IMAGES)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all(re.search(rf"^COPY .*(?<!\S){re.escape(name)}(?!\S)", texts, re.MULTILINE) for name in kept)


def froms(text):
    return re.findall(r"^FROM (.*)$", text, flags=re.MULTILINE)


@pytest.fixture
def image(tmp_path):
    """A folder as /opt/genrec-batch: the start script, a stand-in for the program, a compiled kernel."""
    for folder in ("start", "bin", "kernels/numba_1"):
        (tmp_path / "image" / folder).mkdir(parents=True)
    shutil.copy(DOCKER / "genrec-batch", tmp_path / "image" / "start")
    program = tmp_path / "image" / "bin" / "genrec-batch"
    program.write_text('#!/bin/sh\necho "$@"\nexit 99\n')
    program.chmod(0o755)
    (tmp_path / "image" / "kernels" / "numba_1" / "kernel.nbc").write_text("compiled")
    return tmp_path / "image"


def start(image, kernels):
    command = [image / "start" / "genrec-batch", "score", "a b.parquet"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(kernels)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (99, "score a b.parquet\n")


def test_a_container_finds_the_kernels_that_were_compiled_with_its_image(image, tmp_path):
    kernels = tmp_path / "numba"
    start(image, kernels)
    assert (kernels / "numba_1" / "kernel.nbc").read_text() == "compiled"
    (kernels / "numba_1" / "kernel.nbc").write_text("compiled here")
    start(image, kernels)
    assert (kernels / "numba_1" / "kernel.nbc").read_text() == "compiled here"


def test_a_container_without_kernels_or_a_folder_for_them_starts_all_the_same(image, tmp_path):
    (tmp_path / "file").touch()
    start(image, tmp_path / "file" / "numba")
    shutil.rmtree(image / "kernels")
    start(image, tmp_path / "numba")
