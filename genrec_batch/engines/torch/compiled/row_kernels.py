"""The steps between the matrix products of the torch engine on a CPU, compiled: each is one pass over the numbers.

Owns: loops over rows. Must not know: products, layers, lanes, torch. Needs numba, so it is imported only where that is
there. bf16 numbers are passed as their bits, in arrays of uint16.

Every row is computed alone and in the same order, whatever its neighbours are. NaN in a row stays in that row.

Shapes as in `network`, and N rows of numbers (R rows of S positions, end to end), M numbers of a row. Pairs are the
input of `linear.PairLinear`: x = scale x (high + low / 254), both from -127 to 127 and stored with 128 added; `high_NM`
has the high ones, `both_N2M` the low ones and then the high ones again. Whole numbers are the input of
`linear.Int8Linear`, stored in the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32, I64
from genrec_batch.runtime import simd_bf16
from genrec_batch.runtime.jit import borrowed, kernel
from genrec_batch.runtime.simd_bf16 import magnitude, narrow, of_bits, ordered, widen

F = np.float32
# made of vectors 8cfaff59
FINER, HIGHEST, ZERO = F(254), F(127), F(128)
LEAST, LOG2_E, LN2_HIGH, LN2_LOW = F(simd_bf16.LEAST), F(simd_bf16.LOG2_E), F(simd_bf16.LN2_HIGH), F(simd_bf16.LN2_LOW)
CLOSE = F(6 / np.sqrt(12))  # standard deviations of a logit, of numbers that are rounded to whole steps
AT_ONCE = 128  # logits that are compared with a bound by their largest
P5, P4, P3, P2, P1, P0 = (F(x) for x in simd_bf16.POLYNOMIAL)


@kernel(reorder=True)
def split(x_NM: F32, scale_N: F32, high_NM: Any, both_N2M: Any) -> None:
    """Round rows to pairs, each with a scale of its own."""
    for n in range(len(x_NM)):
        scale_N[n] = _split(borrowed(x_NM)[n], borrowed(high_NM)[n], borrowed(both_N2M)[n])


@kernel(reorder=True)
def round_rows(x_NM: F32, scale_N: F32, whole_NM: Any) -> None:
    """Round rows to whole numbers, each with a scale of its own."""
    for n in range(len(x_NM)):
        scale_N[n] = _round(borrowed(x_NM)[n], HIGHEST, ZERO, borrowed(whole_NM)[n])


@kernel(reorder=True, inline=True)
def _split(x_M: F32, high_M: Any, both_2M: Any) -> Any:
    count, largest = len(x_M), np.int32(0)
    for m in range(count):
        largest = max(largest, magnitude(x_M[m]))
    scale = of_bits(largest) / HIGHEST
    inverse = F(1) / scale if scale > 0 else scale  # 0 of a row of zeros, NaN of one with NaN
    _split_by(x_M, inverse, high_M, borrowed(both_2M)[:count], borrowed(both_2M)[count:])
    return scale


@kernel(reorder=True, inline=True)
def _split_by(x_M: F32, inverse: Any, high_M: Any, low_M: Any, again_M: Any) -> None:
    """Round by a given scale; a function of its own, so that LLVM sees distinct arrays and vectorizes the loop."""
    for m in range(len(x_M)):
        x = x_M[m] * inverse + ZERO
        high = np.int32(x + F(0.5))
        low = np.int32((x - F(high)) * FINER + (ZERO + F(0.5)))
        high_M[m] = again_M[m] = np.uint8(high)
        low_M[m] = np.uint8(low)


@kernel(reorder=True)
def relu_split(sums_NM: F32, scale_N: F32, bias_M: F32, next_scale_N: F32, high_NM: Any, both_N2M: Any) -> None:
    """Round the ReLU of scale x sums + bias to pairs."""
    y_M = np.empty(sums_NM.shape[1], np.float32)
    for n in range(len(sums_NM)):
        sums_M, scale = borrowed(sums_NM)[n], scale_N[n]
        for m in range(len(y_M)):
            y_M[m] = max(sums_M[m] * scale + bias_M[m], F(0))
        next_scale_N[n] = _split(y_M, borrowed(high_NM)[n], borrowed(both_N2M)[n])


@kernel(reorder=True, inline=True)
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
        x_M = borrowed(x_NM)[n]
        _add_scaled(borrowed(sums_NM)[n], scale_N[n], bias_M, x_M)
        _normalized(x_M, gain_M, shift_M, epsilon)
        next_scale_N[n] = _split(x_M, borrowed(high_NM)[n], borrowed(both_N2M)[n])


@kernel(reorder=True)
def add_norm_half(x_NM: F32, more_NM: Any, gain_M: F32, shift_M: F32, epsilon: float, half_NM: Any) -> None:
    """Make x the LayerNorm of x + more, and write it in bf16 as well; `more` is bf16."""
    for n in range(len(x_NM)):
        x_M = borrowed(x_NM)[n]
        _add_half(borrowed(more_NM)[n], x_M)
        _normalized(x_M, gain_M, shift_M, epsilon)
        _narrow(x_M, borrowed(half_NM)[n])


@kernel(reorder=True)
def add_norm_round(
    x_NM: F32, sums_NM: Any, scale_N: F32, bias_M: F32, gain_M: F32, shift_M: F32, epsilon: float,
    next_scale_N: F32, whole_NM: Any,
) -> None:  # fmt: skip
    """Make x the LayerNorm of x + scale x sums + bias, and round it to whole numbers."""
    for n in range(len(x_NM)):
        x_M = borrowed(x_NM)[n]
        _add_scaled(borrowed(sums_NM)[n], scale_N[n], bias_M, x_M)
        _normalized(x_M, gain_M, shift_M, epsilon)
        next_scale_N[n] = _round(x_M, HIGHEST, ZERO, borrowed(whole_NM)[n])


@kernel(reorder=True)
def relu_round(sums_NM: Any, scale_N: F32, bias_M: F32, next_scale_N: F32, whole_NM: Any) -> None:
    """Round the ReLU of scale x sums + bias to 0..255."""
    y_M = np.empty(sums_NM.shape[1], np.float32)
    for n in range(len(sums_NM)):
        sums_M, scale = borrowed(sums_NM)[n], scale_N[n]
        for m in range(len(y_M)):
            y_M[m] = max(widen(sums_M[m]) * scale + bias_M[m], F(0))
        next_scale_N[n] = _round(y_M, F(255), F(0), borrowed(whole_NM)[n])


@kernel(reorder=True)
def scaled_half(sums_NM: Any, scale_N: F32, bias_M: F32, half_NM: Any) -> None:
    """Write scale x sums + bias in bf16."""
    for n in range(len(sums_NM)):
        sums_M, scale, half_M = borrowed(sums_NM)[n], scale_N[n], borrowed(half_NM)[n]
        for m in range(len(bias_M)):
            half_M[m] = narrow(widen(sums_M[m]) * scale + bias_M[m])


@kernel(reorder=True, inline=True)
def _add_scaled(sums_M: Any, scale: F32, bias_M: F32, x_M: F32) -> None:
    for m in range(len(x_M)):
        x_M[m] += widen(sums_M[m]) * scale + bias_M[m]


@kernel(reorder=True, inline=True)
def _add_half(more_M: Any, x_M: F32) -> None:
    for m in range(len(x_M)):
        x_M[m] += widen(more_M[m])


@kernel(reorder=True, inline=True)
def _narrow(x_M: F32, half_M: Any) -> None:
    for m in range(len(half_M)):
        half_M[m] = narrow(x_M[m])


@kernel(reorder=True, inline=True)
def _round(x_M: F32, most: Any, zero: Any, whole_M: Any) -> Any:
    """Round a row to whole numbers up to `most`, with `zero` added; return the scale."""
    largest = np.int32(0)
    for m in range(len(x_M)):
        largest = max(largest, magnitude(x_M[m]))
    scale = of_bits(largest) / most
    _round_by(x_M, F(1) / scale if scale > 0 else scale, zero + F(0.5), whole_M)
    return scale


@kernel(reorder=True, inline=True)
def _round_by(x_M: F32, inverse: Any, shift: Any, whole_M: Any) -> None:
    for m in range(len(x_M)):
        whole_M[m] = np.uint8(np.int32(x_M[m] * inverse + shift))


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


@kernel(reorder=True, inline=True)
def _add(a_M: F32, b_M: F32, out_M: F32) -> None:
    for m in range(len(out_M)):
        out_M[m] = a_M[m] + b_M[m]


@kernel(reorder=True, inline=True)
def _add_narrow(a_M: F32, b_M: F32, out_M: Any) -> None:
    for m in range(len(out_M)):
        out_M[m] = narrow(a_M[m] + b_M[m])


@kernel(reorder=True, inline=True)
def _exp(x: Any) -> Any:
    """Return exp(x) for x <= 0, as `dots` does for 16 numbers at once."""
    bounded = LEAST if x < LEAST else x  # noqa: FURB136 (NaN stays NaN)
    power = np.int32(bounded * LOG2_E - F(0.5))
    rest = bounded - F(power) * LN2_HIGH - F(power) * LN2_LOW
    y = ((((P5 * rest + P4) * rest + P3) * rest + P2) * rest + P1) * rest + P0
    return (y * rest * rest + rest + F(1)) * of_bits(np.int32((power + 127) << 23))


@kernel(reorder=True)
def choose(
    logits_BV: F32, scale_B: F32, bias_V: F32, banned_BX: I64, banned_MV: Any, mask_B: I64, open_V: F32, tokens: int,
    hidden_BD: F32, weight_VD: F32, step: float, norm: float, log_sum_B: F32, best_B: I64, value_B: F32,
) -> None:  # fmt: skip
    """Turn sums into logits, scale x sums + bias, and find each row's best token below `tokens` that is not banned.

    Banned are those of banned_BX and those that are not 0 in the row's line of banned_MV, where that has lines; then
    `open_V` is room for the logits of a row. Of equal logits the lowest token is best, and NaN is greater than all
    numbers. Where all tokens are banned, the result is token 0 with -inf. The log of the sum of exponentials is over
    all tokens.

    Where weight_VD has lines, sums are of plain 8-bit numbers: logits that their rounding might take for the best ones
    are computed again in fp32 from hidden_BD. `step` is the largest of weight_VD's scales, `norm` of its lines' norms.
    """
    kept_X = np.empty(banned_BX.shape[1], np.float32)
    for b in range(len(logits_BV)):
        logits_V, scale = borrowed(logits_BV)[b], scale_B[b]
        for v in range(len(logits_V)):
            logits_V[v] = logits_V[v] * scale + bias_V[v]
        most, total = _largest(logits_V), F(0)
        for v in range(len(logits_V)):
            total += _exp(logits_V[v] - most)
        log_sum_B[b] = most + np.log(total) if not np.isnan(scale) else scale
        if len(banned_MV):
            _copy_open(logits_V, borrowed(banned_MV)[mask_B[b]], open_V)
            logits_V = borrowed(open_V)
        for x in range(len(kept_X)):
            kept_X[x] = logits_V[banned_BX[b, x]]
        for x in range(len(kept_X)):
            logits_V[banned_BX[b, x]] = -np.inf
        best, at = _largest(logits_V[:tokens]), 0
        while at + 1 < tokens and logits_V[at] != best:
            at += 1
        if np.isnan(log_sum_B[b]):
            at = _first_nan(logits_V[:tokens], at)
        elif len(weight_VD) and best > -np.inf:
            hidden_D = borrowed(hidden_BD)[b]
            least = best - CLOSE * np.sqrt(scale * scale * norm * norm + step * step * _dot(hidden_D, hidden_D))
            at = _best_again(hidden_D, weight_VD, bias_V, least, logits_V[:tokens], borrowed(logits_BV)[b])
        best_B[b], value_B[b] = at, logits_V[at]
        for x in range(len(kept_X)):
            logits_V[banned_BX[b, x]] = kept_X[x]


@kernel(reorder=True, inline=True)
def _best_again(hidden_D: F32, weight_VD: F32, bias_V: F32, least: Any, open_T: F32, logits_V: F32) -> Any:
    """Return the place of the best logit, once all from `least` on are computed again."""
    best, at = F(-np.inf), 0
    for first in range(0, len(open_T), AT_ONCE):
        end = min(first + AT_ONCE, len(open_T))
        if _largest(open_T[first:end]) < least:
            continue
        for v in range(first, end):
            if open_T[v] >= least:
                open_T[v] = logits_V[v] = _dot(hidden_D, borrowed(weight_VD)[v]) + bias_V[v]
                if open_T[v] > best:
                    best, at = open_T[v], v
    return at


@kernel(reorder=True, inline=True)
def _dot(one_M: F32, other_M: F32) -> Any:
    total = F(0)
    for m in range(len(one_M)):
        total += one_M[m] * other_M[m]
    return total


@kernel(reorder=True, inline=True)
def _copy_open(logits_M: F32, banned_M: Any, open_M: F32) -> None:
    for m in range(len(open_M)):
        open_M[m] = -np.inf if banned_M[m] else logits_M[m]


@kernel(reorder=True, inline=True)
def _first_nan(x_M: F32, other: int) -> Any:
    for m in range(len(x_M)):
        if np.isnan(x_M[m]):
            return m
    return other


@kernel(reorder=True, inline=True)
def _largest(x_M: F32) -> Any:
    """Return the largest number, found by comparing integers that order as the floats do."""
    found = np.int32(-(2**31))
    for m in range(len(x_M)):
        found = max(found, ordered(x_M[m]))
    return ordered(found)
