"""Matrix products for PyTorch, as fast as the processor under them does them.

Owns: how a linear layer's weight is kept (its type, its packed order on a CPU) and multiplied. Must not know: which
layer it is, or what a model is.

On a CPU PyTorch gives fp32 products to MKL, which leaves more than half the speed of AMD's processors unused, and packs
16-bit weights anew at each call. oneDNN, which PyTorch carries too, takes weights that were packed once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROWS_HINT = 2048  # oneDNN packs for about this many rows; the result is right for any number
ONEDNN: Any = torch.ops.mkldnn  # operators have no types
ONEDNN_HERE: Any = torch.backends.mkldnn.is_available


class Linear:
    """`x @ weight.T + bias`, with an optional ReLU; takes any float type, gives its own."""

    def __init__(self, weight_NM: Tensor, bias_N: Tensor, dtype: torch.dtype) -> None:
        """Keep a copy of weight [out, in] and bias [out] in `dtype`, on the device they are on."""
        self.dtype = dtype
        self._packed = weight_NM.device.type == "cpu" and ONEDNN_HERE()
        weight = weight_NM.detach().to(dtype).contiguous()
        self._bias = bias_N.detach().to(dtype).contiguous()
        # PyTorch's own compiler calls these two operators; they have no public name
        self._weight = ONEDNN._reorder_linear_weight(weight, ROWS_HINT) if self._packed else weight  # noqa: SLF001

    def __call__(self, x_RM: Tensor, *, relu: bool = False) -> Tensor:
        """Multiply R rows: [R, in] -> [R, out] in this layer's type."""
        x = x_RM.to(self.dtype)
        if self._packed:
            after = "relu" if relu else "none"
            packed: Tensor = ONEDNN._linear_pointwise(x, self._weight, self._bias, after, [], "")  # noqa: SLF001
            return packed
        product = functional.linear(x, self._weight, self._bias)
        return product.relu_() if relu else product
