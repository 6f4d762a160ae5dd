"""What a run did: when each stage ran on which thread, with how many rows and bytes, and the most memory held.

Owns: the clock of stages and the peak of resident memory. Must not know: what the stages do. A span is one piece of
work on one thread; spans of different threads overlap, so the seconds of all stages may add up to more than the run.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Span:
    """One piece of work: seconds since the run began, and what went through."""

    stage: str
    lane: str  # name of the thread, or of a stream of the device
    start_s: float
    stop_s: float
    rows: int = 0
    bytes: int = 0


@dataclass(kw_only=True)
class Stages:
    """Seconds by stage name, in the order the stages first ran; a stage that runs often adds up. Threads may share it.

    `spans` are kept in the order they ended.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    spans: list[Span] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _open: dict[int, str] = field(default_factory=dict, repr=False)  # what each thread is at

    @contextmanager
    def time(self, stage: str, *, rows: int = 0, bytes: int = 0) -> Iterator[None]:  # noqa: A002 (the unit)
        """Add the time of the block to `stage`, with the rows and bytes that it moves."""
        start, thread = time.perf_counter(), threading.get_ident()
        around = self._open.get(thread)
        self._open[thread] = f"{stage} ({threading.current_thread().name})"
        try:
            yield
        finally:
            if around is None:
                self._open.pop(thread, None)
            else:
                self._open[thread] = around
            self.add(stage, start, time.perf_counter(), rows=rows, bytes=bytes)

    def add(
        self,
        stage: str,
        start: float,
        stop: float,
        *,
        rows: int = 0,
        bytes: int = 0,  # noqa: A002 (the unit)
        lane: str | None = None,
    ) -> None:
        """Add a block that ran from `start` to `stop` (`time.perf_counter`), on this thread or where `lane` says."""
        span = Span(
            stage=stage,
            lane=lane or threading.current_thread().name,
            start_s=start - self.began,
            stop_s=stop - self.began,
            rows=rows,
            bytes=bytes,
        )
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + stop - start
            self.spans.append(span)

    def doing(self) -> str:
        """Return what the threads are at now: "features (features_0), write (write_0)"."""
        return ", ".join(sorted(self._open.copy().values())) or "nothing that is timed"

    @property
    def elapsed_s(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.began


def peak_rss_mib() -> float:
    """Return the most memory this process ever held resident, in MiB (`getrusage`, Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
