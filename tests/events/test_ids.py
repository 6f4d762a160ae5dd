"""Ids: counts and rows of any ids, by both sorters, against dictionaries."""

from __future__ import annotations

import collections
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_batch import events
from genrec_batch.events.ids import Counter, IdIndex, count
from genrec_batch.events.sorter import NUMPY
from genrec_batch.events.sorter_numba import NumbaSorter

EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True)
WHOLE = st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1), st.integers(10**6, 10**6 + 3))


NUMBA = NumbaSorter()
TWINS = pytest.mark.parametrize("sorter", [NUMPY, NUMBA], ids=["numpy", "numba"])


def counted(groups, kind, sorter=NUMPY):
    counter = Counter("user_id")
    for group in groups:
        ids = pl.Series(group, dtype=kind)
        counter.add(count(ids, sorter, counter.tallies))
    return counter.frame()


@TWINS
@EXAMPLES
@given(groups=st.lists(st.lists(WHOLE), min_size=1))
def test_integers_are_counted_in_rising_order(groups, sorter):
    frame = counted(groups, pl.Int64, sorter)
    expected = sorted(collections.Counter(i for group in groups for i in group).items())
    assert list(frame.iter_rows()) == expected
    assert frame.schema == {"user_id": pl.Int64, "count": pl.UInt64}


@TWINS
@EXAMPLES
@given(groups=st.lists(st.lists(st.text(max_size=3)), min_size=1))
def test_strings_are_counted_in_rising_order(groups, sorter):
    expected = sorted(
        collections.Counter(t for group in groups for t in group).items(), key=lambda pair: pair[0].encode()
    )
    assert list(counted(groups, pl.String, sorter).iter_rows()) == expected


@TWINS
@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt8, pl.Int32, pl.Int64, pl.UInt64])
def test_every_integer_type_reaches_its_ends(kind, sorter):
    low, high = kind.min(), kind.max()
    ends = [pl.select(low).item(), pl.select(high).item()]
    assert list(counted([ends, ends], kind, sorter).iter_rows()) == [(ends[0], 2), (ends[1], 2)]


def test_counts_of_many_row_groups_are_merged_while_they_come(monkeypatch):
    monkeypatch.setattr(events.ids, "MERGED_ROWS", 10)
    groups = [[f"{i}-{j % 7}" for j in range(20)] for i in (1, 2) for _ in range(30)]
    assert counted(groups, pl.String)["count"].sum() == 1200


def groups_of_many_users(groups):
    """Return row groups of a log of a million users in any order: each has few of them, over the whole range."""
    random = np.random.default_rng(7)
    return [pl.Series(random.integers(10_000, 1_010_000, 5_000)) for _ in range(groups)]


def test_row_groups_of_many_users_in_any_order_have_no_array_each():
    groups, counter = groups_of_many_users(40), Counter("user_id")

    def look(ids):
        return count(ids, NUMBA, counter.tallies)

    with ThreadPoolExecutor(4) as pool:
        looks = list(pool.map(look, groups))
    assert all(looked.counts_R is None and looked.frame is None for looked in looks)
    assert [looked.range for looked in looks] == [(ids.min(), ids.max()) for ids in groups]
    for looked in looks:
        counter.add(looked)
    tallies = counter.tallies.drain()
    assert len(tallies) <= 4  # one a thread
    assert sum(int(tally.counts_R.sum()) for tally in tallies) == 40 * 5_000


def test_many_users_are_counted_as_without_shared_tallies(monkeypatch):
    groups, counter = groups_of_many_users(40), Counter("user_id")
    monkeypatch.setattr(events.ids, "MOST_ROWS", 30_000)  # full after six row groups, the others have their own arrays
    with ThreadPoolExecutor(4) as pool:
        for looked in pool.map(lambda ids: count(ids, NUMBA, counter.tallies), groups):
            counter.add(looked)
    plain = Counter("user_id")
    for ids in groups:
        plain.add(count(ids))
    assert counter.frame().equals(plain.frame())


def test_ids_that_rise_from_row_group_to_row_group_are_all_counted_in_few_arrays():
    groups = [pl.Series(range(first, first + 5_000_000, 100_000)) for first in range(0, 150_000_000, 5_000_000)]
    counter, made = Counter("user_id"), []
    for ids in groups:
        counter.add(count(ids, NUMBA, counter.tallies))
        made.append(len(counter.tallies))
    assert max(made) == 1  # one thread, one array
    assert list(counter.frame().iter_rows()) == [(i, 1) for i in range(0, 150_000_000, 100_000)]


@TWINS
@EXAMPLES
@given(ids=st.lists(WHOLE, unique=True), asked=st.lists(WHOLE))
def test_rows_of_integers(ids, asked, sorter):
    series = pl.Series(sorted(ids), dtype=pl.Int64)
    places = {i: row for row, i in enumerate(sorted(ids))}
    got = IdIndex(series).rows(pl.Series(asked + ids, dtype=pl.Int64), sorter)
    assert got.tolist() == [places.get(i, -1) for i in asked + ids]


def test_rows_of_strings():
    assert IdIndex(pl.Series(["a", "b"])).rows(pl.Series(["b", "z", "a"])).tolist() == [1, -1, 0]


@EXAMPLES
@given(chunks=st.lists(st.lists(WHOLE), min_size=2), near=st.booleans())
def test_a_column_in_several_arrays_is_counted_and_looked_up_like_one(chunks, near):
    ids = [[i % 1000 for i in chunk] if near else chunk for chunk in chunks]
    series = pl.concat([pl.Series(chunk, dtype=pl.Int64) for chunk in ids], rechunk=False)
    counter = Counter("user_id")
    counter.add(count(series, NUMBA, counter.tallies))
    flat = [i for chunk in ids for i in chunk]
    assert list(counter.frame().iter_rows()) == sorted(collections.Counter(flat).items())
    known = sorted(set(flat))
    assert IdIndex(pl.Series(known, dtype=pl.Int64)).rows(series, NUMBA).tolist() == [known.index(i) for i in flat]


@TWINS
@EXAMPLES
@given(chunks=st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1))
def test_extent_says_whether_numbers_never_fall(chunks, sorter):
    flat = [i for chunk in chunks for i in chunk]
    series = pl.concat([pl.Series(chunk, dtype=pl.Int64) for chunk in chunks], rechunk=False)
    found = sorter.extent(series)
    assert found == (min(flat), max(flat), flat == sorted(flat))
