"""How a command ends: one message and one exit code for every failure and every signal.

Owns: exit codes and their messages, and the only broad `except` of the package. Must not know: options, or which
commands there are. `runtime.signals` has the handlers.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.markup import escape

from genrec_batch.core.errors import (
    ConfigError,
    EngineError,
    GenrecError,
    InputError,
    RetryError,
    is_exhausted,
    is_full,
    is_panic,
    is_unreachable,
    refused,
)
from genrec_batch.core.text import harmless
from genrec_batch.runtime import console, progress, room, signals

ROOM = (
    "free some memory, raise the limit (ulimit -v, ulimit -u, the container's memory and pids), or use a smaller "
    "--batch-size, --beam-width, --num-candidates or --memory-limit; then run the same command again"
)
RESUME = "run the same command again to resume"


@contextmanager
def done(what: str) -> Iterator[None]:
    """Report work that is done: an error in the block loses none of it, and its message ends with `what`.

    Raises:
        GenrecError: of the same kind as in the block.
    """
    try:
        yield
    except GenrecError as error:
        raise type(error)(f"{error}; {what}") from error


def fail(error: GenrecError) -> NoReturn:
    """Print a user's error and exit with its code; a job reads from the end of exit 5's what must be looked at."""
    if not isinstance(error, RetryError) and is_exhausted(error):
        error = RetryError(f"{error}; {ROOM}")
    print_error("error:", f"{error} (exit 5: {error.about})" if isinstance(error, EngineError) else str(error))
    raise typer.Exit(error.exit_code)


def print_error(title: str, text: str) -> None:
    """Print an error on stderr: as a line for a person, or in the run's JSON log."""
    if console.LOG.handlers and isinstance(console.LOG.handlers[0].formatter, console.JsonFormatter):
        console.LOG.error("%s %s", title, text)
    else:
        shown = escape(harmless(text, one_line=True))
        console.stderr.print(f"[bold red]{title}[/] {shown}", soft_wrap=True, highlight=False)


def guarded(work: Callable[[], None], *, verbose: bool, stall_limit_s: float = 0) -> None:
    """Run a command's work; every failure, a stall too, becomes one message and one exit code."""
    signals.begin_command()
    try:
        room.check()
        with progress.watched(stall_limit_s):
            work()
    except GenrecError as error:
        fail(error)
    except KeyboardInterrupt:
        console.LOG.warning("interrupted; %s", RESUME)
        exec("")  # noqa: S102 (an interrupt in an `exec` of a text would make `python -m` end itself by SIGINT)
        raise typer.Exit(130) from None
    except signals.Terminated as stopped:
        console.LOG.warning("%s; %s", stopped.reason, RESUME)
        raise typer.Exit(stopped.exit_code) from None
    except (typer.Exit, BrokenPipeError):
        raise
    except BaseException as error:  # the only broad one: a fault of ours, reported as one
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if is_exhausted(error):
            fail(RetryError(f"out of memory or threads ({type(error).__name__}: {error}); {ROOM}"))
        if is_panic(error):
            fail(InputError(f"a library panicked on an input ({error}); write the file again, or leave out the column"))
        if isinstance(error, OSError) and is_full(error):
            fail(refused(error, error.filename or "a temporary file", RetryError))
        if isinstance(error, OSError) and error.filename and is_unreachable(error):
            fail(ConfigError(f"{error.filename}: cannot be reached by this user ({error.strerror})"))
        if verbose or console.LOG.level == logging.DEBUG:
            traceback.print_exc()
        fault = "This is a fault of genrec-batch, not of your input; run again with --verbose for the traceback."
        print_error("internal error:", f"{type(error).__name__}: {error}\n  {fault}")
        raise typer.Exit(1) from error
    finally:
        signals.end_command()
