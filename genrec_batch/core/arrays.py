"""The border types: what the columnar side hands to the tensor side, and what comes back.

Owns: small frozen dataclasses of NumPy arrays. Must not know: Polars, torch, ONNX, files. Every room imports it; it
imports none.

Shape legend, used as suffixes everywhere: N users, E events of all those users together, B users of one batch, S
tokens (the longest history of a batch), F features (1024), P user-profile floats (256), V video-feature floats (512),
X seen items, C candidates, K items recommended, H task heads (4), M masks; of masks and logits, V is the vocabulary and
W its words of 32 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.bool_]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

Pick = slice | npt.NDArray[np.int64]  # a slice of a flat array, or places in it

MASK_BITS = 32  # tokens in a word of a mask
HEADS = ("recommendation", "engagement", "retention", "monetization")
PADDING, UNKNOWN, FIRST_ITEM = 0, 1, 2
SOURCES = ("model", "promoted", "explored", "popular")  # why a video is in a list; a code is a place in this tuple
MODEL, PROMOTED, EXPLORED, POPULAR = range(len(SOURCES))


def address(array: npt.NDArray[Any]) -> int:
    """Return the address of an array's first item in memory."""
    start: int = array.__array_interface__["data"][0]
    return start


def row_keys(row_E: I64, tokens_E: I32) -> I64:
    """Return numbers that are equal only for the same token in the same row, and rise by row and token."""
    return tokens_E.astype(np.int64) + (row_E << 32)


def offsets_of(lengths_N: I64) -> I64:
    """Return where each of N neighbouring rows begins in a flat array, and the end, [N + 1]."""
    offsets_N1 = np.zeros(len(lengths_N) + 1, np.int64)
    np.cumsum(lengths_N, out=offsets_N1[1:])
    return offsets_N1


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Rows of different lengths in one flat array: row i is `values[offsets_N1[i]:offsets_N1[i + 1]]`."""

    offsets_N1: I64
    values: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets_N1) - 1

    @property
    def lengths_N(self) -> I64:
        """Length of each row, [N]."""
        return np.diff(self.offsets_N1)

    def slice(self, start: int, stop: int) -> Ragged:
        """Return rows start..stop as views."""
        offsets_N1 = self.offsets_N1[start : stop + 1]
        return Ragged(offsets_N1=offsets_N1 - offsets_N1[0], values=self.values[offsets_N1[0] : offsets_N1[-1]])

    def take(self, rows_B: I64) -> Ragged:
        """Return some rows in the given order."""
        offsets_B1, picked = _gather(self.offsets_N1, rows_B)
        return Ragged(offsets_N1=offsets_B1, values=self.values[picked])

    def padded(self, rows_B: I64, width: int | None = None) -> I32:
        """Return the given rows left-aligned and padded with 0, [B, width] (their longest, at least 1).

        Neighbouring rows that need no padding are a view.
        """
        lengths_B = self.lengths_N[rows_B]
        longest = int(lengths_B.max(initial=0))
        width = max(1, longest) if width is None else width
        if not len(self.values):
            return np.zeros((len(rows_B), width), np.int32)
        starts_B = self.offsets_N1[rows_B]
        padded: I32
        if longest <= width and len(rows_B) and bool((np.diff(rows_B) == 1).all()):
            flat = self.values[starts_B[0] : self.offsets_N1[rows_B[-1] + 1]]
            if len(flat) == len(rows_B) * width:
                return flat.reshape(len(rows_B), width)
            beyond = np.concatenate([flat, np.zeros(width, np.int32)])
            padded = sliding_window_view(beyond, width)[
                starts_B - starts_B[0]
            ]  # each row with the values that follow it
        else:
            padded = self.values.take(starts_B[:, None] + np.arange(width), mode="clip")
        if int(lengths_B.min(initial=width)) < width:
            padded *= np.arange(width, dtype=np.int32) < lengths_B.astype(np.int32)[:, None]
        return padded

    def same_as(self, other: Ragged) -> bool:
        """Return whether both are views of the same rows in memory."""
        ours, theirs = self.values, other.values
        return ours.shape == theirs.shape and ours.ctypes.data == theirs.ctypes.data


@dataclass(frozen=True, kw_only=True)
class SideTable:
    """`--users` or `--videos` as arrays, one row per id; row -1 always means "not in the table".

    `hashed_R200` are the 200 floats that enter the feature layout (the table's own list, else its hashed columns), and
    `has_hashed_R` tells which rows have them (a null list has none). `dense_RD` are the floats that enter the model's
    own projection (256 for users, 512 for videos), None where the table has none; `has_dense_R` as above.
    `creator_R` and `category_R` are dense codes from 0, -1 for null (both empty for users). `extra_RX` are the users'
    further features, None where there are none.
    """

    hashed_R200: F32
    has_hashed_R: U8
    dense_RD: F32 | None
    has_dense_R: U8 | None
    creator_R: I32
    category_R: I32
    extra_RX: F32 | None = None


@dataclass(frozen=True, kw_only=True)
class Histories:
    """The kept histories of N users, flat: user i's events are [offsets_N1[i], offsets_N1[i+1]), oldest first.

    `numbers` maps an events column to float64 [E], NaN for null; `flags` a Boolean one to int8 [E]: 1, 0, and -1
    for null. `categories` maps a one-hot column to int8 [E]: -1 for null, 0 for a value that is not in the layout's
    list, else its place in that list. A column that the log lacks is in no mapping. `session_E` numbers the
    sessions of `session_id` (-1 for null), None where the log has no such column.
    """

    offsets_N1: I64
    time_us_E: I64
    tokens_E: I32
    video_code_E: I32  # equal exactly where video_id is equal; not the token: unknown videos differ from each other
    video_row_E: I32  # row of the videos table, -1 where it has none
    session_E: I64 | None
    numbers: Mapping[str, F64]
    flags: Mapping[str, I8]
    categories: Mapping[str, I8]
    total_events_N: I64  # all the user's events up to as-of, kept or not
    user_row_N: I32  # row of the users table, -1 where it has none
    seen: Ragged  # tokens of the newest `--seen-limit` distinct videos; may repeat and hold the unknown token
    as_of_us_N: I64  # the moment that a history is read at, by which its age counts; one for all in a run of `score`
    beyond: Ragged | None = None  # videos of the user's events that have a number though the model does not know them

    def __len__(self) -> int:
        return len(self.offsets_N1) - 1

    @property
    def lengths_N(self) -> I64:
        """Kept events of each user, [N]."""
        return np.diff(self.offsets_N1)

    def slice(self, start: int, stop: int) -> Histories:
        """Return users start..stop as views."""
        offsets_N1 = self.offsets_N1[start : stop + 1]
        events = slice(int(offsets_N1[0]), int(offsets_N1[-1]))
        return self._pick(
            offsets_N1 - offsets_N1[0],
            slice(start, stop),
            events,
            self.seen.slice(start, stop),
            None if self.beyond is None else self.beyond.slice(start, stop),
        )

    def take(self, rows_B: I64) -> Histories:
        """Return some users' histories in the given order, [B users]."""
        offsets_B1, events_E = _gather(self.offsets_N1, rows_B)
        beyond = None if self.beyond is None else self.beyond.take(rows_B)
        return self._pick(offsets_B1, rows_B, events_E, self.seen.take(rows_B), beyond)

    def _pick(self, offsets_N1: I64, users: Pick, events: Pick, seen: Ragged, beyond: Ragged | None) -> Histories:
        return Histories(
            offsets_N1=offsets_N1,
            time_us_E=self.time_us_E[events],
            tokens_E=self.tokens_E[events],
            video_code_E=self.video_code_E[events],
            video_row_E=self.video_row_E[events],
            session_E=None if self.session_E is None else self.session_E[events],
            numbers={name: values[events] for name, values in self.numbers.items()},
            flags={name: values[events] for name, values in self.flags.items()},
            categories={name: values[events] for name, values in self.categories.items()},
            total_events_N=self.total_events_N[users],
            user_row_N=self.user_row_N[users],
            seen=seen,
            as_of_us_N=self.as_of_us_N[users],
            beyond=beyond,
        )

    def cold_start_N(self) -> U8:
        """Return which users have no known video in their history, [N]."""
        user_E = np.repeat(np.arange(len(self)), self.lengths_N)
        cold_N: U8 = np.bincount(user_E, self.tokens_E >= FIRST_ITEM, len(self)) == 0
        return cold_N

    def token_rows(self) -> Ragged:
        """Return each user's tokens, oldest first."""
        return Ragged(offsets_N1=self.offsets_N1, values=self.tokens_E)


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Which tokens must not be recommended to each of B rows: M different bit maps, and which one a row obeys.

    A rule for everybody is one bit map, a rule for groups a few, lists of each user's own at most B. Bit t % 32 of word
    t // 32 of a bit map is 1 where token t must not be recommended. V is the model's whole vocabulary.

    `own` holds short lists beside the bit maps: the further tokens that must not be recommended to a row, rising. A
    bit map of its own for every row would be the largest part of a batch. Engines see no such lists: `ModelInputs`
    hands them over with what is seen.
    """

    banned_MW: U32
    mask_B: I32
    own: Ragged | None = None

    @staticmethod
    def of(banned_MV: U8, mask_B: npt.ArrayLike) -> Masks:
        """Return the masks of B rows from M rules as Booleans, True where a token must not be recommended."""
        rules, vocabulary = banned_MV.shape
        bytes_MC = np.zeros((rules, -(-vocabulary // MASK_BITS) * MASK_BITS // 8), np.uint8)
        packed_MC = np.packbits(banned_MV, axis=1, bitorder="little")
        bytes_MC[:, : packed_MC.shape[1]] = packed_MC
        return Masks(banned_MW=bytes_MC.view("<u4").astype(np.uint32, copy=False), mask_B=np.asarray(mask_B, np.int32))

    def __len__(self) -> int:
        return len(self.mask_B)

    def rows(self, start: int, stop: int) -> Masks:
        """Return rows start..stop; all bit maps stay."""
        own = None if self.own is None else self.own.slice(start, stop)
        return Masks(banned_MW=self.banned_MW, mask_B=self.mask_B[start:stop], own=own)

    def take(self, rows_B: Pick) -> Masks:
        """Return some rows in the given order, with at most as many bit maps as there are rows."""
        own = self.own
        if own is not None:
            own = own.slice(rows_B.start, rows_B.stop) if isinstance(rows_B, slice) else own.take(rows_B)
        return Masks(banned_MW=self.banned_MW, mask_B=self.mask_B[rows_B], own=own).compact()

    def bit_maps(self) -> Masks | None:
        """Return the bit maps without the lists of `own`; None where they ban nothing."""
        if len(self.banned_MW) == 1 and not self.banned_MW.any():
            return None
        return replace(self, own=None)

    def compact(self) -> Masks:
        """Return the same masks without bit maps that no row obeys, if there are more of them than rows."""
        if len(self.banned_MW) <= len(self.mask_B):
            return self
        used_M, mask_B = np.unique(self.mask_B, return_inverse=True)
        return Masks(banned_MW=self.banned_MW[used_M], mask_B=mask_B.astype(np.int32), own=self.own)

    def banned_BC(self, tokens_BC: I32) -> U8:
        """Return which tokens of a row must not be recommended to it, [B, C]."""
        words_BC = self.banned_MW[self.mask_B[:, None], tokens_BC // MASK_BITS]
        banned_BC: U8 = (words_BC >> (tokens_BC % MASK_BITS).astype(np.uint32)) & 1 != 0
        if self.own is not None:
            own_keys = row_keys(np.repeat(np.arange(len(self)), self.own.lengths_N), self.own.values)
            banned_BC |= np.isin(row_keys(np.arange(len(self))[:, None], tokens_BC), own_keys)
        return banned_BC

    def unpacked(self, vocabulary: int) -> U8:
        """Return the bit maps as Booleans, [M, V]."""
        return np.unpackbits(self.bytes_MC, axis=1, count=vocabulary, bitorder="little").astype(np.bool_)

    @property
    def bytes_MC(self) -> npt.NDArray[np.uint8]:
        """Return the bit maps as bytes, [M, 4 W]: bit t % 8 of byte t // 8 is token t."""
        return np.ascontiguousarray(self.banned_MW).astype("<u4", copy=False).view(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the model reads for B users. Rows are left-aligned: tokens oldest first, then padding (0).

    `profile_BP` and `video_BV` are zero where `has_profile_B` / `has_video_B` is False: such a row gets neither the
    product nor the bias of that projection. They are None where the run has no such input at all.
    """

    dense_BF: F32
    tokens_BS: I32
    lengths_B: I32  # real tokens of each row, 0..S
    seen_BX: I32  # never to be recommended, padded with 0
    candidates_BC: I32 | None = None  # given candidates, padded with 0
    profile_BP: F32 | None = None
    has_profile_B: U8 | None = None
    video_BV: F32 | None = None
    has_video_B: U8 | None = None
    masks: Masks | None = None  # what must not be recommended, beside `seen_BX`

    def __len__(self) -> int:
        return len(self.lengths_B)

    def rows(self, start: int, stop: int) -> Batch:
        """Return rows start..stop as views."""
        return self._picked(slice(start, stop), None if self.masks is None else self.masks.rows(start, stop))

    def take(self, rows_R: I64) -> Batch:
        """Return copies of some rows, in the order given."""
        return self._picked(rows_R, None if self.masks is None else self.masks.take(rows_R))

    def _picked(self, rows: Pick, masks: Masks | None) -> Batch:
        arrays: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        there = {name: each[rows] for name, each in arrays.items() if each is not None and name != "masks"}
        return Batch(**there, masks=masks)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """What the model recommends, in decode order; token 0 means "nothing left to recommend" (only at a row's end)."""

    tokens_BK: I32
    log_prob_BK: F32  # over the whole vocabulary, given the history and the items decoded before this one
    heads_BKH: F32  # sigmoid of the four heads, from the hidden state that has read this item; order of HEADS

    def __len__(self) -> int:
        return len(self.tokens_BK)


def _gather(offsets_N1: I64, rows_B: I64) -> tuple[I64, I64]:
    """Return the offsets of the picked ragged rows, end to end, and the index of each of their values."""
    lengths_B = np.diff(offsets_N1)[rows_B]
    offsets_B1 = offsets_of(lengths_B)
    within = np.arange(offsets_B1[-1]) - np.repeat(offsets_B1[:-1], lengths_B)
    return offsets_B1, np.repeat(offsets_N1[rows_B], lengths_B) + within
