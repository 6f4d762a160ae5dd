"""Output where stdout and stderr have another encoding than UTF-8, as under LANG=C in a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import polars as pl
import pytest


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1"])
def test_an_id_that_stdout_cannot_encode_is_shown_escaped(log, model_dir, tmp_path, encoding):
    log.with_columns(user_id=pl.format("Łukasz-{}", "user_id")).write_parquet("events.parquet")
    command = [sys.executable, "-m", "genrec_batch", "score", "events.parquet", "--model", str(model_dir)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "COLUMNS": "200"}
    done = subprocess.run(
        [*command, "--user", "Łukasz-107", "--engine", "onnxruntime", "--top-k", "2"],
        capture_output=True, env=environment, cwd=tmp_path, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"\\u0141ukasz-107" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["users"] == 1
