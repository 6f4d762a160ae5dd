"""The choice of a run's engine: the one named by the options, or the fastest installed one that agrees with fp32.

Owns: what `auto` means for engine, device and precision, the comparison that `auto` makes, and the sentence that
explains the choice. Must not know: users, files, output. An engine that is named is used or the run fails; nothing is
silently replaced. The choice of `auto` depends on the machine's hardware, the installed packages and the overlap over a
sample of users, of this run or of an earlier one with the same model and options (`checked`), never on a clock, so that
the same run on the same machine uses the same engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from genrec_batch.core.arrays import FIRST_ITEM, I32, I64, Batch
from genrec_batch.core.errors import EngineError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.core.servers import is_servers
from genrec_batch.engines import checked
from genrec_batch.engines.batch_size import Size, choose_size
from genrec_batch.engines.checked import Check, Record, Terms
from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.engines.parity import best, top_overlap
from genrec_batch.engines.precisions import fast_precisions
from genrec_batch.engines.protocol import Engine
from genrec_batch.engines.registry import ENTRIES, entry, open_engine
from genrec_batch.model.weights import Model
from genrec_batch.runtime.console import LOG, busy, progress

COMPARED_USERS = 64  # users compared at once on a CPU, so that progress is visible
LEAST_OVERLAP = 0.98  # share of fp32's top K in common, for auto to use a faster precision
SAMPLE_USERS, SAMPLE_SHARE = 512, 8  # the sample is one user in eight, at most 512
WARM_UP_USERS = 64  # users of a batch that only warms up the device
COMPARED_BEAMS = 4  # beams of a user of the sample: more cost as much as a run and show nothing new
WHY = "the fastest engine installed for"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The engine of a run and why it is this one."""

    engine: Engine
    why: str
    batch_users: int  # users of a batch, at most
    check: Check | None = None  # of its precision against fp32, None: it was asked for, or there is no other
    checked_before: bool = False  # an earlier run made the check

    def facts(self) -> dict[str, Any]:
        """Return what the summary says of the check, nothing where there was none."""
        return {} if self.check is None else {"engine_check": asdict(self.check) | {"taken_again": self.checked_before}}


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The engine of a run, or the one in fp32 and the fastest one, which is yet to be compared with it."""

    engines: list[Engine]
    slower: tuple[Callable[[], Engine], ...] = ()  # opens those that are compared where the faster one does not agree
    why: str = ""
    check: Check | None = None  # an earlier run's, which decided
    record: Record | None = None  # where the outcome of a comparison is kept
    why_check: str = "what is found here is not kept"


def select(
    model: Model,
    sample: Batch,
    decoding: Decoding,
    *,
    name: str,
    device: str,
    precision: str,
    batch_size: str = "auto",
    longest: int | None = None,
    mean: float | None = None,
    ahead: Opening | None = None,
    terms: Terms | None = None,
) -> Selection:
    """Return the engine of a run.

    Args:
        model: the weights.
        sample: users of the run, who decide its precision and the size of its batches.
        decoding: how lists are made.
        name: `--engine`.
        device: `--device`.
        precision: `--precision`.
        batch_size: `--batch-size`.
        longest: the most events kept of a user; by default of the sample.
        mean: the mean of the events kept of a user; by default of the sample.
        ahead: engines that were opened while the log was read.
        terms: what an earlier check must have had in common to be taken again; None: `auto` checks in any case.

    Raises:
        EngineError: the engine, its device or its precision is not there.
    """
    with busy("opening the engine"):
        ready = ahead.opened() if ahead is not None else None
        asked = partial(_opened, model, decoding, name=name, device=device, precision=precision)
        opened = ready or asked(terms)
        if opened.check is not None and not _holds(opened, len(sample)):
            why = f"the check of {opened.check.at} compared {opened.check.users} users by {opened.check.arithmetic}"
            opened = replace(asked(None), record=opened.record, why_check=why)

    def fit(engine: Engine) -> Size:  # before it is compared: this builds an engine
        size = choose_size(engine, model, sample, decoding, batch_size)
        engine.resize(size.users)
        if sample.candidates_BC is None and len(sample):
            lengths_B = sample.lengths_B
            most = int(lengths_B.max()) if longest is None else longest
            prepare(engine, decoding, longest=most, mean=float(lengths_B.mean()) if mean is None else mean)
        return size

    sizes = {engine.precision: fit(engine) for engine in opened.engines}

    def faster() -> Iterator[Engine]:
        yield from opened.engines[1:]
        for opens in opened.slower:
            engine = opens()
            sizes[engine.precision] = fit(engine)
            yield engine

    engine, why, check = opened.engines[0], opened.why, opened.check
    if len(opened.engines) > 1:
        engine, why, check = _fastest(opened, faster(), sample, decoding)
    size = sizes[engine.precision]
    if engine.device != "cpu":
        LOG.info("batch: %s", size.why)
    return Selection(
        engine=engine,
        why=why,
        batch_users=size.users,
        check=check,
        checked_before=check is not None and check is opened.check,
    )


def prepare(engine: Engine, decoding: Decoding, *, longest: int, mean: float) -> None:
    """Prepare an engine for the greedy slates of a run whose users keep `longest` events at most, `mean` on average."""
    if decoding.greedy:
        engine.expect(longest=longest, mean=mean + 1, steps=decoding.top_k)


def _opened(model: Model, decoding: Decoding, terms: Terms | None, *, name: str, device: str, precision: str) -> Opened:
    """Return the engine and why it was chosen, or the engine in fp32 and in a faster precision, to be compared."""
    place = device_of(device, name)
    chosen = _available(place) if name == "auto" else name
    opens = partial(open_engine, model, name=chosen, device=place)
    if is_servers(name):
        servers = opens(precision=precision)
        return Opened(engines=[servers], why=f"triton: {servers.title}, as asked")
    if precision != "auto":
        why = f"{chosen} in {precision} on {place}, as asked" if name != "auto" else f"{chosen}: {WHY} {place}"
        return Opened(engines=[opens(precision=precision)], why=why)
    declines = entry(chosen).declines
    fast = tuple(
        each for each in fast_precisions(chosen, place, decoding.mode) if not declines(model.config, place, each)
    )
    if not fast:
        return Opened(engines=[opens(precision="fp32")], why=f"{chosen} in fp32: {WHY} {place}")
    record = None if terms is None else Record.of(model, decoding, terms, engine=chosen, device=place, fast=fast)
    known = Opened.why_check if record is None else record.read()
    if isinstance(known, Check):
        again = f"checked at {known.at} and taken again; --recheck checks anew"
        why = f"{known.reason(chosen, decoding.top_k, LEAST_OVERLAP)}, {again}"
        return Opened(engines=[opens(precision=known.precision)], why=why, check=known, record=record)
    return Opened(
        engines=[opens(precision="fp32"), opens(precision=fast[0])],
        slower=tuple(partial(opens, precision=each) for each in fast[1:]),
        record=record,
        why_check=known,
    )


def _holds(opened: Opened, users: int) -> bool:
    """Return whether an earlier check is as good as one over so many users, by an engine that computes alike."""
    check = opened.check
    return check is not None and check.users >= users and check.same_engine(opened.engines[0])


def _fastest(opened: Opened, faster: Iterable[Engine], sample: Batch, decoding: Decoding) -> tuple[Engine, str, Check]:
    """Return the engine to use, and why: the first faster one that agrees with the one in fp32, else that one."""
    narrow = replace(decoding, beam_width=min(decoding.beam_width, COMPARED_BEAMS))
    taken, overlap, refused = opened.engines[0], 1.0, {}
    exact_BK = _best_items(taken, sample, narrow)
    for engine in faster:
        overlap = top_overlap(exact_BK, _best_items(engine, sample, narrow))
        if overlap >= LEAST_OVERLAP:
            taken = engine
            break
        refused[engine.precision] = overlap
    check = Check(
        precision=taken.precision,
        arithmetic=taken.arithmetic,
        overlap=overlap,
        refused=refused,
        users=len(sample),
        at=checked.now(),
        why=opened.why_check,
    )
    if opened.record is not None:
        opened.record.write(check)
    return taken, check.reason(taken.name, decoding.top_k, LEAST_OVERLAP), check


def _best_items(engine: Engine, sample: Batch, decoding: Decoding) -> I32:
    """Return the best items of each user of a sample."""
    size = COMPARED_USERS if engine.device == "cpu" else max(1, len(sample))
    found = []
    with progress(f"comparing precisions: {engine.precision}", len(sample), "users") as advance:
        for start in range(0, len(sample), size):
            batch = sample.rows(start, start + size)
            found.append(best(next(recommend_all(engine, [batch], decoding)), decoding.top_k).tokens_BK)
            advance(len(batch))
    return np.concatenate(found)


class Opening:
    """Opens the engine of a run while the log is read, so that the run waits for it less.

    An error here is dropped: `select` opens the engine again and raises it.
    """

    def __init__(self, config: ScoreConfig) -> None:
        self._config = config
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="opening")
        self._opened: Future[Opened] | None = None

    def start(self) -> None:
        """Import the engine's package and initialize its GPU."""
        self._pool.submit(preload, self._config.engine, self._config.device)

    def close(self) -> None:
        """Wait for what is running."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def know(self, model: Model) -> None:
        """Open the engine of a model, and on a GPU warm it up; a CPU gains nothing by that."""
        self._opened = self._pool.submit(self._open, model)

    def _open(self, model: Model) -> Opened:
        config = self._config
        decoding = decoding_of(config, model)
        given = {"name": config.engine, "device": config.device, "precision": config.precision}
        opened = _opened(model, decoding, Terms.of(config), **given)
        for engine in opened.engines:
            if engine.device != "cpu" and engine.rows is None and engine.room(WARM_UP_USERS):  # nothing is built
                next(recommend_all(engine, [_warm_up(model, config.max_events)], decoding))
        return opened

    def opened(self) -> Opened | None:
        """Return the engines for `select`, None where they are not open."""
        opened, self._opened = self._opened, None  # keep no reference to an engine that is not used
        if opened is None or opened.exception() is not None:
            return None
        return opened.result()


def _warm_up(model: Model, events: int) -> Batch:
    """Return a dummy batch that warms up the device."""
    tokens_BS = np.full((WARM_UP_USERS, events), FIRST_ITEM, np.int32)
    return Batch(
        dense_BF=np.zeros((WARM_UP_USERS, model.config.features), np.float32),
        tokens_BS=tokens_BS,
        lengths_B=np.full(WARM_UP_USERS, events, np.int32),
        seen_BX=np.zeros((WARM_UP_USERS, 1), np.int32),
    )


def preload(name: str, device: str) -> None:
    """Import the package of the engine that a run will open, and initialize its GPU.

    Raises:
        EngineError: none is installed.
    """
    place = device_of(device, name)
    chosen = _available(place) if name == "auto" else name
    entry(chosen).check_room()
    if module := entry(chosen).module():
        importlib.import_module(module)
    if place.startswith("cuda"):
        entry(chosen).wake(place)


def mode_of(decode: str, beam_width: int, model: Model) -> str:
    """Return the mode of `--decode`: for auto that of the model's training, else slate; beams are slates."""
    if decode != "auto":
        return decode
    return "slate" if beam_width > 1 or model.training is None else model.training.decode


def decoding_of(config: ScoreConfig, model: Model) -> Decoding:
    """Return how lists are made, with no more candidates than the catalog has; rules choose from a longer slate."""
    mode = mode_of(config.list_decode, config.beam_width, model)
    wanted = config.num_candidates if config.decode != "auto" else max(config.num_candidates, config.top_k)
    return Decoding(
        mode=mode,
        top_k=config.pool_steps(config.top_k) if mode == "slate" else config.top_k,
        num_candidates=min(wanted, model.tokens),
        beam_width=min(config.beam_width, model.tokens),
    )


def reference_engine(model: Model, *, name: str = "auto", precision: str = "fp32") -> Engine:
    """Open the engine that others are compared with: on a CPU, torch or else ONNX Runtime.

    Raises:
        EngineError: neither is installed.
    """
    with busy("opening the engine to compare with"):
        return open_engine(model, name=_available("cpu") if name == "auto" else name, device="cpu", precision=precision)


def sample_rows(lengths_N: I64, most: int | None = None) -> I64:
    """Return rows spread evenly over the users by history length: `most`, or one in eight from 32 to 512."""
    order_N = np.argsort(lengths_N, kind="stable")
    wanted = min(SAMPLE_USERS, max(32, len(order_N) // SAMPLE_SHARE)) if most is None else most
    picked = np.linspace(0, len(order_N) - 1, min(wanted, len(order_N))).astype(np.int64)
    return order_N[picked]


def device_of(device: str, name: str) -> str:
    """Return the device that `--device` means for an engine: "cpu" or "cuda:N"."""
    if device != "auto":
        return "cuda:0" if device == "cuda" else device
    if is_servers(name):
        return "cpu"  # of this process; the servers have their own
    only_gpu = name != "auto" and "cpu" not in entry(name).precisions
    return "cuda:0" if only_gpu or Path("/dev/nvidiactl").exists() else "cpu"


def _available(place: str) -> str:
    """Return the engine of `auto`: the first in the registry that runs there and is installed."""
    order = [known for known in ENTRIES if place.partition(":")[0] in known.precisions]
    for known in order:
        if known.module():
            return known.name
    raise EngineError(
        f"--engine auto: none of {', '.join(known.name for known in order)} is installed for {place}; "
        + " or ".join(known.install for known in reversed(order) if "cpu" in known.precisions)
    )
