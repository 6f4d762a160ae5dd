"""Signals: how SIGINT, SIGTERM and SIGHUP end a command, and when they come too late.

Owns: the handlers, and one state of the process: whether an output is being put in place, and whether the command is
over. Must not know: what an output is, what is printed. In: a command that begins or ends, an output that is about to
appear. Out: KeyboardInterrupt or `Terminated` in the main thread, and whether the work of a thread is still needed.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from genrec_batch.runtime import threads

PATIENCE_S = 1.0  # within which a second Ctrl-C is the first one, sent twice


class Terminated(BaseException):
    """SIGTERM arrived: end now, leave what is written for a later run (exit 143)."""

    exit_code, reason = 143, "terminated"


class HungUp(Terminated):
    """SIGHUP arrived: the terminal went away (exit 129)."""

    exit_code, reason = 129, "the terminal went away"


STOPS = {signal.SIGTERM: Terminated, signal.SIGHUP: HungUp}


@dataclass
class _Command:
    """The command that runs: signals have one handler for the whole process, so there is one."""

    ends_with_output: bool = False  # its work is done once an output is in place
    placing: bool = False
    over: bool = False
    postponed: type[BaseException] | None = None  # of the first signal while `placing`


_command = _Command()
_own_process = False


def own_process() -> None:
    """Say that this process runs a single command and ends with it, if need be without cleaning up after a signal."""
    global _own_process  # noqa: PLW0603 (one state for the whole process)
    _own_process = True


def begin_command() -> None:
    """Begin a command: from now on signals end it."""
    global _command  # noqa: PLW0603 (one state for the whole process)
    _command = _Command()
    for number in STOPS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # `nohup` has it ignored
            signal.signal(number, _terminate)
    signal.signal(signal.SIGINT, _interrupt)


def end_with_output() -> None:
    """Say that the command is done once its output is in place: from then on signals change nothing."""
    _command.ends_with_output = True


def end_command() -> None:
    """End a command. If its process ends too, threads stop work that nobody needs and Python would wait for."""
    _command.over = _own_process


def is_over() -> bool:
    """Return whether the command and its process are about to end."""
    return _command.over


@contextmanager
def placing() -> Iterator[None]:
    """Put an output in place undisturbed: a signal that arrives meanwhile takes effect afterwards, or never.

    Raises:
        BaseException: the signal's, where the command goes on after this output.
    """
    _command.placing = True
    placed = False
    try:
        yield
        placed = True
    finally:
        _command.placing = placed and _command.ends_with_output
    if _command.postponed is not None and not _command.placing:
        postponed, _command.postponed = _command.postponed, None
        raise postponed


def _postpones(error: type[BaseException]) -> bool:
    """Return whether a signal's exception must wait, and keep the first one."""
    if _command.placing and _command.postponed is None:
        _command.postponed = error
    return _command.placing


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End once the work in progress is whole; a second Ctrl-C, after a moment, does not wait for that."""
    del number, frame
    first = time.monotonic()

    def again(number: int, frame: FrameType | None) -> None:
        del number, frame
        if time.monotonic() - first > PATIENCE_S:  # `timeout` sends its signal twice at once
            sys.stderr.write("interrupted again: ending at once; the same command goes on where it stopped\n")
            os._exit(130)

    signal.signal(signal.SIGINT, again)
    if not _postpones(KeyboardInterrupt):
        raise KeyboardInterrupt


def _terminate(number: int, frame: FrameType | None) -> None:
    del frame
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)  # `timeout` sends it twice: the second must not end what the first began
    stop = STOPS[signal.Signals(number)]
    if not _postpones(stop):
        _end_in_time(stop.exit_code)
        raise stop


def _end_in_time(code: int) -> None:
    """End the process as it is where a signal has not ended it within `threads.GRACE_S`.

    An exception that is raised in a callback of Python's own, such as that of an import's lock, is lost, and the lock
    stays taken. What is written stays, as after SIGKILL.
    """

    def end() -> None:
        time.sleep(threads.GRACE_S)
        with suppress(OSError):
            os.write(2, b"the signal did not end the process: ending now; the same command goes on where it stopped\n")
        os._exit(code)

    if _own_process:
        _thread.start_new_thread(end, ())  # `threading` may be what the signal has interrupted
