"""Ragged rows as a padded matrix: what a loop over rows would fill in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec_batch.core.arrays import Ragged


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
