"""When a signal comes too late: while an output is put in place, and after it where the command is done with that.

Owns: one state of the process. Must not know: the handlers of signals, what an output is.
In: a command that ends with its output, an output that is about to appear, a command that is over. Out: whether a
signal may still end the run, whether a thread's work is still wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class _State:
    done_then: bool = False  # the command's work is done once an output is in place
    placing: bool = False
    given_up: bool = False
    arrived: type[BaseException] | None = None  # meanwhile, first of all


_now = _State()


def nothing_yet() -> None:
    """Begin a command: signals end it."""
    global _now  # noqa: PLW0603 (signals have one handler for the whole process, so they have one state)
    _now = _State()


def once_in_place() -> None:
    """Say that the command is done once its output is in place: from then on signals change nothing."""
    _now.done_then = True


def over(*, for_good: bool) -> None:
    """Say that the command is over, and its process with it if `for_good`.

    Then what a thread still works on is for nobody, and Python would wait for it. A program that calls commands goes
    on.
    """
    _now.given_up = for_good


def given_up() -> bool:
    """Return whether the command is over."""
    return _now.given_up


def puts_off(error: type[BaseException]) -> bool:
    """Return whether a signal's exception must not be raised now; it is kept for later."""
    if _now.placing and _now.arrived is None:
        _now.arrived = error
    return _now.placing


@contextmanager
def placing() -> Iterator[None]:
    """Put an output in place undisturbed: a signal that comes meanwhile counts only afterwards, or never.

    Raises:
        BaseException: the signal's, where the command goes on after this output.
    """
    _now.placing = True
    placed = False
    try:
        yield
        placed = True
    finally:
        _now.placing = placed and _now.done_then
    if _now.arrived is not None and not _now.placing:
        arrived, _now.arrived = _now.arrived, None
        raise arrived
