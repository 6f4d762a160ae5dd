"""What stands between the matrix products of the torch engine on a CPU, compiled: one pass over the numbers each.

Owns: loops over rows. Must not know: products, layers, lanes, torch. Needs numba; loaded by name. bf16 comes as its bits
in arrays of uint16.

Every row is computed alone and in one order, whatever stands beside it. NaN in a row stays in that row.

Shapes as in `torch_network`; besides: N rows of numbers (R rows of S positions, end to end), M numbers of a row. A pair
is how `torch_linear.PairLinear` takes a row: x = scale x (high + low / 254), both from -127 to 127 and kept with 128
added; `high_NM` has the high ones, `both_N2M` the low ones and then the high ones again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch.arrays import F32, I64
from genrec_batch.compiling import borrowed, kernel
from genrec_batch.engines import vectors
from genrec_batch.engines.vectors import WIDTH, dots, exponentials, magnitude, mix, narrow, of_bits, ordered, widen

F = np.float32
FINER, HIGHEST, ZERO = F(254), F(127), F(128)
LEAST, LOG2_E, LN2_HIGH, LN2_LOW = F(vectors.LEAST), F(vectors.LOG2_E), F(vectors.LN2_HIGH), F(vectors.LN2_LOW)
P5, P4, P3, P2, P1, P0 = (F(x) for x in vectors.POLYNOMIAL)


@kernel(reorder=True)
def split(x_NM: F32, scale_N: F32, high_NM: Any, both_N2M: Any) -> None:
    """Round rows to pairs."""
    for n in range(len(x_NM)):
        scale_N[n] = _split(borrowed(x_NM)[n], borrowed(high_NM)[n], borrowed(both_N2M)[n])


@kernel(reorder=True)
def _split(x_M: F32, high_M: Any, both_2M: Any) -> F32:
    count, largest = len(x_M), np.int32(0)
    for m in range(count):
        largest = max(largest, magnitude(x_M[m]))
    scale = of_bits(largest) / HIGHEST
    inverse = F(1) / scale if scale > 0 else scale  # 0 of a row of zeros, NaN of one with NaN
    _split_by(x_M, inverse, high_M, borrowed(both_2M)[:count], borrowed(both_2M)[count:])
    return scale


@kernel(reorder=True)
def _split_by(x_M: F32, inverse: F32, high_M: Any, low_M: Any, again_M: Any) -> None:
    """Apart from its caller, so that the arrays are seen to be others and the loop vectorizes."""
    for m in range(len(x_M)):
        x = x_M[m] * inverse + ZERO
        high = np.int32(x + F(0.5))
        low = np.int32((x - F(high)) * FINER + (ZERO + F(0.5)))
        high_M[m] = again_M[m] = np.uint8(high)
        low_M[m] = np.uint8(low)


@kernel(reorder=True)
def relu(
    sums_NM: F32, scale_N: F32, bias_M: F32, next_scale_N: F32, high_NM: Any, both_N2M: Any
) -> None:
    """Round the ReLU of scale x sums + bias to pairs."""
    y_M = np.empty(sums_NM.shape[1], np.float32)
    for n in range(len(sums_NM)):
        sums_M, scale = borrowed(sums_NM)[n], scale_N[n]
        for m in range(len(y_M)):
            y_M[m] = max(sums_M[m] * scale + bias_M[m], F(0))
        next_scale_N[n] = _split(y_M, borrowed(high_NM)[n], borrowed(both_N2M)[n])
        if scale != scale:
            next_scale_N[n] = scale


@kernel(reorder=True)
def _normalized(x_M: F32, gain_M: F32, shift_M: F32, epsilon: float) -> None:
    """LayerNorm in place (Ba et al. 2016; biased variance)."""
    count = len(x_M)
    total = F(0)
    for m in range(count):
        total += x_M[m]
    mean, spread = total / F(count), F(0)
    for m in range(count):
        spread += (x_M[m] - mean) * (x_M[m] - mean)
    inverse = F(1) / np.sqrt(spread / F(count) + F(epsilon))
    for m in range(count):
        x_M[m] = (x_M[m] - mean) * inverse * gain_M[m] + shift_M[m]


@kernel(reorder=True)
def add_norm_split(
    x_NM: F32, sums_NM: F32, scale_N: F32, bias_M: F32, gain_M: F32, shift_M: F32, epsilon: float,
    next_scale_N: F32, high_NM: Any, both_N2M: Any,
) -> None:  # fmt: skip
    """Make x the LayerNorm of x + scale x sums + bias, and round it to pairs."""
    for n in range(len(x_NM)):
        x_M, sums_M, scale = borrowed(x_NM)[n], borrowed(sums_NM)[n], scale_N[n]
        for m in range(len(x_M)):
            x_M[m] += sums_M[m] * scale + bias_M[m]
        _normalized(x_M, gain_M, shift_M, epsilon)
        next_scale_N[n] = _split(x_M, borrowed(high_NM)[n], borrowed(both_N2M)[n])


@kernel(reorder=True)
def add_norm(x_NM: F32, more_NM: Any, gain_M: F32, shift_M: F32, epsilon: float, half_NM: Any) -> None:
    """Make x the LayerNorm of x + more, and write it in bf16 too; `more` is bf16."""
    for n in range(len(x_NM)):
        x_M, more_M, half_M = borrowed(x_NM)[n], borrowed(more_NM)[n], borrowed(half_NM)[n]
        for m in range(len(x_M)):
            x_M[m] += widen(more_M[m])
        _normalized(x_M, gain_M, shift_M, epsilon)
        for m in range(len(x_M)):
            half_M[m] = narrow(x_M[m])


@kernel(reorder=True)
def embed(
    prefix_RD: F32, prefix_qkv_R3D: Any, tokens_RS: I64, token_VD: F32, position_PD: F32, token_qkv_V3D: F32,
    position_qkv_P3D: F32, x_ND: F32, qkv_N3D: Any,
) -> None:  # fmt: skip
    """Write prefix and items, token plus position, and the first layer's queries, keys and values of each, in bf16."""
    rows, items = tokens_RS.shape
    for r in range(rows):
        first = r * (items + 1)
        x_ND[first], qkv_N3D[first] = prefix_RD[r], prefix_qkv_R3D[r]
        for i in range(items):
            token = tokens_RS[r, i]
            _add(borrowed(token_VD)[token], borrowed(position_PD)[i + 1], borrowed(x_ND)[first + 1 + i])
            _add_narrow(
                borrowed(token_qkv_V3D)[token], borrowed(position_qkv_P3D)[i + 1], borrowed(qkv_N3D)[first + 1 + i]
            )


@kernel(reorder=True)
def _add(a_M: F32, b_M: F32, out_M: F32) -> None:
    for m in range(len(out_M)):
        out_M[m] = a_M[m] + b_M[m]


@kernel(reorder=True)
def _add_narrow(a_M: F32, b_M: F32, out_M: Any) -> None:
    for m in range(len(out_M)):
        out_M[m] = narrow(a_M[m] + b_M[m])


@kernel(reorder=True)
def keep(kv_N2D: Any, start: int, lengths_R: I64, keys_RGTZ: Any, values_RGTZ: Any) -> None:
    """Put keys and values of S positions a row into a cache, as far as the row's length, and zeros behind them.

    In a row of `kv` they stand from `start` on, keys and then values of all heads.
    """
    rows, heads, slots, size = keys_RGTZ.shape
    positions = len(kv_N2D) // rows
    for r in range(rows):
        length = lengths_R[r]
        for g in range(heads):
            keys_TZ, values_TZ = borrowed(keys_RGTZ)[r, g], borrowed(values_RGTZ)[r, g]
            at = start + g * size
            for t in range(length):
                kv = borrowed(kv_N2D)[r * positions + t]
                _copy(kv[at : at + size], keys_TZ[t])
                _copy(kv[at + heads * size : at + heads * size + size], values_TZ[t])
            keys_TZ[length:], values_TZ[length:] = 0, 0


@kernel()
def _copy(from_M: Any, to_M: Any) -> None:
    for m in range(len(to_M)):
        to_M[m] = from_M[m]


def context_room(positions: int, size: int) -> int:
    """Return how many numbers `attend_context` works with."""
    slots = (positions + WIDTH - 1) // WIDTH * WIDTH
    return slots * (2 * size + 1)


@kernel(reorder=True)
def attend_context(qkv_N3D: Any, lengths_R: I64, heads: int, mixed_ND: Any, room_X: F32) -> None:
    """Causal attention of each row's positions up to its length, zeros for those behind; in bf16, computed in fp32.

    `room_X` has space for `context_room` numbers.
    """
    width = mixed_ND.shape[1]
    size, rows = width // heads, len(lengths_R)
    positions = len(qkv_N3D) // rows
    slots = (positions + WIDTH - 1) // WIDTH * WIDTH
    room_X[:] = 0
    keys_X, values_X = borrowed(room_X)[: slots * size], borrowed(room_X)[slots * size : 2 * slots * size]
    looks_T = borrowed(room_X)[2 * slots * size :]
    qkv_X, mixed_X = borrowed(qkv_N3D).reshape(-1), borrowed(mixed_ND).reshape(-1)
    for r in range(rows):
        first, length = r * positions, lengths_R[r]
        mixed_X[(first + length) * width : (first + positions) * width] = 0
        whole = (length + WIDTH - 1) // WIDTH * WIDTH
        for g in range(heads):
            for t in range(length):
                key = ((first + t) * 3 + 1) * width + g * size
                _widen(qkv_X[key : key + size], keys_X[t * size : t * size + size])
                _widen(qkv_X[key + width : key + width + size], values_X[t * size : t * size + size])
            values_X[length * size : whole * size] = 0
            for t in range(length):
                at = (first + t) * width + g * size
                _look(qkv_X, 3 * at - 2 * g * size, keys_X, values_X, 0, t + 1, size, 0, looks_T, mixed_X, at)


@kernel(reorder=True)
def _widen(half_M: Any, out_M: F32) -> None:
    for m in range(len(out_M)):
        out_M[m] = widen(half_M[m])


@kernel(reorder=True)
def _narrow(x_M: F32, out_M: Any) -> None:
    for m in range(len(out_M)):
        out_M[m] = narrow(x_M[m])


@kernel(reorder=True)
def attend_next(
    sums_N3D: F32, scale_N: F32, bias_3D: F32, first: int, step: int, lengths_R: I64, keys_RGTZ: Any,
    values_RGTZ: Any, next_scale_N: F32, high_ND: Any, both_N2D: Any,
) -> None:  # fmt: skip
    """Attention of the one position that each row reads next, rounded to pairs.

    Its query, key and value are scale x sums + bias, in the rows of N from `first` on; key and value go into the cache
    behind the row's `lengths` and the `step` positions read before. Values behind those are zeros.
    """
    rows, heads, slots, size = keys_RGTZ.shape
    width = heads * size
    qkv_3D, mixed_D, looks_T = (
        np.empty(3 * width, np.float32), np.empty(width, np.float32), np.empty(slots, np.float32)
    )  # fmt: skip
    keys_X, values_X = borrowed(keys_RGTZ).reshape(-1), borrowed(values_RGTZ).reshape(-1)
    for r in range(rows):
        n, count = first + r, lengths_R[r] + step + 1
        sums_3D, scale = borrowed(sums_N3D)[n], scale_N[n]
        for m in range(3 * width):
            qkv_3D[m] = sums_3D[m] * scale + bias_3D[m]
        for g in range(heads):
            start = (r * heads + g) * slots * size
            own = start + (count - 1) * size
            key, value = width + g * size, 2 * width + g * size
            _narrow(qkv_3D[key : key + size], borrowed(keys_X)[own : own + size])
            _narrow(qkv_3D[value : value + size], borrowed(values_X)[own : own + size])
            _look(qkv_3D, g * size, keys_X, values_X, start, count, size, slots * size, looks_T, mixed_D, g * size)
        next_scale_N[n] = _split(mixed_D, borrowed(high_ND)[n], borrowed(both_N2D)[n])


@kernel(reorder=True, inline=True)
def _look(
    query: F32, query_at: int, keys: Any, values: Any, start: int, count: int, size: int, ahead: int, looks_T: F32,
    mixed: F32, mixed_at: int,
) -> None:  # fmt: skip
    """Mix `count` values by the softmax of one query with their keys."""
    whole = (count + WIDTH - 1) // WIDTH * WIDTH
    for t in range(0, whole, WIDTH):
        dots(query, query_at, keys, start + t * size, size, ahead, looks_T, t)
    scale = F(1) / exponentials(looks_T, 0, count)
    for z in range(0, size, WIDTH):
        mix(looks_T, whole, values, start + z, size, ahead, mixed, mixed_at + z, scale)


@kernel(reorder=True, inline=True)
def _exp(x: F32) -> F32:
    """Return exp(x) for x <= 0 as `vectors` does for 16."""
    bounded = LEAST if x < LEAST else x
    power = np.int32(bounded * LOG2_E - F(0.5))
    rest = bounded - F(power) * LN2_HIGH - F(power) * LN2_LOW
    y = ((((P5 * rest + P4) * rest + P3) * rest + P2) * rest + P1) * rest + P0
    return (y * rest * rest + rest + F(1)) * of_bits(np.int32((power + 127) << 23))


@kernel(reorder=True)
def choose(
    logits_BV: F32, scale_B: F32, bias_V: F32, banned_BX: I64, tokens: int, log_sum_B: F32, best_B: I64, value_B: F32
) -> None:
    """Make sums logits, scale x sums + bias, and find each row's best token below `tokens` that is not banned.

    Among equals it is the lowest; where all are banned the value is -inf. The log of the sum of exponentials is over all.
    """
    kept_X = np.empty(banned_BX.shape[1], np.float32)
    for b in range(len(logits_BV)):
        logits_V, scale = borrowed(logits_BV)[b], scale_B[b]
        for v in range(len(logits_V)):
            logits_V[v] = logits_V[v] * scale + bias_V[v]
        most, total = _largest(logits_V), F(0)
        for v in range(len(logits_V)):
            total += _exp(logits_V[v] - most)
        log_sum_B[b] = most + np.log(total) if scale == scale else scale
        for x in range(len(kept_X)):
            kept_X[x] = logits_V[banned_BX[b, x]]
        for x in range(len(kept_X)):
            logits_V[banned_BX[b, x]] = -np.inf
        best = _largest(logits_V[:tokens])
        at = 0
        while at + 1 < tokens and logits_V[at] != best:
            at += 1
        best_B[b], value_B[b] = at, best
        for x in range(len(kept_X)):
            logits_V[banned_BX[b, x]] = kept_X[x]


@kernel(reorder=True)
def _largest(x_M: F32) -> F32:
    """Return the largest number, by its bits as an integer that orders as the float does."""
    found = np.int32(-(2**31))
    for m in range(len(x_M)):
        found = max(found, ordered(x_M[m]))
    return ordered(found)
