"""The console: logs and progress on stderr, results and one line of JSON on stdout.

Owns: the two streams, colours, the log format. Must not know: what is reported.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import IO, Any, Protocol, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from genrec_batch.core.errors import ConfigError, GenrecError, TerminalGoneError, refused
from genrec_batch.core.text import harmless
from genrec_batch.runtime.progress import step, titled

LOG = logging.getLogger("genrec_batch")
WIDE = 72  # columns of a terminal from which progress has a bar and counts
PADDING = re.compile(r" +(?=\n)")
_SHOWN: list[tuple[Progress, str]] = []  # the step that is shown now, with its title: at most one
_LATER: list[str] = []  # warnings to log once logs are set up
_WARNED: list[str] = []  # all warnings since the command began
_ADVISED: set[str] = set()  # of these, what is no fault of the run: `--strict` lets it pass
_ABOUT: ContextVar[tuple[str, tuple[str, ...]]] = ContextVar("about", default=("", ()))  # see `about`
ADVICE = {"advice": True}  # `extra` of such a warning


def stdout_refused(error: OSError) -> GenrecError:
    """Map a refused write to stdout to a user error; later writes to stdout are discarded.

    It is RetryError where stdout is a file on a full disk, TerminalGoneError where its terminal is closed, else
    ConfigError.
    """
    gone = error.errno == errno.EIO and _is_device(sys.stdout)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):  # a test's stream has no file descriptor
        os.dup2(nowhere, sys.stdout.fileno())  # Python flushes stdout once more when it ends
    os.close(nowhere)
    if gone:
        return TerminalGoneError(f"the terminal went away, and stdout with it ({error.strerror})")
    return refused(error, "stdout", ConfigError)


def _is_device(stream: IO[str]) -> bool:
    """Return whether a stream is a device: a terminal that is gone no longer reports that it was a terminal."""
    try:
        return stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


class _File:
    """A stream of the process for Rich to write to: refused writes to stdout become user errors.

    Refused writes to stderr are ignored: there is no other place to report them, and a run goes on without its logs.
    Rich pads the lines of a table with blanks; a pipe or a file gets the lines without them.
    """

    def __init__(self, stream: IO[str], *, err: bool) -> None:
        self._stream, self._err = stream, err

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._reported():
            self._stream.write(text if self._stream.isatty() else PADDING.sub("", text))
        return len(text)

    def flush(self) -> None:
        with self._reported():
            self._stream.flush()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            if not self._err:
                raise stdout_refused(error) from error


class _Stream(Console):
    @property
    def file(self) -> IO[str]:
        """The stream that is written to."""
        return cast("IO[str]", _File(super().file, err=self.stderr))

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render what is printed; text from data has no control characters of its own, Rich's styles are no text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Leave a closed pipe to `cli.exits`, which knows the exit code; Rich would end the process with 1."""
        raise BrokenPipeError


def _console(*, err: bool) -> Console:
    """Return a console as wide as its terminal; a pipe or a file has 160 columns unless COLUMNS is set."""
    made = _Stream(stderr=err, emoji=False)
    return made if made.is_terminal or "COLUMNS" in os.environ else _Stream(stderr=err, emoji=False, width=160)


stderr, stdout = _console(err=True), _console(err=False)


def accept_any_text() -> None:
    """Write what the encoding of stdout or stderr lacks (ASCII under LANG=C) as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class TextFormatter(logging.Formatter):
    """A line of text: time, level, message; control characters from data are escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line."""
        return harmless(super().format(record), one_line=True)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return json.dumps({"time": moment, "level": record.levelname.lower(), "message": record.getMessage()})


def set_up(*, quiet: bool, verbose: bool, log_format: str) -> None:
    """Send logs to stderr: warnings only when quiet, everything when verbose; as text or JSON lines."""
    handler: logging.Handler
    if log_format == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter())
    elif not stderr.is_terminal:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(TextFormatter("%(asctime)s %(levelname)-8s %(message)s", "%H:%M:%S"))
    else:
        handler = RichHandler(console=stderr, show_path=False, markup=False, log_time_format="%H:%M:%S")
        handler.setFormatter(TextFormatter("%(message)s"))
    LOG.handlers = [handler]
    LOG.propagate = False
    forget_warnings()
    LOG.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    while _LATER:
        LOG.warning("%s", _LATER.pop(0))


def later(warnings: Iterable[str]) -> None:
    """Log these warnings once logs are set up, instead of any earlier ones."""
    _LATER[:] = warnings


def warned() -> list[str]:
    """Return every distinct warning since the command began, in order."""
    return list(dict.fromkeys(_WARNED))


def faults() -> list[str]:
    """Return the warnings since the command began that are no mere advice, which `ADVICE` marks."""
    return [said for said in warned() if said not in _ADVISED]


def forget_warnings() -> None:
    """Begin a command, or a call of the Python API, of which no warning is known yet."""
    _WARNED.clear()
    _ADVISED.clear()


@contextmanager
def about(name: str, beginnings: tuple[str, ...]) -> Iterator[None]:
    """Put a name before what this thread logs in the block, where that begins in one of these ways."""
    token = _ABOUT.set((name, beginnings))
    try:
        yield
    finally:
        _ABOUT.reset(token)


def _collect(record: logging.LogRecord) -> bool:
    """Name what a log is about, and keep a warning for the summary, whoever shows it."""
    name, beginnings = _ABOUT.get()
    if name and record.getMessage().startswith(beginnings):
        record.msg, record.args = name + record.getMessage(), ()
    if record.levelno == logging.WARNING:
        _WARNED.append(record.getMessage())
        if hasattr(record, "advice"):
            _ADVISED.add(record.getMessage())
    return True


LOG.addFilter(_collect)  # a handler would silence the warnings that Python prints where logs are not set up


class Advance(Protocol):
    """Reports progress."""

    def __call__(self, units: int) -> None:
        """Report that some more units are done."""
        ...


def nowhere(units: int) -> None:
    """Show no progress; there is some."""
    del units
    step()


def _hidden() -> bool:
    handlers = LOG.handlers
    if not handlers or not stderr.is_terminal or LOG.level > logging.INFO:
        return True
    return isinstance(handlers[0].formatter, JsonFormatter)


@contextmanager
def progress(title: str, total: int, unit: str, *, done: int = 0) -> Iterator[Advance]:
    """Show a bar with count, rate and time left while the block runs; `done` units were done before it.

    Nothing is shown where stderr is not a terminal, with `--quiet`, with JSON logs, and to callers of the library.
    """
    with titled(title):
        if _hidden():
            yield nowhere
        else:
            with _bar(title, total, unit, done) as advance:
                yield advance


@contextmanager
def _bar(title: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    columns: tuple[ProgressColumn, ...] = (TextColumn("{task.description}"), TextColumn("{task.percentage:>3.0f}%"))
    if stderr.width >= WIDE:
        count = TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}")
        columns = (columns[0], BarColumn(bar_width=None), count)
    columns = (*columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(compact=True), TextColumn("left"))
    with _shown(Progress(*columns, console=stderr, transient=True, expand=stderr.width >= WIDE), title) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="")
        began = time.perf_counter()

        def advance(units: int) -> None:
            step()
            bar.advance(task, units)
            rate = (bar.tasks[task].completed - done) / max(time.perf_counter() - began, 1e-9)
            bar.update(task, rate=f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")

        yield advance


@contextmanager
def busy(title: str) -> Iterator[None]:
    """Show a step of unknown length and the time that it has taken so far; hidden where `progress` is.

    Inside another step that is shown, the title is added to that step's.
    """
    with titled(title):
        if _hidden():
            yield
        elif _SHOWN:
            doing(title)
            yield
            doing("")
        else:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            with _shown(Progress(*columns, console=stderr, transient=True), title) as bar:
                bar.add_task(title, total=None)
                yield


def doing(what: str) -> None:
    """Show the state of the current step beside its title, such as "engine 2 of 4, 30%"; "" removes it."""
    step()
    if threading.current_thread() is not threading.main_thread():
        return  # work that is done ahead is not part of the step that is shown
    for bar, title in _SHOWN:
        for task in bar.task_ids:
            bar.update(task, description=f"{title}: {what}" if what else title)


@contextmanager
def _shown(bar: Progress, title: str) -> Iterator[Progress]:
    """Draw a bar while the block runs; `doing` changes its title."""
    with bar:
        _SHOWN.append((bar, title))
        try:
            yield bar
        finally:
            _SHOWN.pop()


def line(text: str) -> None:
    """Print text and an end of line on stdout, without Rich.

    Raises:
        RetryError: stdout is a file on a full disk.
        TerminalGoneError: the terminal of stdout is closed.
        ConfigError: stdout refuses the write for another reason.
    """
    stdout.file.write(harmless(text) + "\n")
    stdout.file.flush()


def last_line(summary: Mapping[str, Any]) -> None:
    """Print the run's summary as one JSON object, the last line of stdout.

    Raises:
        RetryError, TerminalGoneError, ConfigError: see `line`.
    """
    line(json.dumps(summary))
