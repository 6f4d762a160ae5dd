"""The errors a user can cause, each with the exit code a scheduler sees.

Owns: the mapping from kinds of failure to exit codes. Must not know: what fails. Every message names the file, column,
row or flag at fault, and the way out.
"""

from __future__ import annotations

import difflib
import errno
import re
from typing import ClassVar, TypeVar


class GenrecError(ValueError):
    """Base of every error that the user can correct; its text is shown without a traceback."""

    exit_code: ClassVar[int] = 2


class ConfigError(GenrecError):
    """A flag, an environment variable or the config file is wrong (exit 2)."""

    exit_code = 2


class InputError(GenrecError):
    """The events, users, videos or candidates cannot be read or break the schema (exit 3)."""

    exit_code = 3


class ModelError(GenrecError):
    """A model directory, weights file or catalog is missing, damaged or does not fit (exit 4)."""

    exit_code = 4


class EngineError(GenrecError):
    """A requested engine, device or precision is not available (exit 5); `about` says what a person must look at."""

    exit_code = 5
    about: str = "installation"  # the same on every machine with these packages

    @classmethod
    def of_device(cls, text: str) -> EngineError:
        """Return the error that this machine's device is missing, too old or broken; another machine may do."""
        error = cls(text)
        error.about = "device"
        return error

    @classmethod
    def of_server(cls, text: str) -> EngineError:
        """Return the error that a server which computes is not what the run needs, or fails at it."""
        error = cls(text)
        error.about = "server"
        return error


class GateError(GenrecError):
    """The run worked, but its result is not good enough: too many rejects, parity, quality (exit 6)."""

    exit_code = 6


class RetryError(GenrecError):
    """The same command may succeed later: device out of memory at batch 1, disk full, lost connection (exit 75)."""

    exit_code = 75


class DeviceMemoryError(RetryError):
    """The device has too little free memory (exit 75); a smaller batch may fit."""


class TerminalGoneError(GenrecError):
    """The terminal of stdout is closed, and its SIGHUP is ignored, as under `nohup` (exit 129)."""

    exit_code = 129


EXHAUSTED = re.compile(  # what libraries say where the system refuses a thread or memory
    r"can't start new thread|failed to spawn thread|spawn (worker )?thread|ThreadPoolBuildError|thread creation failed"
    r"|failed to map segment|cannot allocate memory|can't allocate memory|not enough memory|bad_alloc|out of memory"
    r"|memory allocation of \d+ bytes failed|cannot apply additional memory protection"
    r"|Resource temporarily unavailable|pthread_create|out of heap memory",
    re.IGNORECASE,
)
E = TypeVar("E", bound=BaseException)
LOADING = (ImportError, OSError, RuntimeError, SystemError)


def is_exhausted(error: BaseException) -> bool:
    """Return whether an error, or one that led to it, is that the system has no thread, process or memory left."""
    seen: list[BaseException] = []
    while error not in seen:
        if isinstance(error, MemoryError) or (
            isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN)
        ):
            return True
        if (isinstance(error, LOADING) or is_panic(error)) and EXHAUSTED.search(str(error)):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__ or error
    return False


def is_panic(error: BaseException) -> bool:
    """Return whether a library in Rust panicked, which Python sees as a BaseException of pyo3's own."""
    return type(error).__name__ == "PanicException"


def without_frames(error: E) -> E:
    """Return an error that is kept as a value: without its traceback and the errors that led to it.

    A traceback keeps the frames that the error passed through, and these keep what they hold, which may be the error
    itself: a cycle that stays in memory until the garbage collector finds it.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def is_full(error: OSError) -> bool:
    """Return whether a write failed because the disk or the user's quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_unreachable(error: OSError) -> bool:
    """Return whether a path cannot be reached: no permission for a folder, a name too long, links in a circle."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)


def refused(error: OSError, what: str, otherwise: type[GenrecError]) -> GenrecError:
    """Map a refused write of `what` to a user error: RetryError where the disk or a limit is full, else `otherwise`."""
    if is_full(error):
        return RetryError(f"{what}: the disk is full; free space and run the same command again")
    if error.errno == errno.EFBIG:
        return RetryError(
            f"{what}: a file may not be so large; raise the limit (ulimit -f), run the same command again"
        )
    return otherwise(f"{what}: cannot be written ({error.strerror or error})")


class NothingToScoreError(GenrecError):
    """The input is well formed, but has no user to score (exit 99, Airflow's "skipped")."""

    exit_code = 99


def nearest(name: str, names: list[str], count: int = 3) -> str:
    """Return " Did you mean 'a' or 'b'?" for the names most similar to `name`, or "" where none is similar.

    A name that differs only in case is the most similar.
    """
    same = [each for each in names if each.casefold() == name.casefold()]
    close = same[:count] or difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
