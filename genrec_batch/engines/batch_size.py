"""The users of a batch where `--batch-size` is auto: a constant for each kind of device, halved until it fits.

Owns: these constants, and the memory that a user is expected to take. Must not know: which engine it is, files. In: an
open engine and some of the run's own users. Out: a `Size`. On a CPU a batch only has to fill the caches. On a GPU 8,192
users were within 2% of the best size (`tests/benchmarks/bench_batch_size.py`). A batch that runs out of memory is
halved again when it is computed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from genrec_batch.core.arrays import Batch
from genrec_batch.core.errors import ConfigError
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.protocol import Engine
from genrec_batch.model.weights import BYTES, Model, ModelConfig

CPU_USERS, GPU_USERS = 512, 8192
LEAST = 64  # users; a size is not halved below this
COPIES = 2  # memory of a user, in times its keys and values: little, since a batch that does not fit is halved anyway
BUILT_COPIES = 7.5  # the same for an engine that takes minutes to build: with room for two batches, and a margin
BEAM_COPIES = 4  # memory of a beam on a CPU, in times its keys and values; measured with 1,000 beams of one user


@dataclass(frozen=True, kw_only=True)
class Size:
    """The users of a batch, and the reason."""

    users: int
    why: str


def check_memory(config: ModelConfig, longest: int, decoding: Decoding, memory_bytes: int | None = None) -> None:
    """Raise ConfigError where the beams of one user cannot fit this machine's memory, whatever else runs.

    A CPU engine copies a beam's whole cache when it chooses beams, so the old and the new one are in memory at once,
    together with the buffers of a faster precision: BEAM_COPIES times the keys and values of all positions in fp32.
    """
    have = machine_bytes() if memory_bytes is None else memory_bytes
    width = decoding.beam_width
    positions = 1 + longest + decoding.top_k
    each = BEAM_COPIES * 2 * config.layers * positions * config.width * BYTES["fp32"] + 2 * config.vocabulary * 4
    needed = width * each + width * width * 16  # each beam's best continuations: totals and their order
    if needed > have:
        raise ConfigError(
            f"--beam-width {width} needs about {needed / 2**30:,.1f} GiB for one user of {longest} events, and this "
            f"machine has {have / 2**30:,.1f} GiB, enough for at most about {max(1, int(have / each)):,} beams"
        )


def machine_bytes() -> int:
    """Return the memory of the machine, or of the container that the process is in."""
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(have, int(text)) if text.isdigit() else have


def choose_size(engine: Engine, model: Model, sample: Batch, decoding: Decoding, asked: str = "auto") -> Size:
    """Return the size of a run's batches: `asked`, or where that is auto, a constant halved until it fits.

    The constant is the engine's, if it is built for one size, else that of the kind of device. Each beam of a user is a
    row of the batch. `sample` are users of the run; the memory is estimated for their longest history.

    Raises:
        EngineError: the device's free memory cannot be read.
    """
    if asked != "auto":
        return Size(users=int(asked), why=f"{int(asked):,} users a batch, as asked")
    kind = engine.device.partition(":")[0]
    width = decoding.beam_width if decoding.mode == "slate" else 1
    users = wanted = engine.rows or max(1, (CPU_USERS if kind == "cpu" else GPU_USERS) // width)
    why = f"fixed for {kind}" if engine.rows is None else f"{engine.name} builds its engines for one size"
    free_bytes = engine.free_bytes()
    if free_bytes is not None:
        while users > LEAST and _expected_bytes(engine, model, sample, decoding, users) > free_bytes:
            users //= 2
        if users < wanted:
            why += f", and {wanted:,} would not fit the {free_bytes / 2**30:.1f} GiB that are free"
    beams = f" with {width:,} beams each" if width > 1 else ""
    return Size(users=users, why=f"{users:,} users a batch{beams}: {why}")


def _expected_bytes(engine: Engine, model: Model, sample: Batch, decoding: Decoding, users: int) -> float:
    """Return about how many bytes a batch of so many users takes on the device."""
    config = model.config
    width = decoding.beam_width if decoding.mode == "slate" else 1
    positions = users * (1 + int(sample.lengths_B.max(initial=0)))
    positions = min(positions, engine.room(users) or positions) + users * width * decoding.top_k
    cache = 2 * config.layers * positions * config.width * BYTES[engine.precision]
    logits = 4 if sample.masks is None else 8  # bytes of a token: fp32, a second time with what a mask leaves
    return (COPIES if engine.rows is None else BUILT_COPIES) * cache + users * width * config.vocabulary * logits
