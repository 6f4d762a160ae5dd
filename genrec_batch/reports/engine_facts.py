"""How fast and how exact each engine is on this machine: latencies over batch sizes, phases, overlap with fp32.

Owns: which engines and precisions are tried, the timing, the percentiles. Must not know: how engines compute, where
users come from. Latencies are of full histories, so that a figure has its arithmetic beside it; the overlap is over the
users of the log if there is one. Engines take turns, run by run, so that a machine that slows down slows them all.
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
from genrec_batch.engines.choose import prepare, reference_engine
from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.engines.parity import Parity, best, compare, joined
from genrec_batch.engines.precisions import runs_here
from genrec_batch.engines.protocol import Engine, SteppedEngine
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
        ConfigError: there is no such engine or precision.
    """
    kind = device.partition(":")[0]
    here = [(known.name, p) for known in ENTRIES for p in known.precisions.get(kind, ())]
    here = [pair for pair in here if runs_here(pair[1])]
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
        """Return percentiles in ms, and the rates that follow from the median."""
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


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is timed, and how."""

    model: Model
    wanted: list[Choice]  # engines with their precisions
    device: str  # "cpu" or "cuda:N"
    must: bool  # an engine that cannot be opened or does not run is an error; otherwise the report names it
    sizes: tuple[int, ...]  # users of a batch
    events: int  # of the histories that are timed
    decoding: Decoding
    seconds: float  # of timing, for each engine at each size; at least 5 runs are made

    @property
    def gflop_per_user(self) -> float:
        """Arithmetic of one user."""
        config, events = self.model.config, self.events
        decode = model_facts.decode_flops(config, events, self.decoding.top_k)
        return (model_facts.prefill_flops(config, events) + decode) / 1e9

    def histories(self, users: int) -> Batch:
        """Return a batch to time."""
        return full_histories(self.model, users, self.events)


def measure(
    trial: Trial, *, real: Batch | None, ceilings: dict[str, Any], advance: Callable[[int], None]
) -> dict[str, Any]:
    """Time engines over batch sizes and compare each with fp32.

    Args:
        trial: what is timed.
        real: users of a log to compare over, None for those that are timed.
        ceilings: what `ceilings.measure` returned.
        advance: called once after each engine and batch size.

    Returns: `engines` (a row per engine with its points over batch sizes), `skipped`, and how it was measured.

    Raises:
        EngineError: `must`, and an engine is not there or fails; or none is left.
        RetryError: the same, for want of memory.
    """
    engines, skipped = _open(trial)
    points = _points(trial, engines, skipped, advance)
    engines = {key: engine for key, engine in engines.items() if points[key]}
    if not engines:
        raise EngineError(
            "--engines: none ran: " + "; ".join(f"{s['engine']} {s['precision']}: {s['why']}" for s in skipped)
        )
    doing("comparing with fp32")
    most = {key: max(point["batch_users"] for point in points[key]) for key in engines}  # users that fit the device
    batch = trial.histories(64) if real is None else real
    answers, reference = _answers(trial, engines, batch, most)
    rows = []
    for key, engine in engines.items():
        doing(f"phases of {key[0]} in {key[1]}")
        ceiling = product_ceiling(ceilings, device=engine.device, precision=key[1])
        for point in points[key]:
            point["share_of_ceiling"] = ceiling and round(point["gflop_per_s"] / float(ceiling["gflop_per_s"]), 3)
        phases = _phases(engine, trial.histories(min(most[key], PHASE_USERS)), trial.decoding)
        rows.append(_row(key, engine, compare(answers[key], reference), phases, points[key]))
    return {
        "events": trial.events,
        "mode": trial.decoding.mode,
        "top_k": trial.decoding.top_k,
        "gflop_per_user": round(trial.gflop_per_user, 4),
        "compared_users": len(reference),
        "compared_over": "the log" if real is not None else "the histories that are timed",
        "engines": rows,
        "skipped": skipped,
    }


def _row(
    key: Choice, engine: Engine, parity: Parity, phases: dict[str, Any], points: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "engine": key[0],
        "precision": key[1],
        "device": engine.device,
        "fixed_rows": engine.rows,
        "topk_overlap": round(parity.topk_overlap, 4),
        "top1_match": round(parity.top1_match, 4),
        "largest_log_prob_difference": round(parity.largest["log_prob"], 6),
        "phases": phases,
        "points": points,
    }


def _open(trial: Trial) -> tuple[dict[Choice, Engine], list[dict[str, str]]]:
    """Open the engines and prepare them for the trial; return those that are left out, too."""
    engines: dict[Choice, Engine] = {}
    skipped: list[dict[str, str]] = []
    for name, precision in trial.wanted:
        try:
            engine = open_engine(trial.model, name=name, device=trial.device, precision=precision)
        except (EngineError, RetryError) as error:
            if trial.must:
                raise
            _leave_out(skipped, (name, precision), str(error))
        else:
            engines[name, precision] = engine
    if not engines:
        raise EngineError(
            f"--engines: none can run on {trial.device}; pip install 'genrec-batch[cpu]' or 'genrec-batch[torch]'"
        )
    for engine in engines.values():
        engine.resize(min(FIXED_ROWS, max(trial.sizes)))
        prepare(engine, trial.decoding, longest=trial.events, mean=trial.events)
    return engines, skipped


def _points(
    trial: Trial, engines: dict[Choice, Engine], skipped: list[dict[str, str]], advance: Callable[[int], None]
) -> dict[Choice, list[dict[str, Any]]]:
    """Return the timings of each engine over the batch sizes; engines that fail are removed."""
    points: dict[Choice, list[dict[str, Any]]] = {key: [] for key in engines}
    for users in trial.sizes:
        doing(f"{users:,} users a batch")
        for key, timing in _timed(trial, engines, trial.histories(users), skipped).items():
            points[key].append(timing.as_dict(users, trial.gflop_per_user))
        advance(len(trial.wanted))
    return points


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
    trial: Trial, engines: dict[Choice, Engine], batch: Batch, skipped: list[dict[str, str]]
) -> dict[Choice, Timing]:
    """Run all engines in turn until each had its seconds.

    An engine that runs out of memory, at the first run or later, is left out of this size; one that fails, of all.
    """
    timed: dict[Choice, Timing] = {}

    def one(key: Choice) -> None:
        try:
            taken_s = _run(engines[key], batch, trial.decoding)
        except RetryError as error:
            timed.pop(key, None)
            _leave_out(skipped, key, f"batches of {len(batch):,}: {error}")
        except EngineError as error:
            if trial.must:
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
        if run >= LEAST_RUNS and time.perf_counter() - began > trial.seconds * len(timed):
            break
        for key in list(timed):
            one(key)
    return timed


def _answers(
    trial: Trial, engines: dict[Choice, Engine], batch: Batch, most: dict[Choice, int]
) -> tuple[dict[Choice, Ranked], Ranked]:
    """Return what each engine and fp32 on the CPU recommend to the same users, in batches of at most `most` users."""

    def top(engine: Engine, users: int) -> Ranked:
        batches = (batch.rows(start, start + users) for start in range(0, len(batch), users))
        ranked = joined(list(recommend_all(engine, batches, trial.decoding)))
        return best(ranked, trial.decoding.top_k) if trial.decoding.mode == "candidates" else ranked

    answers = {key: top(engine, most[key]) for key, engine in engines.items()}
    return answers, top(reference_engine(trial.model), len(batch))


def _phases(engine: Engine, batch: Batch, decoding: Decoding) -> dict[str, Any]:
    """Time the two named phases, one call after the other, as a greedy slate makes them: the median of 3.

    A GPU's copy in is part of the prefill and its copy out of the decode passes: a phase ends when its result is here.
    """
    assert isinstance(engine, SteppedEngine)
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
