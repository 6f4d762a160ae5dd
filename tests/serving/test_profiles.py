"""`profiles` and `videos`: rows of tables that requests bring, and ids of the catalog."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.errors import InputError
from genrec_batch.events import hashing, vectors
from genrec_batch.model.catalog import Catalog
from genrec_batch.serving import asks, profiles
from genrec_batch.serving.videos import Videos


def ask(**fields):
    return asks.read(json.dumps(fields).encode(), top_k=10, most_events=5)


def test_a_profile_of_columns_is_hashed_as_the_table_s_row():
    row = {"user_id": 3, "age": 41, "vip": True, "city": "Köln", "spent": -12.5, "none": None, "tags": [1, 2]}
    table, rows = profiles.table([ask(), ask(profile=row)], extra=0)
    assert rows.tolist() == [-1, 0]
    assert table.hashed_R200.tobytes() == hashing.hash_columns(pl.DataFrame([row])).tobytes()


@pytest.mark.parametrize("width", [3, 200, 300])
def test_a_profile_of_numbers_is_that_of_the_table(width):
    numbers = np.linspace(-2, 2, width).tolist()
    table, _ = profiles.table([ask(profile=numbers)], extra=0)
    expected = vectors.projected(vectors.matrix(pl.Series([numbers]), None)[0])
    np.testing.assert_array_equal(table.hashed_R200, expected)


def test_nobody_with_a_profile_is_no_table():
    assert profiles.table([ask(), ask()], extra=2)[0] is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"profile": [1, float("nan")]}, "profile: holds NaN"),
        ({"profile": {"age": {}}}, "'age' is an object"),
        ({"profile": {"age": 2**65}}, "beyond 64 bits"),
        ({"profile_vector": [0.0] * 255}, "profile_vector: 255 numbers, and the model reads 256"),
        ({"profile_vector": [10**400] * 256}, "profile_vector: holds NaN, infinity or a number beyond"),
        ({"extra_features": [1.0]}, "extra_features: 1 numbers, and the model reads 2"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(fields, said):
    with pytest.raises(InputError) as refused:
        profiles.check(ask(**fields), extra=2)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("ids", "nothing"), [(pl.Series([7, 5], dtype=pl.UInt64), 0), (pl.Series([7, -5]), 0), (pl.Series(["b", "a"]), "")]
)
def test_tokens_and_ids_are_those_of_the_catalog(ids, nothing):
    catalog = Catalog(items=pl.DataFrame({"video_id": ids, "count": pl.Series([2, 1], dtype=pl.UInt64)}))
    videos = Videos.of(catalog, pl.DataFrame({"video_id": ids[::-1], "category": ["x", "y"]}))
    first, second = ids.to_list()
    other = "c" if nothing == "" else 9
    assert videos.tokens([second, other, first]).tolist() == [3, 1, 2]
    assert videos.rows([second, other, first]).tolist() == [0, -1, 1]
    assert videos.id_V.tolist() == [nothing, nothing, first, second]
    assert videos.columns["category"].to_list() == ["y", "x"]
    with pytest.raises(InputError, match=r"seen: .* is no id of this model's catalog"):
        videos.check([first, 5 if nothing == "" else "5"], "seen")
