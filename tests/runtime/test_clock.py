"""`clock`, and `malloc` in its last test: seconds by stage, spans by thread, the most memory that was held."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from genrec_batch.runtime.clock import Stages, peak_rss_mib


def test_a_stage_that_runs_twice_adds_up_and_has_two_spans():
    stages = Stages()
    for rows in (3, 4):
        with stages.time("read", rows=rows, bytes=8 * rows):
            pass
    assert [(span.stage, span.rows, span.bytes) for span in stages.spans] == [("read", 3, 24), ("read", 4, 32)]
    assert stages.seconds["read"] == pytest.approx(sum(span.stop_s - span.start_s for span in stages.spans))
    assert all(0 <= span.start_s <= span.stop_s <= stages.elapsed_s for span in stages.spans)


def test_what_a_thread_does_now_is_the_innermost_stage():
    stages, name = Stages(), threading.current_thread().name
    assert stages.doing() == "nothing that is timed"
    with stages.time("score"):
        with stages.time("engine"):
            assert stages.doing() == f"engine ({name})"
        assert stages.doing() == f"score ({name})"
    assert stages.doing() == "nothing that is timed"


def test_a_stage_that_fails_is_timed_and_over():
    stages = Stages()
    with pytest.raises(ValueError, match="bad"), stages.time("read"):
        raise ValueError("bad")
    assert (list(stages.seconds), stages.doing()) == (["read"], "nothing that is timed")


def test_a_span_of_a_device_has_its_own_lane():
    stages = Stages()
    stages.add("decode", stages.began + 1, stages.began + 3, rows=5, lane="GPU 0")
    (span,) = stages.spans
    assert (span.lane, span.rows, span.start_s, span.stop_s) == ("GPU 0", 5, 1, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
@pytest.mark.parametrize(("cores", "returned"), [(2, True), (16, False)])
def test_on_few_cores_the_largest_arrays_are_returned_at_once(cores, returned):
    code = (
        "from pathlib import Path; from genrec_batch.runtime import malloc\n"
        f"malloc.threads.cores = lambda: {cores}\n"
        "resident = lambda: int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "assert malloc.keep_freed_memory()\n"
        "held = bytearray(1 << 28); full = resident(); del held; print(full - resident() > 1 << 27)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(returned)]


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_freed_memory_is_kept_until_it_is_given_back():
    """In a process of its own: the settings stay. Resident memory falls only when it is given back."""
    code = (
        "from pathlib import Path; from genrec_batch.runtime import malloc\n"
        "resident = lambda: int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "assert malloc.keep_freed_memory()\n"
        "held = [bytearray(1 << 24) for _ in range(16)]; full = resident(); del held; kept = resident()\n"
        "malloc.give_back_freed_memory(); print(full - kept < 1 << 27, kept - resident() > 1 << 27)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
    assert peak_rss_mib() > 1
