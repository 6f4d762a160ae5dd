"""A private folder of built engines. An engine file is code, so only files written by this user are loaded.

Owns: the place of engines, what makes one stale, how two processes share the folder. Must not know: the content of an
engine, or how it is built. Each entry is `<key>.engine` and `<key>.sha256`; both appear by an atomic rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from genrec_batch.core.errors import EngineError

VARIABLE = "GENREC_BATCH_CACHE"


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """Everything that a built engine depends on; any difference means another file."""

    name: str  # its purpose, such as "prefill", so that a person can tell the files apart
    weights_sha256: str
    graph_sha256: str
    precision: str
    shape: Mapping[str, int | bool]  # the static sizes
    library: str  # name and full version, such as "tensorrt 8.6.0"
    architecture: str  # of the GPU, such as "sm_90"
    options: Mapping[str, str] = field(default_factory=dict)  # further settings of the builder

    def digest(self) -> str:
        """Return the key as 64 hex digits."""
        text = json.dumps(asdict(self) | {"shape": dict(self.shape), "options": dict(self.options)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def default_directory() -> Path:
    """Return the cache folder: GENREC_BATCH_CACHE, else $XDG_CACHE_HOME or ~/.cache, then genrec-batch/engines."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "genrec-batch" / "engines"


class EngineCache:
    """Built engines by key. The folder is made with mode 0700 and refused where others could write to it."""

    def __init__(self, directory: Path | None = None) -> None:
        """Open or make the folder.

        Raises:
            EngineError: the folder cannot be made, belongs to someone else, or others may write to it.
        """
        self.directory = default_directory() if directory is None else directory
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"{self.directory}: cannot make the engine cache ({error.strerror}); {_WAY_OUT}"
            ) from error
        _refuse_foreign(self.directory)

    def path(self, key: EngineKey) -> Path:
        """Return the path of the engine of `key`, whether or not it exists."""
        return self.directory / f"{key.name}-{key.digest()[:40]}.engine"

    def read(self, key: EngineKey) -> bytes | None:
        """Return a cached engine, or None where there is none or its bytes do not match their sha256.

        Raises:
            EngineError: a file belongs to someone else or others may write to it.
        """
        path = self.path(key)
        plan, expected = _read_own(path), _read_own(path.with_suffix(".sha256"))
        if plan is None or expected is None or hashlib.sha256(plan).hexdigest() != expected.decode("ascii", "replace"):
            return None
        return plan

    def get(self, key: EngineKey, build: Callable[[], bytes]) -> bytes:
        """Return the engine of `key`, built only once even if several processes need it at the same time.

        Raises:
            EngineError: see `read`; or what `build` raises.
        """
        plan = self.read(key)
        if plan is not None:
            return plan
        with self._lock(key):
            plan = self.read(key)  # another process may have built it while this one waited
            if plan is None:
                plan = build()
                self.write(key, plan)
        return plan

    def write(self, key: EngineKey, plan: bytes) -> None:
        """Write an entry, replacing one that exists.

        Raises:
            EngineError: the folder cannot be written.
        """
        path = self.path(key)
        digest = path.with_suffix(".sha256")
        try:
            digest.unlink(missing_ok=True)  # an engine without its sha256 counts as absent
            _replace(path, plan)
            _replace(digest, hashlib.sha256(plan).hexdigest().encode())
        except OSError as error:
            raise EngineError(f"{path}: cannot write the built engine ({error.strerror}); {_WAY_OUT}") from error

    def text(self, name: str) -> bytes | None:
        """Return a small file beside the engines, None where there is none.

        Raises:
            EngineError: it belongs to someone else, others may write to it, or it cannot be read.
        """
        return _read_own(self.directory / name)

    def keep(self, name: str, content: bytes) -> None:
        """Write a small file beside the engines, whole or not at all.

        Raises:
            EngineError: the folder cannot be written.
        """
        path = self.directory / name
        try:
            _replace(path, content)
        except OSError as error:
            raise EngineError(f"{path}: cannot be written ({error.strerror}); {_WAY_OUT}") from error

    @contextmanager
    def _lock(self, key: EngineKey) -> Iterator[None]:
        path = self.path(key).with_suffix(".lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # also unlocks


_WAY_OUT = f"name another folder with {VARIABLE}"


def _refuse_foreign(path: Path, descriptor: int | None = None) -> None:
    """Raise EngineError unless this user owns the file or folder and nobody else may write to it."""
    status = path.lstat() if descriptor is None else os.fstat(descriptor)
    if stat.S_ISLNK(status.st_mode):
        raise EngineError(f"{path} is a symbolic link; an engine is code, so it is not followed: {_WAY_OUT}")
    if status.st_uid != os.getuid():
        raise EngineError(f"{path} belongs to user {status.st_uid}; an engine is code, so it is not loaded: {_WAY_OUT}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EngineError(f"{path} may be written by others; `chmod go-w {path}` after checking it, or {_WAY_OUT}")


def _read_own(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EngineError(f"{path}: cannot read the cached engine ({error.strerror}); {_WAY_OUT}") from error
    with os.fdopen(descriptor, "rb") as file:
        _refuse_foreign(path, file.fileno())
        return file.read()


def _replace(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to disk, and rename it into place."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)  # only where it was not renamed
