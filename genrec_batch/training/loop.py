"""Training steps: batches in, weights that fit them better out.

Owns: the optimizer, its schedule, the state that the next steps depend on. Must not know:
files, users, validation. In: batches of an epoch, from any one on. Out: the state after each step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec_batch.core.arrays import F32, FIRST_ITEM, I64, U8
from genrec_batch.model.weights import ModelConfig
from genrec_batch.runtime import threads
from genrec_batch.training.device import Place
from genrec_batch.training.inputs import Standard, TrainingBatch
from genrec_batch.training.loss import Wanted, compiled_gradient, cross_entropy, head_loss, softmax_gradient
from genrec_batch.training.network import OUTPUT_BIAS, TOKENS, Noise, Read, compiled_layer, head_logits, hidden
from genrec_batch.training.sampled import Sample

BETAS, DECAY, CLIP, HEADS_WEIGHT = (0.9, 0.98), 0.01, 1.0, 1.0
WARM_UP_STEPS, WARM_UP_SHARE, LAST_SHARE = 1000, 0.3, 0.05  # of the peak rate: how long it rises, where it ends
COMPILED_STEPS = 1000  # of a training on a GPU from which compiling, half a minute, pays
AVERAGE_DECAY = 0.998  # of the weights' moving average, about the last 500 steps
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate: a linear rise, then a cosine."""

    peak: float
    steps: int

    def rate(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        rise = max(1, min(WARM_UP_STEPS, round(self.steps * WARM_UP_SHARE)))
        if step < rise:
            return self.peak * (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, self.steps - rise))
        return self.peak * (LAST_SHARE + (1 - LAST_SHARE) * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What a step's losses are, still on the device: reading them waits for it."""

    items: Tensor  # sum of weighted cross-entropies of next videos
    heads: Tensor  # mean of the heads
    positions: float  # sum of the weights
    rows: int

    @property
    def total(self) -> Tensor:
        """What a step makes smaller."""
        return self.items / max(1.0, self.positions) + HEADS_WEIGHT * self.heads


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A batch on the device: see `inputs.TrainingBatch`."""

    read: Read
    wanted: Wanted
    softmax_rows: slice | Tensor  # of the embedding
    log_q: Tensor | float
    place_P: Tensor  # among the wanted positions
    place_Q: Tensor
    labels_QH: Tensor
    positions: float
    rows: int


class Trainer:
    """Weights with their optimizer.

    `average` is the exponential moving average of `weights` (Polyak and Juditsky 1992): what is validated and saved.
    It is steadier from epoch to epoch, and ranks better.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        *,
        items: int,
        standard: Standard,
        schedule: Schedule,
        place: Place,
        dropout: float,
        seed: int,
    ) -> None:
        self.config, self.schedule, self.step = config, schedule, 0
        self._device, self._dtype = place.device, place.dtype
        self.weights = {name: tensor.to(self._device).requires_grad_() for name, tensor in weights.items()}
        matrices = [tensor for tensor in self.weights.values() if tensor.ndim > 1]
        others = [tensor for tensor in self.weights.values() if tensor.ndim == 1]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.peak, betas=BETAS, fused=True)
        self.average = {name: tensor.detach().clone() for name, tensor in self.weights.items()}
        self._items = items
        self._mean_F, self._factor_F = self._put(standard.mean_F.astype(np.float32)), self._put(standard.factor_F)
        self._dropout, self._seed = dropout, seed
        compiles = place.device.type == "cuda" and schedule.steps >= COMPILED_STEPS
        self._layer = compiled_layer(dropout) if compiles else None
        self._gradient = compiled_gradient() if compiles else softmax_gradient

    def tensors(self) -> dict[str, Tensor]:
        """Return all that the next steps depend on, by name."""
        found = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
        found |= {f"average/{name}": tensor for name, tensor in self.average.items()}
        for name, tensor in self.weights.items():
            moments = self.optimizer.state.get(tensor, {})
            found |= {f"{moment}/{name}": moments[moment] for moment in MOMENTS if moment in moments}
        return found

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from what `tensors` returned after so many steps."""
        self.step = step
        with torch.no_grad():
            for name, tensor in self.weights.items():
                tensor.copy_(tensors[f"weights/{name}"])
                self.average[name].copy_(tensors[f"average/{name}"])
                if f"{MOMENTS[0]}/{name}" in tensors:  # one that no batch reads has none
                    moments = {moment: tensors[f"{moment}/{name}"].to(self._device) for moment in MOMENTS}
                    count = torch.tensor(float(step), device=self._device)
                    self.optimizer.state[tensor] = {"step": count, **moments}

    def train(self, batches: Iterable[TrainingBatch], *, epoch: int, start: int) -> Iterator[Losses]:
        """Take a step for each batch of an epoch, the first of which has the number `start`."""
        placed: Iterator[Placed] = map(self.placed, batches)
        if self._device.type == "cuda":
            placed = threads.background(placed, ahead=2, name="copies")
        for number, batch in enumerate(placed, start):
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.rate(self.step)
            losses = self.losses(batch, Noise(self._dropout, self._seed, epoch, number))
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(losses.total)
            torch.nn.utils.clip_grad_norm_(self.weights.values(), CLIP)
            self.optimizer.step()
            self._move_average()
            self.step += 1
            yield losses

    def _move_average(self) -> None:
        decay = min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))  # the first steps soon count little
        now = [tensor.detach() for tensor in self.weights.values()]
        torch._foreach_lerp_(list(self.average.values()), now, 1 - decay)

    def placed(self, batch: TrainingBatch) -> Placed:
        """Return a batch as tensors on the device."""
        put = self._put
        wanted_W, place_P, place_Q = _numbered(batch)
        rows, column_C, log_q = self._softmax(batch.sample)
        target_P = put(batch.target_P)
        return Placed(
            read=Read(
                tokens_BS=put(batch.tokens_BS.astype(np.int64)),
                rows_K=put(batch.rows_K),
                dense_KF=(put(batch.vectors.dense_KF) - self._mean_F) * self._factor_F,
                profile=self._pair(batch.vectors.profile),
                video=self._pair(batch.vectors.video),
                wanted_W=put(wanted_W),
            ),
            wanted=Wanted(
                target_P=target_P if column_C is None else column_C[target_P],
                weight_P=put(batch.weight_P),
                seen_M=put(batch.seen_M.astype(np.int64)),
                seen_start_P=put(batch.seen_start_P),
                seen_count_P=put(batch.seen_count_P),
                masked_P1=np.concatenate([np.zeros(1, np.int64), np.cumsum(batch.seen_count_P)]),
                column_C=column_C,
            ),
            softmax_rows=rows,
            log_q=log_q,
            place_P=put(place_P),
            place_Q=put(place_Q),
            labels_QH=put(batch.labels_QH),
            positions=float(batch.weight_P.sum()),
            rows=len(batch.lengths_B),
        )

    def losses(self, placed: Placed, noise: Noise) -> Losses:
        """Return the losses of a batch."""
        hidden_WD = hidden(self.weights, self.config, placed.read, self._dtype, noise, self._layer)
        items = cross_entropy(
            hidden_WD.index_select(0, placed.place_P),
            self.weights[TOKENS][placed.softmax_rows],
            self.weights[OUTPUT_BIAS][placed.softmax_rows] - placed.log_q,
            placed.wanted,
            self._dtype,
            self._gradient,
        )
        logits_QH = head_logits(self.weights, hidden_WD.index_select(0, placed.place_Q))
        return Losses(
            items=items,
            heads=head_loss(logits_QH, placed.labels_QH),
            positions=placed.positions,
            rows=placed.rows,
        )

    def _softmax(self, sample: Sample | None) -> tuple[slice | Tensor, Tensor | None, Tensor | float]:
        """Return the rows of the embedding that the softmax is over, their places by catalog row, and log q."""
        if sample is None:
            return slice(FIRST_ITEM, FIRST_ITEM + self._items), None, 0.0
        rows_U = self._put(sample.rows_U)
        column_C = torch.full((self._items,), -1, dtype=torch.int64, device=self._device)
        column_C[rows_U] = torch.arange(len(rows_U), device=self._device)
        return rows_U + FIRST_ITEM, column_C, self._put(sample.log_q_U)

    def _put(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type != "cuda":
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)  # else it waits for all steps before

    def _pair(self, vectors: tuple[F32, U8] | None) -> tuple[Tensor, Tensor] | None:
        return None if vectors is None else (self._put(vectors[0]), self._put(vectors[1]))


def _numbered(batch: TrainingBatch) -> tuple[I64, I64, I64]:
    """Return the wanted positions, [W], and the places among them of `place_P` and of `place_Q`."""
    wanted_N = np.zeros(batch.tokens_BS.shape[0] * (batch.tokens_BS.shape[1] + 1), np.bool_)
    wanted_N[batch.place_P] = wanted_N[batch.place_Q] = True
    number_N = np.cumsum(wanted_N) - 1
    return np.flatnonzero(wanted_N), number_N[batch.place_P], number_N[batch.place_Q]
