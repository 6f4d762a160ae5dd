"""Logs as people really have them: the situations behind public reports, each as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent.parent.parent.parent / "shared" / "cases"
PROGRAM = Path(sys.executable).with_name("genrec-batch")
SCRIPTS = sorted(CASES.glob("[0-9][0-9]_*.py"))

pytestmark = pytest.mark.skipif(not SCRIPTS, reason="the collection of cases is not beside this checkout")


@pytest.mark.slow
@pytest.mark.parametrize("script", [path.stem for path in SCRIPTS])
def test_a_reported_situation_is_handled(script, tmp_path):
    if not PROGRAM.exists():
        pytest.skip("genrec-batch is not installed beside this Python")
    environment = {
        **os.environ,
        "GENREC_PROGRAM": str(PROGRAM),
        "TMPDIR": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, CASES / "run.py", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout.endswith("0 cases fail\n"), done.stdout + done.stderr
