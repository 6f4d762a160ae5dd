"""`aborts`: a library that aborts, on whichever thread, ends the process with a message and an exit code."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

CODE = """
import ctypes, resource, sys, threading, time
from genrec_batch.runtime import aborts
aborts.end_with_a_code()
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
if sys.argv[1] == "main":
    ctypes.CDLL(None).abort()
threading.Thread(target=ctypes.CDLL(None).abort).start()
ctypes.CDLL(None).sleep(60)  # as in a library that works without the interpreter
"""


def aborted(thread, limit):
    command = [sys.executable, "-c", CODE, thread, str(limit)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)


@pytest.mark.parametrize("thread", ["main", "another"])
def test_an_abort_ends_with_a_code_that_a_scheduler_knows(thread):
    done = aborted(thread, 0)
    assert done.returncode == 3
    assert "--verify-input pages" in done.stderr


def test_an_abort_under_a_limit_of_address_space_is_a_want_of_memory():
    done = aborted("another", 8 << 30)
    assert done.returncode == 75
    assert "ulimit -v" in done.stderr


def test_a_flipped_bit_that_makes_polars_abort_is_found_by_the_advice(log, model_dir, tmp_path):
    """The page header of a column says -4,001 values instead of 4,000: Polars asks for 2^61 bytes, and Rust aborts."""
    rows = 4000
    there = np.random.default_rng(1).random(rows) < 0.5
    events = pl.concat([log] * (rows // len(log) + 1)).head(rows)
    events = events.with_columns(pl.when(pl.Series(there)).then(pl.lit("mobile")).alias("device_type"))
    file = tmp_path / "events.parquet"
    plain = {"compression": "none", "use_dictionary": False, "data_page_version": "1.0"}
    pq.write_table(events.to_arrow(compat_level=pl.CompatLevel.oldest()), file, **plain)
    whole = file.read_bytes()
    levels = whole.find(np.packbits(there, bitorder="little").tobytes()[:24])
    count = whole.rfind(b"\xc0\x3e", 0, levels)  # 4,000 as a zigzag varint
    assert 0 < levels - count < 40
    file.write_bytes(whole[:count] + b"\xc1" + whole[count + 1 :])

    def scored(*options):
        command = [sys.executable, "-m", "genrec_batch", "score", file, "recs.parquet", "--model", model_dir, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)

    done = scored()
    assert done.returncode == 3
    assert "--verify-input pages" in done.stderr
    assert not (tmp_path / "recs.parquet").exists()
    found = scored("--verify-input", "pages")
    assert found.returncode == 3
    assert f"INPUT {file}: row group 0 is damaged" in found.stderr
    file.write_bytes(whole)
    assert scored().returncode == 0
