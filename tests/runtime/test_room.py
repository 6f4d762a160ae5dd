"""Threads and memory that the system refuses: exit 75 in time, never a fault of ours, a hang or an abort.

Also tests `core.errors`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import typer

from genrec_batch.cli import exits
from genrec_batch.core import errors
from genrec_batch.core.errors import EngineError, InputError, RetryError
from genrec_batch.runtime import room


@pytest.fixture
def few_threads():
    """Let the system refuse every thread but the first few."""
    real = threading.Thread.start

    @contextmanager
    def allow(count):
        left = [count]

        def start(thread):
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("can't start new thread")
            real(thread)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            yield

    return allow


def test_room_for_threads_is_asked_for_before_anything_begins(few_threads, run, log_file, model_dir, tmp_path):
    before = threading.active_count()
    with few_threads(3):
        done = run("score", log_file, "recs.parquet", "--model", model_dir)
    assert (done.code, "only 3 threads can be started" in done.err) == (75, True), done.err
    assert not (tmp_path / "recs.parquet").exists()
    assert threading.active_count() <= before, "all of them have ended"


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_a_thread_that_cannot_start_later_on_ends_the_run_in_time(
    few_threads, run, log_file, model_dir, engine, monkeypatch
):
    monkeypatch.setattr(room, "check_threads", lambda _wanted: None)
    for count in range(12):
        with few_threads(count):
            done = run("score", log_file, f"{count}.parquet", "--model", model_dir, "--engine", engine, "--quiet")
        assert done.code in (0, 75), (count, done.err)


def test_a_lane_that_cannot_start_does_not_leave_the_others_waiting(few_threads):
    pytest.importorskip("torch")
    from genrec_batch.engines.torch.engine import _lane_threads

    before = threading.active_count()
    with few_threads(1), pytest.raises(RetryError, match="one of 3 threads"):
        _lane_threads(3)
    assert threading.active_count() <= before


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_little_address_space_is_try_again(log_file, model_dir):
    for mib, engine in ((300, "onnxruntime"), (1000, "onnxruntime"), (1500, "torch")):
        command = ["score", log_file, f"{mib}.parquet", "--model", model_dir, "--engine", engine]
        done = subprocess.run(
            [sys.executable, "-m", "genrec_batch", *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda mib=mib: resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20)),
        )
        assert done.returncode == 75, (mib, engine, done.stderr)
        assert "out of address space" in done.stderr


@pytest.mark.parametrize("flag", ["--engine", "engine"])
def test_a_library_that_no_memory_is_left_for_is_no_missing_package(run, log_file, model_dir, monkeypatch, flag):
    """Whether or not the message is told with where its option came from."""
    refused = ImportError("libonnxruntime.so: failed to map segment from shared object")

    def load(*_arguments, **_options):
        raise EngineError(f"{flag} needs onnxruntime ({refused})") from refused

    monkeypatch.setattr("genrec_batch.engines.registry._open_onnxruntime", load)
    monkeypatch.setattr("genrec_batch.engines.registry.open_engine", load)
    monkeypatch.setattr("genrec_batch.engines.choose.open_engine", load)
    monkeypatch.setenv("GENREC_BATCH_ENGINE", "onnxruntime")
    done = run("score", log_file, "recs.parquet", "--model", model_dir)
    assert (done.code, "failed to map segment" in done.err) == (75, True), done.err


def ended(error):
    def work():
        raise error

    with pytest.raises(typer.Exit) as left:
        exits.guarded(work, verbose=False)
    return left.value.exit_code


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        OSError(12, "Cannot allocate memory"),
        BlockingIOError(11, "Resource temporarily unavailable"),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: 4 bytes"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        pl.exceptions.PanicException("could not spawn threads: Resource temporarily unavailable"),
        caused(errors.EngineError("the onnxruntime engine needs it"), ImportError("failed to map segment")),
        caused(InputError("INPUT a: cannot be read"), OSError(12, "Cannot allocate memory")),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:40],
)
def test_out_of_memory_or_threads_is_try_again(error, capsys):
    assert ended(error) == 75
    assert "run the same command again" in " ".join(capsys.readouterr().err.split())


def test_a_panic_of_a_library_is_a_fault_of_the_input(capsys):
    assert ended(pl.exceptions.PanicException("not implemented: Interval")) == 3
    assert "a library panicked on an input (not implemented: Interval)" in capsys.readouterr().err
    assert not errors.is_exhausted(RuntimeError("shape mismatch"))
    assert ended(RuntimeError("shape mismatch")) == 1


def test_exit_5_says_whether_the_installation_or_this_machine_is_at_fault(run, log_file, model_dir, capsys):
    done = run("score", log_file, "a.parquet", "--model", model_dir, "--engine", "torch", "--precision", "fp16")
    assert (done.code, "(exit 5: installation)" in done.err) == (5, True), done.err
    assert ended(errors.EngineError.of_device("cuda:0 is gone")) == 5
    assert "cuda:0 is gone (exit 5: device)" in capsys.readouterr().err


def test_a_large_log_asks_for_the_room_of_its_kernels_before_they_load(monkeypatch):
    pytest.importorskip("numba")
    from genrec_batch.events import sorter_choice

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + ((room.KERNELS_MIB - 50) << 20)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (limit, limit))
    with pytest.raises(RetryError, match=r"a log of 4,000,000 rows and more needs .* MiB more and the limit of"):
        sorter_choice.fastest.__wrapped__()
