"""The peer on a CPU: the same model and task in eager PyTorch, as a good engineer writes it for one job.

Weights under `nn.TransformerEncoder`'s names, a static KV cache, every position through every layer once, logits at the
last position only, rows of like length together, attention by `scaled_dot_product_attention` or by two products, all
threads in each product or an instance per thread. The best of its settings is found on the machine at hand, for fp32
and for bf16 each. It gives what our engines give: items,
log-probabilities and four scores per item.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from genrec_batch.core.arrays import HEADS, I32, Batch
from genrec_batch.model.weights import EPSILON, Model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is tuned."""

    dtype: torch.dtype
    rows: int  # of a batch
    fused: bool  # SDPA in prefill, else two products and a softmax
    instances: int  # that share the batches, one thread each; 1: all threads work on each product


class EagerPeer:
    """Greedy slates by prefill and a cache, on all threads of PyTorch."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.settings, self.config = settings, model.config
        state = {name: torch.from_numpy(array) for name, array in model.weights.items()}
        self.w = {name: tensor.to(settings.dtype) for name, tensor in state.items()}
        self.heads = torch.cat([self.w[f"{head}_head.weight"] for head in HEADS])
        self.heads_bias = torch.cat([self.w[f"{head}_head.bias"] for head in HEADS])
        self.tokens = model.tokens
        count = settings.instances
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None

    def slate(self, batch: Batch, steps: int) -> I32:
        """Return the tokens of each row's slate, [B, steps]; rows are cut into batches as they come (by length)."""
        rows = self.settings.rows
        spans = [slice(first, first + rows) for first in range(0, len(batch), rows)]
        each = map if self._pool is None else self._pool.map
        return np.concatenate(list(each(lambda span: self._slate(batch, span, steps), spans)))

    @torch.inference_mode()
    def _slate(self, batch: Batch, rows: slice, steps: int) -> I32:
        w, dtype = self.w, self.settings.dtype
        lengths = torch.from_numpy(batch.lengths_B[rows].astype(np.int64))
        longest = int(lengths.max())
        tokens = torch.from_numpy(batch.tokens_BS[rows, :longest].astype(np.int64))
        count = longest + 1
        shape = (self.config.layers, len(lengths), self.config.heads, count + steps, self.config.head_size)
        keys, values = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        prefix = self._product(torch.from_numpy(batch.dense_BF[rows]).to(dtype), "feature_projection")
        x = torch.cat([prefix[:, None], functional.embedding(tokens, w["token_embedding.weight"])], 1)
        x = x + w["position_embedding.weight"][:count]
        for layer in range(self.config.layers):
            query, key, value = self._qkv(x, layer)
            keys[layer, :, :, :count], values[layer, :, :, :count] = key, value
            x = self._rest(x, self._causal(query, key, value), layer)
        hidden = x.gather(1, lengths[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]
        at = torch.arange(count + steps)
        padding = (at[None, :] > lengths[:, None]) & (at < count)
        bias = torch.zeros(padding.shape, dtype=dtype).masked_fill_(padding, -torch.inf)[:, None, None]
        seen = torch.from_numpy(batch.seen_BX[rows].astype(np.int64))
        allowed = torch.zeros(len(lengths), self.config.vocabulary).scatter_(1, seen, -torch.inf)
        allowed[:, :2] = allowed[:, self.tokens :] = -torch.inf
        chosen, log_probs, scores = [], [], []
        for step in range(steps):
            log_prob = torch.log_softmax(self._product(hidden, "output_projection").float(), 1)
            best = (log_prob + allowed).argmax(1)
            chosen.append(best)
            log_probs.append(log_prob.gather(1, best[:, None]))
            allowed.scatter_(1, best[:, None], -torch.inf)
            x = w["token_embedding.weight"][best] + w["position_embedding.weight"][lengths + 1 + step]
            x = x[:, None]
            slot = count + step
            for layer in range(self.config.layers):
                query, key, value = self._qkv(x, layer)
                keys[layer, :, :, slot], values[layer, :, :, slot] = key[:, :, 0], value[:, :, 0]
                looks = query @ keys[layer, :, :, : slot + 1].transpose(2, 3) * self.config.head_size**-0.5
                looks = torch.softmax(looks + bias[..., : slot + 1], -1)
                x = self._rest(x, looks @ values[layer, :, :, : slot + 1], layer)
            hidden = x[:, 0]
            scores.append(torch.sigmoid(functional.linear(hidden, self.heads, self.heads_bias)))
        torch.stack(log_probs, 1), torch.stack(scores, 1)
        return torch.stack(chosen, 1).int().numpy()

    def _product(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def _qkv(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        name = f"encoder.layers.{layer}.self_attn.in_proj"
        triple = functional.linear(x, self.w[f"{name}_weight"], self.w[f"{name}_bias"])
        query, key, value = triple.view(*x.shape[:2], 3, self.config.heads, -1).permute(2, 0, 3, 1, 4)
        return query, key, value

    def _causal(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.settings.fused:
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        count = query.shape[2]
        looks = query @ key.transpose(2, 3) * self.config.head_size**-0.5
        looks += torch.full((count, count), -torch.inf, dtype=looks.dtype).triu_(1)
        return torch.softmax(looks, -1) @ value

    def _rest(self, x: Tensor, mixed: Tensor, layer: int) -> Tensor:
        name = f"encoder.layers.{layer}"
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        x = self._norm(x + self._product(mixed, f"{name}.self_attn.out_proj"), f"{name}.norm1")
        wide = torch.relu_(self._product(x, f"{name}.linear1"))
        return self._norm(x + self._product(wide, f"{name}.linear2"), f"{name}.norm2")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], EPSILON)


def tuned(model: Model, batch: Batch, dtype: torch.dtype, steps: int, clock: Callable[[], float]) -> EagerPeer:
    """Return the peer with its fastest settings on this batch, by one run each after a warm one."""
    best: tuple[float, EagerPeer] | None = None
    threads = torch.get_num_threads()
    for rows, fused, instances in itertools.product((32, 64, 128, 256), (False, True), sorted({1, threads})):
        peer = EagerPeer(model, Settings(dtype=dtype, rows=rows, fused=fused, instances=instances))
        peer.slate(batch, 1)
        start = clock()
        peer.slate(batch, steps)
        taken = clock() - start
        if best is None or taken < best[0]:
            best = (taken, peer)
    torch.set_num_threads(threads)
    assert best is not None
    return best[1]
