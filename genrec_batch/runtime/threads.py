"""Work that overlaps: ordered maps over threads, bounded queues between them, one error that stops all.

Owns: threads and how much may wait between two steps. Must not know: what the work is. Every step keeps the order of
its items, so that a run's result does not depend on the speed of threads.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from genrec_batch.core.errors import RetryError

A = TypeVar("A")
B = TypeVar("B")

GRACE_S = 30.0  # for a stalled or stopped run to end by itself
TURN_S = 0.0005  # for a thread to hold the interpreter while others wait; Python's 5 ms leave a GPU idle


def take_short_turns() -> None:
    """Make the threads of this process release the interpreter often: the one that feeds the device must not wait."""
    sys.setswitchinterval(TURN_S)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(work: Callable[[A], B], items: Iterable[A], *, workers: int, name: str) -> Iterator[B]:
    """Yield `work(item)` for each item in order, computed on `workers` threads, at most so many ahead.

    An error of `work` is raised here, in its item's place; then running items are waited for, and others dropped.
    """
    waiting: deque[Future[B]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            del item  # what was handed over is not held while the consumer works
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def background(items: Iterator[A], *, ahead: int, name: str) -> Iterator[A]:
    """Yield the same items, computed on a separate thread, at most `ahead` items ahead."""
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix=name)
    waiting: deque[Future[Any]] = deque(pool.submit(next, items, end) for _ in range(ahead))
    try:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            handed = [item]
            del item
            yield handed.pop()  # so that it is not held while the consumer works
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        close = getattr(items, "close", None)
        if close is not None:
            close()


class Behind:
    """Work that was handed over in order; see `behind`."""

    def __init__(self, pool: ThreadPoolExecutor, ahead: int) -> None:
        self._pool, self._ahead = pool, ahead
        self._waiting: deque[Future[Any]] = deque()

    def submit(self, work: Callable[[], Any]) -> None:
        """Hand over some work; raises the error of earlier work."""
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= self._ahead):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(work))

    def wait(self) -> None:
        """Wait for all work; raise its first error."""
        while self._waiting:
            self._waiting.popleft().result()


@contextmanager
def behind(*, workers: int, ahead: int, name: str) -> Iterator[Behind]:
    """Run work on `workers` threads; at most `ahead` calls wait at a time.

    At the end of the block, running work is waited for, and other work is dropped.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    try:
        yield Behind(pool, ahead)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class StalledError(RetryError):
    """There was no progress for the time of `--stall-limit`."""


@contextmanager
def watched(progress: Callable[[], int], *, limit_s: float, doing: Callable[[], str]) -> Iterator[None]:
    """End the block with StalledError (exit 75) once `progress()` has not changed for `limit_s` seconds; 0 means never.

    A main thread that waits inside a driver call cannot be interrupted: after another GRACE_S the process ends with
    75 at once. Written parts stay, and the same command continues from there.
    """
    if limit_s <= 0 or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()

    def raise_stalled(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise StalledError(
            f"no progress for {limit_s:g} s (--stall-limit) during: {doing()}; written parts stay, "
            "run the same command again"
        )

    def watch() -> None:
        last = progress()
        while not over.wait(min(limit_s, threading.TIMEOUT_MAX)):
            now = progress()
            if now == last:
                stuck = doing()  # the main thread's own steps end with its exception
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
                if not over.wait(GRACE_S):
                    sys.stderr.write(f"no progress for {limit_s:g} s (--stall-limit) during: {stuck}; ending now\n")
                    os._exit(StalledError.exit_code)
                return
            last = now

    before = signal.signal(signal.SIGALRM, raise_stalled)
    threading.Thread(target=watch, name="watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.signal(signal.SIGALRM, before)
