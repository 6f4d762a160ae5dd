"""Child processes of a run: started on some cores, connected by messages, ended with their parent.

Owns: how such a process starts and ends, and the messages between the two. Must not know: what it works on. A child
is a fresh interpreter, never a fork: threads of libraries do not survive one. It ends with its parent, however that
one ends: the kernel kills it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PACKAGES = Path(__file__).parent.parent.parent  # from which this package was imported
START = "from genrec_batch.runtime import children; children.begin({module!r}, {fd}, {parent}, {cores})"


class Link:
    """One end of a connection between two processes: messages that can be pickled, with open files beside them."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._sending = threading.Lock()

    def send(self, message: Any, *files: int) -> None:
        """Send a message, and file descriptors, which the other process gets as its own.

        Raises:
            OSError: the other process has ended.
        """
        with self._sending:
            self.connection.send((message, len(files)))
            for file in files:
                reduction.send_handle(self.connection, file, 0)

    def receive(self) -> tuple[Any, list[int]]:
        """Return the next message with its file descriptors; one thread at a time may wait for it.

        Raises:
            EOFError, OSError: the other process has ended.
        """
        message, files = self.connection.recv()
        return message, [reduction.recv_handle(self.connection) for _ in range(files)]

    def close(self) -> None:
        """Close this end."""
        self.connection.close()


@dataclass(frozen=True, kw_only=True)
class Child:
    """A process that this one has started."""

    process: subprocess.Popen[bytes]
    link: Link

    @staticmethod
    def start(module: str, cores: Sequence[int]) -> Child:
        """Start `main(link)` of a module in a process of its own, on some cores; its stdout is discarded."""
        ours, theirs = socket.socketpair()
        with theirs:
            code = START.format(module=module, fd=theirs.fileno(), parent=os.getpid(), cores=list(cores))
            path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},  # no module of the user's own folder
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        return Child(process=process, link=Link(Connection(ours.detach())))

    def end(self) -> str:
        """End the process at once, and return in words how it has ended, which it may have done by itself."""
        self.link.close()
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"

    def wait(self, seconds: float) -> None:
        """Let the process end by itself for some seconds, then end it."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.link.close()


def begin(module: str, fd: int, parent: int, cores: Sequence[int]) -> None:
    """Be a child process: set up what ends it with its parent, take the cores, then run the module's `main`."""
    _end_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGHUP):  # they come to the whole terminal, and the parent obeys them
        signal.signal(number, signal.SIG_IGN)
    os.sched_setaffinity(0, cores)  # before libraries count the cores
    importlib.import_module(module).main(Link(Connection(fd)))


def _end_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it had ended before
        os._exit(0)
