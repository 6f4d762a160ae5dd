"""The device code of the hand-fused CUDA engine, in Triton; `kernels` documents each kernel and launches it.

Owns: what one program of a launch computes. Must not know: launches, torch, the model. Sizes in
capitals are known when a kernel is compiled: D width, H heads, HEAD their size, DP and HP the same rounded up to a
power of two. What layers multiply may be e4m3 numbers in units of their own (see `fp8`). Attention is in
`device_attention`.
"""
# Triton reads the signatures itself (a parameter is a pointer, a number, or a constexpr); `kernels` documents them.
# ruff: noqa: ANN001, ANN201, ANN202, D103
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, misc"

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LARGEST = tl.constexpr(448.0)  # of e4m3


@triton.jit
def fitted(value, out):
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
        tl.store(out + at, fitted(total, out), mask=d < D)


@triton.jit
def _copy(source, out, D: tl.constexpr, DP: tl.constexpr, COUNT: tl.constexpr):
    d = tl.arange(0, DP)
    for i in tl.static_range(COUNT):
        tl.store(out + i * D + d, fitted(tl.load(source + i * D + d, mask=d < D), out), mask=d < D)


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
def narrow(wide, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, fitted(tl.load(wide + at, mask=at < count), out), mask=at < count)


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
        tl.store(small + at, fitted(value * unit, small), mask=inside)


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


@triton.jit
def order(bits, banned, keys, V: tl.constexpr, W: tl.constexpr, STRIDE: tl.constexpr, WORDS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    token = word[:, None] * 32 + bit[None, :]
    x = tl.load(bits + row * STRIDE + token, mask=token < V, other=0).to(tl.int32)
    x = tl.where(x == -32768, 0, x)  # -0 is 0
    x = tl.where(x < 0, x ^ 0x7FFF, x)
    ban = tl.load(banned + row * W + word, mask=word < W, other=-1)
    x = tl.where((ban[:, None] >> bit[None, :]) & 1 == 0, x, -32768)
    tl.store(keys + row * V + token, x * 65536 + (65535 - token), mask=token < V)


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
