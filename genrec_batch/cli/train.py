"""The command `train`.

Owns: its arguments and what it prints. Must not know: how a model is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrec_batch.cli.exits import done
from genrec_batch.cli.flags import options
from genrec_batch.core.errors import EngineError
from genrec_batch.runtime import console
from genrec_batch.training.options import TrainConfig


@options(TrainConfig)
def train(
    events: Annotated[str, typer.Argument(metavar="EVENTS", help="Parquet log: a file, a glob, a directory or a URI.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="The model directory to make, by path or URI.")],
    options: TrainConfig,
) -> None:
    """Train a model on a log: a model directory that `score --model` ranks with.

    A run that was stopped continues where it was, given the same options.

    Example: genrec-batch train events.parquet --out model/ --users users.parquet --videos videos.parquet
    """
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise EngineError("train: the package torch is not installed; pip install 'genrec-batch[train]'")
    from genrec_batch.model import places
    from genrec_batch.training import job

    with places.placed(out, "--out", kept=True) as directory:
        summary = job.train(options, events, directory) | {"model": places.shown(out)}
    with done(f"the model {places.shown(out)} is whole"):
        console.last_line(summary)
