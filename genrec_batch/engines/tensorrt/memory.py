"""Host and device memory of one batch in the TensorRT engine.

Owns: the place of each array of a batch in host and device memory. Must not know: engines, launches,
`engines.protocol`.

The host fills one pinned buffer, and one copy transfers it to the device. The device fills one buffer of results, and
one copy transfers it back. In between nothing leaves the device: step t reads the item in row t of `read`, writes the
next item to row t + 1, and its keys and values to row t of `recent_<layer>`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32, HEADS, I32, Batch, Masks, Ranked
from genrec_batch.core.errors import DeviceMemoryError
from genrec_batch.engines.driver import Buffer, Device, Event, Graph, PinnedBuffer, Stream, aligned
from genrec_batch.engines.tensorrt.layers import NOTHING
from genrec_batch.engines.tensorrt.network import Shape, TensorRtNetwork, feature_columns, mask_words
from genrec_batch.engines.tensorrt.side_graphs import between, state_tensors
from genrec_batch.model.weights import BYTES


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of an array in a buffer."""

    start: int
    shape: tuple[int, ...]
    kind: Any

    @property
    def count(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * int(np.dtype(self.kind).itemsize)


def pack_places(arrays: Mapping[str, tuple[tuple[int, ...], Any]]) -> tuple[dict[str, Place], int]:
    """Place arrays one after the other, each aligned; return their places and the size of the buffer."""
    places, start = {}, 0
    for name, (shape, kind) in arrays.items():
        places[name] = Place(start=start, shape=shape, kind=kind)
        start += aligned(places[name].count)
    return places, start


class Slot:
    """The memory of one batch."""

    def __init__(self, device: Device, network: TensorRtNetwork, shape: Shape, setup: Stream) -> None:
        self.shape, self.network = shape, network
        rows, steps = shape.rows, shape.steps
        self.inputs, input_bytes = pack_places(
            {
                "starts": ((rows,), np.int32),
                "seen_width": ((1,), np.int32),
                "lengths": ((rows,), np.int32),
                **({"mask": ((rows,), np.int32)} if shape.masked else {}),
                "tokens": ((rows, shape.positions - 1), np.int32),
                "features": ((rows, feature_columns(network.config, shape)), np.float32),
                "seen": ((rows, shape.seen), np.int32),  # last: of packed rows only the used columns are copied
            }
        )
        self.filled = input_bytes  # bytes of these that a batch sends to the device
        self.masks_filled = 0  # bytes of its bit maps
        self.results, result_bytes = pack_places(
            {
                "read": ((steps + 1, rows), np.int32),
                "log_prob": ((steps + 1, rows), np.float32),
                "heads": ((steps, rows, len(HEADS)), np.float32),
            }
        )
        self.host_in, self.host_out = PinnedBuffer(device, input_bytes), PinnedBuffer(device, result_bytes)
        self.device_in, self.device_out = Buffer(device, input_bytes), Buffer(device, result_bytes)
        self.host_steps = PinnedBuffer(device, (steps + 1) * 256)
        self.host_steps.view(0, (steps + 1, 64), np.int32)[:, 0] = np.arange(-1, steps)
        self.steps = Buffer(device, (steps + 1) * 256)
        self.memory = {
            name: Buffer(device, math.prod(sizes) * BYTES[network.precision])
            for name, (sizes, kind, _) in state_tensors(network, shape).items()
            if kind is None
        }
        if shape.masked:
            count = 4 * rows * mask_words(network.config)
            self.host_masks, self.memory["masks"] = PinnedBuffer(device, count), Buffer(device, count)
        for name, sizes in between(network, shape).items():
            self.memory[name] = Buffer(device, math.prod(sizes) * BYTES[network.precision])
        self.arrived, self.computed, self.done = Event(device), Event(device), Event(device)
        self.graphs: dict[int, tuple[Graph, Graph]] = {}  # by steps: prefill, decode
        for index in range(network.config.layers):
            setup.clear(self.memory[f"recent_{index}"])  # steps not yet written are masked, and must not be NaN
        for buffer in (self.device_in, self.device_out):  # the run before a capture then reads valid tokens
            setup.clear(buffer)
        setup.copy_in(self.steps.address, self.host_steps, self.host_steps.bytes.size)
        self._host("starts")[:] = np.arange(rows) * (0 if shape.packed else shape.positions)
        self._host("seen_width")[:] = shape.seen
        setup.copy_in(self.device_in.address, self.host_in, self.inputs["lengths"].start)
        setup.synchronize()
        device.look()

    def address(self, name: str, row: int = 0) -> int:
        """Return the device address of a tensor, or of one row of a tensor whose first axis is steps."""
        for places, buffer in ((self.inputs, self.device_in), (self.results, self.device_out)):
            if name in places:
                place = places[name]
                return buffer.address + place.start + row * (place.count // place.shape[0])
        return self.memory[name].address

    def step_address(self, step: int) -> int:
        """Return the address of the number of a step, -1 to T - 1."""
        return self.steps.address + (step + 1) * 256

    def state(self) -> dict[str, int]:
        """Return the addresses of all tensors of the state."""
        return {name: self.address(name) for name in state_tensors(self.network, self.shape)}

    def addresses(self) -> dict[str, int]:
        """Return the addresses of the state and of the tensors between consecutive engines."""
        others = {name: self.address(name) for name in ("starts", "seen_width")}
        return self.state() | others | {name: self.memory[name].address for name in between(self.network, self.shape)}

    def fill(self, batch: Batch) -> None:
        """Write a batch into pinned memory. Rows beyond it have no history, and their results are not read."""
        self.arrived.synchronize()  # the copy of the previous batch may still read this memory
        rows, view = len(batch), {name: self._host(name) for name in self.inputs}
        width = min(batch.tokens_BS.shape[1], self.shape.positions - 1)
        view["tokens"][:rows, :width], view["tokens"][:rows, width:] = batch.tokens_BS[:, :width], 0
        view["lengths"][:rows], view["lengths"][rows:] = batch.lengths_B, self._spare_length
        if self.shape.packed:
            view["starts"][:rows], view["starts"][rows:] = np.cumsum(batch.lengths_B + 1) - batch.lengths_B - 1, 1
        known = np.where(batch.seen_BX < self.network.tokens, batch.seen_BX, 0)
        seen_BX = self._seen(view, known.shape[1] + 2)
        seen_BX[:, :2], seen_BX[:rows, 2:] = (1, 0), 0  # unknown and padding; padding fills the rest
        seen_BX[:rows, 2 : 2 + known.shape[1]] = known
        if batch.masks is not None:
            self._fill_masks(view["mask"], batch.masks.compact())
        column = 0
        for values_BF in self._features(batch):
            view["features"][:rows, column : column + values_BF.shape[1]] = values_BF
            column += values_BF.shape[1]

    def _fill_masks(self, mask_B: I32, masks: Masks) -> None:
        mask_B[: len(masks)], mask_B[len(masks) :] = masks.mask_B, 0
        bits_MW = masks.banned_MW.view(np.int32)
        self.host_masks.view(0, bits_MW.shape, np.int32)[:] = bits_MW
        self.masks_filled = bits_MW.nbytes

    def send(self, stream: Stream) -> int:
        """Queue the copy of the batch to the device; return its bytes."""
        stream.copy_in(self.device_in.address, self.host_in, self.filled)
        if self.masks_filled:
            stream.copy_in(self.memory["masks"].address, self.host_masks, self.masks_filled)
        return self.filled + self.masks_filled

    @property
    def _spare_length(self) -> int:
        """Length of a row beyond the batch; -1, where rows are packed, computes nothing for it."""
        return -1 if self.shape.packed else 0

    def _seen(self, view: Mapping[str, Any], used: int) -> I32:
        """Return the memory of the banned list, [B, columns]; packed rows have only the used columns."""
        place = self.inputs["seen"]
        rows, width = self.shape.rows, used if self.shape.packed else self.shape.seen
        view["seen_width"][:] = width
        self.filled = place.start + 4 * rows * width
        found: I32 = view["seen"].reshape(-1)[: rows * width].reshape(rows, width)
        return found

    def _features(self, batch: Batch) -> list[F32]:
        parts = [batch.dense_BF]
        for values, has in ((batch.profile_BP, batch.has_profile_B), (batch.video_BV, batch.has_video_B)):
            if values is not None:
                real = np.ones(len(batch), np.float32) if has is None else has.astype(np.float32)
                parts += [values, real[:, None]]
        return parts

    def _host(self, name: str) -> Any:
        place = self.inputs[name]
        return self.host_in.view(place.start, place.shape, place.kind)

    def ranked(self, rows: int, steps: int) -> Ranked:
        """Return the results in host memory of the first `rows` rows and `steps` steps."""
        read, log_prob, heads = (
            self.host_out.view(place.start, place.shape, place.kind)[:steps, :rows] for place in self.results.values()
        )
        tokens_BK = read.T.copy()  # not a view: the memory is used again
        gone = tokens_BK == 0
        log_prob_BK = np.where(log_prob.T <= NOTHING / 2, np.float32(-np.inf), log_prob.T)
        log_prob_BK[gone] = -np.inf
        heads_BKH = heads.transpose(1, 0, 2).copy()
        heads_BKH[gone] = 0
        return Ranked(tokens_BK=tokens_BK, log_prob_BK=log_prob_BK, heads_BKH=heads_BKH)


class SlotPool:
    """The memory of finished batches, kept for the next batches of the same shape."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._idle: dict[Shape, list[Slot]] = {}

    def acquire(self, network: TensorRtNetwork, shape: Shape) -> Slot:
        """Return memory for one batch: idle memory of that shape, else new; a full device frees idle memory first.

        Raises:
            DeviceMemoryError: the batch does not fit the device.
        """
        idle = self._idle.setdefault(shape, [])
        if idle:
            return idle.pop()
        try:
            return Slot(self._device, network, shape, self._stream)
        except DeviceMemoryError:
            if not any(self._idle.values()):
                raise
        self._stream.synchronize()
        self._idle.clear()
        return Slot(self._device, network, shape, self._stream)

    def release(self, slot: Slot) -> None:
        """Take memory back. Work that still uses it must be on the pool's stream."""
        self._idle.setdefault(slot.shape, []).append(slot)
