"""`draws`: numbers that belong to a user of a run, whoever else is in the batch."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec_batch.rules import draws


@pytest.mark.parametrize("kind", [pl.Int64, pl.UInt64, pl.Int32, pl.String])
def test_a_user_has_the_same_key_in_every_batch(kind):
    ids = pl.Series(range(100, 160)).cast(kind)
    whole = draws.keys(ids, 5)
    assert len(set(whole.tolist())) == 60
    np.testing.assert_array_equal(draws.keys(ids.slice(17, 20), 5), whole[17:37])
    np.testing.assert_array_equal(draws.keys(ids.reverse(), 5), whole[::-1])
    assert not set(whole.tolist()) & set(draws.keys(ids, 6).tolist()), "another run draws other numbers"


def test_text_of_any_length_and_script_has_a_key():
    ids = pl.Series(["", "a", "ab", "b", "ü", "x" * 300, "7"])
    keys = draws.keys(ids, 1)
    assert len(set(keys.tolist())) == len(ids)
    assert draws.keys(pl.Series([], dtype=pl.String), 1).shape == (0,)


def test_fnv_is_the_published_one():
    """Test vectors of Noll's reference implementation, 64 bits."""
    found = draws._of_texts(pl.Series(["", "a", "foobar"]))
    assert found.tolist() == [0xCBF29CE484222325, 0xAF63DC4C8601EC8C, 0x85944171F73967E8]


def test_numbers_are_even_and_independent():
    drawn = draws.uniform(draws.keys(pl.Series(range(20_000)), 3), 4, 2)
    assert drawn.shape == (20_000, 4, 2)
    assert 0 <= drawn.min() < drawn.max() < 1
    flat = drawn.reshape(len(drawn), 8)
    np.testing.assert_allclose(flat.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(flat, rowvar=False), np.eye(8), atol=0.03)
    in_ten = np.stack([np.histogram(column, 10, (0, 1))[0] for column in flat.T])
    np.testing.assert_allclose(in_ten / 2000, 1, atol=0.12)


def test_a_longer_list_keeps_the_draws_of_its_first_places():
    keys = draws.keys(pl.Series(range(5)), 3)
    np.testing.assert_array_equal(draws.uniform(keys, 10, 2)[:, :4], draws.uniform(keys, 4, 2))


def test_the_seed_is_that_of_the_facts_whatever_their_order():
    assert draws.seed_of({"a": 1, "b": [2]}) == draws.seed_of({"b": [2], "a": 1}) != draws.seed_of({"a": 1, "b": [3]})
    assert 0 <= draws.seed_of({}) < 2**64
