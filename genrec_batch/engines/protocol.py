"""What an engine is: the two named phases of a generative transformer behind one small protocol.

Owns: the protocol and nothing else. An engine knows tokens and arrays; it must not know users, video ids, Parquet or
Polars. `generate.py` drives it; the state (KV cache, banned items, what was read so far) is opaque to the caller and
may live on a device from the first call to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from genrec_batch.core.arrays import F32, I32, I64, Batch, Ranked

State = Any  # an engine's own; only ever handed back to the engine that made it


class Recorder(Protocol):
    """Is told of each piece of an engine's work: `copy in`, `prefill`, `decode`, `copy out`, and what prepares them.

    `start` and `stop` are seconds of `time.perf_counter`. Rows are users; of `decode`, the items read. Bytes are those
    of the batch for `copy in` and `prefill`, those of the items for `decode` and `copy out`. `lane` says where it ran;
    None is the calling thread.
    """

    def __call__(
        self,
        stage: str,
        start: float,
        stop: float,
        *,
        rows: int = 0,
        bytes: int = 0,  # noqa: A002 (the unit)
        lane: str | None = None,
    ) -> None:
        """Take note of one piece."""
        ...


@runtime_checkable
class Slates(Protocol):
    """What an engine may offer beside the protocol: whole greedy slates that never leave the device."""

    def slate(self, batches: Iterable[Batch], steps: int, record: Recorder | None = None) -> Iterator[Ranked]:
        """Yield the slates of `steps` items of each batch, in order, copies and computation overlapping.

        `record` is told when the device did what, by the device's own clock.
        """
        ...


@runtime_checkable
class Timeable(Protocol):
    """What an engine offers whose calls are timed one by one (`engines.timed`)."""

    arrived: Callable[[], None]  # called by `prefill` where the batch lies as the engine computes with it

    def wait(self) -> None:
        """Return once all that was asked of the device is done."""
        ...


@runtime_checkable
class InSeveralWays(Protocol):
    """What an engine offers that computes one precision in more than one way, with other last bits."""

    arithmetic: str  # the way it has taken


@runtime_checkable
class CountsMemory(Protocol):
    """What an engine on a GPU may offer: the most memory that it held."""

    def peak_bytes(self) -> int:
        """Return the most device memory that the engine held at once."""
        ...


@runtime_checkable
class OnDevice(Protocol):
    """What an engine on a GPU may offer beside the protocol, so that the batch is sized for it."""

    name: str
    precision: str

    def free_bytes(self) -> int:
        """Return the device memory that is free now."""
        ...

    def hardware(self) -> str:
        """Return what decides its speed: the GPU, its memory, the library's version."""
        ...


@runtime_checkable
class PacksRows(Protocol):
    """What an engine offers that can lay rows end to end, so that lengths may be mixed: a row takes no padding.

    It wants batches that are alike, since each size of its work is captured, or built, once and kept.
    """

    def room(self, users: int) -> int:
        """Return how many positions (tokens, and one prefix a user) a batch of so many users should have at most.

        0: in this run it wants rows of like length.
        """
        ...


@runtime_checkable
class FixedRows(Protocol):
    """What an engine offers whose batches all take the time and memory of one number of rows."""

    name: str
    precision: str

    def free_bytes(self) -> int:
        """Return the device memory that is free now."""
        ...

    @property
    def rows(self) -> int:
        """Rows of every batch."""
        ...

    def resize(self, rows: int) -> None:
        """Make the batches from now on so large."""
        ...

    def computed(self, longest: int) -> int:
        """Return the positions that a batch computes whose longest history has so many tokens, padding with them."""
        ...

    def expect(self, *, longest: int, mean: float, steps: int) -> None:
        """Prepare for a run of slates: tokens of its longest history, positions of a mean one, items of a slate."""
        ...


class Engine(Protocol):
    """Prefill once, decode K times. All engines agree with the torch fp32 engine within their precision.

    Choosing: an item is never padding (0), unknown (1), in `Batch.seen_BX` or already read by `decode` in this state.
    Its log-probability is over the whole vocabulary, before any of that is masked. Equal logits: the lower token first.
    Where nothing is left to choose, the token is 0 and the log-probability -inf; reading token 0 is allowed and its
    heads are 0.
    """

    name: str  # "torch", "onnxruntime", "tensorrt"
    device: str  # "cpu", "cuda:0"
    precision: str  # "fp32", "bf16", "fp16", ...

    def prefill(self, batch: Batch, *, steps: int, choices: int = 1) -> State:
        """Read the features and histories; make room for `steps` decoded items and choose the next `choices` items.

        tokens [B, S] -> a state whose `choose` gives the best `choices` (<= vocabulary) items of the next position.
        """
        ...

    def decode(self, state: State, tokens_B: I32 | None = None) -> None:
        """Read one item per row, [B], at the next position: its four scores, then the next choice.

        None reads the best choice of the position before, so a greedy loop never leaves the device.
        """
        ...

    def choose(self, state: State) -> tuple[I32, F32]:
        """Return the best items of the next position, best first: tokens [B, choices], log-probabilities."""
        ...

    def log_probs(self, state: State, tokens_BC: I32) -> F32:
        """Return the log-probability of given items at the position right after the history, [B, C]."""
        ...

    def score(self, state: State, tokens_BC: I32) -> F32:
        """Return the heads [B, C, H] of C items, each read alone right after the history, in one parallel pass."""
        ...

    def select(self, state: State, rows_R: I64) -> State:
        """Return a state whose row r is a copy of row `rows_R[r]` (beam search: a row may be taken many times)."""
        ...

    def collect(self, state: State) -> Ranked:
        """Return all items read so far with their log-probabilities and heads, in the order they were read."""
        ...
