"""The clock of a run: when each stage ran on which thread, with how many rows and bytes, processor time, and memory.

Owns: the times of stages and of the processor, and the peak of resident memory. Must not know: what the stages do. A
span is one stretch of work on one thread; spans of different threads overlap, so the seconds of all stages may add up
to more than the run.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from genrec_batch.runtime import progress, threads


@dataclass(frozen=True, kw_only=True)
class Span:
    """One stretch of work: when it ran, in seconds since the run began, and what it processed."""

    stage: str
    lane: str  # name of the thread, or of the device's stream
    start_s: float
    stop_s: float
    rows: int = 0
    bytes: int = 0


@dataclass(kw_only=True)
class Stages:
    """Seconds by stage name, in the order in which stages first ran, summed over all runs of a stage; thread-safe.

    `spans` are in the order in which they ended.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    began_processor: float = field(default_factory=time.process_time)
    spans: list[Span] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _open: dict[int, str] = field(default_factory=dict, repr=False)  # the stage of each thread

    @contextmanager
    def time(self, stage: str, *, rows: int = 0, bytes: int = 0) -> Iterator[None]:  # noqa: A002 (the unit)
        """Add the time of the block to `stage`, with the rows and bytes that it processes."""
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
        """Add a span from `start` to `stop` (`time.perf_counter`), of this thread unless `lane` names another."""
        span = Span(
            stage=stage,
            lane=lane or threading.current_thread().name,
            start_s=start - self.began,
            stop_s=stop - self.began,
            rows=rows,
            bytes=bytes,
        )
        progress.step()
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + stop - start
            self.spans.append(span)

    def doing(self) -> str:
        """Return the stage of each thread now: "features (features_0), write (write_0)"."""
        return ", ".join(sorted(self._open.copy().values())) or "nothing that is timed"

    def watched(self, limit_s: float) -> AbstractContextManager[None]:
        """End the block with `StalledError` once nothing has ended or gone on for `limit_s` seconds."""
        return threads.watched(progress.signs, limit_s=limit_s, doing=self.doing)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the clock was created."""
        return time.perf_counter() - self.began

    @property
    def processor_s(self) -> float:
        """Seconds of a core that all threads of this process have used since the clock was created."""
        return time.process_time() - self.began_processor


def peak_rss_mib() -> float:
    """Return the peak of this process's resident memory in MiB (`getrusage` counts KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
