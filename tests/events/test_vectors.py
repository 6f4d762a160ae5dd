"""Embeddings of any width as 200 numbers, against the formula written down value by value."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import xxhash

from genrec_batch.events import vectors
from genrec_batch.events.side_tables import users_table, videos_table


def by_hand(vector):
    """Fill up a short vector with zeros, hash a long one."""
    if len(vector) <= 200:
        return [*vector, *[0.0] * (200 - len(vector))]
    total = [0.0] * 200
    for place, value in enumerate(vector):
        h = xxhash.xxh64_intdigest(f"[{place}]".encode(), seed=0)
        total[h % 200] += -value if h >> 63 else value
    return total


@pytest.mark.parametrize("width", [1, 64, 128, 199, 200, 201, 768])
def test_an_embedding_of_any_width_becomes_200_numbers(width):
    given = np.random.default_rng(width).normal(size=(3, width)).astype(np.float32)
    column = pl.Series([given[0].tolist(), None, given[2].tolist()], dtype=pl.List(pl.Float32))
    table = videos_table(pl.DataFrame({"video_id": [1, 2, 3], "embedding": column}))
    expected = [by_hand(given[0].tolist()), [0.0] * 200, by_hand(given[2].tolist())]
    np.testing.assert_allclose(table.hashed_R200, expected, rtol=1e-6, atol=1e-6)
    assert table.has_hashed_R.tolist() == [True, False, True]


def test_a_profile_too_and_a_batch_without_any():
    frame = pl.DataFrame({"user_id": [1, 2], "profile": [[0.5] * 3, None]})
    assert users_table(frame).hashed_R200[0, :4].tolist() == [0.5, 0.5, 0.5, 0.0]
    assert users_table(frame[1:]).hashed_R200.shape == (1, 200)


@pytest.mark.parametrize(
    ("rows", "width", "odd"),
    [
        ([[1.0, 2.0], [1.0], None, [3.0, 4.0]], None, [1]),
        ([[1.0, 2.0], [1.0, float("nan")], [1.0, None], [float("inf"), 1.0], None, [3.0, 4.0]], None, [1, 2, 3]),
        ([[1.0, 2.0], [1.0], [3.0, 4.0]], 2, [1]),
        ([[1.0], [1.0], [3.0, 4.0]], 2, []),  # most are wrong: a fault of the table, not of a row
        ([["a"]], None, []),
    ],
)
def test_rows_whose_vector_cannot_be_used_are_found(rows, width, odd):
    assert vectors.odd_rows(pl.Series("v", rows), width).arg_true().to_list() == odd
