"""Labels of the heads: what counts as a success, and what is not known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.arrays import HEADS
from genrec_batch.core.errors import InputError
from genrec_batch.events.labels import check_labels, head_labels
from genrec_batch.events.whole import read_whole
from genrec_batch.model.catalog import Catalog
from genrec_batch.runtime.clock import Stages

NAN = float("nan")


def whole(tmp_path, *, positive=None, **columns):
    rows = max(map(len, columns.values()))
    frame = pl.DataFrame(
        {"user_id": [1] * rows, "video_id": list(range(rows)), "timestamp": [1_700_000_000 + i for i in range(rows)]}
    ).with_columns(**{name: pl.Series(values) for name, values in columns.items()})
    frame.write_parquet(tmp_path / "log.parquet")
    return read_whole(
        str(tmp_path / "log.parquet"),
        lambda found, _: Catalog.from_counts(found.videos, vocabulary=100),
        Stages(),
        positive=positive,
    )


def labels(tmp_path, **columns):
    found = head_labels(whole(tmp_path, **columns).events)
    return {head: found[:, place].tolist() for place, head in enumerate(HEADS)}


def test_a_view_worked_if_it_was_complete_or_long(tmp_path):
    found = labels(
        tmp_path,
        watch_duration=[17.9, 18.0, 3.0, None, None, 40.0],
        watch_complete=[False, False, True, True, None, None],
    )
    assert found["recommendation"][:4] == [0, 1, 1, 1]
    assert np.isnan(found["recommendation"][4])
    assert found["recommendation"][5] == 1


def test_any_flag_is_engagement_and_no_flag_known_is_unknown(tmp_path):
    found = labels(tmp_path, is_liked=[True, False, None], is_commented=[None, False, None])
    assert found["engagement"][:2] == [1, 0]
    assert np.isnan(found["engagement"][2])


def test_retention_is_the_watch_percentage_up_to_1_unless_the_log_says_it(tmp_path):
    found = labels(tmp_path, watch_percentage=[0.25, 2.5, None])
    assert found["retention"][:2] == [0.25, 1]
    assert np.isnan(found["retention"][2])
    assert labels(tmp_path, watch_percentage=[0.25], retention_label=[True])["retention"] == [1]


def test_a_column_of_one_s_own_is_the_label_of_recommendation(tmp_path):
    log = whole(tmp_path, positive="clicked", watch_complete=[True, False], clicked=[0, 1])
    assert head_labels(log.events)[:, 0].tolist() == [0, 1]
    with pytest.raises(
        InputError, match=r"'\"cliked\"' reads 'cliked', which .* does not have. Did you mean 'clicked'"
    ):
        whole(tmp_path, positive="cliked", clicked=[0, 1])


def test_heads_without_two_labels_are_left_out_and_a_constant_label_column_is_an_error(tmp_path):
    log = whole(tmp_path, is_liked=[False, False], watch_complete=[True, False])
    assert check_labels(head_labels(log.events), log.events, "EVENTS log", None) == ["recommendation"]
    log = whole(tmp_path, monetization_label=[0, 0])
    with pytest.raises(InputError, match="'monetization_label' is 0 in every event"):
        check_labels(head_labels(log.events), log.events, "EVENTS log", None)
    log = whole(tmp_path, positive="clicked", clicked=[1, 1])
    with pytest.raises(InputError, match="column 'clicked' is 1 in every event"):
        check_labels(head_labels(log.events), log.events, "EVENTS log", "clicked")
