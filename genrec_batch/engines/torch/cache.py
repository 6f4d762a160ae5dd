"""The KV cache of the torch engine: keys and values of the rows of a batch.

Owns: their slots, and which slots a row may attend to. Must not know: how keys and values are computed or used. Shapes
as in `network`.

A row's sums must not depend on its neighbours. Position p of a row is in slot p, however long the longest row is, and
attention reads whole vectors of a processor (LANES). Then any number of zeros may follow, and every number is still
added up in the same place. PyTorch multiplies small matrices on a CPU in another way than large ones, with other last
bits, so one query never meets so few slots that its products would be small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genrec_batch.model.weights import ModelConfig

Held = Sequence[Tensor]  # `Cache.parts` of one row's first positions: keys and values [layers, G, positions, Z] first
LANES = 16  # fp32 numbers in the widest vector
SMALL_PRODUCT = 400  # multiplications from which PyTorch leaves the plain loop of `bmm` on a CPU


def lanes(slots: int) -> int:
    """Return `slots` rounded up to whole vectors."""
    return -(-slots // LANES) * LANES


def seen_slots(slots: int, size: int) -> int:
    """Return the slots that attention of heads of a size reads where `slots` are filled."""
    return lanes(max(slots, -(-SMALL_PRODUCT // size)))


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of R rows.

    Row r has `lengths_R[r]` positions of context, at most `prefix`, then the positions read since. Once the context is
    filled, its other slots hold zeros or, in a row shorter than its neighbours, leftovers of padding. In int8 each
    position of each head has a scale, its largest number / 127.
    """

    keys: Tensor  # [layers, R, G, T, Z]
    values: Tensor
    key_scales: Tensor  # [layers, R, G, T] of int8, of floats [layers, R, G, 0]
    value_scales: Tensor
    lengths_R: Tensor
    prefix: int

    @staticmethod
    def empty(config: ModelConfig, lengths_R: Tensor, prefix: int, reads: int, dtype: torch.dtype) -> Cache:
        """Return a cache with room for `lengths_R` positions of context and `reads` reads; its content is undefined."""
        heads = config.layers, len(lengths_R), config.heads
        slots = seen_slots(prefix + reads, config.head_size)
        scaled, device = slots if dtype == torch.int8 else 0, lengths_R.device
        return Cache(
            keys=torch.empty((*heads, slots, config.head_size), dtype=dtype, device=device),
            values=torch.empty((*heads, slots, config.head_size), dtype=dtype, device=device),
            key_scales=torch.empty((*heads, scaled), dtype=torch.float32, device=device),
            value_scales=torch.empty((*heads, scaled), dtype=torch.float32, device=device),
            lengths_R=lengths_R,
            prefix=prefix,
        )

    @property
    def parts(self) -> dict[str, Tensor]:
        """All that is cached, by name."""
        return {name: getattr(self, name) for name in ("keys", "values", "key_scales", "value_scales")}

    def clear(self) -> None:
        """Fill all slots with zeros."""
        for part in self.parts.values():
            part.zero_()

    def view(self, rows: slice) -> Cache:
        """Return a view of some rows."""
        parts = {name: part[:, rows] for name, part in self.parts.items()}
        return Cache(**parts, lengths_R=self.lengths_R[rows], prefix=self.prefix)

    def take(self, rows: Tensor) -> Cache:
        """Return a copy that holds these rows; a row may be taken many times."""
        parts = {name: part.index_select(1, rows) for name, part in self.parts.items()}
        return Cache(**parts, lengths_R=self.lengths_R.index_select(0, rows), prefix=self.prefix)

    def held(self, row: int, positions: int) -> Held:
        """Return copies of the first positions of a row."""
        return [part[:, row, :, :positions].clone() for part in self.parts.values()]

    def put(self, row: int, held: Held) -> None:
        """Put what is held of a row's first positions into its slots."""
        for part, of_row in zip(self.parts.values(), held, strict=True):
            part[:, row, :, : of_row.shape[2]] = of_row

    def at(self, step: int) -> Read:
        """Return the slots of one more read's positions, and the slots that they attend to."""
        slot_R = self.lengths_R + step
        return Read(rows_R=torch.arange(len(slot_R), device=slot_R.device), slot_R=slot_R, bias=self.bias(step))

    def bias(self, step: int) -> Tensor:
        """Return 0 for each slot that a row has filled by read `step`, -inf for the others, [R, 1, 1, slots].

        PyTorch's 16-bit products on a CPU copy a tensor that is not dense, so there attention covers all slots;
        elsewhere it covers no more than needed.
        """
        whole = self.keys.device.type == "cpu" and self.keys.dtype != torch.float32
        slots = self.keys.shape[3] if whole else seen_slots(self.prefix + step + 1, self.keys.shape[4])
        hidden_RT = torch.arange(slots, device=self.lengths_R.device) > (self.lengths_R + step)[:, None]
        return torch.zeros(hidden_RT.shape, device=hidden_RT.device).masked_fill_(hidden_RT, -torch.inf)[:, None, None]


@dataclass(frozen=True, kw_only=True)
class Read:
    """One position per row, which is read next."""

    rows_R: Tensor
    slot_R: Tensor
    bias: Tensor  # [R, 1, 1, slots]
