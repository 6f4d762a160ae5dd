"""Matrix products for PyTorch that use the full speed of the processor.

Owns: how a linear layer's weight is stored (its type, its packed order on a CPU) and multiplied. Must not know: which
layer it is, or what a model is.

On a CPU PyTorch computes fp32 products with MKL, which leaves more than half the speed of AMD's processors unused, and
packs 16-bit weights again at each call. oneDNN, which PyTorch includes too, takes weights that were packed once.

oneDNN compiles a product for each number of rows that it meets, which takes as long as several products, and keeps it.
So products on a CPU take whole steps of rows where memory for them is behind the rows (`roomy`).

int8 has a scale per row of x and per output of the weight (vector-wise quantization, Dettmers et al. 2022, LLM.int8),
so that no row depends on its neighbours. Sums are exact in 32 bits; inputs and outputs are fp32.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROWS_HINT = 2048  # oneDNN packs for about this many rows; any number gives the same result
STEP = 32  # rows
ONEDNN: Any = torch.ops.mkldnn  # operators have no types
ONEDNN_HERE: Any = torch.backends.mkldnn.is_available
BF16_HERE: Any = ONEDNN._is_mkldnn_bf16_supported  # noqa: SLF001 (no public name): not without AVX-512
AT_ONCE = 256  # rows of a table whose products are computed together, once the first of them is needed
FINER = 254  # low numbers of a pair per high one
QUANTIZED: Any = torch.ops.onednn


def roomy(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return a buffer [rows, width] that has room for whole steps of rows; its content is undefined."""
    return torch.empty(-(-rows // STEP) * STEP, width, dtype=dtype)[:rows]


def _stepped(*rows_of: Tensor) -> tuple[Tensor, ...]:
    """Return the same rows up to whole steps where there is room behind all of them, else as they are."""
    rows, wanted = len(rows_of[0]), -(-len(rows_of[0]) // STEP) * STEP
    if rows == wanted or not all(_has_room(x, wanted) for x in rows_of):
        return rows_of
    return tuple(x.as_strided((wanted, x.shape[1]), (x.shape[1], 1), x.storage_offset()) for x in rows_of)


def _has_room(x_RM: Tensor, rows: int) -> bool:
    end = x_RM.storage_offset() + rows * x_RM.shape[1]
    return x_RM.is_contiguous() and end * x_RM.itemsize <= x_RM.untyped_storage().nbytes()


class Linear:
    """`x @ weight.T + bias`, with an optional ReLU; takes any float type, returns its own."""

    def __init__(self, weight_NM: Tensor, bias_N: Tensor, dtype: torch.dtype) -> None:
        """Keep a copy of weight [out, in] and bias [out] in `dtype`, on the device they are on."""
        self.dtype = dtype
        self._packed = weight_NM.device.type == "cpu" and ONEDNN_HERE() and (dtype != torch.bfloat16 or BF16_HERE())
        weight = weight_NM.detach().to(dtype).contiguous()
        self._bias = bias_N.detach().to(dtype).contiguous()
        # the two operators that PyTorch's own compiler calls; they have no public name
        self._weight = ONEDNN._reorder_linear_weight(weight, ROWS_HINT) if self._packed else weight  # noqa: SLF001

    def __call__(self, x_RM: Tensor, *, relu: bool = False) -> Tensor:
        """Multiply R rows: [R, in] -> [R, out] in this layer's type."""
        x = x_RM.to(self.dtype)
        if self._packed:
            after = "relu" if relu else "none"
            (stepped,) = _stepped(x)
            packed: Tensor = ONEDNN._linear_pointwise(stepped, self._weight, self._bias, after, [], "")  # noqa: SLF001
            return packed[: len(x)]
        product = functional.linear(x, self._weight, self._bias)
        return product.relu_() if relu else product


class ProductTable:
    """The product of each row of a table, computed in blocks as far as rows are asked for.

    Few runs come near a model's last position. A block's numbers depend on no other block; threads share the table.
    """

    def __init__(self, product: Linear, table_RM: Tensor) -> None:
        """Compute the first block."""
        self._product, self._table_RM, self._lock = product, table_RM, Lock()
        self._done_RN = product(table_RM[:AT_ONCE])

    def upto(self, count: int) -> Tensor:
        """Return the products of the first `count` rows."""
        assert count <= len(self._table_RM), "no such row"
        with self._lock:
            while (have := len(self._done_RN)) < count:
                more = self._product(self._table_RM[have : have + AT_ONCE])
                self._done_RN = torch.cat([self._done_RN, more])
            return self._done_RN[:count]


class Int8Linear:
    """`x @ weight.T + bias` in 8-bit integers on a CPU, with an optional ReLU; takes and returns fp32."""

    dtype = torch.float32

    def __init__(
        self, weight_NM: Tensor, bias_N: Tensor, *, exact: int = 0, positive: bool = False, finer: bool = False
    ) -> None:
        """Round weight [out, in] to -127..127 per output, except the last `exact` outputs, which stay fp32.

        `positive`: no x has a number below 0, so 0..255 represent 0 to the largest one. `finer`: weights are pairs, as
        in `PairLinear`, for a second product.
        """
        rounded = len(weight_NM) - exact
        weight, self.bias_N = weight_NM.detach()[:rounded], bias_N.detach()[:rounded].contiguous()
        high, low, scale_N = _pairs(weight)
        self._weights = [_Whole(high, scale_N)] + ([_Whole(low, scale_N / FINER)] if finer else [])
        self._exact = Linear(weight_NM[rounded:], bias_N[rounded:], torch.float32) if exact else None
        self._outputs, self._rounded = len(weight_NM), rounded
        self._positive = positive
        self._zero, self._most = (0, 255) if positive else (128, 127)

    def sums(self, whole_RM: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Multiply rounded rows, without their scale and bias: uint8 [R, in] -> [R, out] in fp32, or rounded to bf16.

        In rows that are `positive` 0 represents 0; in others 128 does.
        """
        sums = None
        (stepped,) = _stepped(whole_RM)
        for weight in self._weights:
            sums = weight(stepped, self._zero, sums, dtype)
        assert sums is not None
        return sums[: len(whole_RM)]

    def __call__(self, x_RM: Tensor, *, relu: bool = False) -> Tensor:
        """Multiply R rows of any float type: [R, in] -> [R, out] in fp32."""
        x_RM = x_RM.float()
        largest_R1 = x_RM.amax(1, keepdim=True)
        if not self._positive:
            largest_R1 = torch.maximum(largest_R1, -x_RM.amin(1, keepdim=True))
        scale_R1 = _or_one(largest_R1) / self._most
        whole = (x_RM * scale_R1.reciprocal()).add_(self._zero + 0.5).to(torch.uint8)  # + 0.5: truncation rounds
        sums = self.sums(whole)
        if self._exact is None:
            product: Tensor = sums.mul_(scale_R1).add_(self.bias_N)
        else:
            product = torch.empty(len(x_RM), self._outputs)
            torch.mul(sums, scale_R1, out=product[:, : self._rounded]).add_(self.bias_N)
            product[:, self._rounded :] = self._exact(x_RM)
        return product.relu_() if relu else product


class PairLinear:
    """`x @ weight.T + bias` on a CPU, with an optional ReLU, nearly as exact as in fp32; returns fp32.

    Rows and weights are rounded twice to 8 bits, each to high + low / 254 times a scale of its own, and multiplied as
    integers, without low x low: about 14 bits for three 8-bit products, which processors with AMX compute in a quarter
    of the time of one in fp32 (splitting into integers: Ootomo, Ozaki and Yokota 2024). Sums are exact in 32 bits, so
    no row depends on its neighbours.
    """

    dtype = torch.float32

    def __init__(self, weight_NM: Tensor, bias_N: Tensor) -> None:
        """Round weight [out, in] to pairs, with a scale per output."""
        high, low, scale_N = _pairs(weight_NM.detach())
        self.bias_N = bias_N.detach().contiguous()
        self._high, self._both = _Whole(high, scale_N), _Whole(torch.cat([high, low], 1), scale_N / FINER)

    def sums(self, high_RM: Tensor, both_R2M: Tensor) -> Tensor:
        """Multiply rows that are pairs, without their scale and bias: [R, in] and [R, 2 in] -> [R, out].

        `high_RM` has the high numbers, `both_R2M` the low ones and then the high ones again, as uint8 with 128 added.
        """
        high, both = _stepped(high_RM, both_R2M)
        return self._both(both, 128, self._high(high, 128))[: len(high_RM)]

    def __call__(self, x_RM: Tensor, *, relu: bool = False) -> Tensor:
        """Multiply R rows of any float type: [R, in] -> [R, out] in fp32."""
        x = x_RM.float()  # in bf16, 127 could be rounded to 128
        scale_R1 = _or_one(x.abs().amax(1, keepdim=True)) / 127
        share = x / scale_R1
        high = share.round()
        low = ((share - high) * FINER).round()
        high, low = ((numbers + 128).to(torch.uint8) for numbers in (high, low))
        product = self.sums(high, torch.cat([low, high], 1)).mul_(scale_R1).add_(self.bias_N)
        return product.relu_() if relu else product


class _Whole:
    """Weights in 8-bit integers, and a scale per output."""

    def __init__(self, whole_NM: Tensor, scale_N: Tensor) -> None:
        self._scale_N = scale_N
        self._packed = QUANTIZED.qlinear_prepack(whole_NM, [ROWS_HINT, whole_NM.shape[1]])
        self._offset_N = torch.zeros(len(whole_NM), dtype=torch.int64)

    def __call__(
        self, whole_RM: Tensor, zero: int, sums_RN: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Multiply rows in which `zero` represents 0; add the result to `sums_RN` in place, where given."""
        product: Tensor
        of = whole_RM, 1.0, zero, self._packed, self._scale_N, self._offset_N
        if sums_RN is None:
            product = QUANTIZED.qlinear_pointwise(*of, None, 1.0, 0, dtype, "none", [], "")
        else:
            product = QUANTIZED.qlinear_pointwise.binary(
                *of, sums_RN, None, 1.0, 0, dtype, 1.0, 0, "sum", 1.0, "none", [], ""
            )
        return product


def _pairs(weight_NM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return high and low numbers, int8 [N, M] each, and the scale of each row: weight = scale x (high + low / 254)."""
    scale_N = _or_one(weight_NM.abs().amax(1)) / 127
    share = (weight_NM / scale_N[:, None]).clamp_(-127, 127)
    high = share.round()
    low = share.sub_(high).mul_(FINER).round_()
    return high.to(torch.int8), low.to(torch.int8), scale_N


def _or_one(largest: Tensor) -> Tensor:
    """Return the divisor of each row: its largest number, or 1 where that is 0."""
    return torch.where(largest == 0, 1.0, largest)
