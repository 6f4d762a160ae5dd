"""Which static shape serves a batch: the TensorRT engines have no dynamic sizes.

Owns: rounding rows, lengths and seen items up to the sizes that engines are built for. Must not know: engines, memory.
In: the sizes of a batch or of a run. Out: static shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from genrec_batch.core.arrays import Batch
from genrec_batch.core.option_values import check_positions
from genrec_batch.engines.tensorrt.network import Shape
from genrec_batch.model.weights import ModelConfig

LENGTHS = (8, 16, 24, 32, 40, 50, 64, 96, 127, 192, 256, 384, 512, 768, 1024, 1536, 2000)
ROWS_MULTIPLE = 64  # rows of int32 then start on a 256-byte boundary, as TensorRT requires
GROWTH = 1.12  # from one size of packed batches to the next
PLAIN_ROWS, PLUGIN_ROWS = 2048, 4096  # of a batch; the plain engines' attention is slow beyond 65,535 rows x heads
SEEN_SIZES = (64, 256, 1024)  # columns of the banned list; beyond, powers of two


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The histories of a run whose rows are packed end to end."""

    longest: int  # tokens
    mean: float  # positions: tokens and the prefix


class ShapeRule:
    """Batch sizes and history lengths of one model's engines."""

    def __init__(
        self, config: ModelConfig, batch_size: int, lengths: Sequence[int], packing: Packing | None = None
    ) -> None:
        """Set the sizes that others are rounded up to.

        Args:
            config: the model's sizes.
            batch_size: rows of every engine.
            lengths: tokens of the longest history.
            packing: of rows end to end; None pads each row to a length.
        """
        longest = config.positions - 1
        self.packing = packing
        self._positions = config.positions
        self.batch_size = rounded(batch_size, ROWS_MULTIPLE)
        self.lengths = tuple(sorted({min(length, longest) for length in lengths} | {longest}))

    @property
    def places(self) -> int:
        """Positions that packed batches have room for; 0 where rows are not packed."""
        if self.packing is None:
            return 0
        positions = self.padded_length(self.packing.longest) + 1
        below = math.ceil(math.log(positions / min(self.packing.mean, positions)) / math.log(GROWTH) - 1e-9)
        room = int(self.batch_size * positions / GROWTH**below) // ROWS_MULTIPLE * ROWS_MULTIPLE
        return max(rounded(positions, ROWS_MULTIPLE), room)  # one full row always fits

    def padded_length(self, length: int) -> int:
        """Return the tokens that a row of this length is padded to."""
        return next(padded for padded in self.lengths if padded >= length)

    def run(
        self, *, steps: int, seen: int = 0, profile: bool = False, video: bool = False, masked: bool = False
    ) -> Shape:
        """Return the shape of a run whose rows are packed end to end.

        Raises:
            ConfigError: see `shape`.
        """
        assert self.packing is not None
        shape = self.shape(
            rows=self.batch_size,
            length=self.packing.longest,
            steps=steps,
            seen=max(seen, SEEN_SIZES[-1] - 2),  # a batch uses as many of these columns as it needs
            profile=profile,
            video=video,
            masked=masked,
        )
        return replace(shape, packed=self.places)

    def runs(self, *, steps: int, seen_limit: int, profile: bool = False, video: bool = False) -> list[Shape]:
        """Return the shapes of `run` for every number of seen items up to a limit."""
        sizes = [SEEN_SIZES[-1]]
        while sizes[-1] < seen_limit + 2:
            sizes.append(2 * sizes[-1])
        return [self.run(steps=steps, seen=size - 2, profile=profile, video=video) for size in sizes]

    def packed(self, batch: Batch, steps: int) -> Shape:
        """Return the shape for a batch whose rows are packed end to end: the run's shape, enlarged if necessary.

        Raises:
            ConfigError: see `shape`.
        """
        shape = self.run(
            steps=steps,
            seen=batch.seen_BX.shape[1],
            profile=batch.profile_BP is not None,
            video=batch.video_BV is not None,
            masked=batch.masks is not None,
        )
        longest, needed = int(batch.lengths_B.max(initial=0)), int(batch.lengths_B.sum()) + len(batch)
        shape = replace(
            shape,
            rows=rounded(max(len(batch), 1), self.batch_size),
            positions=max(shape.positions, self.padded_length(longest) + 1),
        )
        room = shape.packed
        while room < needed:
            room = rounded(int(room * GROWTH), ROWS_MULTIPLE)
        return replace(shape, packed=room)

    def of(self, batch: Batch, steps: int) -> Shape:
        """Return the shape for a batch whose rows read `steps` items.

        Raises:
            ConfigError: see `shape`.
        """
        return self.shape(
            rows=len(batch),
            length=int(batch.lengths_B.max(initial=0)),
            steps=steps,
            seen=batch.seen_BX.shape[1],
            profile=batch.profile_BP is not None,
            video=batch.video_BV is not None,
            masked=batch.masks is not None,
        )

    def shape(
        self,
        *,
        rows: int,
        length: int,
        steps: int,
        seen: int,
        profile: bool = False,
        video: bool = False,
        masked: bool = False,
    ) -> Shape:
        """Return the shape for these rows, tokens of the longest history, items to read and seen items.

        Raises:
            ConfigError: history and decoded items do not fit the model's positions.
        """
        check_positions(self._positions, events=length, items=steps)
        padded = self.padded_length(length)
        return Shape(
            rows=rounded(max(rows, 1), self.batch_size),
            positions=padded + 1,
            seen=_columns(max(seen, min(padded, SEEN_SIZES[-1] - 2)) + 2),  # padding and unknown take two places
            steps=max(steps, 1),
            profile=profile,
            video=video,
            masked=masked,
        )

    def all(
        self,
        *,
        max_events: int,
        steps: int,
        seen_limit: int,
        profile: bool = False,
        video: bool = False,
        shorter: bool = True,
    ) -> list[Shape]:
        """Return the shapes that a run may need, the longest histories first; shorter histories only if `shorter`.

        Only users with `max_events` kept events can have seen more videos than they have events. A batch with fewer
        seen videos than padded events uses as many columns as padded events.

        Raises:
            ConfigError: see `shape`.
        """
        lengths = [length for length in self.lengths if length < max_events and shorter]

        def of(length: int, seen: int) -> Shape:
            return self.shape(rows=self.batch_size, length=length, steps=steps, seen=seen, profile=profile, video=video)

        least, most = min(max_events, seen_limit), seen_limit
        sizes = [least, *(size - 2 for size in SEEN_SIZES if least < size - 2 < most), most]
        found = [of(max_events, seen) for seen in sizes] + [of(length, 0) for length in lengths[::-1]]
        return list(dict.fromkeys(found))


def _columns(count: int) -> int:
    return next((size for size in SEEN_SIZES if size >= count), 1 << (count - 1).bit_length())


def rounded(count: int, multiple: int) -> int:
    """Return a count rounded up to a multiple."""
    return -(-count // multiple) * multiple
