"""The command `export`: a finished output to a text file or to Redis.

Owns: the order of the steps, and the summary. Must not know: how rows become text or commands.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from genrec_batch.core.errors import ConfigError, GateError, RetryError
from genrec_batch.core.option_values import span_us
from genrec_batch.exports import form, store, texts
from genrec_batch.exports.form import Entries
from genrec_batch.exports.store import Store
from genrec_batch.io import fetched, published, recommended, table_runs
from genrec_batch.io.durable import sha256
from genrec_batch.io.recommended import Recommended
from genrec_batch.runtime import console, threads

KEEP_OLD = "1h"


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is exported, and how."""

    recs: str
    target: str
    columns: str | None = None
    key: str = Entries.key
    value: str = Entries.value
    pointer: str | None = None
    ttl: str | None = None
    keep_old: str = KEEP_OLD
    if_exists: str = "error"

    def __post_init__(self) -> None:
        if self.if_exists not in ("error", "overwrite"):
            raise ConfigError(f"--if-exists {self.if_exists!r} is not one of error, overwrite")
        Entries(key=self.key, value=self.value)
        self.ttl_us()
        span_us(self.keep_old, "--keep-old")
        if not store.is_store(self.target):
            texts.check(Path(self.target), self.if_exists)

    @property
    def where(self) -> str:
        """What errors call the output."""
        return f"RECS {self.recs}"

    def ttl_us(self) -> int | None:
        """Return `--ttl` in microseconds, None where keys do not expire.

        Raises:
            ConfigError: not a span of time.
        """
        return None if self.ttl is None else span_us(self.ttl, "--ttl")


def exported(wanted: Export) -> dict[str, Any]:
    """Export an output; return the summary.

    Raises:
        InputError: the output is not there, unfinished, damaged or of something else.
        GenrecError: see `texts.write` and `store.failures`.
    """
    began = time.perf_counter()
    with console.busy("checking the output"):
        place = table_runs.newest(wanted.recs, "RECS")
        rows, metadata = recommended.opened(place, "RECS")
    total = int(metadata.get("genrec.users", 0))
    if store.is_store(wanted.target):
        done = _to_store(wanted, rows, total, fetched.local(place, "RECS"))
    else:
        with console.busy("exporting"):
            chosen = None if wanted.columns is None else form.chosen(rows, wanted.columns, wanted.where)
            done = texts.write(rows, Path(wanted.target), chosen, wanted.where)
            done["target"] = wanted.target
    seconds = time.perf_counter() - began
    rate = {"users_per_s": round(done["users"] / seconds, 1)} if "users" in done else {}
    run = {"run_id": metadata.get("genrec.run_id"), "layout": rows.layout}
    return {
        "status": "ok",
        "command": "export",
        "recs": wanted.recs,
        **run,
        **done,
        "seconds": round(seconds, 3),
        **rate,
    }


def _to_store(wanted: Export, rows: Recommended, total: int, place: Path) -> dict[str, Any]:
    columns = form.chosen(rows, wanted.columns, wanted.where, form.FIELDS)
    entries = Entries(key=wanted.key, value=wanted.value, columns=columns)
    if wanted.value == "json":
        schema = rows.all_rows(columns).collect_schema()
        form.check_types(schema, wanted.where)
    where = store.shown(wanted.target)
    client = store.connected(wanted.target)
    pointer = wanted.pointer or entries.pointer
    target = Store(
        shown=where,
        client=client,
        version=_version(place, entries, pointer),
        pointer=pointer,
        expires_s=store.moment(wanted.ttl_us()),
    )
    with store.failures(where), ExitStack() as stack:
        stack.callback(client.close)
        target.check()
        lock = stack.enter_context(target.locked())
        advance = stack.enter_context(console.progress("export", total, "users"))
        evicted, users, size = target.evicted(), 0, 0
        client.sadd(target.versions, target.version)
        try:
            for some in _entries(rows, entries, wanted.where):
                size += target.write(some)
                users += len(some)
                advance(len(some))
                _check_evicted(target, evicted)  # first, since the lock is a key, too
                lock.reacquire()
        except _out_of_memory():
            target.discard()
            raise
        if not users:
            raise GateError(f"{wanted.where}: nobody has a recommendation in it, so the live version stays")
        if target.expires_s is not None and time.time() >= target.expires_s:
            raise ConfigError(f"--ttl {wanted.ttl}: over before all users were written; give a longer one")
        lock.reacquire()
        before = target.publish()
        expiring = target.expire_others(span_us(wanted.keep_old, "--keep-old") // 1_000_000, lock.reacquire)
    versions = {"version": target.version, "pointer": target.pointer, "replaced": before, "expiring_keys": expiring}
    return {"target": where.removeprefix("TARGET "), "users": users, "bytes": size, **versions}


def _check_evicted(target: Store, before: int) -> None:
    """Raise RetryError where the server has evicted keys since there were `before`."""
    if target.evicted() > before:
        target.discard()
        raise RetryError(
            f"{target.shown}: the server evicted keys meanwhile (maxmemory), perhaps of this version, so it is not "
            "published; raise its maxmemory, and run the same command again"
        )


def _entries(rows: Recommended, entries: Entries, where: str) -> Iterator[pl.DataFrame]:
    """Yield keys and values, a shard of users at a time, made on another thread than they are sent from."""
    columns = list(dict.fromkeys(["user_id", "video_id", *entries.columns]))

    def made(shard: pl.DataFrame) -> pl.DataFrame:
        return entries.of(rows.rows(shard.lazy(), columns).collect(), where)

    return threads.background(map(made, rows.shards(rows.stored_names(columns))), ahead=2, name="entries")


def _version(recs: Path, entries: Entries, pointer: str) -> str:
    """Return 12 hex digits of the contents of an output, of what is made of them, and of the pointer.

    What one pointer leaves expires, so no other may name the same keys.
    """
    manifest = published.manifest_of(recs) if recs.is_dir() else None
    contents = manifest["sha256"] if manifest else sha256(recs)
    return hashlib.sha256(f"{contents} {entries.stored()} {pointer}".encode()).hexdigest()[:12]


def _out_of_memory() -> type[Exception]:
    import redis

    found: type[Exception] = redis.exceptions.OutOfMemoryError
    return found
