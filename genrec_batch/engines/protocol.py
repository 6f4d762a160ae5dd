"""What an engine is: the two named phases of a generative transformer, and what an engine may offer beside them.

Owns: the base classes of all engines, and nothing that computes. An engine knows tokens and arrays; it must not know
users, video ids, Parquet or Polars. `decode` drives it. The state (KV cache, banned items, what was read so far) is
opaque to the caller and may live on a device from the first call to the last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from genrec_batch.core.arrays import F32, I32, I64, Batch, Ranked

State = Any  # an engine's own; only ever handed back to the engine that made it


class Recorder(Protocol):
    """Receives each stage of an engine's work: `copy in`, `prefill`, `decode`, `copy out`, and what prepares them.

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
        """Record one stage."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The KV cache of one row, of its position 0 and its events: what `SteppedEngine.resume` goes on from."""

    cache: Any  # in a form of the engine's own; never written to
    length: int  # events
    nbytes: int


def nothing() -> None:
    """Do nothing: the default of `SteppedEngine.arrived`."""


class Engine:
    """A model on a device. What it offers has defaults that suit an engine on a CPU with batches of any size.

    It is either a `SteppedEngine` or a `decode.WholeEngine`.
    """

    name: str  # "torch", "onnxruntime", "tensorrt"
    device: str  # "cpu", "cuda:0"
    precision: str  # "fp32", "bf16", "fp16", ...
    arithmetic: str = ""  # which way it computes its precision, where there are several that differ in the last bits

    @property
    def title(self) -> str:
        """What errors call it."""
        return f"the {self.name} engine in {self.precision}"

    def report(self) -> dict[str, Any]:
        """Return what the summary says of its work beside what it says of every engine."""
        return {}

    def wait(self) -> None:
        """Return once the device has done all that was asked of it."""

    @property
    def rows(self) -> int | None:
        """Rows that every batch is padded to, where the engine is built for one number of them."""
        return None

    def resize(self, rows: int) -> None:
        """Build for batches of at most `rows` users from now on, where the engine is built for one number of rows."""

    def expect(self, *, longest: int, mean: float, steps: int) -> None:
        """Prepare for a run of greedy slates of `steps` items.

        `longest` is the tokens of its longest history, `mean` the positions of a mean one (its tokens and the prefix).
        """

    def room(self, users: int) -> int:  # noqa: ARG002 (for those that pack rows)
        """Return how many positions (tokens, and one prefix a user) a batch of so many users should have at most.

        0: rows are padded, so batches should have rows of like length. Otherwise the engine packs rows end to end;
        lengths may be mixed, and batches should be alike, since each size of its work is captured or built once.
        """
        return 0

    def computed(self, lengths_B: I64) -> int:
        """Return the positions that the engine computes for a batch of these lengths, padding included."""
        return (int(lengths_B.max()) + 1) * len(lengths_B)

    def free_bytes(self) -> int | None:
        """Return the device memory that is free now, None where it is not known."""
        return None

    def peak_bytes(self) -> int | None:
        """Return the most device memory that was in use since the engine was opened, None where it is not known."""
        return None


class SteppedEngine(Engine, ABC):
    """Prefill once, decode K times. All engines agree with the torch fp32 engine within their precision.

    Choosing: an item is never padding (0), unknown (1), in `Batch.seen_BX`, banned by its row's bit map in
    `Batch.masks`, or already read by `decode` in this state. Its log-probability is over the whole vocabulary, before
    any of that is masked, so a mask changes which items come out and no item's log-probability. Equal logits: the lower
    token first. Where nothing is left to choose, the token is 0 and the log-probability -inf; reading token 0 is
    allowed and its heads are 0. A mask may leave fewer than K items, or none. `log_probs`, `score` and `decode` with
    given tokens obey no mask: the caller leaves out what must not be recommended.

    The abstract methods are the whole of a plain engine.
    """

    has_slate_loop: ClassVar[bool] = False  # whether `slate` is implemented
    has_candidates_loop: ClassVar[bool] = False  # whether `candidates` is
    arrived: Callable[[], None] = staticmethod(nothing)  # `prefill` calls it once the device holds the batch

    @abstractmethod
    def prefill(self, batch: Batch, *, steps: int, choices: int = 1) -> State:
        """Read the features and histories; make room for `steps` decoded items and choose the next `choices` items.

        tokens [B, S] -> a state whose `choose` gives the best `choices` (<= vocabulary) items of the next position.
        """

    @abstractmethod
    def decode(self, state: State, tokens_B: I32 | None = None) -> None:
        """Read one item per row, [B], at the next position: its four scores, then the next choice.

        None reads the best choice of the position before, so a greedy loop never leaves the device.
        """

    @abstractmethod
    def choose(self, state: State) -> tuple[I32, F32]:
        """Return the best items of the next position, best first: tokens [B, choices], log-probabilities."""

    @abstractmethod
    def log_probs(self, state: State, tokens_BC: I32) -> F32:
        """Return the log-probability of given items right after the history, [B, C]; -inf for token 0."""

    @abstractmethod
    def score(self, state: State, tokens_BC: I32) -> F32:
        """Return the heads [B, C, H] of C items, each read alone right after the history, in one parallel pass."""

    @abstractmethod
    def select(self, state: State, rows_R: I64) -> State:
        """Return a state whose row r is a copy of row `rows_R[r]` (beam search: a row may be taken many times)."""

    @abstractmethod
    def collect(self, state: State) -> Ranked:
        """Return all items read so far with their log-probabilities and heads, in the order they were read."""

    @property
    def keeps_prefixes(self) -> bool:
        """Whether `kept` and `resume` are implemented on this device."""
        return False

    def resume(self, batch: Batch, prefixes: Sequence[Prefix | None], *, steps: int, choices: int = 1) -> State:
        """Do as `prefill` does, but of each row with a prefix read only the events behind it, one after the other.

        A prefix is that of the first events of the row's own history; its position 0 takes the place of what the batch
        has of the row's features and vectors. Where no event is behind it, the newest one is read again. Costs least
        where the rows with the most events to read come first.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no prefixes")

    def kept(self, state: State, rows: Sequence[int]) -> list[Prefix]:
        """Return copies of the prefixes of some rows, of their whole histories."""
        raise NotImplementedError(f"{type(self).__name__} keeps no prefixes")

    def slate(self, batches: Iterable[Batch], steps: int, record: Recorder | None = None) -> Iterator[Ranked]:
        """Yield the greedy slates of `steps` items of each batch, in order, copies and computation overlapping.

        The whole loop runs on the device. `record` receives its stages by the device's own clock.
        """
        raise NotImplementedError(f"{type(self).__name__} has no slate loop")

    def candidates(self, batches: Iterable[Batch], count: int, record: Recorder | None = None) -> Iterator[Ranked]:
        """Yield the best `count` items after each batch's histories, each scored alone; else as `slate`."""
        raise NotImplementedError(f"{type(self).__name__} has no loop for candidates")
