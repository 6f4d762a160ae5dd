"""Prefill that goes on from prefixes: the caches of rows whose first events were read earlier.

Owns: the form of a prefix, and the reading of the events behind it, by the graph `decode`. Must not know: users, how
long a prefix is kept, the choice of items. On the host only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import I64, Batch
from genrec_batch.engines.onnx.sessions import Array, OnnxSessions
from genrec_batch.engines.onnx.state import OnnxState, host
from genrec_batch.engines.protocol import Prefix
from genrec_batch.model.weights import ModelConfig

LOG_PROBS = "log_probs"


def kept(state: OnnxState, rows: Sequence[int]) -> list[Prefix]:
    """Return copies of the prefixes of some rows: keys and values of each layer, [2 layers, A, 1 + events, E]."""
    lengths_B = host(state.lengths)
    parts = [value.numpy() for value in state.prefix.values()]
    found = []
    for row in rows:
        cache = np.stack([part[row, :, : lengths_B[row] + 1] for part in parts])
        found.append(Prefix(cache=cache, length=int(lengths_B[row]), nbytes=cache.nbytes))
    return found


def resumed(
    sessions: OnnxSessions,
    config: ModelConfig,
    element: npt.DTypeLike,
    batch: Batch,
    prefixes: Sequence[Prefix | None],
    started: OnnxState | None,
) -> dict[str, Array]:
    """Return the caches of B rows and the log-probabilities right after their histories.

    Args:
        sessions: run the graphs.
        config: sizes of the model.
        element: type of the caches.
        batch: B rows.
        prefixes: of B rows; None for those that `started` has read, in order.
        started: the other rows, right after prefill.
    """
    rows, width = batch.tokens_BS.shape
    shape = (rows, config.heads, 1 + width, config.head_size)
    names = [f"prefix_{part}_{layer}" for layer in range(config.layers) for part in ("key", "value")]
    caches = {name: np.zeros(shape, element) for name in names}  # what is masked must be finite
    log_probs_BV = np.empty((rows, config.vocabulary), np.float32)
    new = [row for row, prefix in enumerate(prefixes) if prefix is None]
    if started is not None:
        for name, cache in caches.items():
            cache[new] = host(started.prefix[name])
        log_probs_BV[new] = host(started.first_log_probs)
    begin_B = batch.lengths_B.astype(np.int64)
    for row, prefix in enumerate(prefixes):
        if prefix is not None:
            begin_B[row] = min(prefix.length, begin_B[row] - 1)
            for cache, part in zip(caches.values(), prefix.cache, strict=True):
                cache[row, :, : begin_B[row] + 1] = part[:, : begin_B[row] + 1]
    left_B = batch.lengths_B - begin_B
    for turn in range(int(left_B.max(initial=0))):
        now_R = np.flatnonzero(left_B > turn)
        log_probs_BV[now_R] = _read(sessions, caches, batch, now_R, begin_B[now_R] + turn)
    return caches | {LOG_PROBS: log_probs_BV}


def _read(sessions: OnnxSessions, caches: dict[str, Array], batch: Batch, rows_R: I64, before_R: I64) -> Array:
    """Read one event of some rows, of which `before_R` events are in the caches, into these; return what follows it."""
    neighbours = int(rows_R[-1]) - int(rows_R[0]) == len(rows_R) - 1
    pick: slice | I64 = slice(int(rows_R[0]), int(rows_R[-1]) + 1) if neighbours else rows_R
    none = np.zeros((len(rows_R), caches["prefix_key_0"].shape[1], 1, caches["prefix_key_0"].shape[3]))
    arrays = {
        "token": batch.tokens_BS[rows_R, before_R][:, None],
        "lengths": before_R.astype(np.int32),
        "step": np.zeros(1, np.int32),
        "banned": np.zeros((len(rows_R), 0), np.int32),
        "read": np.zeros((len(rows_R), 1), np.int32),
    }
    for name, cache in caches.items():
        arrays[name] = cache[pick]
        arrays[name.replace("prefix", "suffix")] = none.astype(cache.dtype)
    inputs = {name: sessions.value(array) for name, array in arrays.items()}
    one = sessions.value(np.ones(1, np.int64), on_host=True)
    outputs = sessions.run("decode", inputs | {"choices": one, "items": one})
    for name, cache in caches.items():
        cache[rows_R, :, before_R + 1] = outputs[name.replace("prefix", "column")].numpy()[:, :, 0]
    return host(outputs[LOG_PROBS])
