"""What a coordinator and its workers tell each other.

Owns: the messages. Must not know: who sends them when (`crew`, `worker`), or how they travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genrec_batch.core import errors
from genrec_batch.core.arrays import U8
from genrec_batch.core.errors import EngineError, GenrecError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.events.plausible import Look
from genrec_batch.events.user_histories import Group
from genrec_batch.io.part_writer import PartWriter, WrittenPart
from genrec_batch.runtime.clock import Span
from genrec_batch.scoring.about import About
from genrec_batch.scoring.workers.processes import Sent


@dataclass(frozen=True, kw_only=True)
class Start:
    """To a worker: import what the engine needs, while the log is still read."""

    config: ScoreConfig
    target: str
    began: float | None  # of the run's clock, None where the worker has another one
    verbose: bool


@dataclass(frozen=True, kw_only=True)
class Know:
    """To a worker: open the engine of this model, while the log is split; it comes again with the data set."""

    model: Sent


@dataclass(frozen=True, kw_only=True)
class Load:
    """To a worker: open the engine for this data set, which may be in the files beside it."""

    data: Sent


@dataclass(frozen=True, kw_only=True)
class Begin:
    """To a worker: this is where parts are written, and the earlier output, which may be in the files beside it."""

    writer: PartWriter
    previous: Sent | None


@dataclass(frozen=True, kw_only=True)
class Take:
    """To a worker that wants parts: score these; None: finish those that you have and ask again."""

    group: Group | None


@dataclass(frozen=True, kw_only=True)
class Finish:
    """To a worker that wants parts: there are no more."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Of a worker: its engine is open."""

    about: About


@dataclass(frozen=True, kw_only=True)
class Want:
    """Of a worker: give me parts."""


@dataclass(frozen=True, kw_only=True)
class Advanced:
    """Of a worker: the engine has answered for some more users."""

    users: int


@dataclass(frozen=True, kw_only=True)
class Wrote:
    """Of a worker: a part is on the disk."""

    part: WrittenPart
    items: int  # recommendations in it


@dataclass(frozen=True, kw_only=True)
class Said:
    """Of a worker: a line for the log."""

    level: int
    text: str
    advice: bool = False  # see `console.ADVICE`


@dataclass(frozen=True, kw_only=True)
class Sign:
    """Of a worker: work goes on."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Of a worker, its last message: why it ends."""

    kind: str  # of the error, in `core.errors`
    text: str
    about: str = ""  # see `EngineError`

    @staticmethod
    def of(error: GenrecError) -> Failed:
        """Return the message about an error: of the nearest kind that every process knows."""
        kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__]
        return Failed(kind=kinds[0], text=str(error), about=getattr(error, "about", ""))

    def error(self) -> GenrecError:
        """Return the error that a worker ended with."""
        error: GenrecError = getattr(errors, self.kind)(self.text)
        if isinstance(error, EngineError):
            error.about = self.about
        return error


@dataclass(frozen=True, kw_only=True)
class Ended:
    """Of a worker, its last message: what it has done."""

    report: Mapping[str, Any]
    seconds: Mapping[str, float]
    spans: list[Span]
    peak_rss_mib: float
    looks: list[dict[str, Look]] = field(default_factory=list)
    dropped: Mapping[int, int] = field(default_factory=dict)  # see `Duplicates`
    covered: Mapping[str, U8] = field(default_factory=dict)  # see `Experiment`
