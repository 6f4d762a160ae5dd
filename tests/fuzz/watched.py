"""Fuzzes in processes of their own: a library that aborts ends one of them, and the next goes on after its input.

Owns: the record that outlives such a process, the watch over it, and the judgement of its end: the command line is run
on the very input, and where it says what to do, as it must where a library aborts, the end was an error of ours. Must
not know: what damages a file (`run.py`), which readers there are (`harnesses.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

SEEDS = Path(__file__).parent / "seeds"
ROOT = Path(__file__).parents[2]
HEAD = struct.Struct("<QQQ")  # inputs tried, inputs accepted, bytes of the input that is tried now
SAYS_WHY = re.compile(r"^(memory allocation|thread .* panicked|==\d+== ?ERROR|\w*(Error|Exception):)")
STALL_S = 120  # after which an input is one that never ends
DOCUMENTED = (2, 3, 4, 5, 6, 75)  # exit codes of docs/operations.md for an input that is at fault


class Record:
    """What a process has done so far, in files: they are there after its end, however it ended."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._now = os.open(folder / "now", os.O_RDWR | os.O_CREAT)

    def put(self, tried, accepted, data=b""):
        """Record the counts, and the input that is tried next."""
        os.pwrite(self._now, HEAD.pack(tried, accepted, len(data)) + data, 0)

    def now(self):
        """Return the inputs tried, the inputs accepted, and the input that was tried last."""
        head = os.pread(self._now, HEAD.size, 0)
        tried, accepted, length = HEAD.unpack(head) if len(head) == HEAD.size else (0, 0, 0)
        return tried, accepted, os.pread(self._now, length, HEAD.size)

    def add_fault(self, where):
        with (self.folder / "faults").open("a") as file:
            file.write(json.dumps(where) + "\n")

    def faults(self):
        """Return each fault once, in words."""
        file = self.folder / "faults"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def keep(name, data):
    """Keep an input as a seed that an ordinary test reads from now on; those that end a process are in `aborts/`."""
    seed = SEEDS / name / hashlib.sha256(data).hexdigest()[:16]
    seed.parent.mkdir(parents=True, exist_ok=True)
    seed.write_bytes(data)


@dataclass(kw_only=True)
class Watch:
    """The processes that fuzz one reader one after the other, and what became of them."""

    name: str
    by: str
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="genrec-fuzz-")))
    tried: int = 0
    accepted: int = 0
    ends: dict = field(default_factory=dict)  # how often processes ended by what, where the command line says so

    def run(self, seconds, seed):
        """Fuzz for some seconds; return the report."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            record = Record(self.folder)
            record.put(0, 0)
            said, code = self._ended(record, left, seed)
            tried, accepted, data = record.now()
            self.tried, self.accepted = self.tried + tried, self.accepted + accepted
            if code == 0:
                break
            if not tried:
                raise RuntimeError(f"nothing was tried: {said}")
            self._judge(record, data, code, said)
            seed += tried
        report = {
            "fuzzed": self.name, "by": self.by, "seconds": seconds, "tried": self.tried, "accepted": self.accepted,
            "aborts_that_the_command_line_explains": self.ends, "faults": sorted(Record(self.folder).faults()),
        }  # fmt: skip
        shutil.rmtree(self.folder)
        return report

    def _ended(self, record, seconds, seed):
        """Start one process and wait for its end; return what it said last, and its exit code or minus the signal."""
        scratch = self.folder / "scratch"
        scratch.mkdir()
        command = [sys.executable, Path(__file__).with_name("run.py"), self.name, "--by", self.by]
        command += ["--seconds", str(seconds), "--seed", str(seed), "--record", self.folder]
        environment = {**os.environ, "TMPDIR": str(scratch)}
        with (self.folder / "said").open("w+", errors="replace") as said:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
            seen, since = 0, time.monotonic()
            while process.poll() is None:
                time.sleep(0.1)
                tried = record.now()[0]
                if tried != seen:
                    seen, since = tried, time.monotonic()
                elif time.monotonic() - since > STALL_S:
                    process.kill()
            said.seek(0)
            lines = [line for line in said.read().splitlines() if line.strip()]
        shutil.rmtree(scratch)
        if process.returncode > 0:
            print(*lines[-20:], sep="\n", file=sys.stderr, flush=True)
        why = [line for line in lines if SAYS_WHY.search(line)] or lines or [""]
        return why[-1], process.returncode

    def _judge(self, record, data, code, said):
        """Run the command line on the input that ended a process: where it explains itself, it is an error of ours."""
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        end = f"{how}: {re.sub(r'[0-9]+', 'N', said)[:120]}"
        ended, words = ended_by_command_line(self.name, data)
        if is_explained(ended, words):
            if end not in self.ends:
                keep(f"aborts/{self.name}", data)
            self.ends[end] = self.ends.get(end, 0) + 1
            return
        fault = f"{end}; the command line ends with {ended}"
        if fault not in record.faults():
            record.add_fault(fault)
            keep(f"aborts/{self.name}", data)
            print(fault, file=sys.stderr, flush=True)


def is_explained(code, words):
    """Return whether a command ended as docs/operations.md says of an input that is at fault."""
    return code in DOCUMENTED and "error" in words


def ended_by_command_line(name, data):
    """Return how a command ends that reads this input: its exit code, or None where it does not end; and its stderr."""
    from tests.fuzz.harnesses import harnesses, remove

    harness = harnesses()[name]
    harness.file.write_bytes(data)
    command = [sys.executable, "-m", "genrec_batch", *harness.command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = {"capture_output": True, "text": True, "errors": "replace"}
    try:
        done = subprocess.run(command, **said, env=environment, cwd=harness.place, timeout=STALL_S, check=False)
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        remove()
    return done.returncode, done.stderr
