"""What the users of a run go through: one model, or the arms of an experiment.

Owns: which of the two a run has. Must not know: how either scores users, in which process that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.choose import Opening
from genrec_batch.engines.protocol import Engine
from genrec_batch.events.dataset import Dataset
from genrec_batch.events.user_histories import Group
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages
from genrec_batch.scoring.about import About, EngineFacts
from genrec_batch.scoring.experiment import Experiment
from genrec_batch.scoring.model_run import Scoring
from genrec_batch.scoring.previous import Previous
from genrec_batch.scoring.results import OutputPart
from genrec_batch.scoring.shape import Shape
from genrec_batch.scoring.writing import begun


class Ranker(Protocol):
    """What users go through: one model, or the arms of an experiment."""

    @property
    def engine(self) -> Engine:
        """The engine, or that of the first arm."""

    @property
    def shape(self) -> Shape:
        """The shape of the output."""

    def identity(self) -> dict[str, Any]:
        """Return what decides rows beside what every run has."""

    def scope(self) -> dict[str, Any]:
        """Return what decides rows of all users and is neither in the identity nor in the options."""

    def parts(
        self, groups: Iterable[Group], previous: Previous | None, advance: console.Advance, *, sampled: bool = False
    ) -> Iterator[Callable[[], OutputPart]]:
        """Yield the parts of some groups of shards, in order, as work that ends in a part.

        Some users are `sampled`: their drift is watched.
        """

    def report(self) -> dict[str, Any]:
        """Return what the summary says of engines and their work."""


def ranker_of(config: ScoreConfig, dataset: Dataset, target: str | None, stages: Stages, ahead: Opening) -> Ranker:
    """Open what the users of a run go through; `target` is its output, which may record what was begun.

    Raises:
        GenrecError: see `Scoring.of` and `Experiment.of`.
    """
    if not config.arm:
        return Scoring.of(config, dataset, stages, ahead=ahead)
    return Experiment.of(config, dataset, stages, ahead=ahead, begun=partial(begun, config, target))


def about(ranker: Ranker) -> About:
    """Return what a run records of what its users go through."""
    return About(
        engine=EngineFacts.of(ranker.engine),
        identity=ranker.identity(),
        scope=ranker.scope(),
        form=ranker.shape.form(),
        needs=ranker.shape.needs(),
    )
