"""The hand-fused CUDA engine: a `SteppedEngine` over packed rows, whose greedy loop, `slate`, runs without the host.

Owns: the states between calls, and the checks of device, precision and sizes. Must not know: users, video ids, Parquet,
Polars, or what runs inside a pass (`passes`, `kernels`) or a captured loop (`loop`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec_batch.core.arrays import F32, HEADS, I32, I64, Batch, Ranked
from genrec_batch.core.errors import EngineError
from genrec_batch.engines.cuda import buffers, candidates, passes
from genrec_batch.engines.cuda.fp8 import CAPABILITY
from genrec_batch.engines.cuda.loop import CapturedLoop, ban_all, memory_for
from genrec_batch.engines.cuda.packing import pack
from genrec_batch.engines.cuda.weights import fuse
from genrec_batch.engines.protocol import Recorder, SteppedEngine
from genrec_batch.model.weights import Model, ModelConfig

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SMALL = ("fp8", "fp16-fast")  # precisions with e4m3 numbers; their other numbers are fp16
USER_POSITIONS = 128  # positions of a batch per user that it may have; longer histories mean fewer users


def why_not(config: ModelConfig, device: str, precision: str) -> str:
    """Return why this engine cannot compute a model here, or "" where it can; the torch engine computes any model."""
    if not device.startswith("cuda"):
        return f"the hand-fused engine runs on --device cuda, not {device}"
    if precision not in ("fp16", "bf16", *SMALL):
        return f"the hand-fused engine computes in --precision fp16, fp16-fast, bf16 or fp8, not {precision}"
    if not torch.cuda.is_available():
        return "there is no CUDA device; `pip install torch` from an index with CUDA builds, and an NVIDIA driver"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; `pip install triton` brings it"
    if precision in SMALL and torch.cuda.get_device_capability(device) != CAPABILITY:
        return f"--precision {precision} needs a GPU of compute capability 9.0: an H100 or H200"
    if precision == "fp8" and importlib.util.find_spec("triton.tools.tensor_descriptor") is None:
        return "--precision fp8 needs a newer Triton; `pip install --upgrade torch triton` brings it"
    return _fits(config, precision)


def _fits(config: ModelConfig, precision: str) -> str:
    if config.layers < 2:
        return "the hand-fused engine needs a model of at least 2 layers"
    if config.width % 8 or config.ffn % 8:
        return f"the hand-fused engine needs width and ffn in multiples of 8, not {config.width} and {config.ffn}"
    if precision == "fp8" and (config.width % 16 or config.ffn % 16):
        return f"--precision fp8 needs a model's width and ffn in multiples of 16, not {config.width} and {config.ffn}"
    return ""


@dataclass(kw_only=True)
class PackedState:
    """A batch between calls."""

    history: buffers.History
    rows: buffers.Rows
    suffix: Tensor
    banned_BW: Tensor
    choices: int
    after_history: tuple[Tensor, Tensor]  # logits and heads [B, N] before any item was read, their log sum exp [B]
    read: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # per item: token, log_prob, heads [B, H]


class TorchCudaEngine(SteppedEngine):
    """The reference transformer in fp16, bf16 or fp8 on one NVIDIA GPU, through cuBLASLt products and Triton kernels.

    fp8 is: the layers' products, keys and values in e4m3, all else in fp16. fp16-fast is: keys and values are kept in
    e4m3 for the items that are decoded after a history, all else is as in fp16.
    """

    name = "torch"
    has_slate_loop = True
    has_candidates_loop = True

    def __init__(
        self, model: Model, *, device: str = "cuda:0", precision: str = "fp16", kernels: passes.Kernels | None = None
    ) -> None:
        """Fold the weights and copy them to the device.

        Args:
            model: the weights.
            device: a CUDA device.
            precision: fp16 (the better 16-bit type for this model), fp16-fast, bf16 or fp8.
            kernels: a twin of the module `kernels`, which runs on any device and in any precision (tests).

        Raises:
            EngineError: the device, the precision, Triton or the model's sizes are not what this engine needs.
            DeviceMemoryError: the device ran out of memory.
        """
        reason = why_not(model.config, device, precision) if kernels is None else _fits(model.config, precision)
        if reason:
            raise EngineError(reason)
        if kernels is None:
            kernels = _triton_kernels()
        self.precision = precision
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._device = torch.device("cuda", self._device.index or 0)
        self.device = str(self._device)
        self._kernels = kernels
        with memory_for("the weights"), torch.inference_mode():
            dtype = DTYPES.get(precision, torch.float16)
            self._fused = fuse(
                model, self._device, dtype, small=precision == "fp8", small_cache=precision == "fp16-fast"
            )
        self._loop = CapturedLoop(self._fused, kernels)

    def free_bytes(self) -> int:
        """Return the GPU memory that is free, or held by PyTorch's allocator and unused."""
        held = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0] + held)

    def wait(self) -> None:
        """Return once the device has done all work that is queued."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def peak_bytes(self) -> int:
        """Return the most GPU memory that PyTorch held for this process."""
        return torch.cuda.max_memory_reserved(self._device)

    def room(self, users: int) -> int:
        """Return the positions of a batch of so many users, whose rows are packed."""
        return users * USER_POSITIONS

    def computed(self, lengths_B: I64) -> int:
        """Return the positions that a batch computes: packed rows have no padding."""
        return int(lengths_B.sum()) + len(lengths_B)

    def slate(self, batches: Iterable[Batch], steps: int, record: Recorder | None = None) -> Iterator[Ranked]:
        """Yield the greedy slate of each batch: the same as prefill, `steps` times decode, and collect.

        Two batches are in flight; a result owns its memory. `record` receives the stages by the device's clock.

        Raises:
            ConfigError: the longest history and `steps` do not fit the model's positions.
            DeviceMemoryError: the device ran out of memory.
        """
        return self._loop.slates(batches, steps, record)

    def candidates(self, batches: Iterable[Batch], count: int, record: Recorder | None = None) -> Iterator[Ranked]:
        """Yield the best candidates of each batch with their heads: the same as prefill, choose and score.

        As `slate` otherwise.

        Raises:
            ConfigError: the longest history does not fit the model's positions.
            DeviceMemoryError: the device ran out of memory.
        """
        return self._loop.candidates(batches, count, record)

    @torch.inference_mode()
    def prefill(self, batch: Batch, *, steps: int, choices: int = 1) -> PackedState:
        """Read B histories and choose the next items; see `Engine`.

        Raises:
            ConfigError: the longest history and `steps` do not fit the model's positions.
            DeviceMemoryError: the device ran out of memory.
        """
        fused = self._fused
        packed = pack(batch, steps=steps, positions=fused.config.positions)
        with memory_for(f"a batch of {len(batch)} users"):
            sent = {
                name: torch.from_numpy(np.ascontiguousarray(a)).to(self._device) for name, a in packed.arrays.items()
            }
            given = {
                n: (sent[n].to(fused.dtype), sent[f"has {n}"].to(fused.dtype))
                for n in ("profile", "video")
                if n in sent
            }
            self.arrived()
            inputs = buffers.Inputs(
                tokens_BS=sent["tokens"],
                features_BF=sent["features"].to(fused.dtype),
                profile=given.get("profile"),
                video=given.get("video"),
            )
            banned_BW = self._room("banned", (packed.users, fused.words), torch.int32)
            ban_all(fused, self._kernels, sent, banned_BW)
            history = buffers.make_history(
                fused, self._room, sent["lengths"], sent["first"], packed.rows, packed.longest
            )
            rows = buffers.make_rows(fused, self._room, packed.users)
            scratch = buffers.make_scratch(fused, self._room, "packed", packed.rows)
            passes.prefill(fused, self._kernels, inputs, history, scratch, rows)
            passes.choose(fused, self._kernels, rows, banned_BW)
            return PackedState(
                history=history,
                rows=rows,
                suffix=buffers.make_suffix(fused, self._room, packed.users, steps),
                banned_BW=banned_BW,
                choices=choices,
                after_history=(rows.raw_RN.clone(), rows.log_sum_R.clone()),
            )

    @torch.inference_mode()
    def decode(self, state: PackedState, tokens_B: I32 | None = None) -> None:
        """Read one item per row (None: the best choice), then choose the next; see `Engine`."""
        rows, step = state.rows, len(state.read)
        assert step < state.suffix.shape[2], "prefill made room for fewer steps"
        if tokens_B is None:
            tokens, log_prob_B = rows.next_R.clone(), rows.log_prob_R.clone()
        else:
            tokens = torch.from_numpy(np.ascontiguousarray(tokens_B, np.int32)).to(self._device)
            log_prob_B = _log_probs(rows.raw_RN, rows.log_sum_R, tokens[:, None])[:, 0]
        passes.read(
            self._fused, self._kernels, tokens, state.history, rows, step=step, suffix=state.suffix,
            banned_RW=state.banned_BW,
        )  # fmt: skip
        passes.choose(self._fused, self._kernels, rows, state.banned_BW)
        state.read.append((tokens, log_prob_B, self._heads(rows.raw_RN[:, self._fused.config.vocabulary :], tokens)))

    @torch.inference_mode()
    def choose(self, state: PackedState) -> tuple[I32, F32]:
        """Return the best items of the next position, [B, choices]; see `Engine`."""
        rows = state.rows
        if state.choices == 1:
            return _host(rows.next_R)[:, None], _host(rows.log_prob_R)[:, None]
        tokens_BC, log_prob_BC = candidates.best(self._fused, self._kernels, rows, state.banned_BW, state.choices)
        return _host(tokens_BC), _host(log_prob_BC)

    @torch.inference_mode()
    def log_probs(self, state: PackedState, tokens_BC: I32) -> F32:
        """Return log-probabilities right after the history, [B, C]; see `Engine`."""
        tokens = torch.from_numpy(np.ascontiguousarray(tokens_BC, np.int32)).to(self._device)
        log_probs_BC: F32 = _host(_log_probs(*state.after_history, tokens))
        return log_probs_BC

    @torch.inference_mode()
    def score(self, state: PackedState, tokens_BC: I32) -> F32:
        """Return the heads of candidates, each read alone right after the history, [B, C, H]; see `Engine`.

        Raises:
            DeviceMemoryError: the device ran out of memory.
        """
        tokens = torch.from_numpy(np.ascontiguousarray(tokens_BC, np.int32)).to(self._device)
        with memory_for(f"the candidates of {len(tokens_BC)} users"):
            heads_BCH: F32 = _host(candidates.score(self._fused, self._kernels, tokens, state.history, self._room))
        return heads_BCH

    @torch.inference_mode()
    def select(self, state: PackedState, rows_R: I64) -> PackedState:
        """Return a state whose row r is a copy of row rows_R[r]; keys and values of the histories are shared."""
        with memory_for(f"{len(rows_R)} beams"):
            index = torch.from_numpy(np.ascontiguousarray(rows_R, np.int64)).to(self._device)
            rows = buffers.make_rows(self._fused, self._room, len(rows_R))
            for name in ("raw_RN", "next_R", "log_prob_R", "log_sum_R"):
                getattr(rows, name).copy_(getattr(state.rows, name)[index])
            history = state.history
            return PackedState(
                history=replace(history, lengths_B=history.lengths_B[index], first_B=history.first_B[index]),
                rows=rows,
                suffix=state.suffix[:, index],
                banned_BW=state.banned_BW[index],
                choices=state.choices,
                after_history=(state.after_history[0][index], state.after_history[1][index]),
                read=[(tokens[index], log_prob[index], heads[index]) for tokens, log_prob, heads in state.read],
            )

    def collect(self, state: PackedState) -> Ranked:
        """Return the items read so far, in the order they were read; see `Engine`."""
        if not state.read:
            none_BK = np.zeros((len(state.rows.next_R), 0))
            return Ranked(
                tokens_BK=none_BK.astype(np.int32),
                log_prob_BK=none_BK.astype(np.float32),
                heads_BKH=np.zeros((*none_BK.shape, len(HEADS)), np.float32),
            )
        tokens, log_prob, heads = (torch.stack(column, 1) for column in zip(*state.read, strict=True))
        return Ranked(tokens_BK=_host(tokens), log_prob_BK=_host(log_prob), heads_BKH=_host(heads))

    def _room(self, _name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _heads(self, raw_RH: Tensor, tokens_R: Tensor) -> Tensor:
        out_RH = self._room("heads", (len(tokens_R), len(HEADS)), torch.float32)
        self._kernels.heads(raw_RH, tokens_R, out_RH)
        return out_RH


def _triton_kernels() -> passes.Kernels:
    from genrec_batch.engines.cuda import kernels

    return kernels


def _log_probs(raw_RN: Tensor, log_sum_R: Tensor, tokens_RC: Tensor) -> Tensor:
    found_RC = raw_RN.gather(1, tokens_RC.long()).float() - log_sum_R[:, None]
    return found_RC.masked_fill(tokens_RC == 0, -torch.inf)


def _host(tensor: Tensor) -> Any:  # an array of the tensor's type
    return tensor.cpu().numpy()
