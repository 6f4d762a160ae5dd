"""Spill folders of killed runs are removed by the next run, which says so; those of runs that go on stay."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from genrec_batch.io.spill import LOCK, SpillFolder, remove_abandoned

HOLD = """
import sys, time
from pathlib import Path
from genrec_batch.io.spill import SpillFolder
made = SpillFolder.make(Path(sys.argv[1]))
(made.path / "bucket-00000.events").write_bytes(bytes(1 << 20))
print(made.path, flush=True)
time.sleep(60)
"""


def test_what_a_killed_run_left_is_removed_and_told(run, log_file, model_dir, tmp_path):
    alive = SpillFolder.make(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        remove_abandoned(tmp_path)
        assert left.exists(), "its run goes on"
        other.send_signal(signal.SIGKILL)
    foreign = tmp_path / ".genrec-spill-of-an-earlier-version"
    foreign.mkdir()
    done = run("score", log_file, "recs.parquet", "--model", model_dir, "--quiet")
    assert done.code == 0, done.err
    assert "removed spill files that killed runs left: 1 folders, 1.0 MiB" in " ".join(done.err.split())
    assert not left.exists()
    assert alive.path.exists(), "that of a run that goes on"
    assert foreign.exists(), "nothing says whose it is"
    alive.close()
    assert not alive.path.exists()
    assert "removed spill" not in run("score", log_file, "again.parquet", "--model", model_dir, "--quiet").err


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").touch()
    trap = tmp_path / ".genrec-spill-trap"
    trap.mkdir()
    (trap / LOCK).symlink_to(tmp_path / "elsewhere")
    remove_abandoned(tmp_path)
    assert trap.exists()


def test_a_folder_that_cannot_be_locked_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("genrec_batch.io.spill.os.write", full)
    with pytest.raises(OSError, match="No space"):
        SpillFolder.make(tmp_path)
    assert not list(tmp_path.iterdir())
