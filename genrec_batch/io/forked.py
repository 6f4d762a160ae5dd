"""Whether Polars can work in this process: it never does in one that was forked after its threads were started.

Owns: finding that out before anything waits for ever. Must not know: what is read.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import polars as pl

from genrec_batch.core.errors import ConfigError

TASKS = Path("/proc/self/task")
WORKER = re.compile(r"polars-\d+\s*")
STARTS_S = 5.0  # within which new threads have their names, also where many processes share the cores


def check() -> None:
    """Raise ConfigError where Polars' threads belong to the process that this one was forked from."""
    if not TASKS.is_dir():
        return
    pl.thread_pool_size()  # starts the threads where none were ever started
    until = time.monotonic() + STARTS_S
    while not _has_workers():
        if time.monotonic() > until:
            raise ConfigError(
                "this process was forked from one that had used Polars, whose threads do not exist here, so every read "
                "would wait for ever; start it with multiprocessing.get_context('spawn'), or call the command "
                "genrec-batch in a subprocess"
            )
        time.sleep(0.01)


def _has_workers() -> bool:
    for task in TASKS.iterdir():
        try:
            if WORKER.fullmatch((task / "comm").read_text()):
                return True
        except OSError:  # it has ended
            continue
    return False
