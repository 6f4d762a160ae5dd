"""A phase of a training: epochs over some events, validated or not, checkpointed, stopped in time.

Owns: the order of steps, the state of an unfinished run, early stopping, the estimate of the time. Must not know: the
network, how rows are drawn. In: events, initial weights, perhaps held-out rows. Out: the best weights.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from genrec_batch.core.errors import GateError
from genrec_batch.model.weights import ModelConfig
from genrec_batch.runtime import console, threads
from genrec_batch.runtime.console import LOG
from genrec_batch.training.checkpoint import STATE, Checkpoints
from genrec_batch.training.device import Place
from genrec_batch.training.inputs import Events, Standard, TrainingBatch
from genrec_batch.training.loop import Losses, Schedule, Trainer
from genrec_batch.training.options import Recipe
from genrec_batch.training.validate import Validation, gain

SEARCH, SEARCH_SETS, REFIT, REFIT_SETS = "search", "search on sets", "refit", "refit on sets"
SET_EVENTS, SET_RATE = 10, 0.3  # after a cut that are one set, as many as a list has; share of the highest rate
UNKNOWN_SHARE = 0.12  # of the tokens that are read as unknown
CHECKPOINT_S = 60.0  # between two checkpoints within an epoch
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 3500, 8, 60  # that are planned: so many steps, within these epochs
PATIENCE = 0.25  # of the planned epochs, without improvement, after which a search ends
READ_STEPS = 20  # whose losses are read together: reading waits for a GPU
TRIED_BATCHES = 3  # by which the time is estimated
DIVERGED_STEPS, DIVERGED = 50, 1.0  # steps whose mean loss is so far above that of a uniform guess


@dataclass(kw_only=True)
class State:
    """How far a training is: what a checkpoint keeps beside tensors."""

    phase: str = SEARCH
    epoch: int = 0  # epochs that are done
    batch: int = 0  # batches of the next one that are done
    step: int = 0
    planned: int = 0  # epochs, by which the learning rate falls; 0: not known yet
    best_epoch: int = 0  # 0: none
    best_value: float = -math.inf
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)  # of the epoch so far: loss, positions, heads, steps
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best_file(self) -> str | None:
        """Name of the best weights."""
        return f"best-{self.best_epoch}.safetensors" if self.best_epoch else None

    def next_phase(self, name: str) -> None:
        """Go on to another phase, at its first step."""
        self.phase, self.epoch, self.batch, self.step, self.sums = name, 0, 0, 0, [0.0] * 4


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What an epoch is over, and how steps are taken."""

    name: str
    events: Events
    standard: Standard
    held_out: Validation | None
    config: ModelConfig
    items: int
    recipe: Recipe
    place: Place
    seed: int
    first_epoch: int = 0  # by whose number rows are drawn
    block: int = 1  # events after a cut whose order is shuffled

    def on_sets(self, name: str, first_epoch: int) -> Phase:
        """Return a phase that continues this one on sets, at a low rate."""
        recipe = replace(self.recipe, lr=self.recipe.lr * SET_RATE)
        return replace(self, name=name, first_epoch=first_epoch, block=SET_EVENTS, recipe=recipe)

    def order(self, epoch: int) -> tuple[Any, list[Any]]:
        """Return the rows of an epoch and those of each batch."""
        return self.events.epoch(self.seed, self.first_epoch + epoch, self.recipe.batch_size)

    def steps(self) -> int:
        """Return the steps of an epoch."""
        return len(self.order(0)[1])

    def trainer(self, weights: dict[str, Tensor], epochs: int) -> Trainer:
        """Return a trainer at its first step."""
        return Trainer(
            self.config,
            weights,
            items=self.items,
            schedule=Schedule(peak=self.recipe.lr, steps=epochs * self.steps()),
            place=self.place,
            dropout=self.recipe.dropout,
            seed=self.seed,
            standard=self.standard,
        )

    def batches(self, epoch: int, start: int) -> Any:
        """Yield the batches of an epoch from `start` on, made on a thread ahead of the steps."""
        rows, order = self.order(epoch)
        made = self.events.batches(
            rows,
            order,
            seed=self.seed,
            epoch=self.first_epoch + epoch,
            start=start,
            unknown=UNKNOWN_SHARE,
            block=self.block,
        )
        return threads.background(made, ahead=8, name="batches")


def planned_epochs(steps: int) -> int:
    """Return how many epochs of so many steps are planned where nobody says so."""
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, round(STEPS / steps)))


def estimated_epoch_s(phase: Phase, weights: dict[str, Tensor]) -> float:
    """Return about how long an epoch takes, by a few steps with weights that are thrown away."""
    trainer = phase.trainer({name: tensor.clone() for name, tensor in weights.items()}, 1)
    rows, order = phase.order(0)
    made = phase.events.batches(
        rows, order[: TRIED_BATCHES + 1], seed=phase.seed, epoch=0, start=0, unknown=UNKNOWN_SHARE
    )
    batches: list[TrainingBatch] = list(made)
    size_of = [batch.tokens_BS.size + len(batch.place_P) for batch in batches]
    seconds, began = 0.0, time.perf_counter()
    for number, _ in enumerate(trainer.train(batches, epoch=0, start=0)):
        phase.place.wait()
        now = time.perf_counter()
        seconds, began = (seconds + now - began if number else 0.0), now
    if len(batches) < 2:
        return seconds or 1.0
    length_R = rows.stop_R - rows.first_R
    whole = sum(int(length_R[rows_B].max()) * len(rows_B) for rows_B in order) + int(
        (rows.stop_R - rows.target_R).sum()
    )
    return seconds / sum(size_of[1:]) * whole


def run(
    phase: Phase,
    epochs: int,
    initial: dict[str, Tensor],
    state: State,
    checkpoints: Checkpoints,
    tensors: dict[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Train from where `state` is to the end of the phase; return the best weights of a search, else the last.

    `tensors` are those of the checkpoint that `state` is of.

    Raises:
        GateError: the loss is not a number, or it diverges.
        RetryError: the disk is full.
    """
    trainer = phase.trainer(initial, epochs)
    if tensors is not None:
        trainer.restore(tensors, state.step)
    saved, waiting = time.perf_counter(), list[Losses]()
    while state.epoch < epochs and not _is_enough(phase, state):
        epoch, steps = state.epoch, len(phase.order(state.epoch)[1])
        began = time.perf_counter()
        title = f"{phase.name}, epoch {epoch + 1} of {epochs}"
        with console.progress(title, steps, "steps", done=state.batch) as advance:
            batches, number = phase.batches(epoch, state.batch), phase.first_epoch + epoch
            for losses in trainer.train(batches, epoch=number, start=state.batch):
                waiting.append(losses)
                advance(1)
                late = time.perf_counter() - saved > CHECKPOINT_S
                if late or len(waiting) >= READ_STEPS:
                    _add(state, waiting, phase)
                    console.doing(f"loss {state.sums[0] / max(1.0, state.sums[1]):.3f}")
                if late:
                    checkpoints.save(STATE, trainer.tensors(), asdict(state))
                    saved = time.perf_counter()
            _add(state, waiting, phase)
        _end_epoch(phase, trainer, state, checkpoints, time.perf_counter() - began)
        saved = time.perf_counter()
    if phase.name != SEARCH:
        return dict(trainer.average)
    return best_weights(state, checkpoints, phase.place)


def best_weights(state: State, checkpoints: Checkpoints, place: Place) -> dict[str, Tensor]:
    """Return the weights that validated best."""
    assert state.best_file is not None, "an epoch was validated"
    return stored_weights(state.best_file, checkpoints, place)


def stored_weights(file: str, checkpoints: Checkpoints, place: Place) -> dict[str, Tensor]:
    """Return the weights of a file beside the checkpoint."""
    found = checkpoints.load(file)
    assert found is not None, file
    return {name: tensor.to(place.device) for name, tensor in found[0].items()}


def _is_enough(phase: Phase, state: State) -> bool:
    patience = max(3, math.ceil(state.planned * PATIENCE))
    return phase.name == SEARCH and state.best_epoch > 0 and state.epoch - state.best_epoch >= patience


def _add(state: State, waiting: list[Losses], phase: Phase) -> None:
    """Add up the losses of the steps since the last call.

    Raises:
        GateError: one is not a number, or they diverge.
    """
    if not waiting:
        return
    read = torch.stack([torch.stack([each.items.detach(), each.heads.detach()]) for each in waiting]).tolist()
    for losses, (items, heads) in zip(waiting, read, strict=True):
        state.batch, state.step = state.batch + 1, state.step + 1
        if not math.isfinite(items + heads):
            raise GateError(f"{phase.name}, epoch {state.epoch + 1}, step {state.step}: the loss is not a number")
        for place, value in enumerate((items, losses.positions, heads, 1.0)):
            state.sums[place] += value
    waiting.clear()
    mean, guess = state.sums[0] / max(1.0, state.sums[1]), math.log(phase.items)
    if state.sums[3] >= DIVERGED_STEPS and mean > guess + DIVERGED:
        raise GateError(
            f"{phase.name}, epoch {state.epoch + 1}: the loss diverges: it is {mean:.2f} on average, and a uniform "
            f"guess has {guess:.2f}"
        )


def _end_epoch(phase: Phase, trainer: Trainer, state: State, checkpoints: Checkpoints, seconds: float) -> None:
    """Validate, keep what is best, write the checkpoint, say how it goes."""
    state.epoch, state.batch = state.epoch + 1, 0
    total, positions, heads, steps = state.sums
    row: dict[str, Any] = {
        "phase": phase.name,
        "epoch": state.epoch,
        "step": state.step,
        "loss": total / max(1.0, positions),
        "heads_loss": heads / max(1.0, steps),
        "rate": trainer.schedule.rate(state.step - 1),
        "seconds": round(seconds, 3),
    }
    state.sums = [0.0] * 4
    said = ""
    if phase.held_out is not None:
        ranks_AN, loss = phase.held_out.ranks(trainer.average, phase.config, phase.standard, phase.items)
        value = float(gain(ranks_AN[0], None).mean())
        row |= {
            "valid_loss": loss,
            "valid_hr@10": float((ranks_AN[0] < 10).mean()),
            "valid_ndcg@10": float(gain(ranks_AN[0]).mean()),
            "valid_ndcg": value,
        }
        said = f", validation: loss {loss:.4f}, HR@10 {row['valid_hr@10']:.4f}, NDCG@10 {row['valid_ndcg@10']:.4f}"
        if phase.name == SEARCH and value > state.best_value:
            state.best_epoch, state.best_value = state.epoch, value
            assert state.best_file is not None
            checkpoints.save(state.best_file, trainer.average, {"epoch": state.epoch})
    state.history.append(row)
    checkpoints.save(STATE, trainer.tensors(), asdict(state))
    checkpoints.keep_only(state.best_file)
    LOG.info(
        "%s, epoch %d: loss %.4f, heads %.4f%s, %.1f s", phase.name, state.epoch, row["loss"], row["heads_loss"], said,
        seconds,
    )  # fmt: skip
