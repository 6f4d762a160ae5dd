"""The device code of the hand-fused CUDA engine's attention, in Triton; `kernels` documents and launches it.

Owns: what one program of a launch computes. Must not know: launches, torch, the model. The factor
log2(e) / sqrt(head size) is folded into the weights of queries, so softmax is 2 to the power of a difference. Sizes in
capitals are known when a kernel is compiled: D width, H heads, HEAD their size, DP and HP the same rounded up to a
power of two. Keys, values and what layers multiply may be e4m3 numbers in units of their own (see `fp8`);
`unit` turns products of such queries and keys into scores.
"""
# Triton reads the signatures itself (a parameter is a pointer, a number, or a constexpr); `kernels` documents them.
# ruff: noqa: ANN001, ANN201, ANN202, D103
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, misc"

import triton
import triton.language as tl

from genrec_batch.engines.cuda.device_code import fitted

TILE = tl.constexpr(64)  # keys and queries of one tile of the causal attention


@triton.jit
def _wide(value):
    """Convert e4m3 numbers to fp16, which holds them exactly; leave others."""
    return value.to(tl.float16) if value.dtype == tl.float8e4nv else value


@triton.jit
def _added(score, v, peak, total, mean):
    """Return the softmax and the weighted mean so far with a tile of keys added (Milakov and Gimelshein 2018)."""
    higher = tl.maximum(peak, tl.max(score, 1))
    p = tl.exp2(score - higher[:, None])
    shrink = tl.exp2(peak - higher)
    total = total * shrink + tl.sum(p, 1)
    return higher, total, mean * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")


@triton.jit
def _causal_tile(
    base,
    out,
    kept,
    start,
    rows,
    unit,
    D: tl.constexpr,
    HEAD: tl.constexpr,
    HP: tl.constexpr,
    TILE: tl.constexpr,
    STOP: tl.constexpr,
    KEEP: tl.constexpr,
):
    m = start + tl.arange(0, TILE)
    d = tl.arange(0, HP)
    n = tl.arange(0, TILE)
    inside = (m[:, None] < rows) & (d[None, :] < HEAD)
    q = _wide(tl.load(base + m[:, None] * (3 * D) + d[None, :], mask=inside, other=0.0))
    peak = tl.full([TILE], -1e30, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    mean = tl.zeros([TILE, HP], tl.float32)
    for key in range(0, STOP, TILE):
        if key <= start:
            at = (key + n)[:, None] * (3 * D) + d[None, :]
            real = ((key + n)[:, None] < rows) & (d[None, :] < HEAD)
            k = _wide(tl.load(base + D + at, mask=real, other=0.0))
            v = _wide(tl.load(base + 2 * D + at, mask=real, other=0.0))
            if KEEP and key == start:
                place = kept + m[:, None] * (2 * D) + d[None, :]
                tl.store(place, fitted(k, kept), mask=real)
                tl.store(place + D, fitted(v, kept), mask=real)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * unit
            score = tl.where((key + n)[None, :] <= m[:, None], score, -1e30)
            peak, total, mean = _added(score, v, peak, total, mean)
    mean = mean / total[:, None]
    tl.store(out + m[:, None] * D + d[None, :], mean.to(out.dtype.element_ty), mask=inside)


@triton.jit
def attend_history(
    qkv, lengths, first, out, kept, unit,
    H: tl.constexpr, HEAD: tl.constexpr, HP: tl.constexpr, TILES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = H * HEAD
    head = tl.program_id(0) % H
    tile = (tl.program_id(0) // H) % TILES
    user = tl.program_id(0) // (H * TILES)
    rows = tl.load(lengths + user) + 1
    row = tl.load(first + user).to(tl.int64)
    base = qkv + row * (3 * D) + head * HEAD
    target = out + row * D + head * HEAD
    kept += row * (2 * D) + head * HEAD
    if TILES == 1:
        if rows <= TILE // 4:
            _causal_tile(base, target, kept, 0, rows, unit, D, HEAD, HP, TILE // 4, TILE // 4, KEEP)
        elif rows <= TILE // 2:
            _causal_tile(base, target, kept, 0, rows, unit, D, HEAD, HP, TILE // 2, TILE // 2, KEEP)
        else:
            _causal_tile(base, target, kept, 0, rows, unit, D, HEAD, HP, TILE, TILE, KEEP)
    elif tile * TILE < rows:
        _causal_tile(base, target, kept, tile * TILE, rows, unit, D, HEAD, HP, TILE, TILES * TILE, KEEP)


@triton.jit
def _tile(base, n, rows, D: tl.constexpr, HEAD: tl.constexpr, STRIDE: tl.constexpr, d):
    """Return the keys and values of rows n."""
    at = n[:, None] * STRIDE + d[None, :]
    real = (n[:, None] < rows) & (d[None, :] < HEAD)
    return _wide(tl.load(base + at, mask=real, other=0.0)), _wide(tl.load(base + D + at, mask=real, other=0.0))


@triton.jit(do_not_specialize=["C"])
def attend_aside(
    qkv, cache, lengths, first, out, C, unit,
    H: tl.constexpr, HEAD: tl.constexpr, HP: tl.constexpr, STRIDE: tl.constexpr, QUERIES: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    # A program has queries of one user and one head, so that they read keys and values once, and multiply matrices.
    # The first tile is asked for before the queries, so that the program waits once.
    D: tl.constexpr = H * HEAD
    head = tl.program_id(0) % H
    user = tl.program_id(0) // H
    rows = tl.load(lengths + user) + 1
    base = cache + tl.load(first + user).to(tl.int64) * STRIDE + head * HEAD
    m = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    d = tl.arange(0, HP)
    n = tl.arange(0, TILE)
    k, v = _tile(base, n, rows, D, HEAD, STRIDE, d)
    inside = (m[:, None] < C) & (d[None, :] < HEAD)
    row = user.to(tl.int64) * C + m
    mine = qkv + row[:, None] * (3 * D) + head * HEAD + d[None, :]
    q = tl.load(mine, mask=inside, other=0.0)
    own_k = tl.load(mine + D, mask=inside, other=0.0)
    peak = tl.sum(q.to(tl.float32) * own_k.to(tl.float32), 1) * unit
    total = tl.full([QUERIES], 1.0, tl.float32)
    mean = tl.load(mine + 2 * D, mask=inside, other=0.0).to(tl.float32)
    for key in range(0, TILES * TILE, TILE):
        if TILES == 1 or key < rows:
            if key > 0:
                k, v = _tile(base, key + n, rows, D, HEAD, STRIDE, d)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * unit
            score = tl.where((key + n)[None, :] < rows, score, -1e30)
            peak, total, mean = _added(score, v, peak, total, mean)
    tl.store(out + row[:, None] * D + head * HEAD + d[None, :], fitted(mean / total[:, None], out), mask=inside)


@triton.jit(do_not_specialize=["count", "T"])
def attend_one(
    query, cache, lengths, first, suffix, out, count, T, unit,
    H: tl.constexpr, HEAD: tl.constexpr, HP: tl.constexpr, Q_STRIDE: tl.constexpr, STRIDE: tl.constexpr,
    GROUP: tl.constexpr, KEYS: tl.constexpr, TILES: tl.constexpr, NEW: tl.constexpr,
):  # fmt: skip
    # The keys of a row are its user's packed rows and then its decoded items; one tile [GROUP, KEYS, HP] reads both.
    D: tl.constexpr = H * HEAD
    head = tl.program_id(0) % (H // GROUP) * GROUP + tl.arange(0, GROUP)
    row = (tl.program_id(0) // (H // GROUP)).to(tl.int64)
    d = tl.arange(0, HP)
    n = tl.arange(0, KEYS)
    inside = (head[:, None] < H) & (d[None, :] < HEAD)
    place = head[:, None] * HEAD + d[None, :]
    rows = tl.load(lengths + row) + 1
    base = cache + tl.load(first + row).to(tl.int64) * STRIDE
    past = suffix + row * T * 2 * D
    keys = rows + count if NEW else rows
    mine = query + row * Q_STRIDE + place
    q = tl.load(mine, mask=inside, other=0.0).to(tl.float32) * unit
    if NEW:
        own_k = tl.load(mine + D, mask=inside, other=0.0)
        own_v = tl.load(mine + 2 * D, mask=inside, other=0.0)
        peak = tl.sum(q * own_k.to(tl.float32), 1)
        total = tl.full([GROUP], 1.0, tl.float32)
        mean = own_v.to(tl.float32)
    else:
        peak = tl.full([GROUP], -1e30, tl.float32)
        total = tl.zeros([GROUP], tl.float32)
        mean = tl.zeros([GROUP, HP], tl.float32)
    for tile in range(0, TILES * KEYS, KEYS):
        if tile < keys:
            key = base + (tile + n) * STRIDE
            if NEW:
                key = tl.where(tile + n < rows, key, past + (tile + n - rows) * (2 * D))
            real = tile + n < keys
            at = key[None, :, None] + place[:, None, :]
            mask = real[None, :, None] & inside[:, None, :]
            k = tl.load(at, mask=mask, other=0.0)
            v = tl.load(at + D, mask=mask, other=0.0)
            score = tl.where(real[None, :], tl.sum(k.to(tl.float32) * q[:, None, :], 2), -1e30)
            higher = tl.maximum(peak, tl.max(score, 1))  # above -1e30: at least one key is real
            p = tl.exp2(score - higher[:, None])
            shrink = tl.exp2(peak - higher)
            total = total * shrink + tl.sum(p, 1)
            mean = mean * shrink[:, None] + tl.sum(p[:, :, None] * v.to(tl.float32), 1)
            peak = higher
    tl.store(out + row * D + place, fitted(mean / total[:, None], out), mask=inside)
    if NEW:
        tl.store(past + count * 2 * D + place, fitted(own_k, suffix), mask=inside)
        tl.store(past + count * 2 * D + D + place, fitted(own_v, suffix), mask=inside)
