"""The peers of `bench_gpu_peers.py`: the same slate (items, log-probabilities, heads) as plain PyTorch code writes it.

Owns: four honest versions, from no cache to a tuned `torch.compile`. Every one computes what the engine computes, for
features and histories, and keeps its inputs on the device.
"""

import torch
from torch import Tensor
from torch.nn import functional

from genrec_batch.core.arrays import HEADS, Batch
from genrec_batch.model.weights import EPSILON, Model


def graphed(run):
    """Return a call that replays `run` as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


class Plain:
    """Static KV cache, scaled_dot_product_attention with a mask, rows padded on the left: the usual code."""

    def __init__(self, model: Model, batch: Batch, steps: int, dtype: torch.dtype) -> None:
        self.sizes, self.steps, self.dtype = model.config, steps, dtype
        self.weights = {n: torch.from_numpy(w).cuda().to(dtype) for n, w in model.weights.items()}
        self.weights["heads.weight"] = torch.cat([self.weights[f"{h}_head.weight"] for h in HEADS])
        self.weights["heads.bias"] = torch.cat([self.weights[f"{h}_head.bias"] for h in HEADS])
        self.dense = torch.from_numpy(batch.dense_BF).cuda().to(dtype)
        self.lengths = torch.from_numpy(batch.lengths_B).cuda().long()
        tokens = torch.from_numpy(batch.tokens_BS).cuda().long()
        self.users, self.width = tokens.shape
        seen = torch.from_numpy(batch.seen_BX).cuda().long()
        self.banned = torch.cat([seen, seen.new_zeros(self.users, steps + 1)], 1)  # items read are written behind
        self.tokens = self.arranged(tokens)
        places = -(-(self.width + 1 + steps) // 8) * 8  # aligned, as the fast attention kernels want it
        self.columns = torch.arange(places, device="cuda")
        self.cache = [self.empty_cache() for _ in range(self.sizes.layers)]
        self.items = torch.zeros(steps + 1, self.users, dtype=torch.long, device="cuda")
        self.log_prob = torch.zeros(steps + 1, self.users, device="cuda")
        self.heads = torch.zeros(steps + 1, self.users, len(HEADS), device="cuda")
        self.steps_T = [torch.tensor([t], device="cuda") for t in range(steps)]
        self.do_prefill, self.do_step = self.prefill, self.step

    def empty_cache(self) -> tuple[Tensor, Tensor]:
        shape = (self.users, self.sizes.heads, len(self.columns), self.sizes.head_size)
        return tuple(torch.zeros(shape, dtype=self.dtype, device="cuda") for _ in range(2))

    def arranged(self, tokens: Tensor) -> Tensor:
        column = torch.arange(self.width, device="cuda")
        return tokens.gather(1, (column - (self.width - self.lengths)[:, None]) % self.width)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPSILON
        )

    def qkv(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        name = f"encoder.layers.{layer}.self_attn.in_proj_"
        product = functional.linear(x, self.weights[name + "weight"], self.weights[name + "bias"])
        return product.view(*x.shape[:-1], 3, self.sizes.heads, self.sizes.head_size).unbind(-3)

    def after_attention(self, x: Tensor, attended: Tensor, layer: int) -> Tensor:
        at = f"encoder.layers.{layer}."
        x = self.norm(x + self.linear(attended, at + "self_attn.out_proj"), at + "norm1")
        return self.norm(x + self.linear(torch.relu(self.linear(x, at + "linear1")), at + "linear2"), at + "norm2")

    def embedded(self, tokens: Tensor) -> Tensor:
        place = torch.arange(tokens.shape[1], device="cuda")
        place = (place - (self.width - self.lengths)[:, None]).clamp(min=0) + 1
        rows = functional.embedding(tokens, self.weights["token_embedding.weight"])
        rows = rows + functional.embedding(place, self.weights["position_embedding.weight"])
        prefix = self.linear(self.dense, "feature_projection") + self.weights["position_embedding.weight"][0]
        return torch.cat([prefix[:, None], rows], 1)

    def real(self, columns: Tensor) -> Tensor:
        return (columns == 0) | (columns - 1 >= (self.width - self.lengths)[:, None])

    def full(self, tokens: Tensor, *, keep: bool) -> Tensor:
        """Hidden state of the last column; keeps keys and values where asked."""
        x = self.embedded(tokens)
        columns = self.columns[: x.shape[1]]
        mask = ((columns <= columns[:, None]) & self.real(columns)[:, None])[:, None]
        for layer in range(self.sizes.layers):
            q, k, v = (part.transpose(1, 2) for part in self.qkv(x, layer))
            if keep:
                self.cache[layer][0][:, :, : len(columns)] = k
                self.cache[layer][1][:, :, : len(columns)] = v
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = self.after_attention(x, attended.transpose(1, 2).reshape(x.shape), layer)
        return x[:, -1]

    def best(self, hidden: Tensor, banned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.linear(hidden, "output_projection")
        total = logits.float().logsumexp(1)
        logits[:, :2] = -torch.inf
        value, item = logits.scatter_(1, banned, -torch.inf).max(1)
        return item, value.float() - total, torch.sigmoid(self.linear(hidden, "heads").float())

    def prefill(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.best(self.full(self.tokens, keep=True), self.banned)

    def visible(self, column: Tensor) -> Tensor:
        return (self.columns <= column) & self.real(self.columns)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=visible[:, None, None])[:, :, 0]

    def step(self, item: Tensor, step: Tensor, banned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = functional.embedding(item, self.weights["token_embedding.weight"])
        x = x + functional.embedding(self.lengths + 1 + step, self.weights["position_embedding.weight"])
        column = self.width + 1 + step
        visible = self.visible(column)
        for layer in range(self.sizes.layers):
            q, k, v = self.qkv(x, layer)
            for cache, new in zip(self.cache[layer], (k, v), strict=True):
                cache.index_copy_(2, column, new[:, :, None])
            attended = self.attend(q, *self.cache[layer], visible)
            x = self.after_attention(x, attended.reshape(x.shape), layer)
        return self.best(x, banned)

    def keep(self, at: int, found: tuple[Tensor, Tensor, Tensor]) -> None:
        for store, value in zip((self.items, self.log_prob, self.heads), found, strict=True):
            store[at].copy_(value)
        self.banned[:, at - self.steps - 1].copy_(found[0])

    def forget(self) -> None:
        self.banned[:, -self.steps - 1 :].zero_()

    def run(self) -> None:
        self.forget()
        self.keep(0, self.do_prefill())
        for t in range(self.steps):
            self.keep(t + 1, self.do_step(self.items[t], self.steps_T[t], self.banned))

    def compiled(self) -> "Plain":
        self.do_prefill = torch.compile(self.prefill, dynamic=False)
        self.do_step = torch.compile(self.step, dynamic=False)
        return self


class NoCache(Plain):
    """Every item costs a full forward over all that came before."""

    def empty_cache(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(0), torch.zeros(0)

    def run(self) -> None:
        self.forget()
        tokens = self.tokens
        for t in range(self.steps + 1):
            self.keep(t, self.best(self.full(tokens, keep=False), self.banned))
            tokens = torch.cat([tokens, self.items[t][:, None]], 1)


class Tuned(Plain):
    """What pays in plain PyTorch: padding on the right, causal flash attention, a trimmed last layer, mul-reduce."""

    def arranged(self, tokens: Tensor) -> Tensor:
        return tokens

    def prefill(self) -> tuple[Tensor, Tensor, Tensor]:
        rows = functional.embedding(self.tokens, self.weights["token_embedding.weight"])
        rows = rows + self.weights["position_embedding.weight"][1 : self.width + 1]
        prefix = self.linear(self.dense, "feature_projection") + self.weights["position_embedding.weight"][0]
        x = torch.cat([prefix[:, None], rows], 1)
        users, columns = torch.arange(self.users, device="cuda"), self.columns[: self.width + 1]
        for layer in range(self.sizes.layers):
            q, k, v = (part.transpose(1, 2) for part in self.qkv(x, layer))
            self.cache[layer][0][:, :, : len(columns)] = k
            self.cache[layer][1][:, :, : len(columns)] = v
            if layer + 1 < self.sizes.layers:
                attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
                x = self.after_attention(x, attended.reshape(x.shape), layer)
            else:
                x, q = x[users, self.lengths], q[users, :, self.lengths]
                visible = columns <= self.lengths[:, None]
                x = self.after_attention(x, self.attend(q, k, v, visible).reshape(x.shape), layer)
        return self.best(x, self.banned)

    def visible(self, column: Tensor) -> Tensor:
        past = (self.columns > self.width) & (self.columns <= column)
        return (self.columns <= self.lengths[:, None]) | past

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        score = (q[:, :, None] * k).sum(-1, dtype=torch.float32) * self.sizes.head_size**-0.5
        share = score.masked_fill(~visible[:, None], -torch.inf).softmax(-1)
        return (share[..., None] * v).sum(2).to(q.dtype)
