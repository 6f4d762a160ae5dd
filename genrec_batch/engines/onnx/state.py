"""A batch of the ONNX Runtime engine between calls.

Owns: what of a batch is kept from one call to the next, and where. Must not know: sessions, graphs, what is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from genrec_batch.core.arrays import F32, I32, I64, PADDING
from genrec_batch.engines.onnx.sessions import Array, Value


@dataclass(kw_only=True)
class OnnxState:
    """A batch between calls. Values are on the engine's device; arrays are on the host."""

    rows: int
    steps: int  # the most items that can be read
    choices: int
    lengths: Value
    banned: Value
    prefix: dict[str, Value]
    first_log_probs: Value  # right after the history, [B, vocabulary]
    next_tokens: Value  # [B, K]
    next_log_prob: Value
    log_probs: Value  # of the next position
    origin_R: I64  # the row of the prefill that each row's prefix cache is from
    masks: Value | None = None  # bit maps of what must not be chosen, [M, vocabulary / 8]
    mask: Value | None = None  # which of them a row obeys, [B]
    step: int = 0  # items read
    read: Value | None = None  # [B, T]
    suffix: dict[str, Value] = field(default_factory=dict)
    suffix_arrays: dict[str, Array] = field(default_factory=dict)  # the same memory, on a CPU
    log_prob_read: list[Value | Array] = field(default_factory=list)  # of each step, [B] or [B, K] (best first)
    heads_read: list[Value | Array] = field(default_factory=list)  # of each step, [B, H]


def log_probs_of(log_probs_BV: Value, tokens_BC: I32) -> F32:
    """Return the log-probabilities of items, [B, C]; -inf for token 0."""
    log_prob_BC = np.take_along_axis(host(log_probs_BV), tokens_BC, axis=1)
    return np.where(tokens_BC > PADDING, log_prob_BC, np.float32(-np.inf))


def host(value: Value | Array) -> Array:
    """Return a copy of a tensor's content: onnxruntime's array may be a view that does not keep it alive."""
    return value if isinstance(value, np.ndarray) else np.array(value.numpy())
