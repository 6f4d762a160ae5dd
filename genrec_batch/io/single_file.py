"""One file of many parts: they are appended in order, on a separate thread, while later parts are still computed.

Owns: the growing file, and which part comes next. Must not know: the final path of the file, what a row means. Each
part becomes a row group. A table that comes long before its turn is not held: its part is read from the disk again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.io import parquet, sealed_file
from genrec_batch.io.durable import sync

HELD = 4  # tables that may wait for their turn; further parts are read again


class SingleFile:
    """A file of parts 0, 1, 2, ... that are offered in any order, each once it is on the disk."""

    def __init__(self, target: Path, part: Callable[[int], Path], metadata: Mapping[str, str]) -> None:
        """Begin an empty file; `part` returns the path of a part, `metadata` is in the file from the beginning."""
        self._target, self._part, self._metadata = target, part, dict(metadata)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="join")
        self._waiting: dict[int, pa.Table | None] = {}  # None: not held
        self._next = 0
        self._running: Future[None] | None = None
        self._stopped = False
        self._writer: pq.ParquetWriter | None = None
        self._lock = threading.Lock()

    def offer(self, number: int, table: pa.Table | None = None) -> None:
        """Append a part once all earlier parts are appended; raises the error of an earlier append.

        Raises:
            OSError: the disk refuses the write.
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
                schema = pq.read_schema(self._part(0)).with_metadata(
                    self._metadata
                )  # as a part has it that is read from the disk
                self._writer = pq.ParquetWriter(self._target, schema, **parquet.COMPRESSED)
            table = pq.ParquetFile(self._part(number)).read() if table is None else table
            whole = table.cast(self._writer.schema).combine_chunks()
            self._writer.write_table(whole, row_group_size=max(1, len(whole)))

    def finish(self, parts: int, metadata: Mapping[str, str]) -> None:
        """Append the parts that were not offered, add to the metadata, and wait until the file is synced.

        Raises:
            OSError: the disk refuses the write.
        """
        self._wait()
        for number in range(self._next, parts):
            self._waiting.setdefault(number, None)
        self._append()
        assert self._writer is not None, "an output has a part"
        self._writer.add_key_value_metadata({**metadata, **sealed_file.OPEN})
        self._writer.close()
        self._writer = None
        sealed_file.seal(self._target)
        sync(self._target)

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()

    def close(self) -> None:
        """End the thread and remove an unfinished file."""
        with self._lock:
            self._stopped = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._writer is not None:
            with suppress(OSError):  # closing writes a footer, which a full disk refuses and nobody needs
                self._writer.close()
            with suppress(OSError):
                self._target.unlink()
            self._writer.is_open = False  # else it is closed once more by the garbage collector
            self._writer = None
