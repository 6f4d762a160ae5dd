"""The device code of the hand-fused CUDA engine, in Triton; `kernels` documents each kernel and launches it.

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

LN2 = tl.constexpr(0.6931471805599453)
TILE = tl.constexpr(64)  # keys and queries of one tile of the causal attention
LARGEST = tl.constexpr(448.0)  # of e4m3


@triton.jit
def _fitted(value, out):
    """Convert to the type behind a pointer; what exceeds e4m3 saturates."""
    if out.dtype.element_ty == tl.float8e4nv:
        value = tl.clamp(value.to(tl.float32), -LARGEST, LARGEST)
    return value.to(out.dtype.element_ty)


@triton.jit
def _copy_sum(left, right, out, D: tl.constexpr, DP: tl.constexpr, COUNT: tl.constexpr):
    d = tl.arange(0, DP)
    for i in tl.static_range(COUNT):
        at = i * D + d
        total = tl.load(left + at, mask=d < D).to(tl.float32) + tl.load(right + at, mask=d < D).to(tl.float32)
        tl.store(out + at, _fitted(total, out), mask=d < D)


@triton.jit
def _copy(source, out, D: tl.constexpr, DP: tl.constexpr, COUNT: tl.constexpr):
    d = tl.arange(0, DP)
    for i in tl.static_range(COUNT):
        tl.store(out + i * D + d, _fitted(tl.load(source + i * D + d, mask=d < D), out), mask=d < D)


@triton.jit(do_not_specialize=["S"])
def embed(
    tokens, lengths, first, prefix, prefix_qkv, token_x, position_x, token_qkv, position_qkv, x, qkv, S,
    D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    user = tl.program_id(0) // (S + 1)
    place = tl.program_id(0) % (S + 1)
    if place <= tl.load(lengths + user):
        row = tl.load(first + user).to(tl.int64) + place
        if place == 0:
            _copy(prefix + user.to(tl.int64) * D, x + row * D, D, DP, 1)
            _copy(prefix_qkv + user.to(tl.int64) * 3 * D, qkv + row * 3 * D, D, DP, 3)
        else:
            token = tl.load(tokens + user.to(tl.int64) * S + place - 1).to(tl.int64)
            at = place.to(tl.int64)
            _copy_sum(token_x + token * D, position_x + at * D, x + row * D, D, DP, 1)
            _copy_sum(token_qkv + token * 3 * D, position_qkv + at * 3 * D, qkv + row * 3 * D, D, DP, 3)


@triton.jit(do_not_specialize=["step", "W"])
def read(
    tokens, lengths, token_x, position_x, token_qkv, position_qkv, x, qkv, banned, step, W,
    D: tl.constexpr, DP: tl.constexpr, BAN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + row).to(tl.int64)
    at = tl.load(lengths + row).to(tl.int64) + 1 + step
    _copy_sum(token_x + token * D, position_x + at * D, x + row * D, D, DP, 1)
    _copy_sum(token_qkv + token * 3 * D, position_qkv + at * 3 * D, qkv + row * 3 * D, D, DP, 3)
    if BAN:
        word = banned + row * W + token // 32
        tl.store(word, tl.load(word) | (1 << (token % 32).to(tl.int32)))


@triton.jit
def _wide(value):
    """Convert e4m3 numbers to fp16, which holds them exactly; leave others."""
    return value.to(tl.float16) if value.dtype == tl.float8e4nv else value


@triton.jit
def narrow(wide, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, _fitted(tl.load(wide + at, mask=at < count), out), mask=at < count)


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
                tl.store(place, _fitted(k, kept), mask=real)
                tl.store(place + D, _fitted(v, kept), mask=real)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * unit
            score = tl.where((key + n)[None, :] <= m[:, None], score, -1e30)
            higher = tl.maximum(peak, tl.max(score, 1))
            p = tl.exp2(score - higher[:, None])
            shrink = tl.exp2(peak - higher)
            total = total * shrink + tl.sum(p, 1)
            mean = mean * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            peak = higher
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


@triton.jit(do_not_specialize=["C"])
def attend_aside(
    qkv, cache, lengths, first, out, C, unit,
    H: tl.constexpr, HEAD: tl.constexpr, HP: tl.constexpr, STRIDE: tl.constexpr, QUERIES: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    # A program's queries belong to one user and one head, so that they read keys and values once, and multiply matrices
    D: tl.constexpr = H * HEAD
    head = tl.program_id(0) % H
    user = tl.program_id(0) // H
    m = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    d = tl.arange(0, HP)
    n = tl.arange(0, TILE)
    inside = (m[:, None] < C) & (d[None, :] < HEAD)
    row = user.to(tl.int64) * C + m
    mine = qkv + row[:, None] * (3 * D) + head * HEAD + d[None, :]
    q = tl.load(mine, mask=inside, other=0.0)
    own_k = tl.load(mine + D, mask=inside, other=0.0)
    peak = tl.sum(q.to(tl.float32) * own_k.to(tl.float32), 1) * unit
    total = tl.full([QUERIES], 1.0, tl.float32)
    mean = tl.load(mine + 2 * D, mask=inside, other=0.0).to(tl.float32)
    rows = tl.load(lengths + user) + 1
    base = cache + tl.load(first + user).to(tl.int64) * STRIDE + head * HEAD
    for key in range(0, TILES * TILE, TILE):
        if key < rows:
            at = (key + n)[:, None] * STRIDE + d[None, :]
            real = ((key + n)[:, None] < rows) & (d[None, :] < HEAD)
            k = _wide(tl.load(base + at, mask=real, other=0.0))
            v = _wide(tl.load(base + D + at, mask=real, other=0.0))
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * unit
            score = tl.where((key + n)[None, :] < rows, score, -1e30)
            higher = tl.maximum(peak, tl.max(score, 1))
            p = tl.exp2(score - higher[:, None])
            shrink = tl.exp2(peak - higher)
            total = total * shrink + tl.sum(p, 1)
            mean = mean * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            peak = higher
    tl.store(out + row[:, None] * D + head * HEAD + d[None, :], _fitted(mean / total[:, None], out), mask=inside)


@triton.jit(do_not_specialize=["count", "T"])
def attend_one(
    query, cache, lengths, first, suffix, out, count, T, unit,
    H: tl.constexpr, HEAD: tl.constexpr, HP: tl.constexpr, Q_STRIDE: tl.constexpr, STRIDE: tl.constexpr,
    GROUP: tl.constexpr, KEYS: tl.constexpr, TILES: tl.constexpr, OWN: tl.constexpr, PAST: tl.constexpr,
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
    keys = rows + count if PAST else rows
    mine = query + row * Q_STRIDE + place
    q = tl.load(mine, mask=inside, other=0.0).to(tl.float32) * unit
    if OWN:
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
            if PAST:
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
    tl.store(out + row * D + place, _fitted(mean / total[:, None], out), mask=inside)
    if OWN and PAST:
        tl.store(past + count * 2 * D + place, _fitted(own_k, suffix), mask=inside)
        tl.store(past + count * 2 * D + D + place, _fitted(own_v, suffix), mask=inside)


@triton.jit
def positive_product(
    rows, weight, of_rows, of_weight, bias, out, tiles,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    # `rows` [M, K], `weight` [N, K] and `out` [M, N] are descriptors; neighbouring tiles share their rows in the cache
    across: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    scale = tl.load(of_rows) * tl.load(of_weight)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row = tile // across * ROWS
        column = tile % across * COLUMNS
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for k in range(0, K, INNER):
            total = tl.dot(rows.load([row, k]), weight.load([column, k]).T, total)
        n = column + tl.arange(0, COLUMNS)
        total = total * scale + tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        out.store([row, column], tl.maximum(total, 0.0).to(out.dtype))


@triton.jit(do_not_specialize=["M"])
def add_norm(
    x, bias, gain, shift, added, small, unit, M,
    EPS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, SMALL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DP)
    real = d < D
    inside = (row[:, None] < M) & real[None, :]
    at = row[:, None].to(tl.int64) * D + d[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if SMALL:
        value += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + d, mask=real, other=0.0).to(tl.float32)[None, :]
    centred = tl.where(real[None, :], value - (tl.sum(value, 1) / D)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / D + EPS)
    value = centred * scale[:, None] * tl.load(gain + d, mask=real, other=0.0).to(tl.float32)[None, :]
    value += tl.load(shift + d, mask=real, other=0.0).to(tl.float32)[None, :]
    tl.store(x + at, value.to(x.dtype.element_ty), mask=inside)
    if SMALL:
        tl.store(small + at, _fitted(value * unit, small), mask=inside)


@triton.jit
def choose(
    logits, banned, tokens, log_probs, log_sums,
    V: tl.constexpr, W: tl.constexpr, STRIDE: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    # Each place of a tile keeps its best token so far; the tiles are read a second time, for the sum, from the cache.
    row = tl.program_id(0).to(tl.int64)
    bit = tl.arange(0, 32)
    peak = tl.full([WORDS, 32], float("-inf"), tl.float32)
    best = tl.full([WORDS, 32], float("-inf"), tl.float32)
    where = tl.full([WORDS, 32], 0, tl.int32)
    for tile in tl.static_range(0, W, WORDS):
        word = tile + tl.arange(0, WORDS)
        token = word[:, None] * 32 + bit[None, :]
        x = tl.load(logits + row * STRIDE + token, mask=token < V, other=float("-inf")).to(tl.float32)
        ban = tl.load(banned + row * W + word, mask=word < W, other=-1)
        better = ((ban[:, None] >> bit[None, :]) & 1 == 0) & (x > best)
        peak = tl.maximum(peak, x)
        best = tl.where(better, x, best)
        where = tl.where(better, token, where)
    top = tl.max(tl.max(peak, 1), 0)
    total = tl.zeros([WORDS, 32], tl.float32)
    for tile in tl.static_range(0, W, WORDS):
        token = (tile + tl.arange(0, WORDS))[:, None] * 32 + bit[None, :]
        x = tl.load(logits + row * STRIDE + token, mask=token < V, other=float("-inf")).to(tl.float32)
        total += tl.exp2((x - top) / LN2)
    log_sum = top + tl.log2(tl.sum(tl.sum(total, 1), 0)) * LN2
    highest = tl.max(tl.max(best, 1), 0)
    nothing = highest == float("-inf")
    lowest = tl.min(tl.min(tl.where(best == highest, where, 2147483647), 1), 0)
    tl.store(tokens + row, tl.where(nothing, 0, lowest))
    tl.store(log_probs + row, tl.where(nothing, float("-inf"), highest - log_sum))
    tl.store(log_sums + row, log_sum)


@triton.jit(do_not_specialize=["X", "W"])
def ban(seen, banned, X, W, XP: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * XP + tl.arange(0, XP)
    token = tl.load(seen + row * X + x, mask=x < X, other=0)
    tl.atomic_or(banned + row * W + token // 32, 1 << (token % 32), mask=(x < X) & (token > 0))


@triton.jit(do_not_specialize=["R", "stride"])
def heads(raw, tokens, out, R, stride, H: tl.constexpr, HP: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    h = tl.arange(0, HP)
    inside = (row[:, None] < R) & (h[None, :] < H)
    value = tl.load(raw + row[:, None].to(tl.int64) * stride + h[None, :], mask=inside, other=0.0).to(tl.float32)
    token = tl.load(tokens + row, mask=row < R, other=0)
    score = tl.where(token[:, None] == 0, 0.0, tl.sigmoid(value))
    tl.store(out + row[:, None] * H + h[None, :], score, mask=inside)
