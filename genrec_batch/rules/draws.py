"""Random numbers that belong to a user of a run: the same in every batch, shard, engine and process.

Owns: keys of users, and numbers drawn from them. Must not know: what is drawn for. A key is a hash of the user's id and
the run's seed, a number is a hash of the key and a counter, both by splitmix64's finalizer (Steele, Lea and Flood 2014;
Stafford's variant 13); text is hashed before by FNV-1a. Nothing has a state, so nothing depends on an order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from genrec_batch.core.arrays import F64, U64

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FNV_START, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


def seed_of(facts: Mapping[str, Any]) -> int:
    """Return the seed, 64 bits, of what decides a run's rows (JSON-able)."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def keys(ids: pl.Series, seed: int) -> U64:
    """Return the keys of N users, [N], from their integer or text ids."""
    if ids.dtype.is_integer():
        plain_N = ids.cast(pl.Int64, wrap_numerical=True).to_numpy().view(np.uint64)
    else:
        plain_N = _of_texts(ids)
    return _mixed(_mixed(plain_N + GOLDEN) ^ np.uint64(seed))


def uniform(keys_B: U64, places: int, each: int) -> F64:
    """Return `each` numbers in [0, 1) for every place of every user's list, [B, places, each]."""
    counter = np.arange(1, places * each + 1, dtype=np.uint64) * GOLDEN
    bits_BX = _mixed(keys_B[:, None] + counter)
    drawn: F64 = (bits_BX >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn.reshape(len(keys_B), places, each)


def _mixed(bits: U64) -> U64:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _of_texts(ids: pl.Series) -> U64:
    """Return FNV-1a of the UTF-8 bytes of N texts: a loop over places of bytes, for all texts at once."""
    texts: Any = pa.chunked_array([ids.cast(pl.String).to_arrow(compat_level=pl.CompatLevel.oldest())]).combine_chunks()
    start = texts.offset
    offsets_N1 = np.frombuffer(texts.buffers()[1], np.int64, len(texts) + 1 + start)[start:]
    content = np.frombuffer(texts.buffers()[2] or b"\0", np.uint8)
    lengths_N = np.diff(offsets_N1)
    hash_N = np.full(len(texts), FNV_START)
    for place in range(int(lengths_N.max(initial=0))):
        rows = np.flatnonzero(lengths_N > place)
        hash_N[rows] = (hash_N[rows] ^ content[offsets_N1[rows] + place]) * FNV_PRIME
    return hash_N
