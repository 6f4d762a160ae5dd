"""`rows` and `rules.ranking`: what the table says of a place that the model's score did not decide."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.arrays import EXPLORED, HEADS, MODEL, POPULAR
from genrec_batch.model.catalog import Catalog
from genrec_batch.rules.ranking import Ranking
from genrec_batch.scoring.rows import recommendations

CATALOG = Catalog(items=pl.DataFrame({"video_id": ["a", "b", "c"], "count": [3, 2, 1]}))


def table_of(ranking):
    return recommendations(pl.Series("user_id", [7]), ranking, catalog=CATALOG, video_type=pl.String())


@pytest.fixture
def ranking():
    """A list of the model's best video, an explored one that the model scored, and a popular one that it did not."""
    nan = np.nan
    return Ranking(
        tokens_NK=np.array([[2, 3, 4]], np.int32),
        score_NK=np.array([[-1.0, -5.0, nan]], np.float32),
        log_prob_NK=np.array([[-1.0, -5.0, nan]], np.float32),
        step_NK=np.array([[1, 9, 0]], np.int32),
        heads_NKH=np.array([[[0.5] * len(HEADS), [0.25] * len(HEADS), [nan] * len(HEADS)]], np.float32),
        source_NK=np.array([[MODEL, EXPLORED, POPULAR]], np.int8),
    )


def test_a_row_says_where_it_comes_from_and_holds_no_number_that_nobody_computed(ranking):
    rows = table_of(ranking)
    assert rows["source"].to_list() == ["model", "explored", "popular"]
    assert rows["score"].to_list() == [-1.0, None, None]
    assert rows["log_prob"].to_list() == [-1.0, -5.0, None]
    assert rows["step"].to_list() == [1, 9, None]
    for head in HEADS:
        assert rows[head].to_list() == [0.5, 0.25, None]


def test_a_list_of_the_models_alone_has_no_such_column(ranking):
    plain = Ranking(
        tokens_NK=ranking.tokens_NK[:, :2],
        score_NK=ranking.score_NK[:, :2],
        log_prob_NK=ranking.log_prob_NK[:, :2],
        step_NK=ranking.step_NK[:, :2],
        heads_NKH=ranking.heads_NKH[:, :2],
    )
    assert "source" not in table_of(plain).columns
