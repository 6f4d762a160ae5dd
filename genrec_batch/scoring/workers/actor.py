"""A worker as an actor of Ray, and its messages.

Owns: the actor, and the two ends of the messages. Must not know: parts, messages' meaning, which nodes there are.

An actor is a worker as a process of this machine is: the same messages, in a queue each way. It binds itself to as many
cores of its host as nobody else has taken.
"""

from __future__ import annotations

import fcntl
import os
import queue
import socket
import sys
import tempfile
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec_batch import __version__
from genrec_batch.runtime import malloc, threads
from genrec_batch.runtime.shares import shares
from genrec_batch.scoring.workers import keeper, worker
from genrec_batch.scoring.workers.joining import Ray, said
from genrec_batch.scoring.workers.messages import Failed, Sign


class Actor:
    """A worker in a process of Ray: messages in, messages out."""

    def __init__(self, cores: int, folder: str, version: str) -> None:
        """Begin to work, on `cores` cores of the host, with paths from `folder` on, for a driver of some version."""
        self._in: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._early: dict[int, Any] = {}
        self._taken = 0
        if version != __version__:
            text = f"node {socket.gethostname()} has genrec-batch {__version__}, and the command is of {version}; "
            self.send(Failed(kind="EngineError", text=text + "install the same on all nodes", about="installation"))
            return
        self.send(Sign())
        keeper.enter(folder)
        self._place = _free_cores(cores)
        threading.excepthook = _end
        threading.Thread(target=self._work, name="worker", daemon=True).start()

    def _work(self) -> None:
        os.sched_setaffinity(0, self._place[0])  # of this thread, and of those that it starts
        malloc.keep_freed_memory()
        threads.take_short_turns()
        worker.serve(self)

    def send(self, message: Any, *_files: int) -> None:
        """Keep a message for the driver."""
        self._out.put(message)

    def receive(self) -> tuple[Any, list[int]]:
        """Return the next message of the driver."""
        return self._in.get(), []

    def put(self, number: int, message: Any) -> None:
        """Take a message of the driver; Ray may deliver a large one after a later small one."""
        self._early[number] = message
        while self._taken in self._early:
            self._in.put(self._early.pop(self._taken))
            self._taken += 1

    def next(self) -> list[Any]:
        """Return the messages for the driver that there are; wait for the first one."""
        found = [self._out.get()]
        while not self._out.empty():
            found.append(self._out.get())
        return found


def _end(failure: threading.ExceptHookArgs) -> None:
    """End the process of a worker whose thread has failed, so that its parts go to others."""
    sys.__excepthook__(failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    os._exit(1)


def _free_cores(count: int) -> tuple[list[int], int]:
    """Return cores of the host that no other worker has, and the lock by which others know; all where none are left."""
    mine = sorted(os.sched_getaffinity(0))
    for number, cores in enumerate(shares(max(1, len(mine) // count))):
        place = Path(tempfile.gettempdir(), f"genrec-batch-{os.getuid()}-cores-{count}-{number}.lock")
        lock = os.open(place, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return cores, lock
    return mine, -1


class RayLink:
    """Messages to and from an actor."""

    def __init__(self, ray: Ray, actor: Any) -> None:
        self._ray, self.actor = ray, actor
        self._buffer: deque[Any] = deque()
        self._sent = 0
        self.placed = False  # whether it has said something, so a node has room for it
        self.why = "its process or its node has ended"
        self.pending = self._next()

    def send(self, message: Any, *_files: int) -> None:
        """Send a message."""
        self.actor.put.options(concurrency_group="put").remote(self._sent, message)
        self._sent += 1

    def _next(self) -> Any:
        return self.actor.next.options(concurrency_group="next").remote()

    def receive(self) -> tuple[Any, list[int]]:
        """Return the next message.

        Raises:
            EOFError: the actor has died; the message says why.
        """
        if not self._buffer:
            try:
                self._buffer.extend(self._ray.get(self.pending))
            except self._ray.exceptions.RayError as error:
                self.why = said(error)
                raise EOFError(self.why) from error
            self.placed = True
            self.pending = self._next()
        return self._buffer.popleft(), []

    @property
    def ready(self) -> bool:
        """Whether a message is here already."""
        return bool(self._buffer)


@dataclass(frozen=True, kw_only=True)
class RayWorker:
    """An actor that was started."""

    ray: Ray
    link: RayLink

    def end(self) -> str:
        """End it at once, and return in words how it has ended."""
        self.ray.kill(self.link.actor)
        return self.link.why

    def wait(self, seconds: float) -> None:
        """End it: it has said all that it had to say."""
        del seconds
        self.ray.kill(self.link.actor)


def started(ray: Ray, cores: float, gpus: int) -> RayWorker:
    """Start a worker on a node that has room: it reserves `cores`, of which it may be a share of one, and `gpus`."""
    made = ray.remote(concurrency_groups={"put": 1, "next": 1}, max_restarts=0)(Actor)
    placed = made.options(num_cpus=cores, num_gpus=gpus)
    return RayWorker(ray=ray, link=RayLink(ray, placed.remote(max(1, int(cores)), str(Path.cwd()), __version__)))
