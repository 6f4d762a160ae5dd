"""Exports to Redis: the recommendations of each user under a version's keys, and a pointer that names the live version.

Owns: versions, the pointer, the lock, how commands go out and what failures mean. Must not know: where rows come from.
In: keys and values, in columns. Out: a store in which readers that follow the pointer see one whole version.

A version's keys are `VERSION:KEY`. The pointer is set once all of them are there; then the keys of other versions get a
time to live. What a killed export leaves is a version that the pointer does not name: the next export overwrites it or
lets it expire.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import polars as pl

from genrec_batch.core.errors import ConfigError, EngineError, GenrecError, RetryError
from genrec_batch.runtime import progress
from genrec_batch.runtime.console import LOG

SCHEMES = ("redis", "rediss", "unix")
INSTALL = "pip install 'genrec-batch[redis]'"
LOCK_S = 15  # after which another export may take over from one that was killed
AT_ONCE = 10_000  # users whose commands go out before their answers are read
OLDEST = (6, 2)  # version of the server: SET with GET and EXAT
CONNECT_S, ANSWER_S = 10, 60
VERSION = re.compile(rb"[0-9a-f]{12}")
DATABASE = re.compile(r"/?|/\d+")
COMMANDS = (  # that the user of an export needs
    "+info", "+get", "+set", "+type", "+sadd", "+srem", "+smembers", "+scan", "+expire", "+pexpire", "+del", "+unlink",
    "+eval", "+evalsha", "+script|load",
)  # fmt: skip
PASSWORD = "REDISCLI_AUTH"  # noqa: S105 (the name of the variable that redis-cli reads)


@dataclass(kw_only=True)
class Store:
    """A Redis server, and the keys of one version in it."""

    shown: str  # without the password
    client: Any
    version: str
    pointer: str
    expires_s: int | None  # moment at which the version's keys expire, as epoch seconds
    server: str | None = None  # the server's own id since it was started, once it was checked

    @property
    def versions(self) -> str:
        """The key of the set of versions that have keys."""
        return f"{self.pointer}:versions"

    def check(self) -> None:
        """Look at the server and the pointer, before anything is written.

        Raises:
            EngineError: the server is too old or a cluster, or the pointer's key holds something else than a version.
        """
        info = self.client.info("server")
        found = tuple(int(number) for number in str(info["redis_version"]).split(".")[:2])
        if found < OLDEST:
            raise _wrong(f"{self.shown}: Redis {info['redis_version']} is too old; 6.2 or later is needed")
        if info.get("redis_mode") == "cluster":
            raise _wrong(f"{self.shown}: a Redis Cluster, to which no export goes; name a single server or a primary")
        self.server = info.get("run_id")
        self._check_pointer()
        memory = self.client.info("memory")
        if memory.get("maxmemory") and str(memory.get("maxmemory_policy")).startswith("allkeys"):
            LOG.warning(
                "%s: it drops any keys when its memory is full (%s): then users have no list, until the next export",
                self.shown,
                memory["maxmemory_policy"],
            )

    def _check_pointer(self) -> None:
        kinds = {self.pointer: "string", self.versions: "set", f"{self.pointer}:lock": "string"}
        odd = [key for key, kind in kinds.items() if self.client.type(key).decode() not in (kind, "none")]
        held = None if odd else self.client.get(self.pointer)
        if held is not None and not VERSION.fullmatch(held):
            odd = [self.pointer]
        if odd:
            raise _wrong(
                f"{self.shown}: the key {odd[0]!r} holds something else than an export puts there, perhaps of another "
                "program; --pointer names another key"
            )

    @contextmanager
    def locked(self) -> Iterator[Any]:
        """Hold the lock of the pointer.

        Raises:
            RetryError: another export holds it.
        """
        lock = self.client.lock(f"{self.pointer}:lock", timeout=LOCK_S, thread_local=False)
        if not lock.acquire(blocking_timeout=LOCK_S + 1):
            raise RetryError(f"{self.shown}: another export is writing for {self.pointer!r} now; wait for it")
        try:
            yield lock
        finally:
            if lock.owned():
                lock.release()

    def write(self, entries: pl.DataFrame) -> int:
        """Set the keys of some users to their values; return the bytes that were sent.

        Raises:
            redis.exceptions.RedisError: the connection is lost, or the server refuses a key.
        """
        key = pl.concat_str(pl.lit(f"{self.version}:"), pl.col("key"))
        return self._send(entries.select(command("SET", key, pl.col("value"), *self._expiry()).alias("c"))["c"])

    def _expiry(self) -> list[pl.Expr]:
        return [] if self.expires_s is None else [pl.lit("EXAT"), pl.lit(str(self.expires_s))]

    def _send(self, commands: pl.Series) -> int:
        sent, answered, pool = 0, False, self.client.connection_pool
        connection = pool.get_connection()
        try:
            for some in commands.to_frame().iter_slices(AT_ONCE):
                text = some.to_arrow(compat_level=pl.CompatLevel.oldest())["c"].combine_chunks()
                length = text.nbytes and int(pl.Series(pl.from_arrow(text)).str.len_bytes().sum())
                connection.send_packed_command([memoryview(text.buffers()[2])[:length]])
                for _ in range(len(some)):
                    connection.read_response()
                sent += length
                progress.step()
            answered = True
        finally:
            if not answered:  # the rest of the answers would be taken for those of later commands
                connection.disconnect()
            pool.release(connection)
        return sent

    def publish(self) -> str | None:
        """Let the pointer name this version; return the one that it named.

        Raises:
            RetryError: the server was restarted meanwhile, so keys may be lost.
        """
        if self.client.info("server").get("run_id") != self.server:
            raise RetryError(
                f"{self.shown}: the server was restarted meanwhile, or another took its place, and may have lost keys "
                "of this version, so it is not published; run the same command again"
            )
        before = self.client.set(self.pointer, self.version, exat=self.expires_s, get=True)
        return None if before is None else before.decode(errors="replace")

    def expire_others(self, keep_s: int, held: Callable[[], object]) -> int:
        """Let the keys of all versions that the pointer does not name expire; return their number.

        `held` is called all the time and renews the lock, without which another export could publish one of them.
        """
        count = 0
        for member in sorted(self.client.smembers(self.versions)):
            version = member.decode(errors="replace")
            if version == self.version:
                continue
            for keys in self._keys(version):
                held()
                self._send(keys.select(command("EXPIRE", pl.col("key"), pl.lit(str(keep_s))).alias("c"))["c"])
                count += len(keys)
            self.client.srem(self.versions, member)
        return count

    def discard(self) -> None:
        """Remove this version's keys, unless it is live."""
        if self.client.get(self.pointer) == self.version.encode():
            return
        for keys in self._keys(self.version):
            if len(keys):
                self.client.unlink(*keys["key"].to_list())
        self.client.srem(self.versions, self.version)

    def _keys(self, version: str) -> Iterator[pl.DataFrame]:
        cursor = 0
        while True:
            cursor, keys = self.client.scan(cursor, match=f"{version}:*", count=AT_ONCE)
            yield pl.DataFrame({"key": [key.decode() for key in keys]}, {"key": pl.String})
            if not cursor:
                return

    def evicted(self) -> int:
        """Return how many keys the server has evicted since it was started."""
        return int(self.client.info("stats")["evicted_keys"])


def command(*words: str | pl.Expr) -> pl.Expr:
    """Return a command of Redis for each row, in its protocol RESP: the number of words, then each with its length."""
    parts = [pl.lit(f"*{len(words)}\r\n")]
    for word in words:
        text = pl.lit(word) if isinstance(word, str) else word
        parts += [pl.lit("$"), text.str.len_bytes().cast(pl.String), pl.lit("\r\n"), text, pl.lit("\r\n")]
    return pl.concat_str(parts)


def is_store(target: str) -> bool:
    """Return whether a target is a Redis server."""
    return target.partition("://")[0] in SCHEMES and "://" in target


def shown(target: str) -> str:
    """Return a target without user and password."""
    parts = urlsplit(target)
    return f"TARGET {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def connected(target: str) -> Any:
    """Return a client; the password is that of the URL, else of the environment variable REDISCLI_AUTH.

    Raises:
        EngineError: the package redis is not installed.
        ConfigError: not a URL of a server.
    """
    try:
        import redis
    except ImportError as error:
        raise EngineError(f"{shown(target)}: the package redis is not installed; {INSTALL}") from error
    parts = urlsplit(target)
    if parts.scheme != "unix" and not DATABASE.fullmatch(parts.path):
        raise ConfigError(
            f"{shown(target)}: not redis://HOST:PORT/DB (DB is a number, 0 by default, not {parts.path[1:]!r})"
        )
    password = None if parts.password else os.environ.get(PASSWORD)
    options = {"password": password} if password else {}
    try:
        return redis.Redis.from_url(
            target, socket_connect_timeout=CONNECT_S, socket_timeout=ANSWER_S, decode_responses=False, **options
        )
    except ValueError as error:
        raise ConfigError(f"{shown(target)}: not redis://HOST:PORT/DB ({error})") from None


@contextmanager
def failures(where: str) -> Iterator[None]:
    """Map the failures of a server to errors that say what to do; none of them names a password."""
    import redis

    try:
        yield
    except GenrecError:
        raise
    except (redis.exceptions.LockError, redis.exceptions.LockNotOwnedError) as error:
        raise RetryError(
            f"{where}: this export lost its lock: it took too long and another began, or the server lost its keys; run "
            "it again"
        ) from error
    except redis.exceptions.NoPermissionError as error:
        raise _wrong(
            f"{where}: {error}; the user needs {', '.join(COMMANDS)}, and the keys of --pointer and of all versions "
            "(~*)"
        ) from None
    except redis.exceptions.AuthenticationError as error:
        raise _wrong(
            f"{where}: the server refuses this user or password ({error}); give them in the URL or in {PASSWORD}"
        ) from None
    except redis.exceptions.ReadOnlyError as error:
        raise _wrong(f"{where}: a replica, which nobody writes to ({error}); name its primary") from None
    except redis.exceptions.OutOfMemoryError as error:
        raise RetryError(
            f"{where}: the server is out of memory ({error}); the live version stays; raise its maxmemory, or take "
            "--value ids or fewer --columns, and run the same command again"
        ) from error
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as error:
        raise RetryError(
            f"{where}: no connection ({error}); the live version stays; run the same command again"
        ) from error
    except redis.exceptions.RedisError as error:
        if str(error).startswith("MISCONF"):
            raise RetryError(f"{where}: {error}") from error
        raise _wrong(f"{where}: the server refuses a command ({error})") from error


def _wrong(text: str) -> EngineError:
    error = EngineError(text)
    error.about = "store"
    return error


def moment(ttl_us: int | None) -> int | None:
    """Return the moment that lies a time to live from now, as epoch seconds."""
    return None if ttl_us is None else int(time.time()) + max(1, ttl_us // 1_000_000)
