"""What a run touches outside: no socket, and no file but its output, its caches and its temporary folder.

By the kernel's own account where strace can be had, else by Python's. Also tests `engines` (what its import sets).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WRITES = re.compile(r'\b(?:open|openat|creat|mkdir|mkdirat)\((?:AT_FDCWD, )?"([^"]*)"(.*)')
RENAMES = re.compile(r'\b(?:rename\w*|link\w*|symlink\w*)\(.*"([^"]*)"[^"]*$')
SOCKETS = re.compile(r"\b(?:socket|connect|bind|sendto|sendmsg)\(")
LOCAL = "AF_UNIX"  # where the system's library looks up the name of the user
CALLS = "trace=%network,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"
HOOK = """
import os, sys
told = open(sys.argv.pop(1), "w")
def heard(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        told.write(f"socket(  {event}\\n")
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        if isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            told.write(f'open("{os.fsdecode(arguments[0])}", O_WRONLY\\n')
    if event in ("os.mkdir", "os.rename"):
        told.write(f'rename("{os.fsdecode(arguments[-2 if event == "os.mkdir" else 1])}"\\n')
    told.flush()
sys.addaudithook(heard)
from genrec_batch.__main__ import main
main()
"""


def traced(log_file, command, tmp_path):
    """Run a command in folders of its own and return what it opened to write, and its calls of the network."""
    places = {name: tmp_path / name for name in ("home", "temporary", "cache")}
    for place in places.values():
        place.mkdir()
    outside = {
        **os.environ,
        "HOME": str(places["home"]),
        "TMPDIR": str(places["temporary"]),
        **dict.fromkeys(("GENREC_BATCH_CACHE", "NUMBA_CACHE_DIR"), str(places["cache"])),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    outside.pop("XDG_CACHE_HOME", None)
    outside.pop("ORT_DISABLE_TELEMETRY", None)
    record, program = tmp_path / "record", [sys.executable, "-m", "genrec_batch"]
    strace = ["strace", "-f", "-qq", "-e", CALLS, "-o", str(record)]
    allowed = shutil.which("strace") and not subprocess.run([*strace, "true"], check=False).returncode
    program = [*strace, *program] if allowed else [sys.executable, "-c", HOOK, str(record)]
    done = subprocess.run(
        [*program, *map(str, command)], cwd=log_file.parent, env=outside, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in record.read_text().splitlines() if "= -1 " not in line]
    written = [found[1] for line in lines if (found := WRITES.search(line)) and re.search("WR|CREAT|^, 0", found[2])]
    written += [found[1] for line in lines if (found := RENAMES.search(line))]
    assert written, "the trace sees the output"
    return (
        {Path(log_file.parent, name) for name in written},
        [line for line in lines if SOCKETS.search(line) and LOCAL not in line],
        places,
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_a_run_opens_no_socket_and_writes_only_its_output_its_caches_and_temporary_files(
    log_file, model_dir, tmp_path, engine
):
    command = ("score", log_file, "recs", "--model", model_dir, "--engine", engine, "--quiet")
    written, sockets, places = traced(log_file, command, tmp_path)
    assert not sockets
    inside = [log_file.parent / name for name in ("recs", ".recs.unfinished")]
    inside += [places["cache"], places["temporary"], Path("/dev"), Path("/proc/self")]
    folder = log_file.parent  # an unnamed file there tries whether it may be written
    assert not {path for path in written if path != folder and not any(path.is_relative_to(place) for place in inside)}
    assert not list(places["home"].rglob("*")), "ONNX Runtime would keep a device id"


def test_telemetry_is_off_unless_the_user_has_decided():
    show = "import os, genrec_batch.engines; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, expected in ((None, "1"), ("0", "0")):
        outside = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        outside |= {} if given is None else {"ORT_DISABLE_TELEMETRY": given}
        done = subprocess.run([sys.executable, "-c", show], env=outside, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
