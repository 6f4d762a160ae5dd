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

from genrec_batch.core.errors import ConfigError, GenrecError, RetryError, is_full, is_unreachable, refused
from genrec_batch.runtime import console, signals

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
    """Print a user's error and exit with its code."""
    print_error("error:", str(error))
    raise typer.Exit(error.exit_code)


def print_error(title: str, text: str) -> None:
    """Print an error on stderr: as a line for a person, or in the run's JSON log."""
    if console.LOG.handlers and isinstance(console.LOG.handlers[0].formatter, console.JsonFormatter):
        console.LOG.error("%s %s", title, text)
    else:
        console.stderr.print(f"[bold red]{title}[/] {escape(text)}", soft_wrap=True, highlight=False)


def guarded(work: Callable[[], None], *, verbose: bool) -> None:
    """Run a command's work; every failure becomes one message and one exit code."""
    signals.begin_command()
    try:
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
    except MemoryError as error:
        ways = "free some memory, or use a smaller --batch-size, --beam-width, --num-candidates or --memory-limit"
        fail(RetryError(f"out of memory ({error}); {ways}"))
    except Exception as error:  # the only broad one: a fault of ours, reported as one
        if isinstance(error, OSError) and is_full(error):
            fail(refused(error, error.filename or "a temporary file", RetryError))
        if isinstance(error, OSError) and error.filename and is_unreachable(error):
            fail(ConfigError(f"{error.filename}: cannot be reached by this user ({error.strerror})"))
        if verbose or console.LOG.level == logging.DEBUG:
            traceback.print_exc()
        fault = "This is a fault of genrec-batch, not of your input; run again with --verbose for the traceback."
        print_error("internal error:", f"{type(error).__name__}: {error}\n{fault}")
        raise typer.Exit(1) from error
    finally:
        signals.end_command()
