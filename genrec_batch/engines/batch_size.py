"""How many users a batch holds on a GPU, where `--batch-size` is auto: a short sweep, made once and kept.

Owns: which sizes are tried, when the sweep ends, and where its result is kept. Must not know: which engine it is,
users, files but the engine cache. In: an open engine and some of the run's own users. Out: a `Size`. A CPU has a
constant: there a batch only has to fill the caches.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from genrec_batch.core.arrays import I64, Batch
from genrec_batch.core.errors import ConfigError, DeviceMemoryError
from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.engines.plan_cache import EngineCache, EngineKey
from genrec_batch.engines.protocol import Engine
from genrec_batch.model.weights import BYTES, Model, ModelConfig
from genrec_batch.runtime.console import doing

CPU_USERS, GPU_USERS = 256, 2048  # where nothing is measured
TRIED = (1024, 2048, 4096, 8192, 16384)
GAIN = 1.03  # a larger batch must be so much faster: it also needs more memory and waits longer for its first result
BATCHES, TURNS = 3, 3  # in flight one after the other, for one timing; the fastest of so many timings counts
WORTH = 512  # users of a sample: a smaller one means a run that is over before a sweep pays
SPARE = 0.8  # share of the free memory that a size may be expected to take
LEAST = 64  # rows of an engine for one size
COPIED = 4  # times a beam's cache that are held on a CPU at once; measured with 1,000 beams of one user
COPIES = 6  # of the key and value cache: activations of a prefill, and two batches in flight


@dataclass(frozen=True, kw_only=True)
class Size:
    """Users of a batch and why so many."""

    users: int
    why: str
    users_per_s: dict[int, float]  # measured, by size; empty where nothing was

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def read(content: bytes) -> Size:
        """Return what `text` wrote."""
        stored: dict[str, Any] = json.loads(content)
        speeds = {int(users): speed for users, speed in stored["users_per_s"].items()}
        return Size(**(stored | {"users_per_s": speeds}))


def fixed(engine: Engine, beam_width: int = 1) -> Size:
    """Return the constant of the engine's kind of device: so many rows, of which each beam of a user is one."""
    users = max(1, (GPU_USERS if engine.device.startswith("cuda") else CPU_USERS) // beam_width)
    beams = f" with {beam_width:,} beams each" if beam_width > 1 else ""
    kind = engine.device.partition(":")[0]
    return Size(users=users, why=f"{users:,} users a batch{beams}, fixed for {kind}", users_per_s={})


def check_memory(config: ModelConfig, longest: int, decoding: Decoding, memory_bytes: int | None = None) -> None:
    """Raise ConfigError where the beams of one user cannot fit this machine's memory, whatever else runs.

    A CPU engine copies a beam's whole cache when beams are chosen; the old and the new ones are there at once, beside
    what the engine of a faster precision keeps: COPIED times keys and values of all positions in fp32.
    """
    have = machine_bytes() if memory_bytes is None else memory_bytes
    width = decoding.beam_width
    positions = 1 + longest + decoding.top_k
    each = COPIED * 2 * config.layers * positions * config.width * BYTES["fp32"] + 2 * config.vocabulary * 4
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


def choose(
    engine: Engine,
    model: Model,
    sample: Batch,
    decoding: Decoding,
    *,
    cache: EngineCache | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Size:
    """Return the size of a run's batches; measure it where this model, engine and GPU were not measured before.

    Args:
        engine: open, on the device of the run.
        model: its sizes and catalog.
        sample: users of the run; they are repeated to fill a batch.
        decoding: how lists are made.
        cache: where the result is kept; the engine cache by default.
        clock: seconds.

    Raises:
        EngineError: the cache is not private.
        DeviceMemoryError: not even the smallest size fits the device.
    """
    if engine.rows is not None:
        return _only(engine, engine.rows, model, sample, decoding)
    if not engine.device.startswith("cuda") or engine.free_bytes() is None or len(sample) < WORTH:
        return fixed(engine, decoding.beam_width)
    kept, made = cache or EngineCache(), []

    def measure() -> bytes:
        made.append(_sweep(engine, model, sample, decoding, clock))
        return made[0].text().encode()

    stored = kept.get(_key(engine, model, sample, decoding), measure)
    found = Size.read(stored)
    return found if made else replace(found, why=f"{found.why}, as measured before")


def _key(engine: Engine, model: Model, sample: Batch, decoding: Decoding) -> EngineKey:
    sizes = {name: value for name, value in asdict(model.config).items() if isinstance(value, int)}
    longest = int(sample.lengths_B.max(initial=0))
    given = 0 if sample.candidates_BC is None else sample.candidates_BC.shape[1]
    run = {"longest": 1 << max(longest - 1, 0).bit_length(), "given": given, "tokens": model.tokens}
    ways = {field.name: str(getattr(decoding, field.name)) for field in fields(decoding)}
    return EngineKey(
        name="batch",
        weights_sha256="",
        graph_sha256="",
        precision=engine.precision,
        shape=sizes | run,
        library=engine.name,
        architecture=engine.hardware(),
        options=ways,
    )


def _only(engine: Engine, users: int, model: Model, sample: Batch, decoding: Decoding) -> Size:
    """Return the size that the engine is made for, halved until it may be expected to fit."""
    free, expected = _free(engine), _expected(model, engine.precision, sample, decoding)
    taken = users
    while taken > LEAST and taken * expected > free * SPARE:
        taken //= 2
    why = f"{taken:,} users a batch: {engine.name} builds its engines for one size"
    if taken < users:
        why += f", and {users:,} would not fit the {free / 2**30:.1f} GiB that are free"
    return Size(users=taken, why=why, users_per_s={})


def _free(engine: Engine) -> int:
    free = engine.free_bytes()
    assert free is not None, f"{engine.name} is sized by its free memory"
    return free


def _expected(model: Model, precision: str, sample: Batch, decoding: Decoding) -> int:
    """Return about how many bytes a user takes on the device."""
    config = model.config
    width = decoding.beam_width if decoding.mode == "slate" else 1
    positions = 1 + int(sample.lengths_B.max(initial=0)) + decoding.top_k * width
    cache = 2 * config.layers * positions * config.width * BYTES.get(precision, 2)
    return COPIES * cache + width * config.vocabulary * 4


def _sweep(
    engine: Engine,
    model: Model,
    sample: Batch,
    decoding: Decoding,
    clock: Callable[[], float],
) -> Size:
    """Time one size after the other, smallest first, until a larger one no longer pays or fits."""
    speeds: dict[int, float] = {}
    end = "the largest that is tried"
    sizes = sorted({max(1, users // decoding.beam_width) for users in TRIED})
    for number, users in enumerate(sizes, 1):
        doing(f"timing {users:,} users a batch, {number} of at most {len(sizes)}")
        free, needed = _free(engine), users * _expected(model, engine.precision, sample, decoding)
        if speeds and needed > free * SPARE:
            end = f"{users:,} would not fit the {free / 2**30:.1f} GiB that are free"
            break
        try:
            speed = _speed(engine, sample, decoding, users, clock)
        except DeviceMemoryError:
            if not speeds:
                raise
            end = f"{users:,} ran out of memory"
            break
        slower = speed < max(speeds.values(), default=0.0) * GAIN
        speeds[users] = round(speed, 1)
        if slower:
            end = f"{users:,} is not {GAIN - 1:.0%} faster"
            break
    best = next(iter(speeds))
    for users, speed in speeds.items():
        best = users if speed >= speeds[best] * GAIN else best
    told = ", ".join(f"{users:,}: {speed:,.0f}" for users, speed in speeds.items())
    return Size(users=best, why=f"{best:,} users a batch: users/s at {told}; {end}", users_per_s=speeds)


def _speed(engine: Engine, sample: Batch, decoding: Decoding, users: int, clock: Callable[[], float]) -> float:
    """Return users per second in batches of one size; the first run only warms up."""
    batch = taken(sample, np.arange(users, dtype=np.int64) % len(sample))
    best = 0.0
    for turn in range(TURNS + 1):
        began = clock()
        for _ in recommend_all(engine, _repeated(batch), decoding):
            pass
        if turn:
            best = max(best, BATCHES * users / max(clock() - began, 1e-9))
    return best


def _repeated(batch: Batch) -> Iterator[Batch]:
    for _ in range(BATCHES):
        yield batch


def taken(batch: Batch, rows_R: I64) -> Batch:
    """Return rows of a batch as another batch; a row may be taken many times."""
    values: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: value[rows_R] for name, value in values.items() if value is not None})
