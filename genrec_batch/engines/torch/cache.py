"""Keys and values of rows on their way through the torch engine.

Owns: where they lie, and what of them a row may look at. Must not know: how they are made or mixed. Shapes as in
`torch_network`.

A row's sums should not depend on its neighbours. Position p of a row stands in slot p, whatever the longest row beside
it is, and what is looked at goes in whole vectors of a processor (LANES): then zeros may follow, as many as they like,
and each number is still added up in the same place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrec_batch.model.weights import ModelConfig

LANES = 16  # of fp32 in the widest vector


def lanes(slots: int) -> int:
    """Return the slots of as many whole vectors as hold `slots`."""
    return -(-slots // LANES) * LANES


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of R rows, [layers, R, G, T, Z].

    Row r has `lengths_R[r]` positions of context, at most `prefix`, then those read since. Once its context is there,
    its other slots hold zeros or, of context shorter than its neighbours', leftovers of padding.
    """

    keys: Tensor
    values: Tensor
    lengths_R: Tensor
    prefix: int

    @staticmethod
    def empty(config: ModelConfig, lengths_R: Tensor, prefix: int, reads: int, dtype: torch.dtype) -> Cache:
        """Return a cache for rows with `lengths_R` positions of context and for `reads` reads; numbers may be any."""
        shape = (config.layers, len(lengths_R), config.heads, lanes(prefix + reads), config.head_size)
        return Cache(
            keys=torch.empty(shape, dtype=dtype, device=lengths_R.device),
            values=torch.empty(shape, dtype=dtype, device=lengths_R.device),
            lengths_R=lengths_R,
            prefix=prefix,
        )

    def clear(self) -> None:
        """Fill all slots with zeros."""
        self.keys.zero_()
        self.values.zero_()

    def part(self, rows: slice) -> Cache:
        """Return a view of some rows."""
        return Cache(
            keys=self.keys[:, rows], values=self.values[:, rows], lengths_R=self.lengths_R[rows], prefix=self.prefix
        )

    def take(self, rows: Tensor) -> Cache:
        """Return a copy that holds these rows; a row may be taken many times."""
        return Cache(
            keys=self.keys.index_select(1, rows),
            values=self.values.index_select(1, rows),
            lengths_R=self.lengths_R.index_select(0, rows),
            prefix=self.prefix,
        )

    def at(self, step: int) -> Read:
        """Return where the positions of one more read stand, and what they look at."""
        slot_R = self.lengths_R + step
        return Read(rows_R=torch.arange(len(slot_R), device=slot_R.device), slot_R=slot_R, bias=self.bias(step))

    def bias(self, step: int) -> Tensor:
        """Return 0 for each slot that a row has filled with read `step`, -inf for others, [R, 1, 1, slots].

        PyTorch's products of 16 bits on a CPU copy what is not dense: there all slots are looked at, else no more than
        need be.
        """
        whole = self.keys.device.type == "cpu" and self.keys.dtype != torch.float32
        slots = self.keys.shape[3] if whole else lanes(self.prefix + step + 1)
        hidden_RT = torch.arange(slots, device=self.lengths_R.device) > (self.lengths_R + step)[:, None]
        return torch.zeros(hidden_RT.shape, device=hidden_RT.device).masked_fill_(hidden_RT, -torch.inf)[:, None, None]


@dataclass(frozen=True, kw_only=True)
class Read:
    """A position a row that is read next."""

    rows_R: Tensor
    slot_R: Tensor
    bias: Tensor  # [R, 1, 1, slots]
