"""A batch packed for the hand-fused engine: the rows of all users end to end, without padding between them.

Owns: which rows belong to which user, and the sizes that graphs are captured for. Must not know: torch, devices, how a
pass works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from genrec_batch.core.arrays import Batch
from genrec_batch.core.option_values import check_positions

MASKS, MASK = "masks", "mask"  # the bit maps of a batch, and the one that each row obeys


def grid(count: int) -> int:
    """Round up to a grid of 64 steps per power of two: few distinct sizes, each at most 1/64 above `count`."""
    step = 1 << max(0, count.bit_length() - 7)
    return -(-count // step) * step


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A packed batch as host arrays; of `users`, those beyond the batch have one row each.

    An array has a line for each user, except MASKS, [M, W].
    """

    arrays: dict[str, np.ndarray[Any, Any]]
    users: int
    rows: int
    longest: int


def pack(batch: Batch, *, steps: int, positions: int, users: int | None = None) -> Packed:
    """Pack a batch's rows end to end; user b has lengths[b] + 1 rows from first[b] on.

    Raises:
        ConfigError: the longest history and the decoded items do not fit the model's positions.
    """
    users = len(batch) if users is None else users
    lengths = np.zeros(users, np.int32)
    lengths[: len(batch)] = batch.lengths_B
    ends = np.cumsum(lengths.astype(np.int64) + 1)
    longest = int(lengths.max(initial=0))
    check_positions(positions, events=longest, items=steps)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "tokens": batch.tokens_BS.astype(np.int32, copy=False),
        "lengths": lengths,
        "first": (ends - lengths - 1).astype(np.int32),
        "seen": batch.seen_BX.astype(np.int32, copy=False),
        "features": batch.dense_BF,
    }
    for name, values, has in (
        ("profile", batch.profile_BP, batch.has_profile_B),
        ("video", batch.video_BV, batch.has_video_B),
    ):
        if values is not None and has is not None:
            arrays |= {name: values, f"has {name}": has.astype(np.float32)[:, None]}
    if batch.masks is not None:
        masks = batch.masks.compact()
        arrays |= {MASKS: masks.banned_MW.view(np.int32), MASK: masks.mask_B}
    return Packed(arrays=arrays, users=users, rows=int(ends[-1]), longest=longest)
