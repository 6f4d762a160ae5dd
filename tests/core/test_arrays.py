"""Ragged rows as a padded matrix, and masks as bit maps: what a loop over rows would fill in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec_batch.core.arrays import Batch, Masks, Ragged


def ragged(rows):
    values = np.array([value for row in rows for value in row], np.int32)
    return Ragged(offsets_N1=np.cumsum([0, *map(len, rows)]), values=values)


ROWS = st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=9)


@given(rows=ROWS, width=st.one_of(st.none(), st.integers(1, 9)), picked=st.data())
def test_padded_rows_are_those_of_a_loop(rows, width, picked):
    start, stop = sorted(picked.draw(st.tuples(*[st.integers(0, len(rows))] * 2)))
    any_order = picked.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9))
    for rows_B in (np.arange(start, stop), np.array(any_order, np.int64)):
        wide = width or max([1, *(len(rows[row]) for row in rows_B)])
        expected = [(rows[row] + [0] * wide)[:wide] for row in rows_B]
        got = ragged(rows).padded(rows_B, width)
        assert (got.shape, got.dtype) == ((len(rows_B), wide), np.int32)
        assert got.tolist() == expected


def test_neighbouring_full_rows_are_not_copied():
    held = ragged([[1, 2], [3, 4], [5, 6], [7]])
    assert np.shares_memory(held.padded(np.arange(1, 3)), held.values)
    assert not np.shares_memory(held.padded(np.arange(2, 4)), held.values)


@pytest.mark.parametrize("width", [None, 3])
def test_no_values_are_all_padding(width):
    assert ragged([[], []]).padded(np.arange(2), width).tolist() == [[0] * (width or 1)] * 2


def random_masks(vocabulary, rules, rows):
    random = np.random.default_rng(vocabulary)
    banned_MV = random.random((rules, vocabulary)) < 0.3
    return banned_MV, Masks.of(banned_MV, random.integers(0, rules, rows))


@pytest.mark.parametrize("vocabulary", [1, 7, 31, 32, 33, 64, 10_000])
def test_a_bit_of_a_mask_is_its_token(vocabulary):
    banned_MV, masks = random_masks(vocabulary, 3, 5)
    assert (masks.banned_MW.dtype, masks.banned_MW.shape) == (np.uint32, (3, -(-vocabulary // 32)))
    for rule, words in enumerate(masks.banned_MW.tolist()):
        bits = [bool(words[token // 32] >> token % 32 & 1) for token in range(vocabulary)]
        assert bits == banned_MV[rule].tolist()
        assert sum(word.bit_count() for word in words) == sum(bits)  # nothing beyond the vocabulary
    assert (masks.unpacked(vocabulary) == banned_MV).all()
    every = np.tile(np.arange(vocabulary, dtype=np.int32), (5, 1))
    assert (masks.banned_BC(every) == banned_MV[masks.mask_B]).all()


def test_rows_of_masks_are_those_of_a_batch():
    banned_MV, masks = random_masks(70, 9, 9)
    empty = np.zeros((9, 1), np.int32)
    batch = Batch(dense_BF=np.zeros((9, 4), np.float32), tokens_BS=empty, lengths_B=empty[:, 0], seen_BX=empty)
    assert batch.rows(2, 6).masks is None
    part = Batch(**{**vars(batch), "masks": masks}).rows(2, 6)
    assert len(part) == len(part.masks) == 4
    assert part.masks.banned_MW is masks.banned_MW  # bit maps are not copied
    assert (part.masks.unpacked(70)[part.masks.mask_B] == banned_MV[masks.mask_B[2:6]]).all()


def test_taken_rows_have_at_most_a_bit_map_each():
    banned_MV, masks = random_masks(70, 9, 20)
    rows_B = np.array([7, 3, 7, 0])
    few = masks.take(rows_B)
    assert len(few.banned_MW) <= 4
    assert (few.unpacked(70)[few.mask_B] == banned_MV[masks.mask_B[rows_B]]).all()
    assert masks.take(np.arange(20)).banned_MW is masks.banned_MW
    everybody = Masks.of(banned_MV[:1], np.zeros(20))
    assert everybody.take(rows_B).banned_MW is everybody.banned_MW


def test_lists_of_a_rows_own_are_banned_beside_its_bit_map():
    banned_MV, masks = random_masks(70, 3, 4)
    masks = dataclasses.replace(masks, own=ragged([[5, 9], [], [69], [2]]))
    every = np.tile(np.arange(70, dtype=np.int32), (4, 1))
    wanted_BV = banned_MV[masks.mask_B].copy()
    wanted_BV[[0, 0, 2, 3], [5, 9, 69, 2]] = True
    assert (masks.banned_BC(every) == wanted_BV).all()
    assert (masks.rows(1, 3).banned_BC(every[1:3]) == wanted_BV[1:3]).all()
    rows_B = np.array([2, 0, 2])
    assert (masks.take(rows_B).banned_BC(every[:3]) == wanted_BV[rows_B]).all()
    assert (masks.bit_maps().banned_BC(every) == banned_MV[masks.mask_B]).all()
    nothing = Masks(banned_MW=np.zeros((1, 3), np.uint32), mask_B=np.zeros(4, np.int32), own=masks.own)
    assert nothing.bit_maps() is None
