"""The network in PyTorch: one module that can be trained, and the two fast phases that score.

Owns: the arithmetic of the generative transformer on tensors. Must not know: NumPy batches, decoding rules, users.

`Network.forward` is the plain full forward pass, with which everything else is compared. Its fast twin is divided in
two, for a KV cache: `context` fills a cache from all positions before a row's last one (its last layer computes keys
and values only), and `read` adds one position per row and returns its hidden state. Prefill is `context` and one `read`
of the newest event; every decode step is one more `read`. Both twins agree to 1e-5 in fp32.

Shapes as in `arrays`, and D width, T slots of a cache, R rows of a cache, G attention heads, Z head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from genrec_batch.core.arrays import HEADS
from genrec_batch.engines.torch.cache import Cache, Read, lanes
from genrec_batch.engines.torch.linear import Int8Linear, Linear, PairLinear, ProductTable
from genrec_batch.model.weights import EPSILON, ModelConfig, Weights

LEAST_QUERIES = 8  # oneDNN multiplies fewer rows by another method, with other last bits
FUSED_FROM = 128  # positions from which PyTorch's fused attention is faster on a CPU

Product = Linear | Int8Linear | PairLinear
P_co = TypeVar("P_co", bound=Product, covariant=True)
Norm = tuple[Tensor, Tensor]  # weight and bias, [D] each


class Network(nn.Module):
    """The generative transformer, its parameters named and shaped as `model.parameter_shapes` lists them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.token_embedding = _embedding(config.vocabulary, d)
        self.position_embedding = _embedding(config.positions, d)
        self.feature_projection = nn.Linear(config.features, d)
        self.user_profile_projection = nn.Linear(config.profile, d)
        self.video_feature_projection = nn.Linear(config.video, d)
        layer = nn.TransformerEncoderLayer(
            d, config.heads, config.ffn, dropout=0.0, layer_norm_eps=EPSILON, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.output_projection = nn.Linear(d, config.vocabulary)
        for head in HEADS:
            self.add_module(f"{head}_head", nn.Linear(d, 1))

    def prefix(
        self,
        dense_BF: Tensor,
        profile_BP: Tensor | None = None,
        has_profile_B: Tensor | None = None,
        video_BV: Tensor | None = None,
        has_video_B: Tensor | None = None,
    ) -> Tensor:
        """Return position 0, [B, D]; a row gets the profile and video projections only where its flag is set."""
        x = self.feature_projection(dense_BF) + self.position_embedding.weight[0]
        if profile_BP is not None and has_profile_B is not None:
            x = x + self.user_profile_projection(profile_BP) * has_profile_B[:, None]
        if video_BV is not None and has_video_B is not None:
            x = x + self.video_feature_projection(video_BV) * has_video_B[:, None]
        prefix: Tensor = x
        return prefix

    def forward(self, prefix_BD: Tensor, tokens_BS: Tensor) -> Tensor:
        """Return the hidden states of position 0 and of every token, [B, S + 1, D].

        Rows are left-aligned, so the causal mask alone keeps padding out of every real position.
        """
        count = tokens_BS.shape[1] + 1
        items = self.token_embedding(tokens_BS) + self.position_embedding.weight[1:count]
        x = torch.cat([prefix_BD[:, None], items], 1)
        mask = nn.Transformer.generate_square_subsequent_mask(count, x.device, x.dtype)
        hidden: Tensor = self.encoder(x, mask, is_causal=True)
        return hidden

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return the next item's logits, [N, vocabulary]."""
        logits: Tensor = self.output_projection(hidden_ND)
        return logits

    def scores(self, hidden_ND: Tensor) -> Tensor:
        """Return the four heads' probabilities, [N, H], in the order of `arrays.HEADS`."""
        return torch.cat([torch.sigmoid(getattr(self, f"{head}_head")(hidden_ND)) for head in HEADS], -1)


def _embedding(rows: int, width: int) -> nn.Embedding:
    """Return a table without numbers: drawing them on the device "meta" imports PyTorch's compiler, for a second."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


def load_network(config: ModelConfig, weights: Weights, device: torch.device) -> Network:
    """Return the network with these weights, in fp32, not training."""
    with torch.device("meta"):
        network = Network(config)
    state = {name: torch.from_numpy(array).to(device) for name, array in weights.items()}
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(requires_grad=False).eval()


@dataclass(frozen=True, kw_only=True)
class Layer(Generic[P_co]):
    """One encoder layer with prepared products; the query rows of `qkv` include attention's factor 1/sqrt(Z)."""

    qkv: P_co
    out: P_co
    up: P_co
    down: P_co
    norm1: Norm
    norm2: Norm


@dataclass(frozen=True, kw_only=True)
class ContextLayers:
    """The layers of the context: all but the last, and the last one's keys and values [D -> 2 D].

    Items enter the first layer as token plus position, and the product of a sum is the sum of products. So the first
    layer's queries, keys and values of items are looked up in two tables, in fp32.
    """

    layers: Sequence[Layer[Product]]
    last: Product
    first_of_tokens_VN: Tensor  # queries, keys and values [V, 3 D] of each token that a history can have
    first_of_positions: ProductTable  # and of each position, with the bias


def prepare_layers(network: Network, dtype: torch.dtype) -> list[Layer[Product]]:
    """Return the encoder's layers with their products in `dtype` and their norms in fp32.

    int8 rounds queries, keys and the feed-forward network. Values and attention's output product stay fp32: attention
    carries the error of values straight to the row's last position, so they would be a quarter of the work and most of
    the error.
    """
    state, layers = network.state_dict(), []
    whole = dtype == torch.int8
    for i in range(network.config.layers):
        pairs = {
            name: (state[f"encoder.layers.{i}.{name}.weight"], state[f"encoder.layers.{i}.{name}.bias"])
            for name in ("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
        }
        layers.append(
            Layer(
                qkv=with_values(*scaled_qkv(network, i), dtype),
                out=Linear(*pairs["self_attn.out_proj"], torch.float32 if whole else dtype),
                up=Int8Linear(*pairs["linear1"]) if whole else Linear(*pairs["linear1"], dtype),
                down=Int8Linear(*pairs["linear2"], positive=True) if whole else Linear(*pairs["linear2"], dtype),
                norm1=pairs["norm1"],
                norm2=pairs["norm2"],
            )
        )
    return layers


def prepare_context(
    network: Network, layers: Sequence[Layer[Product]], product: Callable[[Tensor, Tensor], Product], tokens: int
) -> ContextLayers:
    """Return the layers of the context, for histories of tokens below `tokens`.

    `product` prepares the last one's product from a weight and a bias.
    """
    weight, bias = scaled_qkv(network, len(layers) - 1)
    width = network.config.width
    first = Linear(*scaled_qkv(network, 0), torch.float32)
    no_bias = Linear(scaled_qkv(network, 0)[0], torch.zeros(3 * width, device=weight.device), torch.float32)
    return ContextLayers(
        layers=layers[:-1],
        last=product(weight[width:], bias[width:]),
        first_of_tokens_VN=no_bias(network.token_embedding.weight[:tokens]),
        first_of_positions=ProductTable(first, network.position_embedding.weight),
    )


def with_values(weight_ND: Tensor, bias_N: Tensor, dtype: torch.dtype) -> Product:
    """Return a product whose last D outputs are attention's values, in a type."""
    if dtype == torch.int8:
        return Int8Linear(weight_ND, bias_N, exact=weight_ND.shape[1])
    return Linear(weight_ND, bias_N, dtype)


def scaled_qkv(network: Network, layer: int) -> tuple[Tensor, Tensor]:
    """Return weight [3 D, D] and bias of queries, keys and values; the queries' rows are multiplied by 1/sqrt(Z)."""
    attention = network.encoder.layers[layer].self_attn
    scale = torch.ones_like(attention.in_proj_bias)
    scale[: network.config.width] = network.config.head_size**-0.5
    return attention.in_proj_weight * scale[:, None], attention.in_proj_bias * scale


def context(stack: ContextLayers, x_RSD: Tensor, tokens_RS: Tensor, cache: Cache) -> None:
    """Fill a cache's context slots from positions 0..S; the last layer's queries are not needed and left out.

    `tokens_RS` are the tokens of x [R, S + 1, D] after position 0.
    """
    rows, count, width = x_RSD.shape
    heads, size = cache.keys.shape[2], cache.keys.shape[4]
    seen = lanes(count) if count <= FUSED_FROM else count
    causal = x_RSD.new_full((max(count, LEAST_QUERIES), seen), -torch.inf).triu_(1)
    x = x_RSD.reshape(rows * count, width)
    for i, layer in enumerate(stack.layers):
        product = layer.qkv(x) if i else _first(stack, x_RSD[:, 0], tokens_RS)
        query, key, value = product.view(rows, count, 3, heads, size).permute(2, 0, 3, 1, 4)
        keys, values = cache.keys[i, :, :, :seen], cache.values[i, :, :, :seen]
        keys[:, :, :count] = key
        values[:, :, :count] = value
        mixed = _attend_causally(query.to(keys.dtype).contiguous(), keys, values, causal, cache.lengths_R)
        x = _finish(layer, x, mixed.transpose(1, 2).reshape(rows * count, width))
    key, value = stack.last(x).view(rows, count, 2, heads, size).permute(2, 0, 3, 1, 4)
    cache.keys[-1, :, :, :count] = key
    cache.values[-1, :, :, :count] = value


def _first(stack: ContextLayers, prefix_RD: Tensor, tokens_RS: Tensor) -> Tensor:
    """Return the first layer's queries, keys and values of a prefix and the items after it, [R * (S + 1), 3 D]."""
    count = tokens_RS.shape[1] + 1
    product = stack.first_of_tokens_VN.new_empty(len(tokens_RS), count, stack.first_of_tokens_VN.shape[1])
    product[:, 0] = stack.layers[0].qkv(prefix_RD)
    torch.add(
        functional.embedding(tokens_RS, stack.first_of_tokens_VN), stack.first_of_positions.upto(count)[1:],
        out=product[:, 1:],
    )  # fmt: skip
    return product.flatten(0, 1)


def _attend_causally(query: Tensor, key: Tensor, value: Tensor, causal_ST: Tensor, lengths_R: Tensor) -> Tensor:
    """Compute causal attention, [R, G, S, Z] -> [R, G, S, Z].

    On a CPU two batched products are faster than the fused kernel, which is made for longer histories. There may be
    more keys [R, G, T, Z] than queries, which are masked, and rows of the mask without a query. Softmax is fp32 for any
    type. The last bits of the fused kernel depend on the number of keys: on a CPU it computes each row alone, up to its
    length.
    """
    count = query.shape[2]
    if query.device.type != "cpu":
        key, value = key[:, :, :count], value[:, :, :count]
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
    if count > FUSED_FROM:
        mixed = torch.zeros_like(query)
        for r, length in enumerate(lengths_R.tolist()):
            q, k, v = (x[r : r + 1, :, :length] for x in (query, key, value))
            mixed[r, :, :length] = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)[0]
        return mixed
    if spare := len(causal_ST) - count:
        query = functional.pad(query, (0, 0, 0, spare))
    scores = torch.matmul(query, key.transpose(2, 3)).float()
    scores += causal_ST
    return torch.matmul(torch.softmax(scores, -1).to(value.dtype), value)[:, :, :count]


def read(layers: Sequence[Layer[Product]], x_BD: Tensor, caches: Sequence[Cache], step: int) -> Tensor:
    """Read one position per row, the `step`-th, [B, D] -> hidden state [B, D], and cache its keys and values.

    The rows of `caches`, one cache after another, are the rows of x.
    """
    sizes = [len(cache.lengths_R) for cache in caches]
    heads, size, dtype = caches[0].keys.shape[2], caches[0].keys.shape[4], caches[0].keys.dtype
    x = x_BD
    reads = [cache.at(step) for cache in caches]
    for i, layer in enumerate(layers):
        triples = torch.split(layer.qkv(x).view(len(x), 3, heads, size).to(dtype), sizes)
        mixed = [_attend_once(*each, i) for each in zip(triples, caches, reads, strict=True)]
        x = _finish(layer, x, torch.cat(mixed))
    return x


def _attend_once(triple_R3GZ: Tensor, cache: Cache, at: Read, layer: int) -> Tensor:
    """Cache a position's key and value and return the attention of its query, [R, G * Z]."""
    query, key, value = triple_R3GZ.unbind(1)
    keys, values, seen = cache.keys[layer], cache.values[layer], at.bias.shape[3]
    keys[at.rows_R, :, at.slot_R] = key
    values[at.rows_R, :, at.slot_R] = value
    scores = torch.matmul(query[:, :, None], keys[:, :, :seen].transpose(2, 3)).float()
    scores += at.bias
    mixed = torch.matmul(torch.softmax(scores, -1).to(key.dtype), values[:, :, :seen])
    return mixed.flatten(1)


def read_aside(layers: Sequence[Layer[Product]], x_RCD: Tensor, cache: Cache) -> Tensor:
    """Read C positions per row, each as if it alone came right after the history, [R, C, D] -> [R, C, D].

    Each sees the context, the first read (the newest event) and itself; the cache does not change.
    """
    rows, count, width = x_RCD.shape
    heads, size = cache.keys.shape[2], cache.keys.shape[4]
    bias = cache.bias(0)
    slots = bias.shape[3]
    x = x_RCD.reshape(rows * count, width)
    for i, layer in enumerate(layers):
        triple = layer.qkv(x).view(rows, count, 3, heads, size).permute(2, 0, 3, 1, 4).to(cache.keys.dtype)
        query, key, value = triple.unbind(0)
        scores = torch.matmul(query, cache.keys[i, :, :, :slots].transpose(2, 3)).float()
        scores += bias
        own = (query * key).sum(-1, keepdim=True).float()
        weights = torch.softmax(torch.cat([own, scores], -1), -1).to(key.dtype)
        mixed = torch.matmul(weights[..., 1:], cache.values[i, :, :, :slots]) + weights[..., :1] * value
        x = _finish(layer, x, mixed.transpose(1, 2).reshape(rows * count, width))
    return x.view(rows, count, width)


def _finish(layer: Layer[Product], x_ND: Tensor, mixed_ND: Tensor) -> Tensor:
    """Compute attention's output product, the feed-forward network and both norms; the residual stream is fp32."""
    x = _norm(x_ND + layer.out(mixed_ND), layer.norm1)
    return _norm(x + layer.down(layer.up(x, relu=True)), layer.norm2)


def _norm(x_ND: Tensor, norm: Norm) -> Tensor:
    return functional.layer_norm(x_ND, x_ND.shape[-1:], *norm, EPSILON)
