"""The kernels of the hand-fused CUDA engine as functions of torch tensors.

Their device code is in `device_code` and `device_attention`.

Owns: one small function per kernel, on tensors that are on the device already: grids, tile sizes, warps. Must not know:
the model, batches, graphs or the order of layers. Every function writes into given tensors and allocates nothing, so
all of them can be captured in a CUDA graph.

Shape legend beside that of `arrays.py`: R rows of a decode pass (users, or users times candidates), M packed rows of a
prefill (user b owns rows first_B[b] .. first_B[b] + lengths_B[b]: its prefix, then its tokens), D width, W = V / 32
words of the bit map of banned tokens, T decoded items that have room. The factor log2(e) / sqrt(head size) is folded
into the weights of queries, so softmax is 2 to the power of a difference. Tensors of the history, of the suffix and of
what layers multiply may be e4m3 numbers in their units (see `fp8`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from genrec_batch.engines.cuda import device_attention, device_code
from genrec_batch.engines.cuda.fp8 import Product
from genrec_batch.engines.cuda.weights import FusedTables
from genrec_batch.model.weights import EPSILON


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How an e4m3 product is cut: the sizes of a tile, and how it is computed; measured on an H200."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    programs: int  # of a launch at most; each computes tile after tile


@dataclass(frozen=True)
class OneQuery:
    """How the attention from one query is cut: the most heads of a program, keys of a tile; measured on an H200."""

    group: int
    keys: int


POSITIVE = Tile(rows=128, columns=128, inner=128, warps=4, stages=3, programs=264)
ATTEND_ONE = {1: OneQuery(16, 8), 2: OneQuery(8, 8), 4: OneQuery(4, 8)}  # by the bytes of a number of the cache
ASIDE, ASIDE_WARPS = 128, 4  # queries of a program of the attention from many queries of a user
ORDERED = 64  # words of tokens that a program orders
HISTORY_WARPS = {1: 2, 2: 1, 4: 1}  # of the attention over histories of one tile


def _tiles(longest: int, tile: int) -> int:
    """Return enough tiles for a history's rows, a power of two: each number of tiles is compiled separately."""
    return 1 << (longest // tile).bit_length()


def _head_pad(head: int) -> int:
    return max(16, 1 << (head - 1).bit_length())  # 16: the smallest inner size of a matrix instruction


def embed(
    tokens_BS: Tensor, lengths_B: Tensor, first_B: Tensor, prefix_BD: Tensor, prefix_qkv_B3: Tensor,
    tables: FusedTables, x_MD: Tensor, qkv_M3: Tensor,
) -> None:  # fmt: skip
    """Write the packed rows: prefix, then token plus position, and the first layer's query, key and value of each."""
    users, width = tokens_BS.shape
    d = prefix_BD.shape[1]
    device_code.embed[(users * (width + 1),)](
        tokens_BS, lengths_B, first_B, prefix_BD, prefix_qkv_B3, tables.token_VD, tables.position_PD,
        tables.token_qkv_V3, tables.position_qkv_P3, x_MD, qkv_M3, width,
        D=d, DP=triton.next_power_of_2(d), num_warps=1,
    )  # fmt: skip


def read(
    tokens_R: Tensor, lengths_R: Tensor, step: int, tables: FusedTables, banned_RW: Tensor | None, x_RD: Tensor,
    qkv_R3: Tensor,
) -> None:  # fmt: skip
    """Write the rows of one item each at position lengths + 1 + step, and ban the item from there on."""
    d = x_RD.shape[1]
    device_code.read[(len(tokens_R),)](
        tokens_R, lengths_R, tables.token_VD, tables.position_PD, tables.token_qkv_V3, tables.position_qkv_P3,
        x_RD, qkv_R3, x_RD if banned_RW is None else banned_RW, step, 0 if banned_RW is None else banned_RW.shape[1],
        D=d, DP=triton.next_power_of_2(d), BAN=banned_RW is not None, num_warps=1,
    )  # fmt: skip


def attend_history(
    qkv_M3: Tensor, lengths_B: Tensor, first_B: Tensor, out_MD: Tensor, heads: int, longest: int, unit: float,
    kept_M2: Tensor | None = None,
) -> None:  # fmt: skip
    """Causal attention of every packed row over its own user's rows; `longest` bounds lengths_B.

    `unit` turns products of queries and keys into scores. Where it is given, kept_M2 gets the keys and values.
    """
    head = out_MD.shape[1] // heads
    tiles = _tiles(longest, device_attention.TILE.value)
    device_attention.attend_history[(len(lengths_B) * heads * tiles,)](
        qkv_M3,
        lengths_B,
        first_B,
        out_MD,
        out_MD if kept_M2 is None else kept_M2,
        unit,
        H=heads,
        HEAD=head,
        HP=_head_pad(head),
        TILES=tiles,
        KEEP=kept_M2 is not None,
        num_warps=HISTORY_WARPS[qkv_M3.element_size()] if tiles == 1 else 4,
    )


def narrow(wide_MN: Tensor, out_MN: Tensor) -> None:
    """Convert numbers to the type of out_MN; what exceeds e4m3 saturates."""
    count = wide_MN.numel()
    device_code.narrow[(triton.cdiv(count, 4096),)](wide_MN, out_MN, count, BLOCK=4096)


def attend_one(
    query_R: Tensor, cache_M: Tensor, lengths_R: Tensor, first_R: Tensor, suffix_RT2: Tensor | None, count: int,
    out_RD: Tensor, heads: int, longest: int, unit: float,
) -> None:  # fmt: skip
    """Attend from one query per row to its user's packed rows, its `count` decoded items and itself.

    query_R is [R, D], the query of the last packed row, or where suffix_RT2 [R, T, 2D] is given, [R, 3D], a new item's
    query, key and value, which enter the softmax and are stored at place `count` of it. cache_M has keys from column
    0 on and values from column D on, in the type of suffix_RT2; its row stride is free. `unit` is attend_history's.
    """
    rows, d = out_RD.shape
    head = d // heads
    room = 0 if suffix_RT2 is None else suffix_RT2.shape[1]
    cut = ATTEND_ONE[cache_M.element_size()]
    group, tiles = math.gcd(heads, cut.group), _tiles(longest + room, cut.keys)
    device_attention.attend_one[(rows * heads // group,)](
        query_R, cache_M, lengths_R, first_R, cache_M if suffix_RT2 is None else suffix_RT2, out_RD, count, room, unit,
        H=heads, HEAD=head, HP=_head_pad(head), Q_STRIDE=query_R.stride(0), STRIDE=cache_M.stride(0), GROUP=group,
        KEYS=cut.keys, TILES=tiles, NEW=suffix_RT2 is not None, num_warps=1,
    )  # fmt: skip


def attend_aside(
    qkv_R3: Tensor, cache_M: Tensor, lengths_B: Tensor, first_B: Tensor, out_RD: Tensor, heads: int, longest: int,
    unit: float,
) -> None:  # fmt: skip
    """Attend from C = R / B queries per user to the user's packed rows, and from each to itself; else as attend_one."""
    rows, d = out_RD.shape
    head, each = d // heads, rows // len(lengths_B)
    device_attention.attend_aside[(len(lengths_B) * heads, triton.cdiv(each, ASIDE))](
        qkv_R3, cache_M, lengths_B, first_B, out_RD, each, unit,
        H=heads, HEAD=head, HP=_head_pad(head), STRIDE=cache_M.stride(0), QUERIES=ASIDE,
        TILES=_tiles(longest, device_attention.TILE.value), num_warps=ASIDE_WARPS,
    )  # fmt: skip


def multiply(x_MK: Tensor, product: Product, out_MN: Tensor) -> None:
    """Write the product of e4m3 rows, with its bias if it has one; cuBLASLt computes it."""
    torch._scaled_mm(  # noqa: SLF001 (no public function multiplies e4m3 numbers)
        x_MK, product.weight.T, product.of_rows, product.of_weight, bias=product.bias_N, out_dtype=out_MN.dtype,
        use_fast_accum=True, out=out_MN,
    )  # fmt: skip


def positive_product(x_MK: Tensor, product: Product, out_MN: Tensor) -> None:
    """Write the positive part of a product of e4m3 rows and its bias, which cuBLASLt does not compute, as e4m3."""
    from triton.tools.tensor_descriptor import TensorDescriptor  # which older versions of Triton do not have

    (m, k), n, tile = x_MK.shape, len(product.weight), POSITIVE
    tiles = triton.cdiv(m, tile.rows) * triton.cdiv(n, tile.columns)
    device_code.positive_product[(min(tiles, tile.programs),)](
        TensorDescriptor.from_tensor(x_MK, [tile.rows, tile.inner]),
        TensorDescriptor.from_tensor(product.weight, [tile.columns, tile.inner]),
        product.of_rows, product.of_weight, product.bias_N,
        TensorDescriptor.from_tensor(out_MN, [tile.rows, tile.columns]), tiles,
        N=n, K=k, ROWS=tile.rows, COLUMNS=tile.columns, INNER=tile.inner,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def add_norm(
    x_MD: Tensor, bias_D: Tensor, gain_D: Tensor, shift_D: Tensor, added_MD: Tensor | None = None,
    small_MD: Tensor | None = None, unit: float = 1.0,
) -> None:  # fmt: skip
    """LayerNorm of x + bias, in place (Ba et al. 2016; biased variance, epsilon 1e-5).

    Where they are given, added_MD is added first, and small_MD gets `unit` times the result as e4m3 numbers.
    """
    rows, d = x_MD.shape
    device_code.add_norm[(triton.cdiv(rows, 2),)](
        x_MD,
        bias_D,
        gain_D,
        shift_D,
        x_MD if added_MD is None else added_MD,
        x_MD if small_MD is None else small_MD,
        unit,
        rows,
        EPS=EPSILON,
        D=d,
        DP=triton.next_power_of_2(d),
        ROWS=2,
        SMALL=small_MD is not None,
        num_warps=1,
    )


def choose(
    logits_RN: Tensor, vocabulary: int, banned_RW: Tensor, tokens_R: Tensor, log_probs_R: Tensor, log_sums_R: Tensor
) -> None:
    """Write each row's best token that is not banned (the lowest of equals) and its log-probability before banning.

    Also write the log of the sum of exponentials of the first `vocabulary` logits. Where all tokens are banned, write
    token 0 with log-probability -inf.
    """
    device_code.choose[(len(logits_RN),)](
        logits_RN, banned_RW, tokens_R, log_probs_R, log_sums_R,
        V=vocabulary, W=banned_RW.shape[1], STRIDE=logits_RN.stride(0), WORDS=64, num_warps=8,
    )  # fmt: skip


def order(raw_RN: Tensor, vocabulary: int, banned_RW: Tensor, keys_RV: Tensor) -> None:
    """Write int32 numbers that order as 16-bit logits do, of equals the lower token first; the banned ones are least.

    The upper half is the logit's bits, ordered, or -32768, which is no logit's; the lower half 65535 - token.
    """
    words = banned_RW.shape[1]
    device_code.order[(len(raw_RN), triton.cdiv(words, ORDERED))](
        raw_RN.view(torch.int16), banned_RW, keys_RV,
        V=vocabulary, W=words, STRIDE=raw_RN.stride(0), WORDS=ORDERED, num_warps=4,
    )  # fmt: skip


def ban(seen_RX: Tensor, banned_RW: Tensor) -> None:
    """Set the bits of the given tokens, except padding (0)."""
    rows, seen = seen_RX.shape
    device_code.ban[(rows, triton.cdiv(seen, 128))](seen_RX, banned_RW, seen, banned_RW.shape[1], XP=128, num_warps=1)


def heads(raw_RH: Tensor, tokens_R: Tensor, out_RH: Tensor) -> None:
    """Write the sigmoid of the heads of the items just read; 0 where the item is padding."""
    rows, count = out_RH.shape
    device_code.heads[(triton.cdiv(rows, 128),)](
        raw_RH, tokens_R, out_RH, rows, raw_RH.stride(0), H=count, HP=triton.next_power_of_2(count), ROWS=128
    )  # fmt: skip
