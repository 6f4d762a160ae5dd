"""The torch engine: prefill once, decode K times, on a CPU or a CUDA device.

Owns: what the engine protocol asks, in tensors: the order of rows, their caches, banned items, what was read. Must not
know: how the network is computed (`torch_network`), how a choice is made (`torch_choice`), what decoding does with it,
users, Parquet.

Rows are sorted by length and cut into groups of like length that share a cache, so that neighbours cost each other
next to no padding; every answer is in the caller's order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec_batch.arrays import F32, FIRST_ITEM, HEADS, I32, I64, PADDING, Batch, Ranked
from genrec_batch.engines.torch_choice import Choice, choose, log_probs
from genrec_batch.engines.torch_device import resolve_device, resolve_precision, retry_when_out_of_memory
from genrec_batch.engines.torch_linear import Linear
from genrec_batch.engines.torch_network import Cache, context, load_network, prepare_layers, read, read_aside
from genrec_batch.errors import ModelError
from genrec_batch.model import Model

GROUP_POSITIONS = 1632  # of a group on a CPU: 32 rows of 51, whose activations stay in the last-level cache
ASIDE_POSITIONS = 4096  # items read aside at once on a CPU


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Rows of like length: their span in the engine's order, their lengths, and their cache."""

    rows: slice
    lengths_R: Tensor
    cache: Cache


@dataclass(kw_only=True)
class _State:
    """A batch on its way; rows in the engine's order, row r of which is row `order_B[r]` of the caller."""

    order_B: Tensor
    groups: list[_Group]
    steps: int
    choices: int
    banned_BX: Tensor  # padding, unknown, seen; then what has been read
    start: Choice  # right after the history
    next: Choice | None  # None once there is no room for another item
    tokens: list[Tensor] = field(default_factory=list)  # read so far, [B] each
    log_probs: list[Tensor] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)


class TorchEngine:
    """The engine protocol in PyTorch.

    Precisions. fp32: everything. bf16 on a CPU: the products of all positions before the newest event, which are most
    of the work and matter only through attention; the newest event, the decoded items and the logits are read in fp32,
    which keeps the order of close items. bf16 and fp16 on CUDA: all products of the encoder, and the cache. The
    residual stream, norms, softmax, logits and heads are fp32 everywhere.
    """

    name = "torch"

    def __init__(self, model: Model, *, device: str = "cpu", precision: str = "fp32") -> None:
        """Load the weights onto a device.

        Raises:
            EngineError: the device or precision is not there.
            RetryError: the device is out of memory.
        """
        self._device = resolve_device(device)
        self._on_cpu = self._device.type == "cpu"
        dtype = resolve_precision(precision, self._device)
        self.device, self.precision = str(self._device), precision
        self._config, self._tokens = model.config, model.tokens
        with retry_when_out_of_memory(self._device), torch.inference_mode():
            self._network = load_network(model.config, model.weights, self._device)
            self._cache_dtype = torch.float32 if self._on_cpu else dtype
            self._reading = prepare_layers(self._network, self._cache_dtype)
            same = dtype == self._cache_dtype
            self._context = self._reading if same else prepare_layers(self._network, dtype)
            output = self._network.output_projection
            self._output = Linear(output.weight, output.bias, torch.float32)
            heads = [getattr(self._network, f"{head}_head") for head in HEADS]
            weight_HD, bias_H = (torch.cat([getattr(head, part) for head in heads]) for part in ("weight", "bias"))
            self._heads = Linear(weight_HD, bias_H, torch.float32)

    @torch.inference_mode()
    def prefill(self, batch: Batch, *, steps: int, choices: int = 1) -> _State:
        """Read the features and histories of B rows and choose the next items; see `engines.Engine`.

        Raises:
            ModelError: history and steps do not fit the model's position table.
            RetryError: the device is out of memory.
        """
        longest = int(batch.lengths_B.max(initial=0))
        if longest + 1 + steps > self._config.positions:
            raise ModelError(
                f"a history of {longest} items and {steps} decoded ones need {longest + 1 + steps} positions, the "
                f"model has {self._config.positions}: lower --max-events or --top-k"
            )
        with retry_when_out_of_memory(self._device):
            order = np.argsort(batch.lengths_B, kind="stable")
            prefix_BD = self._prefix(batch, order)
            tokens_BS, lengths_B = (
                self._put(batch.tokens_BS[order, : max(1, longest)]),
                self._put(batch.lengths_B[order]),
            )
            spans = _spans(batch.lengths_B[order], GROUP_POSITIONS) if self._on_cpu else [slice(0, len(order))]
            groups = [self._group(prefix_BD, tokens_BS, lengths_B, rows, steps) for rows in spans]
            newest_BD = self._newest(prefix_BD, tokens_BS, lengths_B)
            hidden_BD = read(self._reading, newest_BD, [group.cache for group in groups], 0)
            never_B2 = torch.tensor([PADDING, FIRST_ITEM - 1], device=self._device).expand(len(order), 2)
            banned_BX = torch.cat([never_B2, self._put(batch.seen_BX[order])], 1)
            start = choose(self._output(hidden_BD), banned_BX, tokens=self._tokens, choices=choices)
            return _State(
                order_B=self._put(order),
                groups=groups,
                steps=steps,
                choices=choices,
                banned_BX=banned_BX,
                start=start,
                next=start,
            )

    @torch.inference_mode()
    def decode(self, state: _State, tokens_B: I32 | None = None) -> None:
        """Read one item per row (None: the best choice), then choose the next; see `engines.Engine`.

        The last item of `steps` has nothing after it, so its logits are left out.

        Raises:
            RetryError: the device is out of memory.
        """
        step = len(state.tokens)
        assert state.next is not None, "prefill made room for fewer steps"
        assert step < state.steps, "prefill made room for fewer steps"
        with retry_when_out_of_memory(self._device):
            if tokens_B is None:
                items_B, log_prob_B = state.next.tokens_BW[:, 0], state.next.log_prob_BW[:, 0]
            else:
                items_B = self._put(tokens_B)[state.order_B]
                log_prob_B = log_probs(state.next.logits_BV, state.next.log_sum_B, items_B[:, None])[:, 0]
            lengths_B = torch.cat([group.lengths_R for group in state.groups])
            hidden_BD = read(
                self._reading, self._items(items_B, lengths_B + step + 1), [g.cache for g in state.groups], step + 1
            )
            state.tokens.append(items_B)
            state.log_probs.append(log_prob_B)
            state.heads.append(self._scores(hidden_BD, items_B))
            if step + 1 == state.steps:
                state.next = None
                return
            state.banned_BX = torch.cat([state.banned_BX, items_B[:, None]], 1)
            logits_BV = self._output(hidden_BD)
            state.next = choose(logits_BV, state.banned_BX, tokens=self._tokens, choices=state.choices)

    @torch.inference_mode()
    def choose(self, state: _State) -> tuple[I32, F32]:
        """Return the best items of the next position, best first: tokens [B, W], log-probabilities [B, W]."""
        assert state.next is not None, "prefill made room for fewer steps"
        return _to_caller(state, state.next.tokens_BW.int()), _to_caller(state, state.next.log_prob_BW)

    @torch.inference_mode()
    def log_probs(self, state: _State, tokens_BC: I32) -> F32:
        """Return the log-probabilities of items right after the history, [B, C]; -inf for token 0."""
        items_BC = self._put(tokens_BC)[state.order_B]
        found: F32 = _to_caller(state, log_probs(state.start.logits_BV, state.start.log_sum_B, items_BC))
        return found

    @torch.inference_mode()
    def score(self, state: _State, tokens_BC: I32) -> F32:
        """Return the heads [B, C, H] of items, each read alone right after the history; 0 for token 0.

        Raises:
            RetryError: the device is out of memory.
        """
        items_BC = self._put(tokens_BC)[state.order_B]
        count = items_BC.shape[1]
        with retry_when_out_of_memory(self._device):
            parts = []
            for group in state.groups:
                size = max(1, ASIDE_POSITIONS // max(1, count)) if self._on_cpu else len(group.lengths_R)
                for rows_R in torch.split(torch.arange(len(group.lengths_R), device=self._device), size):
                    items_RC = items_BC[rows_R + group.rows.start]
                    x_RCD = self._items(items_RC, (group.lengths_R[rows_R] + 1)[:, None])
                    cache = group.cache if len(rows_R) == len(group.lengths_R) else group.cache.take(rows_R)
                    parts.append(self._scores(read_aside(self._reading, x_RCD, cache), items_RC))
            heads: F32 = _to_caller(state, torch.cat(parts))
            return heads

    @torch.inference_mode()
    def select(self, state: _State, rows_R: I64) -> _State:
        """Return a state whose row r is a copy of row `rows_R[r]`; see `engines.Engine`.

        Raises:
            RetryError: the device is out of memory.
        """
        source_R = torch.argsort(state.order_B)[self._put(rows_R)]  # rows in the old state's order
        order_R = torch.argsort(source_R, stable=True)
        source_R = source_R[order_R]
        with retry_when_out_of_memory(self._device):
            start = state.start.take(source_R)
            return replace(
                state,
                order_B=order_R,
                groups=_select_groups(state.groups, source_R),
                banned_BX=state.banned_BX[source_R],
                start=start,
                next=start if state.next is state.start else state.next and state.next.take(source_R),
                tokens=[tokens_B[source_R] for tokens_B in state.tokens],
                log_probs=[log_prob_B[source_R] for log_prob_B in state.log_probs],
                heads=[heads_BH[source_R] for heads_BH in state.heads],
            )

    @torch.inference_mode()
    def collect(self, state: _State) -> Ranked:
        """Return all items read so far, in the order they were read: [B, K]."""
        none_read = torch.zeros((len(state.order_B), 0, len(HEADS)), device=self._device)
        heads_BKH = torch.stack(state.heads, 1) if state.heads else none_read
        return Ranked(
            tokens_BK=_to_caller(
                state, torch.stack(state.tokens, 1).int() if state.tokens else none_read[:, :, 0].int()
            ),
            log_prob_BK=_to_caller(state, torch.stack(state.log_probs, 1) if state.tokens else none_read[:, :, 0]),
            heads_BKH=_to_caller(state, heads_BKH),
        )

    def _put(self, array: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
        """Return an array on the device; whole numbers as int64, which PyTorch's indices are."""
        wide = array.astype(np.int64, copy=False) if array.dtype.kind == "i" else array
        return torch.from_numpy(np.ascontiguousarray(wide)).to(self._device)

    def _prefix(self, batch: Batch, order: I64) -> Tensor:
        given = (batch.profile_BP, batch.has_profile_B, batch.video_BV, batch.has_video_B)
        rest = (None if array is None else self._put(array[order]) for array in given)
        return self._network.prefix(self._put(batch.dense_BF[order]), *rest)

    def _items(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return what the network reads for items at positions, [..., D]."""
        items: Tensor = self._network.token_embedding(tokens) + self._network.position_embedding(positions)
        return items

    def _newest(self, prefix_BD: Tensor, tokens_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the last position of each row, [B, D]: the newest event, or the prefix where there is no event."""
        last_B = tokens_BS.gather(1, (lengths_B - 1).clamp(min=0)[:, None])[:, 0]
        return torch.where((lengths_B > 0)[:, None], self._items(last_B, lengths_B), prefix_BD)

    def _group(self, prefix_BD: Tensor, tokens_BS: Tensor, lengths_B: Tensor, rows: slice, steps: int) -> _Group:
        """Read everything before the newest event of some rows, sorted by length, into a new cache."""
        lengths_R = lengths_B[rows]
        longest = int(lengths_R[-1])
        cache = Cache.empty(self._config, lengths_R, longest, 1 + steps, self._cache_dtype)
        if longest:
            tokens_RS = tokens_BS[rows, : longest - 1]
            items_RSD = self._items(tokens_RS, torch.arange(1, longest, device=self._device))
            context(self._context, torch.cat([prefix_BD[rows, None], items_RSD], 1), cache)
        return _Group(rows=rows, lengths_R=lengths_R, cache=cache)

    def _scores(self, hidden: Tensor, items: Tensor) -> Tensor:
        """Return the heads of read items, [..., H]; 0 for token 0."""
        return torch.sigmoid(self._heads(hidden.flatten(0, -2)).view(*items.shape, -1)) * (items != PADDING)[..., None]


def _spans(rising_B: I32, positions: int) -> list[slice]:
    """Cut rows of rising length into groups of at most `positions` positions, padding included."""
    spans, start = [], 0
    for end in range(1, len(rising_B) + 1):
        if end == len(rising_B) or (end + 1 - start) * (int(rising_B[end]) + 1) > positions:
            spans.append(slice(start, end))
            start = end
    return spans


def _select_groups(groups: list[_Group], source_R: Tensor) -> list[_Group]:
    """Return groups whose rows, one after another, are copies of the given rows, which are in rising order."""
    selected, start = [], 0
    for group in groups:
        inside_R = source_R[(source_R >= group.rows.start) & (source_R < group.rows.stop)] - group.rows.start
        if len(inside_R):
            rows = slice(start, start + len(inside_R))
            selected.append(_Group(rows=rows, lengths_R=group.lengths_R[inside_R], cache=group.cache.take(inside_R)))
            start = rows.stop
    return selected


def _to_caller(state: _State, rows: Tensor) -> Any:  # an array of the tensor's type
    """Return rows in the caller's order, on the host."""
    ordered = torch.empty_like(rows)
    ordered[state.order_B] = rows
    return ordered.cpu().numpy()
