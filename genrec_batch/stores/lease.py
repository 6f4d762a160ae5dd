"""A lease: an object that says which process works on a name, renewed while it does, taken over once it has ended.

Owns: who holds a lease, when one has expired. Must not know: what it is for. Every write of the object is conditional,
so of two that want it one gets it. A holder renews it every `BEAT_S` seconds; one that nobody renews for `SPAN_S`
seconds, by the clock of the process that waits, is taken over, and at once where its process was of this machine and is
gone. A holder that was stopped for so long finds that it has lost the lease before it changes anything else.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genrec_batch.stores.bucket import Bucket, ConditionError

BEAT_S, SPAN_S, LOOK_S = 5.0, 30.0, 0.5


class HeldError(OSError):
    """Another process holds the lease; or, of `renew`, this one no longer does."""


class Lease:
    """A lease that this process holds."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        """Take a lease, or wait until the holder has shown that it lives.

        Raises:
            HeldError: it does; the message says where.
            OSError: the store cannot be reached, or refuses.
        """
        self._bucket, self._key, self._beats = bucket, key, 0
        self._about = {"owner": secrets.token_hex(8), "host": socket.gethostname(), "process": _process(os.getpid())}
        self._lock, self._ended, self._lost = threading.Lock(), threading.Event(), False
        self._version = self._taken()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def _content(self) -> bytes:
        self._beats += 1
        return json.dumps({**self._about, "beat": self._beats}).encode()

    def _taken(self) -> Mapping[str, str]:
        while True:
            found = self._bucket.get(self._key)
            before = None
            if found is not None:
                content, before = found
                about = _read(content)
                if not _is_gone(about) and self._is_renewed(content):
                    raise HeldError(f"on {about.get('host', 'another machine')}")
            try:
                return self._bucket.put_if(self._key, self._content(), before)
            except ConditionError:
                time.sleep(LOOK_S)

    def _is_renewed(self, content: bytes) -> bool:
        """Return whether an object changes within `SPAN_S`; one that is removed meanwhile does not."""
        until = time.monotonic() + SPAN_S
        while time.monotonic() < until:
            time.sleep(LOOK_S)
            found = self._bucket.get(self._key)
            if found is None:
                return False
            if found[0] != content:
                return True
        return False

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self.renew()
            except HeldError:
                return
            except OSError:  # out of reach: the next time may do
                continue

    def renew(self) -> None:
        """Renew the lease now.

        Raises:
            HeldError: it was taken over.
            OSError: the store cannot be reached.
        """
        with self._lock:
            if self._lost:
                raise HeldError("it was taken over")
            try:
                self._version = self._bucket.put_if(self._key, self._content(), self._version)
            except ConditionError as error:
                self._lost = True
                raise HeldError("it was taken over") from error

    def release(self) -> None:
        """Remove the object, if this process still holds it; nothing happens the second time."""
        if self._ended.is_set():
            return
        self._ended.set()
        try:
            self.renew()  # whoever wants it waits now, for its removal or for `SPAN_S`
            self._bucket.remove([self._key])
        except OSError:  # it expires by itself
            return


def _process(pid: int) -> str:
    """Return what tells a process from every other one on all machines, "" where it is gone or /proc does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        names = Path("/proc/self/ns/pid").readlink()
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return f"{boot} {names} {pid} {rest[18]}" if state not in "XZ" else ""  # it has ended


def _read(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_gone(about: Mapping[str, Any]) -> bool:
    """Return whether the holder was a process that this machine no longer has."""
    holder, mine = str(about.get("process", "")).split(), _process(os.getpid()).split()
    if len(holder) != len(mine) or not mine or holder[:2] != mine[:2]:
        return False
    return _process(int(holder[2])).split() != holder
