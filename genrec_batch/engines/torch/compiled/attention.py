"""Attention of the torch engine on a CPU, compiled.

Owns: loops over rows, heads and positions. Must not know: products, layers, lanes, torch. Needs numba, so it is
imported only where that is there. Keys and values are bf16, as bits in arrays of uint16; in a cache they may be int8
with a scale of each head and position [R, G, T], which is [R, G, 0] of bf16. Sums are fp32. Heads must be whole vectors
(`WIDTH`). Every row is computed alone and in the same order, whatever its neighbours are. Shapes as in `network`, and N
rows of numbers: R rows of S positions, end to end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec_batch.core.arrays import F32, I64
from genrec_batch.engines.torch.compiled.dots import dots, dots_16, exponentials, mix, mix_16, softmax_16, transpose_16
from genrec_batch.runtime.jit import borrowed, kernel
from genrec_batch.runtime.simd_bf16 import WIDTH, move, pack

F = np.float32
# made of vectors 8cfaff59
AHEAD = 6  # heads between the one that is computed and the one that is prefetched


@kernel(reorder=True)
def keep(
    keys_NX: Any, key_at: int, values_NX: Any, value_at: int, lengths_R: I64, keys_RGTZ: Any, key_scale_RGT: F32,
    values_RGTZ: Any, value_scale_RGT: F32,
) -> None:  # fmt: skip
    """Copy keys and values of S positions per row into a cache, up to the row's length, and fill zeros after them.

    In a row of `keys_NX` and `values_NX`, those of all heads start at columns `key_at` and `value_at`.
    """
    rows, heads, _, size = keys_RGTZ.shape
    positions = len(keys_NX) // rows
    for r in range(rows):
        for g in range(heads):
            key, value, first, length = key_at + g * size, value_at + g * size, r * positions, lengths_R[r]
            keys_TZ, key_scale_T = borrowed(keys_RGTZ)[r, g], borrowed(key_scale_RGT)[r, g]
            values_TZ, value_scale_T = borrowed(values_RGTZ)[r, g], borrowed(value_scale_RGT)[r, g]
            _keep(borrowed(keys_NX), key, first, length, keys_TZ, key_scale_T)
            _keep(borrowed(values_NX), value, first, length, values_TZ, value_scale_T)


@kernel(reorder=True, inline=True)
def _keep(from_NX: Any, at: int, first: int, length: int, to_TZ: Any, scale_T: F32) -> None:
    size, scaled = to_TZ.shape[1], len(scale_T) > 0
    from_X, to_X, stride = from_NX.reshape(-1), to_TZ.reshape(-1), from_NX.shape[1]
    for t in range(length):
        scale = pack(from_X, (first + t) * stride + at, size, to_X, t * size)
        if scaled:
            scale_T[t] = scale
    to_X[length * size :] = 0
    scale_T[length:] = 0


def context_room(positions: int, size: int) -> int:
    """Return the size of the buffer that `attend_context` works in."""
    return 2 * positions * size + WIDTH * (positions + size + 1 + WIDTH)


@kernel(reorder=True)
def attend_context(
    queries_NX: Any, keys_NX: Any, key_at: int, values_NX: Any, value_at: int, lengths_R: I64, heads: int,
    mixed_ND: Any, room_X: F32,
) -> None:  # fmt: skip
    """Compute causal attention of each row's positions up to its length in fp32; write zeros for the others.

    In: bf16; out: bf16 or fp32. In a row, queries start at column 0, keys at `key_at`, values at `value_at`. `room_X`
    has space for `context_room` numbers. 16 queries are computed together, one in each lane of a vector, so that no sum
    is taken across lanes.
    """
    width = mixed_ND.shape[1]
    size, rows = width // heads, len(lengths_R)
    positions, stride = len(queries_NX) // rows, queries_NX.shape[1]
    keys_X, values_X = borrowed(room_X)[: positions * size], borrowed(room_X)[positions * size : 2 * positions * size]
    rest_X = borrowed(room_X)[2 * positions * size :]
    scale_I, tile_X, across_X = rest_X[:WIDTH], rest_X[WIDTH : WIDTH + WIDTH * WIDTH], rest_X[WIDTH + WIDTH * WIDTH :]
    scores_X = across_X[size * WIDTH :]
    queries_X, mixed_X = borrowed(queries_NX).reshape(-1), borrowed(mixed_ND).reshape(-1)
    for r in range(rows):
        first, length = r * positions, lengths_R[r]
        mixed_X[(first + length) * width : (first + positions) * width] = 0
        for g in range(heads):
            keys_TZ, values_TZ = keys_X.reshape(positions, size), values_X.reshape(positions, size)
            _keep(borrowed(keys_NX), key_at + g * size, first, length, keys_TZ, scale_I[:0])
            _keep(borrowed(values_NX), value_at + g * size, first, length, values_TZ, scale_I[:0])
            for end in range((length - 1) % WIDTH + 1, length + 1, WIDTH):  # the block of fewer queries sees few keys
                t = max(0, end - WIDTH)
                queries = end - t
                for z in range(0, size, WIDTH):
                    transpose_16(queries_X, (first + t) * stride + g * size + z, stride, queries, across_X, z * WIDTH)
                dots_16(across_X, keys_X, t + queries, size, scores_X)
                softmax_16(scores_X, t + queries, t, scale_I)
                for z in range(0, size, WIDTH):
                    mix_16(scores_X, t + queries, values_X, z, size, scale_I, tile_X)
                    for i in range(queries):
                        move(tile_X, i * WIDTH, mixed_X, (first + t + i) * width + g * size + z)


@kernel(reorder=True)
def attend_next(
    sums_N3D: F32, scale_N: F32, bias_3D: F32, first: int, step: int, lengths_R: I64, keys_RGTZ: Any,
    key_scale_RGT: F32, values_RGTZ: Any, value_scale_RGT: F32, mixed_ND: F32,
) -> None:  # fmt: skip
    """Compute attention of the one position that each row reads next.

    Its query, key and value are scale x sums + bias, in the rows of N from `first` on. Key and value are cached after
    the row's `lengths` and the `step` positions read before. Cached values and scales after those are finite.
    """
    rows, heads, slots, size = keys_RGTZ.shape
    scaled = key_scale_RGT.shape[2] > 0
    width, ahead = heads * size, AHEAD * slots * size
    qkv_3D = np.empty(3 * width, np.float32)
    scores_X, scale_G = np.empty(heads * slots, np.float32), np.empty(heads, np.float32)
    mixed_X = borrowed(mixed_ND).reshape(-1)
    keys_X, values_X = borrowed(keys_RGTZ).reshape(-1), borrowed(values_RGTZ).reshape(-1)
    for r in range(rows):
        n, count = first + r, lengths_R[r] + step + 1
        whole = (count + WIDTH - 1) // WIDTH * WIDTH
        sums_3D, scale = borrowed(sums_N3D)[n], scale_N[n]
        for m in range(3 * width):
            qkv_3D[m] = sums_3D[m] * scale + bias_3D[m]
        for g in range(heads):
            start, at = (r * heads + g) * slots * size, g * size
            key_scale = pack(qkv_3D, width + at, size, keys_X, start + (count - 1) * size)
            value_scale = pack(qkv_3D, 2 * width + at, size, values_X, start + (count - 1) * size)
            for t in range(0, whole, WIDTH):
                dots(qkv_3D, at, keys_X, start + t * size, size, ahead, scores_X, g * slots + t)
            if scaled:
                key_scale_RGT[r, g, count - 1], value_scale_RGT[r, g, count - 1] = key_scale, value_scale
                _multiply(borrowed(key_scale_RGT)[r, g], whole, scores_X, g * slots)
        for g in range(heads):
            scale_G[g] = F(1) / exponentials(scores_X, g * slots, count)
            if scaled:
                _multiply(borrowed(value_scale_RGT)[r, g], whole, scores_X, g * slots)
        for g in range(heads):
            for z in range(0, size, WIDTH):
                mix(
                    scores_X, g * slots, whole, values_X, (r * heads + g) * slots * size + z, size, ahead, mixed_X,
                    n * width + g * size + z, scale_G[g],
                )  # fmt: skip


@kernel(reorder=True)
def attend_aside(
    sums_N3D: F32, scale_N: F32, bias_3D: F32, lengths_R: I64, keys_RGTZ: Any, key_scale_RGT: F32, values_RGTZ: Any,
    value_scale_RGT: F32, mixed_ND: F32,
) -> None:  # fmt: skip
    """Compute attention of C positions of each row, each as if it alone came after the row's `lengths` and one read.

    Their queries, keys and values are scale x sums + bias, those of a row's positions one after the other. 16 of them
    are computed together, one in each lane of a vector, as in `attend_context`. The cache does not change.
    """
    rows, heads, slots, size = keys_RGTZ.shape
    width, each, head = heads * size, len(sums_N3D) // rows, slots * size
    keys_X, values_X = np.empty(heads * head, np.float32), np.empty(heads * head, np.float32)
    qkv_X = np.empty(WIDTH * 3 * width, np.float32)
    across_X, own_X = np.empty(size * WIDTH, np.float32), np.empty(size * WIDTH, np.float32)
    scores_X, own_I = np.empty((slots + 1) * WIDTH, np.float32), np.empty(WIDTH, np.float32)
    scale_I, tile_X = np.empty(WIDTH, np.float32), np.empty(WIDTH * WIDTH, np.float32)
    for r in range(rows):
        count = lengths_R[r] + 1
        for g in range(heads):
            some = slice(g * head, (g + 1) * head)
            _open(borrowed(keys_RGTZ)[r, g], borrowed(key_scale_RGT)[r, g], count, keys_X[some])
            _open(borrowed(values_RGTZ)[r, g], borrowed(value_scale_RGT)[r, g], count, values_X[some])
        for t in range(0, each, WIDTH):
            first, queries = r * each + t, min(WIDTH, each - t)
            for i in range(queries):
                here = slice(i * 3 * width, (i + 1) * 3 * width)
                _scaled(borrowed(sums_N3D)[first + i], scale_N[first + i], bias_3D, qkv_X[here])
            for g in range(heads):
                for z in range(0, size, WIDTH):
                    transpose_16(qkv_X, g * size + z, 3 * width, queries, across_X, z * WIDTH)
                    transpose_16(qkv_X, width + g * size + z, 3 * width, queries, own_X, z * WIDTH)
                dots_16(across_X, keys_X[g * head :], count, size, scores_X)
                _dots_of_lanes(across_X, own_X, scores_X[count * WIDTH : (count + 1) * WIDTH])
                softmax_16(scores_X, count + 1, count, scale_I)
                for i in range(WIDTH):
                    own_I[i] = scores_X[count * WIDTH + i] * scale_I[i]
                for z in range(0, size, WIDTH):
                    mix_16(scores_X, count, values_X[g * head :], z, size, scale_I, tile_X)
                    for i in range(queries):
                        value, at = i * 3 * width + 2 * width + g * size + z, g * size + z
                        for lane in range(WIDTH):
                            own = own_I[i] * qkv_X[value + lane]
                            mixed_ND[first + i, at + lane] = tile_X[i * WIDTH + lane] + own


@kernel(reorder=True, inline=True)
def _multiply(scale_T: F32, count: int, scores_X: F32, at: int) -> None:
    scores_T = borrowed(scores_X)[at : at + count]
    for t in range(count):
        scores_T[t] *= scale_T[t]


@kernel(reorder=True, inline=True)
def _open(from_TZ: Any, scale_T: F32, count: int, to_X: F32) -> None:
    """Write the first cached positions of a head in fp32."""
    size = from_TZ.shape[1]
    _keep(from_TZ, 0, 0, count, to_X.reshape(from_TZ.shape), scale_T[:0])
    for t in range(min(count, len(scale_T))):
        for z in range(size):
            to_X[t * size + z] *= scale_T[t]


@kernel(reorder=True, inline=True)
def _scaled(sums_M: F32, scale: Any, bias_M: F32, out_M: F32) -> None:
    for m in range(len(out_M)):
        out_M[m] = sums_M[m] * scale + bias_M[m]


@kernel(reorder=True, inline=True)
def _dots_of_lanes(one_X: F32, other_X: F32, sums_I: F32) -> None:
    """Write the dot product of two columns for each of 16 columns."""
    sums_I[:] = 0
    for z in range(0, len(one_X), WIDTH):
        for i in range(WIDTH):
            sums_I[i] += one_X[z + i] * other_X[z + i]
