"""Which videos are watched close to each other, and which right after each other.

Owns: the counting of pairs, their normalisation, and scores from a row's newest videos. Must not know: users, files,
metrics. In: tokens of histories. Out: `CoViews` and `Moves`.

Two events of a user that are d <= WINDOW apart add 1/d to their pair, in both directions. The weight of a pair is the
cosine: its sum divided by the square root of both videos' views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genrec_batch.core.arrays import F32, FIRST_ITEM, I32, I64, Ragged
from genrec_batch.runtime.console import LOG

WINDOW = 10  # events within which two videos occur together
NEWEST, DECAY = 10, 0.8  # events of a row that vote, and what each weighs beside the one after it
AT_ONCE = 1 << 18  # events whose pairs are counted at once
MOST_TOKENS = 1 << 14  # of the matrix of pairs, which then takes 1 GiB; the catalog's later tokens are the least viewed
WIDTH = 64  # of a video's vector
SEED = 20_260_101


@dataclass(frozen=True, kw_only=True)
class CoViews:
    """The weights of all pairs of the W first tokens, symmetric; tokens from W on are in no pair."""

    weight_WW: F32
    tokens: int

    def scores(self, newest_CR: I32) -> F32:
        """Return the sum of the rows of some tokens, newest first, each weighing DECAY of the one before it, [C, V]."""
        width = len(self.weight_WW)
        score_CV = np.zeros((len(newest_CR), self.tokens), np.float32)
        score_CW = score_CV[:, :width]
        voting_CR = np.where(newest_CR < width, newest_CR, 0)  # row 0, padding, adds nothing
        for column in range(newest_CR.shape[1] - 1, -1, -1):
            score_CW *= DECAY
            score_CW += self.weight_WW[voting_CR[:, column]]
        return score_CV

    def vectors(self) -> F32:
        """Return a vector of length 1 for each token, [V, WIDTH]: alike where videos occur with the same videos.

        A random projection of the rows nearly keeps their cosines (Johnson and Lindenstrauss 1984). A video that occurs
        with none has a vector of zeros.
        """
        width = len(self.weight_WW)
        direction_WD = np.random.Generator(np.random.Philox(SEED)).standard_normal((width, WIDTH), np.float32)
        vector_VD = np.zeros((self.tokens, WIDTH), np.float32)
        vector_VD[:width] = self.weight_WW @ direction_WD
        length_V = np.linalg.norm(vector_VD, axis=1)
        vector_VD /= np.where(length_V > 0, length_V, 1)[:, None]
        return vector_VD


def count(histories: Ragged, views_V: I64) -> CoViews:
    """Count the pairs of all histories, oldest event first."""
    tokens = len(views_V)
    width = min(tokens, MOST_TOKENS)
    if width < tokens:
        LOG.warning("co-occurrence: of %s videos, only the %s most viewed are counted", f"{tokens:,}", f"{width:,}")
    weight_WW = np.zeros((width, width), np.float32)
    flat = weight_WW.reshape(-1)
    for token_E, user_E in _parts(histories):
        there_E = (token_E >= FIRST_ITEM) & (token_E < width)
        for distance in range(1, min(WINDOW, len(token_E) - 1) + 1):
            both = user_E[:-distance] == user_E[distance:]
            both &= there_E[:-distance] & there_E[distance:]
            pairs = token_E[:-distance][both] * width + token_E[distance:][both]
            np.add.at(flat, pairs, np.float32(1 / distance))
    views_W = np.maximum(views_V[:width], 1).astype(np.float32)
    for start in range(0, width, 256):  # both directions, tile by tile: no second matrix
        for other in range(0, start + 1, 256):
            here, there = slice(start, start + 256), slice(other, other + 256)
            tile = weight_WW[here, there] + weight_WW[there, here].T
            tile /= np.sqrt(views_W[here, None] * views_W[None, there])
            weight_WW[here, there], weight_WW[there, here] = tile, tile.T
    return CoViews(weight_WW=weight_WW, tokens=tokens)


@dataclass(frozen=True, kw_only=True)
class Moves:
    """How often which token follows which: `next_P[offsets_V1[v]:offsets_V1[v + 1]]` follow v, each once."""

    offsets_V1: I64
    next_P: I32
    count_P: I64

    def scores(self, last_C: I32) -> F32:
        """Return how often each token followed the given ones, [C, V]."""
        tokens = len(self.offsets_V1) - 1
        begin_C, length_C = self.offsets_V1[last_C], np.diff(self.offsets_V1)[last_C]
        place = np.arange(int(length_C.sum())) + np.repeat(begin_C - (np.cumsum(length_C) - length_C), length_C)
        score_CV = np.zeros((len(last_C), tokens), np.float32)
        score_CV[np.repeat(np.arange(len(last_C)), length_C), self.next_P[place]] = self.count_P[place]
        return score_CV


def moves(histories: Ragged, tokens: int) -> Moves:
    """Count which video is watched right after which."""
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for token_E, user_E in _parts(histories):
        before, after = token_E[:-1], token_E[1:]
        there = (user_E[1:] == user_E[:-1]) & (before >= FIRST_ITEM) & (after >= FIRST_ITEM)
        found, times = np.unique(before[there] * tokens + after[there], return_counts=True)
        keys, place = np.unique(np.concatenate([keys, found]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, times]), len(keys)).astype(np.int64)
    offsets_V1 = np.concatenate([[0], np.cumsum(np.bincount(keys // tokens, minlength=tokens))])
    return Moves(offsets_V1=offsets_V1, next_P=(keys % tokens).astype(np.int32), count_P=counts)


def _parts(histories: Ragged) -> Iterator[tuple[I64, I64]]:
    """Yield the tokens of some users' events at a time, and whose they are."""
    start = 0
    while start < len(histories):
        stop = int(np.searchsorted(histories.offsets_N1, histories.offsets_N1[start] + AT_ONCE, "right")) - 1
        stop = max(start + 1, stop)
        part = histories.slice(start, stop)
        yield part.values.astype(np.int64), np.repeat(np.arange(len(part)), part.lengths_N)
        start = stop


def newest(histories: Ragged, rows_M: I64, count: int) -> I32:
    """Return the newest `count` tokens of some histories, newest first, padded with 0: [M, count]."""
    if not len(histories.values):
        return np.zeros((len(rows_M), count), np.int32)
    place_MR = histories.offsets_N1[rows_M + 1][:, None] - 1 - np.arange(count)
    there_MR = np.arange(count) < histories.lengths_N[rows_M][:, None]
    return np.where(there_MR, histories.values.take(place_MR, mode="clip"), 0).astype(np.int32)
