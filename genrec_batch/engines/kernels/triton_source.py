"""The plugin's kernels in Triton (Tillet et al. 2019), all fp16 in and out with fp32 arithmetic.

Owns: what each kernel computes. Must not know: TensorRT. Compiled ahead of time by `compile.py`; nothing else imports
this module. D is the width, H heads of HD floats, S positions of a prefill (prefix, then tokens, left-aligned), B rows.
"""
# Parameters are device pointers and compile-time constants, which have no Python types; Triton is untyped itself.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def embed_history(tokens, prefix, token_table, position_table, out, S, D: tl.constexpr):
    """Position 0 is the projected features, position s the s-th token; each plus its place: [B, S, D]."""
    s = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, D)
    if s == 0:
        x = tl.load(prefix + row * D + d).to(tl.float32)
    else:
        token = tl.load(tokens + row * (S - 1) + s - 1).to(tl.int64)
        x = tl.load(token_table + token * D + d).to(tl.float32)
    x += tl.load(position_table + s * D + d).to(tl.float32)
    tl.store(out + (row * S + s) * D + d, x.to(out.dtype.element_ty))


@triton.jit
def embed_item(tokens, lengths, step, token_table, position_table, out, D: tl.constexpr):
    """The item read at decode step t stands at position length + 1 + t: [B, D]."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D)
    token = tl.load(tokens + row).to(tl.int64)
    position = (tl.load(lengths + row) + tl.load(step) + 1).to(tl.int64)
    x = tl.load(token_table + token * D + d).to(tl.float32) + tl.load(position_table + position * D + d).to(tl.float32)
    tl.store(out + row * D + d, x.to(out.dtype.element_ty))


@triton.jit
def add_norm(x, y, gain, bias, out, rows, D: tl.constexpr, R: tl.constexpr):
    """LayerNorm(x + y) over the last axis, R rows per program; epsilon 1e-5."""
    r = tl.program_id(0) * R + tl.arange(0, R)
    d = tl.arange(0, D)
    real = r[:, None] < rows
    place = r[:, None].to(tl.int64) * D + d[None, :]
    a = tl.load(x + place, mask=real, other=0.0).to(tl.float32) + tl.load(y + place, mask=real, other=0.0).to(
        tl.float32
    )
    centred = a - (tl.sum(a, 1) / D)[:, None]
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / D + 1e-5)
    z = centred * scale[:, None] * tl.load(gain + d).to(tl.float32)[None, :] + tl.load(bias + d).to(tl.float32)[None, :]
    tl.store(out + place, z.to(out.dtype.element_ty), mask=real)


@triton.jit
def causal_attention(qkv, lengths, out, S, H: tl.constexpr, HD: tl.constexpr, BLOCK: tl.constexpr):
    """All positions of one (row, head) at once; q comes scaled. Positions past the history are left as zeros."""
    pid = tl.program_id(0)
    row = (pid // H).to(tl.int64)
    head = pid % H
    position = tl.arange(0, BLOCK)
    d = tl.arange(0, HD)
    real = position <= tl.load(lengths + row)
    base = qkv + row * S * (3 * H * HD) + head * HD
    place = position[:, None] * (3 * H * HD) + d[None, :]
    q = tl.load(base + place, mask=real[:, None], other=0.0)
    k = tl.load(base + H * HD + place, mask=real[:, None], other=0.0)
    v = tl.load(base + 2 * H * HD + place, mask=real[:, None], other=0.0)
    scores = tl.dot(q, tl.trans(k)) * 1.4426950408889634  # log2(e): exp2 below
    scores = tl.where(position[None, :] <= position[:, None], scores, -1e30)
    weight = tl.exp2(scores - tl.max(scores, 1)[:, None])
    mean = tl.dot(weight.to(v.dtype), v) / tl.sum(weight, 1)[:, None]
    target = out + row * S * (H * HD) + head * HD + position[:, None] * (H * HD) + d[None, :]
    tl.store(target, tl.where(real[:, None], mean, 0.0).to(out.dtype.element_ty), mask=(position < S)[:, None])


@triton.jit
def last_attention(qkv, lengths, out, S, H: tl.constexpr, HD: tl.constexpr, BLOCK: tl.constexpr):
    """Only the last real position of each (row, head) asks: [B, D]."""
    pid = tl.program_id(0)
    row = (pid // H).to(tl.int64)
    d = tl.arange(0, HD)
    position = tl.arange(0, BLOCK)
    length = tl.load(lengths + row)
    real = (position <= length)[:, None]
    base = qkv + row * S * (3 * H * HD) + (pid % H) * HD
    place = position[:, None] * (3 * H * HD) + d[None, :]
    q = tl.load(base + length * (3 * H * HD) + d).to(tl.float32)
    k = tl.load(base + H * HD + place, mask=real, other=0.0).to(tl.float32)
    scores = tl.where(position <= length, tl.sum(k * q[None, :], 1), -1e30)
    weight = tl.exp(scores - tl.max(scores, 0))
    v = tl.load(base + 2 * H * HD + place, mask=real, other=0.0).to(tl.float32)
    mean = tl.sum(weight[:, None] * v, 0) / tl.sum(weight, 0)
    tl.store(out + row * (H * HD) + (pid % H) * HD + d, mean.to(out.dtype.element_ty))


@triton.jit
def decode_attention(
    fresh,
    prefix,
    recent,
    lengths,
    step,
    out,
    S,
    rows,
    H: tl.constexpr,
    HD: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """One new position per (row, head) against the prefill's keys, the items read before it, and itself.

    fresh [B, 3D] is this position's q, k, v; prefix [B, S, 3D] the prefill's; recent [T, B, 3D] holds the earlier
    steps', of which those before `step` count.
    """
    pid = tl.program_id(0)
    row = (pid // H).to(tl.int64)
    column = (pid % H) * HD + tl.arange(0, HD)
    position = tl.arange(0, BLOCK)
    before = tl.arange(0, STEPS)
    real = position <= tl.load(lengths + row)
    read = before < tl.load(step)
    new = fresh + row * (3 * H * HD) + column
    q = tl.load(new).to(tl.float32)
    k_new = tl.load(new + H * HD).to(tl.float32)
    place = (row * S + position)[:, None] * (3 * H * HD) + column[None, :]
    earlier = (row + before.to(tl.int64) * rows)[:, None] * (3 * H * HD) + column[None, :]
    k = tl.load(prefix + H * HD + place, mask=real[:, None], other=0.0).to(tl.float32)
    k_read = tl.load(recent + H * HD + earlier, mask=read[:, None], other=0.0).to(tl.float32)
    v = tl.load(prefix + 2 * H * HD + place, mask=real[:, None], other=0.0)
    v_read = tl.load(recent + 2 * H * HD + earlier, mask=read[:, None], other=0.0)
    v_new = tl.load(new + 2 * H * HD).to(tl.float32)
    s = tl.where(real, tl.sum(k * q[None, :], 1), -1e30)
    s_read = tl.where(read, tl.sum(k_read * q[None, :], 1), -1e30)
    s_new = tl.sum(q * k_new, 0)
    highest = tl.maximum(tl.maximum(tl.max(s, 0), tl.max(s_read, 0)), s_new)
    w = tl.exp(s - highest)
    w_read = tl.exp(s_read - highest)
    w_new = tl.exp(s_new - highest)
    total = tl.sum(w, 0) + tl.sum(w_read, 0) + w_new
    mean = tl.sum(w[:, None] * v.to(tl.float32), 0) + tl.sum(w_read[:, None] * v_read.to(tl.float32), 0) + w_new * v_new
    tl.store(out + row * (H * HD) + column, (mean / total).to(out.dtype.element_ty))


@triton.jit
def rank_items(
    logits,
    seen,
    read,
    step,
    tokens,
    log_prob,
    heads,
    rows,
    seen_width,
    V,
    limit,
    LD,
    READ: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Best item below `limit`, neither in `seen` [B, X] nor read so far; its log-probability over all V; the heads.

    logits [B, LD] has the heads at V..V+3; banned logits are overwritten. read [T, B]: rows up to `step` count (-1:
    none). Nothing left: token 0, -inf. Equal logits: the lower token.
    """
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * LD
    item = tl.arange(0, BLOCK)
    x = tl.load(base + item, mask=item < V, other=float("-inf")).to(tl.float32)
    top = tl.max(x, 0)
    log_sum = tl.log(tl.sum(tl.exp(x - top), 0)) + top
    h = tl.arange(0, 4)
    head = tl.load(base + V + h).to(tl.float32)
    tl.store(heads + row * 4 + h, 1.0 / (1.0 + tl.exp(-head)))
    tl.debug_barrier()  # every thread has read its logits before any is overwritten
    chunk = tl.arange(0, 64)
    start = 0
    while start < seen_width:
        j = start + chunk
        gone = tl.load(seen + row * seen_width + j, mask=j < seen_width, other=0)
        tl.store(base + gone, float("-inf"), mask=j < seen_width)
        start += 64
    t = tl.arange(0, READ)
    done = t <= tl.load(step)
    gone = tl.load(read + t.to(tl.int64) * rows + row, mask=done, other=0)
    tl.store(base + gone, float("-inf"), mask=done)
    tl.debug_barrier()  # the bans are visible before the second pass
    left = tl.load(base + item, mask=item < limit, other=float("-inf"), cache_modifier=".cg").to(tl.float32)
    best, index = tl.max(left, 0, return_indices=True)
    found = best > float("-inf")
    tl.store(tokens + row, tl.where(found, index, 0).to(tl.int32))
    nothing = tl.where(log_sum == log_sum, float("-inf"), log_sum)  # noqa: PLR0124 (not a number: stays so)
    tl.store(log_prob + row, tl.where(found, best - log_sum, nothing))
