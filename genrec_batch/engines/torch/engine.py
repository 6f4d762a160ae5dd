"""The torch engine: prefill once, decode K times, on a CPU or a CUDA device.

Owns: arrays in and out, the caller's order of rows, and the threads of a CPU. Must not know: how rows go through the
network (`lane`), how it is computed (`network`), users, Parquet.

On a CPU the rows are divided among lanes, one thread each, that wait for each other only at the end of a call. Threads
that share each product wait for each other hundreds of times a call, and for whole time slices when another process
uses the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from genrec_batch.core.arrays import F32, HEADS, I32, I64, Batch, Ranked
from genrec_batch.core.errors import RetryError
from genrec_batch.core.option_values import check_positions
from genrec_batch.engines.protocol import Prefix, SteppedEngine
from genrec_batch.engines.torch.cache import Held
from genrec_batch.engines.torch.choice import log_probs
from genrec_batch.engines.torch.device import (
    FAST,
    fast_int8,
    resolve_device,
    resolve_precision,
    retry_when_out_of_memory,
)
from genrec_batch.engines.torch.lane import Lane, LaneModel
from genrec_batch.engines.torch.network import Network, load_network
from genrec_batch.engines.torch.phases import Phases, PlainPhases
from genrec_batch.model.weights import Model
from genrec_batch.runtime.console import LOG

GROUP_ROWS = 32  # rows that share a KV cache on a CPU
CONTEXT_POSITIONS = 816  # positions of one pass on a CPU: the activations of 16 rows of 51 stay in its caches
ASIDE_POSITIONS = 2048  # items of one pass on a CPU that reads each of them alone
WHOLE = 1 << 30  # a GPU takes all of them in one pass

ROOM = "raise the limit of threads (ulimit -u, a container's pids limit), or give the process fewer cores"

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LanesState:
    """A batch between calls: its lanes, and the caller's rows that each lane holds."""

    rows: int
    lanes: list[Lane]
    places: list[I64]


class TorchEngine(SteppedEngine):
    """The generative transformer in PyTorch.

    What each precision covers:
    fp32: everything.
    bf16 on a CPU: the KV cache, and all products of the positions before the newest event, which are most of the work
    and matter only through attention.
    int8 on a CPU: most products of the same positions, with a bf16 cache.
    bf16-fast and int8-fast on a CPU: the context and the cache in bf16 or in 8-bit numbers, and 8-bit numbers for what
    is read one position at a time, which a trained model may bear; `choose` measures that.
    bf16 and fp16 on CUDA: the cache and all products of the encoder.

    In bf16 and int8 on a CPU the products of the newest event and of decoded items, and the logits, are computed in
    pairs of 8-bit numbers (`linear.PairLinear`), which keeps close items in order at little cost. Where the compiled
    kernels do not run (`_phases`), these products are fp32, and so is the cache of int8; that of int8-fast is bf16. The
    residual stream, norms, softmax and heads are always fp32.
    """

    name = "torch"

    def __init__(self, model: Model, *, device: str = "cpu", precision: str = "fp32") -> None:
        """Load the weights onto a device.

        Raises:
            EngineError: the device or precision is not there.
            DeviceMemoryError: the device is out of memory.
        """
        self._device = resolve_device(device)
        dtype = resolve_precision(precision)
        self.device, self.precision = str(self._device), precision
        self._positions = model.config.positions
        on_cpu = self._device.type == "cpu"
        with retry_when_out_of_memory(self._device), torch.inference_mode():
            network = load_network(model.config, model.weights, self._device)
            phases = _phases(network, self._device, dtype, model.tokens, single=precision in FAST)
            self.arithmetic = "plain" if isinstance(phases, PlainPhases) else "compiled"
            self._model = LaneModel.of(
                network,
                phases,
                tokens=model.tokens,
                group_rows=GROUP_ROWS if on_cpu else WHOLE,
                context_positions=CONTEXT_POSITIONS if on_cpu else WHOLE,
                aside_positions=ASIDE_POSITIONS if on_cpu else WHOLE,
            )
        self._threads = torch.get_num_threads() if on_cpu else 1
        self._pool = _lane_threads(self._threads) if self._threads > 1 else None

    def prefill(self, batch: Batch, *, steps: int, choices: int = 1) -> LanesState:
        """Read the features and histories of B rows and choose the next items; see `Engine`.

        Raises:
            ConfigError: history and steps do not fit the model's positions.
            DeviceMemoryError: the device is out of memory.
        """
        return self.resume(batch, [None] * len(batch), steps=steps, choices=choices)

    @property
    def keeps_prefixes(self) -> bool:
        """Whether the caches are on the host."""
        return self._device.type == "cpu"

    def resume(self, batch: Batch, prefixes: Sequence[Prefix | None], *, steps: int, choices: int = 1) -> LanesState:
        """Read what is behind each row's prefix, the whole history of rows that have none; see `Engine`.

        Raises:
            ConfigError: history and steps do not fit the model's positions.
            DeviceMemoryError: the device is out of memory.
        """
        check_positions(self._positions, events=int(batch.lengths_B.max(initial=0)), items=steps)
        # Rows without a prefix come first; to the others at least the newest event is left.
        begin_B = np.array([-1 if prefix is None else prefix.length for prefix in prefixes], np.int64)
        left_B = np.where(begin_B < 0, 0, np.maximum(batch.lengths_B - begin_B, 1))
        order_B = np.lexsort((batch.lengths_B, left_B))
        places = [order_B[lane :: self._threads] for lane in range(min(self._threads, len(batch)))]

        def put(rows: I64) -> dict[str, Tensor]:
            return {name: self._put(array) for name, array in _inputs(batch, rows).items()}

        def start(inputs: dict[str, Tensor], rows: I64) -> Lane:
            held = [_cut(prefix, int(batch.lengths_B[row])) for row in rows if (prefix := prefixes[row]) is not None]
            return self._model.prefill(inputs, steps=steps, choices=choices, held=held)

        inputs = self._each(put, places)
        self.arrived()
        return LanesState(rows=len(batch), lanes=self._each(start, inputs, places), places=places)

    def kept(self, state: LanesState, rows: Sequence[int]) -> list[Prefix]:
        """Return copies of some rows' prefixes; see `Engine`."""
        place_of = {
            int(row): (lane, at)
            for lane, places in zip(state.lanes, state.places, strict=True)
            for at, row in enumerate(places)
        }
        found = []
        for row in rows:
            lane, at = place_of[row]
            held = lane.held(at)
            found.append(Prefix(cache=held, length=held[0].shape[2] - 1, nbytes=sum(part.nbytes for part in held)))
        return found

    def wait(self) -> None:
        """Return once a GPU has done its work; on a CPU a call returns when its work is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def free_bytes(self) -> int | None:
        """Return the GPU memory that is free, or held by PyTorch's allocator and unused."""
        if self._device.type == "cpu":
            return None
        held = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0] + held)

    def peak_bytes(self) -> int | None:
        """Return the most GPU memory that PyTorch held for this process."""
        return torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else None

    def decode(self, state: LanesState, tokens_B: I32 | None = None) -> None:
        """Read one item per row (None: the best choice), then choose the next; see `Engine`.

        Raises:
            DeviceMemoryError: the device is out of memory.
        """
        items = [None if tokens_B is None else self._put(tokens_B[rows]) for rows in state.places]
        self._each(self._model.decode, state.lanes, items)

    def choose(self, state: LanesState) -> tuple[I32, F32]:
        """Return the best items of the next position, best first: tokens [B, W], log-probabilities [B, W]."""
        found = [lane.next for lane in state.lanes if lane.next is not None]
        assert len(found) == len(state.lanes), "prefill made room for fewer steps"
        tokens_BW: I32 = _gather(state, [choice.tokens_BW.int() for choice in found])
        log_prob_BW: F32 = _gather(state, [choice.log_prob_BW for choice in found])
        return tokens_BW, log_prob_BW

    def log_probs(self, state: LanesState, tokens_BC: I32) -> F32:
        """Return the log-probabilities of items right after the history, [B, C]; -inf for token 0."""

        def found(lane: Lane, items_BC: Tensor) -> Tensor:
            return log_probs(lane.start.logits_BV, lane.start.log_sum_B, items_BC)

        log_prob_BC: F32 = _gather(state, self._each(found, state.lanes, self._deal(state, tokens_BC)))
        return log_prob_BC

    def score(self, state: LanesState, tokens_BC: I32) -> F32:
        """Return the heads [B, C, H] of items, each read alone right after the history; 0 for token 0.

        Raises:
            DeviceMemoryError: the device is out of memory.
        """
        heads_BCH: F32 = _gather(state, self._each(self._model.score, state.lanes, self._deal(state, tokens_BC)))
        return heads_BCH

    def select(self, state: LanesState, rows_R: I64) -> LanesState:
        """Return a state whose row r is a copy of row `rows_R[r]`; see `Engine`.

        Raises:
            DeviceMemoryError: the device is out of memory.
        """
        within_B = np.full(state.rows, -1, np.int64)
        lanes, places, sources = [], [], []
        for lane, rows in zip(state.lanes, state.places, strict=True):
            within_B[:] = -1
            within_B[rows] = np.arange(len(rows))
            place = np.flatnonzero(within_B[rows_R] >= 0)
            place = place[np.argsort(within_B[rows_R[place]], kind="stable")]
            if len(place):
                lanes.append(lane)
                places.append(place)
                sources.append(self._put(within_B[rows_R[place]]))
        return LanesState(rows=len(rows_R), lanes=self._each(Lane.take, lanes, sources), places=places)

    def collect(self, state: LanesState) -> Ranked:
        """Return all items read so far, in the order they were read: [B, K]."""
        if not state.lanes[0].tokens:
            none_read = np.zeros((state.rows, 0, len(HEADS)), np.float32)
            tokens_BK, log_prob_BK = none_read[:, :, 0].astype(np.int32), none_read[:, :, 0]
            return Ranked(tokens_BK=tokens_BK, log_prob_BK=log_prob_BK, heads_BKH=none_read)
        return Ranked(
            tokens_BK=_gather(state, [torch.stack(lane.tokens, 1).int() for lane in state.lanes]),
            log_prob_BK=_gather(state, [torch.stack(lane.log_probs, 1) for lane in state.lanes]),
            heads_BKH=_gather(state, [torch.stack(lane.heads, 1) for lane in state.lanes]),
        )

    def _put(self, array: Array) -> Tensor:
        """Return an array on the device; integers as int64, the type of PyTorch's indices."""
        wide = array.astype(np.int64, copy=False) if array.dtype.kind == "i" else array
        return torch.from_numpy(np.ascontiguousarray(wide)).to(self._device)

    def _deal(self, state: LanesState, tokens_BC: I32) -> list[Tensor]:
        return [self._put(tokens_BC[rows]) for rows in state.places]

    def _each(self, work: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
        """Do the same work for every lane, each on its own thread, and wait for all of them."""

        def alone(*given: Any) -> T:
            with torch.inference_mode():
                return work(*given)

        with retry_when_out_of_memory(self._device):
            return list(map(alone, *arguments) if self._pool is None else self._pool.map(alone, *arguments))


def _phases(network: Network, device: torch.device, dtype: torch.dtype, tokens: int, *, single: bool) -> Phases:
    """Return the fastest phases in a type that run here, for histories of tokens below `tokens`.

    `single`: what is read one position at a time is in 8-bit numbers, else in pairs of them.
    """
    if device.type == "cpu" and dtype != torch.float32 and fast_int8():
        if find_spec("numba") is None:
            LOG.info("numba is not installed, so scoring is slower; pip install 'genrec-batch[fast]'")
        else:
            try:
                from genrec_batch.engines.torch.compiled.phases import CompiledPhases, fits
            except ImportError as error:
                LOG.warning("numba is installed but does not load (%s), so scoring is slower", error)
            else:
                if fits(network.config):
                    return CompiledPhases.of(network, dtype, tokens, single=single)
    if single:
        return PlainPhases.single(network, dtype=dtype, tokens=tokens)
    reading = torch.float32 if device.type == "cpu" else dtype
    return PlainPhases.of(network, dtype=dtype, reading_dtype=reading, tokens=tokens)


def _cut(prefix: Prefix, events: int) -> Held:
    """Return a row's prefix without the row's newest event, which is read again if it is part of the prefix."""
    return [part[:, :, :events] for part in prefix.cache]


def _lane_threads(count: int) -> ThreadPoolExecutor:
    """Return threads that each compute on one core; elsewhere PyTorch keeps its number of threads.

    Raises:
        RetryError: one of them cannot be started.
    """
    all_there = Barrier(count)

    def alone() -> None:
        torch.get_num_threads()  # the first call in a thread takes the number of the process, so call it first
        torch.set_num_threads(1)

    def arrived() -> int:
        all_there.wait()  # so that no thread takes the task of another
        return torch.get_num_threads()

    pool = ThreadPoolExecutor(count, thread_name_prefix="lane", initializer=alone)
    try:
        started = [pool.submit(arrived) for _ in range(count)]
    except RuntimeError as error:  # the system refuses a thread; those that wait would wait for ever
        all_there.abort()
        pool.shutdown(cancel_futures=True)
        raise RetryError(f"one of {count} threads for the torch engine cannot be started ({error}); {ROOM}") from error
    assert [future.result() for future in started] == [1] * count
    torch.set_num_threads(count)  # each thread has a number of its own, but later threads start with the process's
    return pool


def _inputs(batch: Batch, rows: I64) -> dict[str, Array]:
    names = ("dense_BF", "tokens_BS", "lengths_B", "seen_BX", "profile_BP", "has_profile_B", "video_BV", "has_video_B")
    inputs = {name: array[rows] for name in names if (array := getattr(batch, name)) is not None}
    if batch.masks is not None:
        masks = batch.masks.take(rows)
        inputs |= {"bans_MC": masks.bytes_MC, "mask_B": masks.mask_B}
    return inputs


def _gather(state: LanesState, of_lanes: list[Tensor]) -> Any:  # an array of the tensors' type
    """Return the lanes' rows in the caller's order, on the host."""
    gathered = np.empty((state.rows, *of_lanes[0].shape[1:]), of_lanes[0].cpu().numpy().dtype)
    for rows, of_lane in zip(state.places, of_lanes, strict=True):
        gathered[rows] = of_lane.cpu().numpy()
    return gathered
