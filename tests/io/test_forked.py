"""A process that was forked after Polars was used is told so at once; one that is spawned, or forked before, works."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

FORK = """
import os, sys
import polars as pl
from genrec_batch import Scorer, score
{before}
child = os.fork()
if child == 0:
    try:
        {call}
    except ValueError as error:
        print(type(error).__name__, error, flush=True)
        os._exit(7)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
USED = "pl.DataFrame({'a': [1, 2]}).group_by('a').len()"
OPTIONS = "top_k=3, engine='onnxruntime', precision='fp32', quiet=True"


@pytest.mark.usefixtures("log_file")
@pytest.mark.parametrize(("before", "code"), [(USED, 7), ("", 0)])
def test_a_fork_of_a_process_that_used_polars_is_told_to_spawn(model_dir, before, code):
    call = f"score('events.parquet', 'o.parquet', model={str(model_dir)!r}, {OPTIONS})"
    text = FORK.format(before=before, call=call)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert ("multiprocessing.get_context('spawn')" in done.stdout) == (code == 7)
    assert time.monotonic() - began < 30


def test_a_scorer_is_told_too(model_dir):
    call = f"Scorer(model={str(model_dir)!r})(pl.DataFrame({{'user_id': [1]}}).to_arrow())"
    text = FORK.format(before=USED, call=call)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7, (done.stdout, done.stderr)
    assert "forked" in done.stdout


def test_what_the_error_advises_works(log_file, model_dir):
    text = f"""
import multiprocessing
import polars as pl
from genrec_batch import score
def work():
    score('events.parquet', 'o.parquet', model={str(model_dir)!r}, {OPTIONS})
if __name__ == "__main__":
    {USED}
    worker = multiprocessing.get_context('spawn').Process(target=work)
    worker.start()
    worker.join()
    raise SystemExit(worker.exitcode)
"""
    (log_file.parent / "advice.py").write_text(text)
    done = subprocess.run([sys.executable, "advice.py"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (log_file.parent / "o.parquet").exists()
