"""A data set, or any part of one, as a file in memory that other processes map: its arrays are there once for all.

Owns: what of it is in arrays that are shared, what is left out, and the layout of the file. Must not know: what a
process does with it. In: objects that can be pickled. Out: an open file without a name, which the kernel frees once the
last process that has it ends; and the same objects from it, in another process.

Arrays and columns are laid end to end, as they are in memory; the rest is a pickle behind them. A process maps the file
privately: it reads pages that all share, and what it writes is its own. What belongs to one process is left out: the
clock of a run becomes that of the process, and what is still computed is None.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa

from genrec_batch.io.spill import SpillFolder
from genrec_batch.runtime import threads
from genrec_batch.runtime.clock import Stages

ALIGNED = 64  # bytes, of an array's begin
AT_ONCE = 1 << 26  # bytes that are written at once
CLOCK, LEFT_OUT = "clock", "left out"
OLDEST = pl.CompatLevel.oldest()


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Where things are in a file."""

    places: list[tuple[int, int]]  # begin and bytes of each array
    pickled: tuple[int, int]

    def unpacked(self, files: Sequence[int], stages: Stages) -> Any:
        """Return what is in the only file, which is closed; `stages` takes the place of a run's clock."""
        (file,) = files
        begin, size = self.pickled
        whole = memoryview(mmap.mmap(file, begin + size, access=mmap.ACCESS_COPY))
        os.close(file)
        buffers = [whole[start : start + count] for start, count in self.places]
        return loaded(bytes(whole[begin : begin + size]), buffers, stages)


class _Pickler(pickle.Pickler):
    def persistent_id(self, found: Any) -> str | None:
        if isinstance(found, Stages):
            return CLOCK
        return LEFT_OUT if isinstance(found, Future) and not found.done() else None

    def reducer_override(self, found: Any) -> Any:
        if isinstance(found, Future):
            return _known, (found.result(),)
        if isinstance(found, pl.DataFrame):
            return pl.DataFrame, (found.get_columns(),)
        if isinstance(found, pl.Series) and (found.dtype.is_numeric() or found.dtype in (pl.String, pl.Boolean)):
            column: Any = found.rechunk().to_arrow(compat_level=OLDEST)
            buffers = [None if each is None else pickle.PickleBuffer(each) for each in column.buffers()]
            return _series, (found.name, column.type, len(column), column.offset, buffers)
        if isinstance(found, SpillFolder):
            return partial(SpillFolder, path=found.path, lock=-1), ()  # the lock is of the process that made it
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, buffers: Sequence[memoryview], stages: Stages) -> None:
        super().__init__(file, buffers=buffers)
        self._stages = stages

    def persistent_load(self, name: str) -> Stages | None:
        return self._stages if name == CLOCK else None


def _known(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def _series(name: str, kind: pa.DataType, length: int, offset: int, buffers: Sequence[Any]) -> pl.Series:
    found = [None if each is None else pa.py_buffer(each) for each in buffers]
    return pl.Series(name, pa.Array.from_buffers(kind, length, found, offset=offset))


def dumped(what: Any, keep: Callable[[pickle.PickleBuffer], Any]) -> bytes:
    """Return a pickle whose arrays and columns are handed to `keep`, in order, and are not in it."""
    text = io.BytesIO()
    _Pickler(text, 5, buffer_callback=keep).dump(what)
    return text.getvalue()


def loaded(text: bytes, buffers: Sequence[Any], stages: Stages) -> Any:
    """Return what was dumped; `stages` takes the place of a run's clock."""
    return _Unpickler(io.BytesIO(text), buffers, stages).load()


def file_in_memory() -> int:
    """Return an open file in memory, or where the system has none, on its temporary disk; it has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("genrec-batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def pack(what: Any, file: int) -> Packed:
    """Write something into an open file, on several threads.

    Raises:
        OSError: there is no room.
    """
    buffers: list[pickle.PickleBuffer] = []
    text = dumped(what, buffers.append)
    raw = [each.raw() for each in buffers]
    places, end = [], 0
    for each in (*raw, memoryview(text)):
        begin = -(-end // ALIGNED) * ALIGNED
        places.append((begin, each.nbytes))
        end = begin + each.nbytes
    os.ftruncate(file, end)
    pieces = [
        (each[at : at + AT_ONCE], begin + at)
        for each, (begin, size) in zip((*raw, memoryview(text)), places, strict=True)
        for at in range(0, size, AT_ONCE)
    ]
    with ThreadPoolExecutor(threads.cores(), thread_name_prefix="pack") as pool:
        for _ in pool.map(lambda piece: _write(file, *piece), pieces):
            pass
    return Packed(places=places[:-1], pickled=places[-1])


def _write(file: int, piece: memoryview, at: int) -> None:
    while piece:
        done = os.pwrite(file, piece, at)
        piece, at = piece[done:], at + done
