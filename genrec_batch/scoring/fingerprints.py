"""Fingerprints: all that a user's rows depend on, in 128 bits, so that a later run knows whether they are still right.

Owns: what enters a fingerprint, what all users share instead, and the table that keeps fingerprints beside an output.
Must not know: files, how rows are computed. In: what the model reads of users (`batches.ModelInputs`). Out: `Prints`.

Beside it lie the feature that moves with as-of for everybody, and the moment that the rows were computed as of: with
them a later run knows whose input is the same but for as-of, and how old rows are.

A fingerprint covers the 1024 features (so the kept history, the profile, the videos, and as-of), the tokens, the seen
videos, given candidates, vectors and the mask of what must not be recommended; a `scope` covers what all users share:
version, model, catalog, layout, engine, precision, and the options that change rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from genrec_batch.core import layout
from genrec_batch.core.arrays import F32, I64, U8, U64, Ragged
from genrec_batch.core.declare import values
from genrec_batch.core.options import ScoreConfig
from genrec_batch.events.sorter import NUMPY, Sorter
from genrec_batch.features.batches import ModelInputs
from genrec_batch.scoring import shortfalls

WORDS = 2  # of 64 bits in a fingerprint
NEVER = np.uint64(0x9E3779B97F4A7C15)  # with a fingerprint it is none of any input
MASK_SALT, OWN_SALT = 9, 10  # after those of what a user read and of the vectors
WORD_NAMES = [f"fingerprint_{word}" for word in range(WORDS)]
RECENCY, AS_OF = "recency", "as_of"
COLUMNS = ["user_id", *WORD_NAMES, RECENCY, AS_OF, shortfalls.COLUMN]
SHARED = ("version", "model", "catalog", "layout", "engine", "device", "precision", "arithmetic")
ARMS = "arms"  # of a run that has some


@dataclass(frozen=True, kw_only=True)
class Prints:
    """What N users' rows were computed from, and when."""

    words_NW: U64
    recency_N: F32  # slot 1008, which moves with as-of
    as_of_us_N: I64  # the moment that the rows were computed as of

    @staticmethod
    def of(inputs: ModelInputs, as_of_us: int, sorter: Sorter = NUMPY) -> Prints:
        """Return the prints of users whose rows are computed as of this moment."""
        return Prints(
            words_NW=fingerprints(inputs, sorter),
            recency_N=inputs.dense_NF[:, layout.RECENCY].copy(),
            as_of_us_N=np.full(len(inputs.histories), as_of_us, np.int64),
        )

    @staticmethod
    def read(frame: pl.DataFrame) -> Prints:
        """Return what `table` wrote."""
        return Prints(
            words_NW=frame.select(WORD_NAMES).to_numpy().astype(np.uint64),
            recency_N=frame[RECENCY].to_numpy().astype(np.float32),
            as_of_us_N=frame[AS_OF].dt.epoch("us").to_numpy().astype(np.int64),
        )

    def table(self, ids: pl.Series, short: pl.Series) -> pa.Table:
        """Return users, their prints and why their lists are short (null for a whole one) as a table."""
        words = {name: self.words_NW[:, word] for word, name in enumerate(WORD_NAMES)}
        as_of = pl.Series(self.as_of_us_N).cast(pl.Datetime("us", "UTC"))
        frame = pl.DataFrame({"user_id": ids, **words, RECENCY: self.recency_N, AS_OF: as_of, shortfalls.COLUMN: short})
        return frame.to_arrow(compat_level=pl.CompatLevel.oldest())

    def without(self, rows_R: I64) -> Prints:
        """Return prints with which nobody at some rows keeps these rows in a later run."""
        words_NW = self.words_NW.copy()
        words_NW[rows_R] ^= NEVER
        return replace(self, words_NW=words_NW)

    def take(self, rows_N: I64) -> Prints:
        """Return the prints of some users."""
        return Prints(
            words_NW=self.words_NW[rows_N], recency_N=self.recency_N[rows_N], as_of_us_N=self.as_of_us_N[rows_N]
        )

    def where(self, chosen_N: U8, others: Prints) -> Prints:
        """Return those of `others` where chosen, else these."""
        return Prints(
            words_NW=np.where(chosen_N[:, None], others.words_NW, self.words_NW),
            recency_N=np.where(chosen_N, others.recency_N, self.recency_N),
            as_of_us_N=np.where(chosen_N, others.as_of_us_N, self.as_of_us_N),
        )

    def same(self, others: Prints) -> U8:
        """Return whose input is the same, [N]."""
        result: U8 = (self.words_NW == others.words_NW).all(axis=1)
        return result

    def same_but_for_as_of(self, others: Prints) -> U8:
        """Return whose input is the same but perhaps for the feature that moves with as-of, [N]."""
        result: U8 = (self._without_recency() == others._without_recency()).all(axis=1)
        return result

    def _without_recency(self) -> U64:
        bits_N = np.ascontiguousarray(self.recency_N).view(np.uint32).astype(np.uint64)
        rest_NW: U64 = self.words_NW - bits_N[:, None] * _multipliers(layout.RECENCY + 1)[layout.RECENCY]
        return rest_NW


def scope(identity: Mapping[str, Any], config: ScoreConfig) -> dict[str, Any]:
    """Return what decides the rows of all users, from a run's identity and options, and is in no fingerprint."""
    shared = {name: identity[name] for name in (*SHARED, ARMS) if name in identity}
    return {**shared, "config": values(config, "rows")}


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
    if inputs.masks is not None:
        of_masks_MW = _of_rows(inputs.masks.banned_MW.view(np.float32), sorter) * np.uint64(2 * MASK_SALT + 1)
        total_NW += of_masks_MW[inputs.masks.mask_B]
        if inputs.masks.own is not None:
            total_NW += _of_ragged(inputs.masks.own) * np.uint64(2 * OWN_SALT + 1)
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
