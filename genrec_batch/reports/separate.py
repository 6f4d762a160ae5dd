"""A run in a separate process, so that its peak memory and its start-up are measured alone.

Owns: starting the process, its answer, and its end. Must not know: what is reported about it.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, NoReturn

from genrec_batch.core.errors import GenrecError, RetryError, is_exhausted
from genrec_batch.core.options import ScoreConfig
from genrec_batch.runtime import console, progress
from genrec_batch.runtime.clock import Span, Stages
from genrec_batch.scoring import pipeline

ENDS_WITHIN_S = 30.0  # after its answer
LOOKS_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a run in another process did."""

    summary: dict[str, Any]
    spans: list[Span]
    seconds: dict[str, float]
    elapsed_s: float

    def stages(self) -> Stages:
        """Return the run's spans as `Stages`."""
        return Stages(seconds=self.seconds, spans=self.spans)


def score(config: ScoreConfig, source: str, target: str) -> Ran:
    """Score a log as `genrec-batch score` does, in a process that does nothing else.

    Raises:
        GenrecError: see its subclasses, as the run raised them.
        RetryError: the process was killed, most often for its memory.
        RuntimeError: an internal error in that process, which printed its traceback.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, config, source, target), name="profiled-run")
    process.start()
    there.close()
    try:
        while not here.poll(LOOKS_EVERY_S):  # that process watches itself
            progress.step()
        answer = here.recv()
        process.join(ENDS_WITHIN_S)  # Python still has to clean up
    except EOFError:
        process.join()
        if process.exitcode is not None and process.exitcode < 0:
            raise RetryError(
                f"the profiled run was killed by signal {-process.exitcode}, most often for its memory; try --limit N"
            ) from None
        raise RuntimeError("the profiled run failed; its traceback is above") from None
    finally:
        process.terminate()  # it has ended, unless the wait was interrupted
        process.join()
        here.close()
    if isinstance(answer, GenrecError):
        raise answer
    assert isinstance(answer, Ran)
    return answer


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Exit by an exception, so that temporary files are removed."""
    del frame
    sys.exit(128 + number)


def _answer(there: Connection, config: ScoreConfig, source: str, target: str) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # the terminal sends them to both processes; the parent ends this one
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    console.set_up(quiet=config.quiet, verbose=config.verbose, log_format=config.log_format)
    stages = Stages()
    try:
        with progress.watched(config.stall_limit):
            summary = pipeline.score(config, source, target, stages)
    except GenrecError as error:
        there.send(RetryError(str(error)) if is_exhausted(error) else error)  # what led to it is not sent
        return
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_exhausted(error):
            raise
        there.send(RetryError(f"the profiled run is out of memory or threads ({error}); try --limit N"))
        return
    elapsed_s = time.perf_counter() - stages.began
    there.send(Ran(summary=summary, spans=stages.spans, seconds=stages.seconds, elapsed_s=elapsed_s))
