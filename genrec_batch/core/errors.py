"""The errors a user can cause, each with the exit code a scheduler sees.

Owns: the mapping from kinds of failure to exit codes. Must not know: what fails. Every message names the file, column,
row or flag at fault, and the way out.
"""

from __future__ import annotations

import difflib
import errno
from typing import ClassVar


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
    """A requested engine, device or precision is not available (exit 5)."""

    exit_code = 5


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


def is_full(error: OSError) -> bool:
    """Return whether a write failed because the disk or the user's quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_unreachable(error: OSError) -> bool:
    """Return whether a path cannot be reached: no permission for a folder, a name too long, links in a circle."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)


def refused(error: OSError, what: str, otherwise: type[GenrecError]) -> GenrecError:
    """Map a refused write of `what` to a user error: RetryError where the disk is full, else `otherwise`."""
    if is_full(error):
        return RetryError(f"{what}: the disk is full; free space and run the same command again")
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
