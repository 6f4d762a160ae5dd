"""Fingerprints: all that a user's rows depend on, in 128 bits, so that a later run knows whether they are still right.

Owns: what enters a fingerprint, what all users share instead, and the table that keeps fingerprints beside an output.
Must not know: files, how rows are computed. In: what the model reads of users (`batches.ModelInputs`). Out: two words
for each user.

A fingerprint covers the 1024 features (so the kept history, the profile, the videos, and as-of), the tokens, the seen
videos, given candidates and vectors; a `scope` covers what all users share: version, model, catalog, layout, engine,
precision, and the options that change rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from genrec_batch.core.arrays import F32, U8, U64, Ragged
from genrec_batch.core.declare import values
from genrec_batch.core.options import ScoreConfig
from genrec_batch.events.sorter import NUMPY, Sorter
from genrec_batch.features.batches import ModelInputs

WORDS = 2  # of 64 bits in a fingerprint
WORD_NAMES = [f"fingerprint_{word}" for word in range(WORDS)]
SHARED = ("version", "model", "catalog", "layout", "engine", "device", "precision", "arithmetic")


def scope(identity: Mapping[str, Any], config: ScoreConfig) -> dict[str, Any]:
    """Return what decides the rows of all users, from a run's identity and options, and is in no fingerprint."""
    return {**{name: identity[name] for name in SHARED}, "config": values(config, "rows")}


@lru_cache(maxsize=8)
def _multipliers(count: int) -> U64:
    """Return odd multipliers for `count` values, [count, WORDS]; the first ones are the same for every count."""
    stream = hashlib.shake_128(b"genrec-batch fingerprint 1").digest(count * WORDS * 8)
    return np.frombuffer(stream, "<u8").reshape(count, WORDS) | np.uint64(1)


def fingerprints(inputs: ModelInputs, sorter: Sorter = NUMPY) -> U64:
    """Return a fingerprint for each of N users, [N, WORDS].

    Multilinear hashing (Carter and Wegman 1979): each 32-bit value times its place's own multiplier, summed
    modulo 2^64; two sums with different multipliers, so that two inputs collide with a chance of about 2^-66.
    """
    total_NW = _of_rows(inputs.dense_NF, sorter)
    ragged = [inputs.histories.token_rows(), inputs.histories.seen, inputs.candidates]
    for salt, rows in enumerate(ragged, start=2):
        if rows is not None:
            total_NW += _of_ragged(rows) * np.uint64(2 * salt + 1)
    vectors = [inputs.profile, inputs.video]
    for salt, vector in enumerate(vectors, start=7):
        if vector is not None:
            total_NW += _of_vectors(*vector) * np.uint64(2 * salt + 1)
    return total_NW


def _of_rows(values_NF: F32, sorter: Sorter = NUMPY) -> U64:
    bits_NF = np.ascontiguousarray(values_NF).view(np.uint32)
    return sorter.weighted_sums(bits_NF, _multipliers(bits_NF.shape[1]))


def _of_ragged(rows: Ragged) -> U64:
    lengths_N = rows.lengths_N
    place = np.arange(len(rows.values)) - np.repeat(rows.offsets_N1[:-1], lengths_N)
    by_EW = _multipliers(int(lengths_N.max(initial=0)) + 1)
    total_NW = np.empty((len(rows), WORDS), np.uint64)
    for word in range(WORDS):
        sums = np.zeros(len(rows.values) + 1, np.uint64)
        np.cumsum(rows.values.astype(np.uint64) * by_EW[1:, word][place], out=sums[1:])
        total_NW[:, word] = np.diff(sums[rows.offsets_N1]) + lengths_N.astype(np.uint64) * by_EW[0, word]
    return total_NW


def _of_vectors(values_ND: F32, has_N: U8) -> U64:
    return _of_rows(np.concatenate([values_ND, has_N.astype(np.float32)[:, None]], axis=1))


def as_table(ids: pl.Series, prints_NW: U64) -> pa.Table:
    """Return users and their fingerprints as a table."""
    columns = {name: prints_NW[:, word] for word, name in enumerate(WORD_NAMES)}
    return pl.DataFrame({"user_id": ids, **columns}).to_arrow(compat_level=pl.CompatLevel.oldest())
