"""Incremental scoring: a fingerprint of all that a user's rows depend on, and an earlier output whose rows still hold.

Owns: fingerprints, the file that keeps them beside an output, and reading an earlier output's rows. Must not know: how
rows are computed. In: what the model reads of users (`batching.Part`) and an earlier output. Out: who must be scored
again, and the rows of the others.

A fingerprint covers the 1024 features (so the kept history, the profile, the videos, and as-of), the tokens, the seen
videos, given candidates and vectors; a `scope` covers what all users share: version, model, catalog, layout, engine,
precision, and the options that change rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch import existing
from genrec_batch.arrays import F32, I64, U8, Ragged
from genrec_batch.batching import Part
from genrec_batch.config import differences
from genrec_batch.errors import InputError

U64 = npt.NDArray[np.uint64]

WORDS = 2  # of 64 bits: a fingerprint
ROWS_AT_ONCE = 64  # of features, so that they stay in a core's cache
SHARED = ("version", "model", "catalog", "layout", "engine", "device", "precision")
UNSHARED = ("limit", "user", "as_of", "max_events", "seen_limit", "max_rejects", "shard_users", "batch_size")
SCOPE = b"genrec.scope"


def scope(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the rows of all users alike, of a run's lineage: not what a fingerprint covers."""
    shared = {name: identity[name] for name in SHARED}
    config = {name: value for name, value in identity["config"].items() if name not in UNSHARED}
    return {**shared, "config": config}


@lru_cache(maxsize=8)
def _multipliers(count: int) -> U64:
    """Return odd multipliers for so many values, [count, WORDS]: the first ones are the same for every count."""
    stream = hashlib.shake_128(b"genrec-batch fingerprint 1").digest(count * WORDS * 8)
    return np.frombuffer(stream, "<u8").reshape(count, WORDS) | np.uint64(1)


def fingerprints(part: Part, compiled: Any = None) -> U64:
    """Return a fingerprint for each of N users, [N, WORDS]; `compiled` is what `ordering.for_job` returns.

    Multilinear hashing (Carter and Wegman 1979): each 32-bit value times its place's own multiplier, summed
    modulo 2^64; two sums with different multipliers, so that two inputs collide with a chance of about 2^-66.
    """
    total_NW = _of_rows(part.dense_NF, compiled)
    ragged = [part.histories.token_rows(), part.histories.seen, part.candidates]
    for salt, rows in enumerate(ragged, start=2):
        if rows is not None:
            total_NW += _of_ragged(rows) * np.uint64(2 * salt + 1)
    vectors = [part.profile, part.video]
    for salt, vector in enumerate(vectors, start=7):
        if vector is not None:
            total_NW += _of_vectors(*vector) * np.uint64(2 * salt + 1)
    return total_NW


def _of_rows(values_NF: F32, compiled: Any = None) -> U64:
    bits_NF = np.ascontiguousarray(values_NF).view(np.uint32)
    by_FW = _multipliers(bits_NF.shape[1])
    total_NW = np.empty((len(bits_NF), WORDS), np.uint64)
    if compiled is not None:
        compiled.multiply_add(bits_NF, np.ascontiguousarray(by_FW.T), total_NW)
        return total_NW
    for start in range(0, len(bits_NF), ROWS_AT_ONCE):
        wide = bits_NF[start : start + ROWS_AT_ONCE].astype(np.uint64)
        for word in range(WORDS):
            total_NW[start : start + ROWS_AT_ONCE, word] = (wide * by_FW[:, word]).sum(axis=1)
    return total_NW


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
    columns = {f"fingerprint_{word}": prints_NW[:, word] for word in range(WORDS)}
    return pl.DataFrame({"user_id": ids, **columns}).to_arrow(compat_level=pl.CompatLevel.oldest())


@dataclass(frozen=True, kw_only=True)
class Previous:
    """An earlier output: who is in it with which fingerprint, and where their rows are."""

    ids: pl.Series  # rising
    prints_NW: U64
    rows: pl.LazyFrame
    why_not: str  # why none of its rows can hold, "" where they may

    @staticmethod
    def open(path: str, shared: Mapping[str, Any], id_type: pl.DataType) -> Previous:
        """Open the output of an earlier run; `shared` is this run's scope.

        Raises:
            InputError: not a finished output of `score`, or one without fingerprints.
        """
        place = Path(path)
        kept = existing.fingerprint_file(place)
        about = pq.read_schema(kept).metadata or {} if kept.is_file() else {}
        if about.get(b"genrec.run_id", b"").decode() != existing.finished_id(place):
            raise InputError(
                f"--previous {path}: not a finished output of genrec-batch score with its fingerprints ({kept.name}); "
                "name one, or leave the option out to score everybody"
            )
        table = pq.read_table(kept)
        before = json.loads(about[SCOPE])
        frame = pl.DataFrame(table)
        differing = differences(before, shared)
        if frame.schema["user_id"] != id_type:
            differing.append(f"user_id ({frame.schema['user_id']}, now {id_type})")
        files = [place] if place.is_file() else sorted(place.glob("part-*.parquet"))
        return Previous(
            ids=frame["user_id"],
            prints_NW=frame.select(pl.exclude("user_id")).to_numpy().astype(np.uint64),
            rows=pl.scan_parquet(files),
            why_not=", ".join(differing),
        )

    def unchanged(self, ids: pl.Series, prints_NW: U64) -> U8:
        """Return which of some users (rising ids) have the same fingerprint here, [N]."""
        if self.why_not or not len(self.ids) or not len(ids):
            return np.zeros(len(ids), np.bool_)
        place_N: I64 = self.ids.search_sorted(ids, "left").to_numpy().astype(np.int64)
        place_N = np.minimum(place_N, len(self.ids) - 1)
        same = (self.ids.gather(place_N) == ids).to_numpy()
        result: U8 = same & (self.prints_NW[place_N] == prints_NW).all(axis=1)
        return result

    def rows_of(self, ids: pl.Series) -> pa.Table:
        """Return the rows of some users (rising ids), in order."""
        low, high = ids[0], ids[-1]
        near = self.rows.filter(pl.col("user_id").is_between(pl.lit(low, ids.dtype), pl.lit(high, ids.dtype)))
        found = near.filter(pl.col("user_id").is_in(ids.implode())).collect()
        return found.to_arrow(compat_level=pl.CompatLevel.oldest())


def merged(scored: pa.Table, carried: pa.Table) -> pa.Table:
    """Return the rows of two groups of users, each in order, in the order of one output."""
    both = pl.concat([pl.DataFrame(scored), pl.DataFrame(carried)])
    keys = ["user_id", "rank"] if "rank" in both.columns and not both.schema["rank"].is_nested() else ["user_id"]
    return both.sort(keys).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(scored.schema)
