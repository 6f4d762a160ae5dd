"""One file made of parts: appended in their order, on a thread of its own, while later parts are still computed.

Owns: the file that grows, and which part comes next. Must not know: where the file goes in the end, what a row means.
A part is a row group. A table that comes long before its turn is not held: its part is on the disk and is read again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.io import parquet
from genrec_batch.io.durable import sync

HELD = 4  # tables that wait for their turn; of more, the parts are read again


class Joined:
    """A file of parts 0, 1, 2, ... that are offered in any order, each once it is on the disk."""

    def __init__(self, target: Path, part: Callable[[int], Path], metadata: Mapping[str, str]) -> None:
        """Begin with nothing; `part` says where a part lies, `metadata` is in the file from the beginning."""
        self._target, self._part, self._metadata = target, part, dict(metadata)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="join")
        self._waiting: dict[int, pa.Table | None] = {}  # None: not held
        self._next = 0
        self._running: Future[None] | None = None
        self._stopped = False
        self._writer: pq.ParquetWriter | None = None
        self._lock = threading.Lock()

    def offer(self, number: int, table: pa.Table | None = None) -> None:
        """Append a part once all before it are; raises what an earlier appending raised.

        Raises:
            OSError: the disk refuses.
        """
        with self._lock:
            held = sum(waiting is not None for waiting in self._waiting.values())
            self._waiting[number] = table if held < HELD else None
            running = self._running
            if running is None or running.done():
                self._running = self._pool.submit(self._append)
        if running is not None and running.done():
            running.result()

    def _append(self) -> None:
        while True:
            with self._lock:
                if self._stopped or self._next not in self._waiting:
                    return
                number, table = self._next, self._waiting.pop(self._next)
                self._next += 1
            if self._writer is None:
                schema = pq.read_schema(self._part(0)).with_metadata(self._metadata)  # as parts that are read have it
                self._writer = pq.ParquetWriter(self._target, schema, **parquet.COMPRESSED)
            table = pq.ParquetFile(self._part(number)).read() if table is None else table
            whole = table.cast(self._writer.schema).combine_chunks()
            self._writer.write_table(whole, row_group_size=max(1, len(whole)))

    def finish(self, parts: int, metadata: Mapping[str, str]) -> None:
        """Append the parts that nobody offered, add to the metadata, and wait until the file is on the disk.

        Raises:
            OSError: the disk refuses.
        """
        self._wait()
        for number in range(self._next, parts):
            self._waiting.setdefault(number, None)
        self._append()
        assert self._writer is not None, "an output has a part"
        self._writer.add_key_value_metadata(dict(metadata))
        self._writer.close()
        self._writer = None
        sync(self._target)

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()

    def close(self) -> None:
        """Let go of the thread, and of a file that is not finished: nothing more is appended to it."""
        with self._lock:
            self._stopped = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._writer is not None:
            with suppress(OSError):  # a full disk, where closing writes a footer that nobody wants any more
                self._writer.close()
            with suppress(OSError):
                self._target.unlink()
            self._writer.is_open = False  # else it tries to close once more when it is collected
            self._writer = None
