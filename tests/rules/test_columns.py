"""`columns`: what rules read of `--videos`, and every fault of a column."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.model.catalog import Catalog
from genrec_batch.rules import columns

VIDEOS = pl.DataFrame(
    {
        "creator_id": [7, 7, None, 9],
        "category": ["cat", None, "dog", "cat"],
        "is_new": [True, None, False, True],
        "quality": [0.5, 2.0, None, -1.0],
        "tags": [["a"], [], None, ["b"]],
    }
)
CATALOG = Catalog(items=pl.DataFrame({"video_id": ["a", "b", "c", "d"], "count": [4, 3, 2, 1]}))


def test_codes_are_equal_where_values_are_and_null_is_none():
    codes = columns.codes(VIDEOS, ["creator_id", "category"], "--max-per")
    assert codes.tolist() == [[-1, -1], [-1, -1], [0, 0], [0, -1], [-1, 1], [1, 0]]
    assert columns.codes(VIDEOS, [], "--max-per").shape == (6, 0)


def test_boosts_add_up_and_null_adds_nothing():
    added = columns.boosts(VIDEOS, {"is_new": 0.5, "quality": 2.0}, CATALOG)
    assert added.tolist() == [0.0, 0.0, 1.5, 4.0, 0.0, -1.5]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e36])
def test_a_boost_that_is_no_number_names_the_video(value):
    frame = VIDEOS.with_columns(quality=pl.Series([0.5, value, None, 1.0]))
    with pytest.raises(InputError, match=r"--boost quality: 1 values .*video 'b'"):
        columns.boosts(frame, {"quality": 1.0}, CATALOG)


def test_a_boost_of_text_and_a_cap_of_lists_are_refused():
    with pytest.raises(InputError, match=r"--boost category: the column of --videos is String"):
        columns.boosts(VIDEOS, {"category": 1.0}, CATALOG)
    with pytest.raises(InputError, match="column 'tags' of --max-per is List"):
        columns.codes(VIDEOS, ["tags"], "--max-per")


def test_a_missing_column_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"--max-per creatr_id: --videos has no such column. Did you mean 'creator_id'"
    ):
        columns.codes(VIDEOS, ["creatr_id"], "--max-per")
    with pytest.raises(ConfigError, match=r"--boost qualty: .* Did you mean 'quality'"):
        columns.boosts(VIDEOS, {"qualty": 1.0}, CATALOG)
    with pytest.raises(ConfigError, match=r"--diversify-by kategory: .* Did you mean 'category'"):
        columns.likeness(VIDEOS, ("kategory",))


@pytest.mark.parametrize("width", [3, 200, 512])
def test_embeddings_keep_their_angles_as_whole_numbers_that_float32_adds_up_exactly(width):
    random = np.random.default_rng(width)
    floats = random.normal(size=(50, width)).astype(np.float32) * 10 ** random.uniform(-3, 3, (50, 1)).astype(
        np.float32
    )
    frame = pl.DataFrame({"embedding": [None, *floats.tolist()]}, {"embedding": pl.List(pl.Float32)})
    whole, one_over, groups = columns.likeness(frame, ())
    assert groups.shape == (53, 0)
    assert (whole == np.rint(whole)).all()
    assert not whole[:3].any(), "padding, unknown, and a video without an embedding"
    assert not one_over[:3].any()
    dots = whole[3:].astype(np.float64) @ whole[3:].astype(np.float64).T
    assert dots.max() <= 2**24
    np.testing.assert_array_equal(whole[3:] @ whole[3:].T, dots)
    if width <= 200:
        unit = floats.astype(np.float64) / np.linalg.norm(floats.astype(np.float64), axis=1, keepdims=True)
        np.testing.assert_allclose(dots * one_over[3:, None] * one_over[None, 3:], unit @ unit.T, atol=1e-3)


def test_without_embeddings_the_columns_are_compared():
    whole, one_over, _ = columns.likeness(VIDEOS, ())
    alike = (whole.astype(np.float64) @ whole.T) * one_over[:, None] * one_over[None, :]
    assert alike[2, 5] > alike[2, 4], "two new cats are more alike than a new cat and an old dog"


def test_without_anything_to_compare_there_is_a_way_out():
    nothing = pl.DataFrame({"creator_id": [1, 2], "embedding": pl.Series([None, None], dtype=pl.List(pl.Float32))})
    for frame in (nothing, nothing.drop("embedding")):
        with pytest.raises(ConfigError, match=r"--diversify-by"):
            columns.likeness(frame, ())
