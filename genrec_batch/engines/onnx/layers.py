"""The layers of a transformer and the choice of an item, as ONNX Runtime computes them.

Owns: linear, LayerNorm, attention and choice as ONNX operators. Must not know: which graphs an engine needs, the names
of weights, sessions, devices, torch.

Rows are flattened into one matrix product and masks are additive and finite. Values are int32 at every border; int64
occurs only in shapes and in the indices where ONNX requires it.

Shape legend beside that of `arrays`: P positions of the prefix (1 + S), Q queries per row, L keys of a cache, T decoded
items there is room for, D width, A attention heads, E width of one, M rows of a matrix product (such as B * P).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec_batch.core.arrays import F32, FIRST_ITEM
from genrec_batch.engines.onnx_graph import FLOAT, INT32, INT64, OnnxGraph

MASKED = -60_000.0  # added to a masked score: far below any real one, exact and finite in fp16


def linear(g: OnnxGraph, x_MI: str, weight_OI: F32, bias_O: F32, *, relu: bool = False) -> str:
    """Return x W^T + b of PyTorch's [out, in] weight, [M, O], after ReLU if `relu`."""
    y_MO = g.node("Gemm", x_MI, g.constant(weight_OI.T), g.constant(bias_O))
    return g.node("Relu", y_MO) if relu else y_MO


def layer_norm(g: OnnxGraph, x_MD: str, scale_D: F32, shift_D: F32, epsilon: float) -> str:
    """Return LayerNorm over the last axis (Ba et al. 2016), from primitive operators, [M, D]."""
    centred_MD = g.node("Sub", x_MD, g.node("ReduceMean", x_MD, axes=[-1], keepdims=1))
    square_MD = g.node("Pow", centred_MD, g.constant(np.float32(2)))
    variance_M1 = g.node("ReduceMean", square_MD, axes=[-1], keepdims=1)
    deviation_M1 = g.node("Sqrt", g.node("Add", variance_M1, g.constant(np.float32(epsilon))))
    normal_MD = g.node("Div", centred_MD, deviation_M1)
    return g.node("Add", g.node("Mul", normal_MD, g.constant(scale_D)), g.constant(shift_D))


def counting(g: OnnxGraph, length_1: str, at_most: int) -> str:
    """Return int32 0, 1, 2, ..: `length_1` numbers, of which there are `at_most`."""
    return g.node("Slice", g.constant(np.arange(at_most, dtype=np.int32)), g.sizes(0), length_1, g.sizes(0))


def masked_unless(g: OnnxGraph, kept: str) -> str:
    """Return what to add to scores: 0 where `kept` (Boolean) is true, else MASKED."""
    return g.node("Where", kept, g.constant(np.float32(0)), g.constant(np.float32(MASKED)))


def causal_mask(g: OnnxGraph, length_1: str, at_most: int) -> str:
    """Return the additive mask [P, P] under which a position sees itself and those before it."""
    key_P = counting(g, length_1, at_most)
    return masked_unless(g, g.node("LessOrEqual", key_P, g.reshape(key_P, -1, 1)))


def row_mask(g: OnnxGraph, key_L: str, past_B: str) -> str:
    """Return the additive mask [B, 1, 1, L] under which each row sees the keys below its own `past_B` (int32)."""
    mask_BL = masked_unless(g, g.node("Less", key_L, g.reshape(past_B, -1, 1)))
    return g.node("Unsqueeze", mask_BL, g.sizes(1, 2))


def self_attention(g: OnnxGraph, query_BAQE: str, key_BAPE: str, value_BAPE: str, mask: str) -> str:
    """Return softmax(Q K^T + mask) V (Vaswani et al. 2017), [B, A, Q, E]; the queries are already scaled."""
    score_BAQP = g.node("Add", _scores(g, query_BAQE, key_BAPE), mask)
    return g.node("MatMul", g.node("Softmax", score_BAQP, axis=-1), value_BAPE)


def cached_attention(
    g: OnnxGraph, query_BAQE: str, own: tuple[str, str], caches: Sequence[tuple[str, str, str]], lengths: Sequence[str]
) -> str:
    """Return the attention of queries that each see every cache and their own key and value, [B, A, Q, E].

    Args:
        g: the graph.
        query_BAQE: queries, already scaled.
        own: the queries' own key and value, [B, A, Q, E]; no query sees another's.
        caches: key [B, A, L, E], value [B, A, L, E] and additive mask [B, 1, 1, L] of each cache.
        lengths: L of each cache, int64 [1].
    """
    own_key, own_value = own
    scores = [g.node("Add", _scores(g, query_BAQE, key), mask) for key, _, mask in caches]
    scores.append(g.node("ReduceSum", g.node("Mul", query_BAQE, own_key), g.sizes(-1), keepdims=1))
    weights = g.node("Softmax", g.node("Concat", *scores, axis=-1), axis=-1)
    lengths_C = g.node("Concat", *lengths, g.sizes(1), axis=0)
    *cache_weights, own_weight = g.nodes("Split", weights, lengths_C, outputs=len(scores), axis=-1)
    context_BAQE = g.node("Mul", own_weight, own_value)
    for weight, (_, value, _) in zip(cache_weights, caches, strict=True):
        context_BAQE = g.node("Add", context_BAQE, g.node("MatMul", weight, value))
    return context_BAQE


def _scores(g: OnnxGraph, query_BAQE: str, key_BALE: str) -> str:
    return g.node("MatMul", query_BAQE, g.transpose(key_BALE, 0, 1, 3, 2))


def merge_heads(g: OnnxGraph, context_BAQE: str, width: int) -> str:
    """Return [B, A, Q, E] as the rows of a matrix, [B * Q, D]."""
    return g.reshape(g.transpose(context_BAQE, 0, 2, 1, 3), -1, width)


def pick_position(g: OnnxGraph, x_BPD: str, index_B: str) -> str:
    """Return one position of each row, [B, D]; the index is int32."""
    return g.node("GatherND", x_BPD, g.reshape(g.cast(index_B, INT64), -1, 1), batch_dims=1)


def choose(g: OnnxGraph, logits_BV: str, banned_BX: str) -> tuple[str, str, str]:
    """Add the choice of the next items.

    The log-probability is the log-softmax over the whole vocabulary in fp32, taken before anything is masked. Padding,
    unknown, tokens beyond the catalog and the banned tokens (0 for none) cannot be chosen. Of equal items the lower
    token comes first. Declares two int64 inputs of shape [1]: `choices`, how many items are chosen, and `items`, the
    first token beyond the catalog.

    Args:
        g: the graph.
        logits_BV: logits of the next position.
        banned_BX: int32 tokens that must not be chosen; X may be 0.

    Returns:
        tokens_BK (int32; 0 where nothing is left), log_prob_BK (fp32; -inf there), log_probs_BV (fp32, nothing masked).
    """
    log_probs_BV = g.node("LogSoftmax", g.cast(logits_BV, FLOAT), axis=-1)
    return *best_open(g, log_probs_BV, banned_BX), log_probs_BV


def masked(g: OnnxGraph, log_probs_BV: str, bytes_MC: str, mask_B: str, vocabulary: int) -> str:
    """Return log-probabilities that nothing chooses where a row's bit map bans a token (bit t % 8 of byte t // 8).

    A table turns a byte into eight numbers to add: on a CPU a Where over random bits takes ten times as long.
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    byte_BC = g.cast(g.node("Gather", bytes_MC, mask_B, axis=0), INT32)
    added_BV = g.reshape(g.node("Gather", g.float32(bits * MASKED), byte_BC, axis=0), 0, -1)
    return g.node("Add", log_probs_BV, g.columns(added_BV, 0, vocabulary) if vocabulary % 8 else added_BV)


def best_open(g: OnnxGraph, log_probs_BV: str, banned_BX: str) -> tuple[str, str]:
    """Return the tokens and log-probabilities of `choose`, and declare its inputs."""
    no_items = np.arange(FIRST_ITEM, dtype=np.int32)[None]  # padding and unknown
    shape_2 = g.node("Concat", g.size_of(banned_BX, 0), g.sizes(FIRST_ITEM), axis=0)
    banned_BX = g.node("Concat", banned_BX, g.node("Expand", g.constant(no_items), shape_2), axis=1)
    masked_BX = g.node("Expand", g.float32(MASKED), g.node("Shape", banned_BX))
    open_BV = g.node("ScatterElements", log_probs_BV, banned_BX, masked_BX, axis=1)
    open_BI = g.node("Slice", open_BV, g.sizes(0), g.input("items", [1], INT64), g.sizes(1))
    count_1 = g.input("choices", [1], INT64)
    best_BK, index_BK = g.nodes("TopK", open_BI, count_1, outputs=2, axis=1, largest=1, sorted=1)
    left_BK = g.node("Greater", best_BK, g.float32(MASKED / 2))
    tokens_BK = g.node("Where", left_BK, g.cast(index_BK, INT32), g.constant(np.int32(0)))
    return tokens_BK, g.node("Where", left_BK, best_BK, g.float32(-np.inf))
