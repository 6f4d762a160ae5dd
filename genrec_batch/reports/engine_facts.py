"""How fast and how right each engine is on this machine: latencies over batch sizes, phases, overlap with fp32.

Owns: which engines and precisions are tried, the timing, the percentiles. Must not know: how engines compute, where
users came from. Latencies are of full histories, so that a figure has its arithmetic beside it; the overlap is over the
users of the log where there is one. Engines take turns, run by run, so that a machine that slows down slows them all.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genrec_batch.core.arrays import FIRST_ITEM, Batch, Ranked
from genrec_batch.core.errors import ConfigError, EngineError, RetryError
from genrec_batch.engines.choose import computes_int8, prepare, reference_engine
from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.engines.parity import best, compare, joined
from genrec_batch.engines.protocol import Engine
from genrec_batch.engines.registry import ENTRIES, entry, open_engine
from genrec_batch.model.weights import Model
from genrec_batch.reports import model_facts
from genrec_batch.reports.ceilings import product_ceiling
from genrec_batch.runtime.console import LOG, doing

LEAST_RUNS, MOST_RUNS = 5, 100  # timed runs of one engine at one batch size
FIXED_ROWS = 2048  # of an engine that is built for one number of rows, at most
PHASE_USERS = 256  # of the batch whose phases are timed, at most
SEED = 7  # of the histories that are timed

Choice = tuple[str, str]  # engine, precision


def choices(asked: tuple[str, ...], device: str) -> list[Choice]:
    """Return the (engine, precision) pairs of `--engines`; all that are installed where it is empty.

    Raises:
        ConfigError: an engine or a precision that nobody has.
    """
    kind = device.partition(":")[0]
    here = [(known.name, p) for known in ENTRIES for p in known.precisions.get(kind, ())]
    here = [pair for pair in here if pair[1] != "int8" or computes_int8()]
    if not asked:
        installed = {known.name for known in ENTRIES if known.module()}
        return [pair for pair in here if pair[0] in installed]
    chosen: list[Choice] = []
    for text in asked:
        name, _, precision = text.partition(":")
        entry(name, "--engines")
        found = [(n, p) for n, p in here if n == name and precision in ("", p)]
        if not found:
            have = ", ".join(f"{n}:{p}" for n, p in here)
            raise ConfigError(f"--engines {text}: not on {kind}; there are {have}")
        chosen += [pair for pair in found if pair not in chosen]
    return chosen


def full_histories(model: Model, users: int, events: int) -> Batch:
    """Return a batch for timing: `users` rows of `events` known videos each, seeded, none of them a real user's."""
    random = np.random.Generator(np.random.Philox(SEED))
    tokens = random.integers(FIRST_ITEM, model.tokens, (users, events), np.int32)
    features = random.random((users, model.config.features), np.float32)
    features *= random.random((users, model.config.features), np.float32) < 0.3  # as sparse as real ones
    return Batch(dense_BF=features, tokens_BS=tokens, lengths_B=np.full(users, events, np.int32), seen_BX=tokens)


@dataclass(kw_only=True)
class Timing:
    """One engine at one batch size."""

    first_s: float  # the warm-up run
    taken_s: list[float] = field(default_factory=list)

    def as_dict(self, users: int, gflop_per_user: float) -> dict[str, Any]:
        """Return percentiles in ms and what they mean as a rate."""
        p50, p95, p99 = (float(x) for x in np.percentile(self.taken_s, (50, 95, 99)))
        return {
            "batch_users": users,
            "runs": len(self.taken_s),
            "warm_up_ms": round(self.first_s * 1e3, 3),
            "p50_ms": round(p50 * 1e3, 3),
            "p95_ms": round(p95 * 1e3, 3),
            "p99_ms": round(p99 * 1e3, 3),
            "users_per_s": round(users / p50, 1),
            "gflop_per_s": round(gflop_per_user * users / p50, 1),
        }


def measure(
    model: Model,
    wanted: list[Choice],
    *,
    device: str,
    must: bool,
    sizes: tuple[int, ...],
    events: int,
    decoding: Decoding,
    real: Batch | None,
    seconds: float,
    ceilings: dict[str, Any],
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Time engines over batch sizes and hold each against fp32.

    Args:
        model: what they compute.
        wanted: engines with their precisions.
        device: "cpu" or "cuda:N".
        must: an engine that cannot be opened or does not run is an error, else it is told in the report.
        sizes: users of a batch.
        events: events of the histories that are timed.
        decoding: how lists are made.
        real: users of a log to compare over, None for those that are timed.
        seconds: of timing, for each engine at each size; at least 5 runs are made.
        ceilings: what `ceilings.measure` said.
        advance: told once after each engine and batch size.

    Returns: `engines` (a row per engine with its points over batch sizes), `skipped`, and how it was measured.

    Raises:
        EngineError: `must`, and an engine is not there or fails; or none is left.
        RetryError: the same, for want of memory.
    """
    engines, skipped = _open(model, wanted, device, must=must)
    for engine in engines.values():
        engine.resize(min(FIXED_ROWS, max(sizes)))
        prepare(engine, decoding, longest=events, mean=events)
    prefill = model_facts.prefill_flops(model.config, events)
    gflop = (prefill + model_facts.decode_flops(model.config, events, decoding.top_k)) / 1e9
    points: dict[Choice, list[dict[str, Any]]] = {key: [] for key in engines}
    for users in sizes:
        doing(f"{users:,} users a batch")
        timed = _timed(engines, full_histories(model, users, events), decoding, seconds, skipped, must=must)
        for key, timing in timed.items():
            points[key].append(timing.as_dict(users, gflop))
        advance(len(wanted))
    engines = {key: engine for key, engine in engines.items() if points[key]}
    if not engines:
        raise EngineError(
            "--engines: none ran: " + "; ".join(f"{s['engine']} {s['precision']}: {s['why']}" for s in skipped)
        )
    doing("held against fp32")
    most = {key: max(point["batch_users"] for point in points[key]) for key in engines}  # that ran
    answers, compared = _answers(model, engines, real or full_histories(model, 64, events), decoding, most)
    rows = []
    for key, engine in engines.items():
        doing(f"phases of {key[0]} in {key[1]}")
        ceiling = product_ceiling(ceilings, device=engine.device, precision=key[1])
        parity = compare(answers[key], compared)
        for point in points[key]:
            point["share_of_ceiling"] = ceiling and round(point["gflop_per_s"] / float(ceiling["gflop_per_s"]), 3)
        rows.append(
            {
                "engine": key[0],
                "precision": key[1],
                "device": engine.device,
                "fixed_rows": engine.rows,
                "topk_overlap": round(parity.topk_overlap, 4),
                "top1_match": round(parity.top1_match, 4),
                "largest_log_prob_difference": round(parity.largest["log_prob"], 6),
                "phases": _phases(engine, full_histories(model, min(most[key], PHASE_USERS), events), decoding),
                "points": points[key],
            }
        )
    return {
        "events": events,
        "mode": decoding.mode,
        "top_k": decoding.top_k,
        "gflop_per_user": round(gflop, 4),
        "compared_users": len(compared),
        "compared_over": "the log" if real is not None else "the histories that are timed",
        "engines": rows,
        "skipped": skipped,
    }


def _open(
    model: Model, wanted: list[Choice], device: str, *, must: bool
) -> tuple[dict[Choice, Engine], list[dict[str, str]]]:
    engines: dict[Choice, Engine] = {}
    skipped: list[dict[str, str]] = []
    for name, precision in wanted:
        try:
            engines[name, precision] = open_engine(model, name=name, device=device, precision=precision)
        except (EngineError, RetryError) as error:
            if must:
                raise
            _leave_out(skipped, (name, precision), str(error))
    if not engines:
        raise EngineError(
            f"--engines: none can run on {device}; pip install 'genrec-batch[cpu]' or 'genrec-batch[torch]'"
        )
    return engines, skipped


def _leave_out(skipped: list[dict[str, str]], key: Choice, why: str) -> None:
    skipped.append({"engine": key[0], "precision": key[1], "why": why})
    LOG.warning("%s in %s is left out: %s", *key, why)
    gc.collect()  # what the failed attempt held
    if "torch" in sys.modules:
        from genrec_batch.reports import torch_ceilings

        torch_ceilings.release()


def _run(engine: Engine, batch: Batch, decoding: Decoding) -> float:
    start = time.perf_counter()
    next(recommend_all(engine, [batch], decoding))
    return time.perf_counter() - start


def _timed(
    engines: dict[Choice, Engine],
    batch: Batch,
    decoding: Decoding,
    seconds: float,
    skipped: list[dict[str, str]],
    *,
    must: bool,
) -> dict[Choice, Timing]:
    """Run all engines in turn until each had its seconds.

    One that runs out of memory is left out of this size, at the first run or at a later one; one that fails, for good.
    """
    timed: dict[Choice, Timing] = {}

    def one(key: Choice) -> None:
        try:
            taken_s = _run(engines[key], batch, decoding)
        except RetryError as error:
            timed.pop(key, None)
            _leave_out(skipped, key, f"batches of {len(batch):,}: {error}")
        except EngineError as error:
            if must:
                raise
            del engines[key]
            timed.pop(key, None)
            _leave_out(skipped, key, str(error))
        else:
            if key in timed:
                timed[key].taken_s.append(taken_s)
            else:
                timed[key] = Timing(first_s=taken_s)

    for key in list(engines):
        one(key)
    began = time.perf_counter()
    for run in range(MOST_RUNS):
        if run >= LEAST_RUNS and time.perf_counter() - began > seconds * len(timed):
            break
        for key in list(timed):
            one(key)
    return timed


def _answers(
    model: Model, engines: dict[Choice, Engine], batch: Batch, decoding: Decoding, most: dict[Choice, int]
) -> tuple[dict[Choice, Ranked], Ranked]:
    """Return what each engine and fp32 on the CPU recommend to the same users, in batches of at most so many."""

    def top(engine: Engine, users: int) -> Ranked:
        pieces = (batch.rows(start, start + users) for start in range(0, len(batch), users))
        ranked = joined(list(recommend_all(engine, pieces, decoding)))
        return best(ranked, decoding.top_k) if decoding.mode == "candidates" else ranked

    return {key: top(engine, most[key]) for key, engine in engines.items()}, top(reference_engine(model), len(batch))


def _phases(engine: Engine, batch: Batch, decoding: Decoding) -> dict[str, Any]:
    """Time the two named phases, one call after the other, as a greedy slate makes them: the median of 3.

    A GPU's copy in is part of the prefill and its copy out of the decode passes: a phase ends when its result is here.
    """
    taken = []
    for _ in range(4):
        marks = [time.perf_counter()]
        state = engine.prefill(batch, steps=decoding.top_k)
        engine.choose(state)
        marks.append(time.perf_counter())
        for _ in range(decoding.top_k):
            engine.decode(state)
        engine.collect(state)
        marks.append(time.perf_counter())
        taken.append(np.diff(marks))
    prefill, decode = (float(x) for x in np.median(taken[1:], axis=0))
    return {
        "batch_users": len(batch),
        "prefill_ms": round(prefill * 1e3, 3),
        "decode_ms": round(decode * 1e3, 3),
        "decode_passes": decoding.top_k,
    }
