"""The plugin's kernels in Triton (Tillet et al. 2019), all fp16 in and out with fp32 arithmetic.

Owns: what each kernel computes. Must not know: TensorRT. `compile` compiles it ahead of time; nothing else imports it.
D is the width, H attention heads of HD floats, B rows of at most S positions (prefix, then tokens), N places that hold
the rows' positions one row after the other: `starts` [B] is each row's first place, `lengths` [B] its tokens. A row of
length -1 is empty.
"""
# Parameters are device pointers and compile-time constants, which have no Python types; Triton is untyped itself.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _tile(number, M, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """Return the first row and column of a product's tile; GROUP row tiles run side by side and share L2."""
    across = GROUP * tl.cdiv(N, COLUMNS)
    first = number // across * GROUP
    here = tl.minimum(tl.cdiv(M, ROWS) - first, GROUP)
    return (first + number % across % here) * ROWS, number % across // here * COLUMNS


@triton.jit
def linear(
    x, weight, bias, out, M, N, K,
    RELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Multiply x [M, K] by weight [N, K] transposed, plus bias [N], in fp32; with RELU negatives become 0: [M, N].

    One program computes ROWS x COLUMNS of the product, DEPTH of K at a time (K is a multiple of DEPTH).
    """
    first_row, first_column = _tile(tl.program_id(0), M, N, ROWS, COLUMNS, GROUP)
    m, n, k = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    column = tl.where(n < N, n, 0)
    x_tile = x + tl.where(m < M, m, 0)[:, None].to(tl.int64) * K + k[None, :]
    weight_tile = weight + column[None, :] * K + k[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, K, DEPTH):
        total = tl.dot(tl.load(x_tile + start), tl.load(weight_tile + start), total)
    total += tl.load(bias + column)[None, :].to(tl.float32)
    if RELU:
        total = tl.maximum(total, 0.0)
    target = out + m[:, None].to(tl.int64) * N + n[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def linear_persistent(
    x, weight, bias, out, M, N, K,
    RELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Compute what `linear` does for many tiles: a program computes several tiles in turn and prefetches the next.

    The Tensor Memory Accelerator copies tiles; their descriptors are in scratch memory.
    """
    half: tl.constexpr = COLUMNS // 2
    x_tiles = tl.make_tensor_descriptor(x, [M, K], [K, 1], [ROWS, DEPTH])
    weight_tiles = tl.make_tensor_descriptor(weight, [N, K], [K, 1], [COLUMNS, DEPTH])
    out_tiles = tl.make_tensor_descriptor(out, [M, N], [N, 1], [ROWS, half])
    tiles = tl.cdiv(M, ROWS) * tl.cdiv(N, COLUMNS)
    for number in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column = _tile(number, M, N, ROWS, COLUMNS, GROUP)
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, K, DEPTH):
            total = tl.dot(x_tiles.load([row, start]), weight_tiles.load([column, start]).T, total)
        n = column + tl.arange(0, COLUMNS)
        total += tl.load(bias + n, mask=n < N, other=0.0)[None, :].to(tl.float32)
        if RELU:
            total = tl.maximum(total, 0.0)
        left, right = tl.split(tl.permute(tl.reshape(total, [ROWS, 2, half]), [0, 2, 1]))
        out_tiles.store([row, column], left.to(out.dtype.element_ty))
        out_tiles.store([row, column + half], right.to(out.dtype.element_ty))


@triton.jit
def embed_history(
    tokens, prefix, starts, lengths, token_table, position_table, out, S, fill, D: tl.constexpr
):  # fmt: skip
    """Write place 0 of a row, its projected features, and place s, its s-th token, plus their positions: [N, D].

    A row's places begin at `starts`; places past its history are written only with `fill`.
    """
    s = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, D)
    if (s <= tl.load(lengths + row)) | (fill != 0):
        if s == 0:
            x = tl.load(prefix + row * D + d).to(tl.float32)
        else:
            token = tl.load(tokens + row * (S - 1) + s - 1).to(tl.int64)
            x = tl.load(token_table + token * D + d).to(tl.float32)
        x += tl.load(position_table + s * D + d).to(tl.float32)
        place = tl.load(starts + row).to(tl.int64) + s
        tl.store(out + place * D + d, x.to(out.dtype.element_ty))


@triton.jit
def embed_item(tokens, lengths, step, token_table, position_table, out, D: tl.constexpr):
    """Write the embedding of the item read at decode step t, at position length + 1 + t: [B, D]."""
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
def _causal_block(base, target, real_rows, stored_rows, H: tl.constexpr, HD: tl.constexpr, BLOCK: tl.constexpr):
    position = tl.arange(0, BLOCK)
    d = tl.arange(0, HD)
    real = position < real_rows
    place = position[:, None] * (3 * H * HD) + d[None, :]
    q = tl.load(base + place, mask=real[:, None], other=0.0)
    k = tl.load(base + H * HD + place, mask=real[:, None], other=0.0)
    v = tl.load(base + 2 * H * HD + place, mask=real[:, None], other=0.0)
    scores = tl.dot(q, tl.trans(k)) * 1.4426950408889634  # log2(e): exp2 below
    scores = tl.where(position[None, :] <= position[:, None], scores, -1e30)
    weight = tl.exp2(scores - tl.max(scores, 1)[:, None])
    mean = tl.dot(weight.to(v.dtype), v) / tl.sum(weight, 1)[:, None]
    mean = tl.where(real[:, None], mean, 0.0)
    place = position[:, None] * (H * HD) + d[None, :]
    tl.store(target + place, mean.to(target.dtype.element_ty), mask=(position < stored_rows)[:, None])


@triton.jit
def causal_attention(qkv, lengths, starts, out, S, fill, H: tl.constexpr, HD: tl.constexpr, BLOCK: tl.constexpr):
    """Attend from all positions of one (row, head) at once; q is already scaled: [N, D].

    Places past a row's history are not written, or are 0 with `fill`. Short rows use smaller products.
    """
    pid = tl.program_id(0)
    row = pid // H
    start = tl.load(starts + row).to(tl.int64)
    real_rows = tl.load(lengths + row) + 1
    stored_rows = tl.where(fill != 0, S, real_rows)
    base = qkv + start * (3 * H * HD) + (pid % H) * HD
    target = out + start * (H * HD) + (pid % H) * HD
    if stored_rows <= 16:
        _causal_block(base, target, real_rows, stored_rows, H, HD, 16)
    elif (stored_rows <= 32) | (BLOCK <= 32):
        _causal_block(base, target, real_rows, stored_rows, H, HD, 32)
    elif (stored_rows <= 64) | (BLOCK <= 64):
        _causal_block(base, target, real_rows, stored_rows, H, HD, 64)
    else:
        _causal_block(base, target, real_rows, stored_rows, H, HD, BLOCK)


@triton.jit
def last_attention(qkv, lengths, starts, out, H: tl.constexpr, HD: tl.constexpr, BLOCK: tl.constexpr):
    """Attend from the last real position of each (row, head): [B, D]."""
    pid = tl.program_id(0)
    row = (pid // H).to(tl.int64)
    d = tl.arange(0, HD)
    position = tl.arange(0, BLOCK)
    length = tl.load(lengths + row)
    real = (position <= length)[:, None]
    base = qkv + tl.load(starts + row).to(tl.int64) * (3 * H * HD) + (pid % H) * HD
    place = position[:, None] * (3 * H * HD) + d[None, :]
    q = tl.load(base + length * (3 * H * HD) + d).to(tl.float32)
    k = tl.load(base + H * HD + place, mask=real, other=0.0).to(tl.float32)
    scores = tl.where(position <= length, tl.sum(k * q[None, :], 1), -1e30)
    weight = tl.exp(scores - tl.max(scores, 0))
    v = tl.load(base + 2 * H * HD + place, mask=real, other=0.0).to(tl.float32)
    mean = tl.sum(weight[:, None] * v, 0) / tl.sum(weight, 0)
    tl.store(out + row * (H * HD) + (pid % H) * HD + d, mean.to(out.dtype.element_ty))


@triton.jit
def _one_query(
    new, prefix, recent, out, length, step, stride,
    H: tl.constexpr, HD: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, HD)
    position = tl.arange(0, BLOCK)
    before = tl.arange(0, STEPS)
    real = position <= length
    read = before < step
    q = tl.load(new + d).to(tl.float32)
    k_new = tl.load(new + H * HD + d).to(tl.float32)
    place = position[:, None] * (3 * H * HD) + d[None, :]
    earlier = before.to(tl.int64)[:, None] * stride + d[None, :]
    k = tl.load(prefix + H * HD + place, mask=real[:, None], other=0.0).to(tl.float32)
    k_read = tl.load(recent + H * HD + earlier, mask=read[:, None], other=0.0).to(tl.float32)
    v = tl.load(prefix + 2 * H * HD + place, mask=real[:, None], other=0.0)
    v_read = tl.load(recent + 2 * H * HD + earlier, mask=read[:, None], other=0.0)
    v_new = tl.load(new + 2 * H * HD + d).to(tl.float32)
    s = tl.where(real, tl.sum(k * q[None, :], 1), -1e30)
    s_read = tl.where(read, tl.sum(k_read * q[None, :], 1), -1e30)
    s_new = tl.sum(q * k_new, 0)
    highest = tl.maximum(tl.maximum(tl.max(s, 0), tl.max(s_read, 0)), s_new)
    w = tl.exp(s - highest)
    w_read = tl.exp(s_read - highest)
    w_new = tl.exp(s_new - highest)
    total = tl.sum(w, 0) + tl.sum(w_read, 0) + w_new
    mean = tl.sum(w[:, None] * v.to(tl.float32), 0) + tl.sum(w_read[:, None] * v_read.to(tl.float32), 0) + w_new * v_new
    tl.store(out + d, (mean / total).to(out.dtype.element_ty))


@triton.jit
def decode_attention(
    fresh, prefix, recent, lengths, starts, step, out, rows,
    H: tl.constexpr, HD: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Attend from one new position per (row, head) to the prefill, the items read before it, and itself: [B, D].

    fresh [B, 3D] is this position's q, k, v; prefix [N, 3D] is that of the prefill, a row's from `starts` on; recent
    [T, B, 3D] is that of the earlier steps, of which those before `step` count.
    """
    pid = tl.program_id(0)
    row = (pid // H).to(tl.int64)
    column = (pid % H) * HD
    length, count = tl.load(lengths + row), tl.load(step)
    new = fresh + row * (3 * H * HD) + column
    base = prefix + tl.load(starts + row).to(tl.int64) * (3 * H * HD) + column
    earlier = recent + row * (3 * H * HD) + column
    stride = rows.to(tl.int64) * (3 * H * HD)
    target = out + row * (H * HD) + column
    if length < 16:
        _one_query(new, base, earlier, target, length, count, stride, H, HD, 16, STEPS)
    elif (length < 32) | (BLOCK <= 32):
        _one_query(new, base, earlier, target, length, count, stride, H, HD, 32, STEPS)
    elif (length < 64) | (BLOCK <= 64):
        _one_query(new, base, earlier, target, length, count, stride, H, HD, 64, STEPS)
    else:
        _one_query(new, base, earlier, target, length, count, stride, H, HD, BLOCK, STEPS)


@triton.jit
def rank_items(
    logits, seen, seen_width, read, step, mask, masks, tokens, log_prob, heads, rows, V, limit, LD, W,
    HEADS: tl.constexpr, PADDED_HEADS: tl.constexpr, READ: tl.constexpr, CHUNK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Choose the best item below `limit`, neither in `seen` [B, X] nor read so far; write it and all heads.

    With MASKED nor one whose bit is 1 in the row's bit map, line `mask` [B] of `masks` [.., W]: bit i % 32 of word
    i // 32 is item i.

    The item's log-probability is over all V. X is the number in `seen_width` [1]. logits [B, LD] has HEADS task heads
    at V; PADDED_HEADS is the next power of 2. Banned logits are overwritten. read [T, B]: rows up to `step` count
    (-1: none). Nothing left: token 0, -inf. Equal logits: the lower token.
    """
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * LD
    item = tl.arange(0, CHUNK)
    top = tl.full([CHUNK], float("-inf"), tl.float32)
    for start in range(0, V, CHUNK):
        x = tl.load(base + start + item, mask=start + item < V, other=float("-inf")).to(tl.float32)
        top = tl.maximum(top, x)
    peak = tl.max(top, 0)
    total = tl.zeros([CHUNK], tl.float32)
    for start in range(0, V, CHUNK):
        x = tl.load(base + start + item, mask=start + item < V, other=float("-inf")).to(tl.float32)
        total += tl.exp(x - peak)
    log_sum = tl.log(tl.sum(total, 0)) + peak
    h = tl.arange(0, PADDED_HEADS)
    head = tl.load(base + V + h, mask=h < HEADS, other=0.0).to(tl.float32)
    tl.store(heads + row * HEADS + h, 1.0 / (1.0 + tl.exp(-head)), mask=h < HEADS)
    tl.debug_barrier()  # every thread has read its logits before any is overwritten
    some = tl.arange(0, 64)
    width = tl.load(seen_width)
    start = 0
    while start < width:
        j = start + some
        gone = tl.load(seen + row * width + j, mask=j < width, other=0)
        tl.store(base + gone, float("-inf"), mask=j < width)
        start += 64
    t = tl.arange(0, READ)
    done = t <= tl.load(step)
    gone = tl.load(read + t.to(tl.int64) * rows + row, mask=done, other=0)
    tl.store(base + gone, float("-inf"), mask=done)
    tl.debug_barrier()  # the bans are visible before the second pass
    best = tl.full([CHUNK], float("-inf"), tl.float32)
    place = tl.zeros([CHUNK], tl.int32)
    if MASKED:
        words = masks + tl.load(mask + row).to(tl.int64) * W
    for start in range(0, limit, CHUNK):
        at = start + item
        x = tl.load(base + at, mask=at < limit, other=float("-inf"), cache_modifier=".cg").to(tl.float32)
        if MASKED:
            word = tl.load(words + at // 32, mask=at < limit, other=0)
            x = tl.where(((word >> (at % 32)) & 1) == 0, x, float("-inf"))
        place = tl.where(x > best, at, place)
        best = tl.maximum(best, x)
    most = tl.max(best, 0)
    index = tl.min(tl.where(best == most, place, 2147483647), 0)
    found = most > float("-inf")
    tl.store(tokens + row, tl.where(found, index, 0).to(tl.int32))
    nothing = tl.where(log_sum == log_sum, float("-inf"), log_sum)  # noqa: PLR0124 (NaN stays NaN)
    tl.store(log_prob + row, tl.where(found, most - log_sum, nothing))
