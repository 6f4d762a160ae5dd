"""Tokens: by falling views, ties by id, and nothing invented."""

from __future__ import annotations

import errno
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.core.errors import ModelError, RetryError
from genrec_batch.model.catalog import Catalog
from tests.logs import catalog_of


def events(ids):
    return pl.DataFrame({"video_id": ids, "timestamp": pl.Series([0] * len(ids)).cast(pl.Datetime("us", "UTC"))})


def test_tokens_fall_with_views_and_ties_go_by_id():
    catalog = catalog_of(events([5, 9, 9, 3, 5, 1]), vocabulary=10)
    assert catalog.items["video_id"].to_list() == [5, 9, 1, 3]
    assert catalog.tokens(pl.Series([9, 5, 77, 1])).to_list() == [3, 2, 1, 4]
    assert catalog.ids(pl.Series([0, 1, 2, 5])).to_list() == [None, None, 5, 3]


def test_videos_beyond_the_vocabulary_are_unknown_and_counted():
    catalog = catalog_of(events(["a", "a", "b", "c", "c", "d"]), vocabulary=4)
    assert catalog.items["video_id"].to_list() == ["a", "c"]
    assert (catalog.unknown_videos, catalog.unknown_events) == (2, 2)
    assert catalog.tokens(pl.Series(["b", "c"])).to_list() == [1, 3]


def test_round_trip_and_fingerprint(tmp_path):
    catalog = catalog_of(events([5, 9, 9]), vocabulary=10)
    catalog.write(tmp_path / "catalog.parquet")
    again = Catalog.read(tmp_path / "catalog.parquet", vocabulary=10)
    assert again.items.equals(catalog.items)
    assert again.fingerprint() == catalog.fingerprint()
    assert catalog_of(events([9, 5, 5]), vocabulary=10).fingerprint() != catalog.fingerprint()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"token": [2], "video_id": [1]}), "count is missing"),
        (pl.DataFrame({"token": [2, 3], "video_id": [1, 1], "count": [2, 1]}), "the same id twice"),
        (pl.DataFrame({"token": [2, 4], "video_id": [1, 2], "count": [2, 1]}), "without gaps"),
        (
            pl.DataFrame({"token": range(2, 12), "video_id": range(10), "count": [1] * 10}),
            "do not fit the model's vocabulary",
        ),
    ],
)
def test_bad_catalogs(tmp_path, frame, message):
    frame.write_parquet(tmp_path / "catalog.parquet")
    with pytest.raises(ModelError, match=message):
        Catalog.read(tmp_path / "catalog.parquet", vocabulary=10)


def test_a_catalog_of_strings_does_not_fit_a_log_of_integers():
    catalog = catalog_of(events(["a"]), vocabulary=10)
    with pytest.raises(ModelError, match="String, that of INPUT x is Int64"):
        catalog.check_type(pl.Int64(), "INPUT x")


def test_a_full_disk_is_try_again_and_leaves_nothing(tmp_path, monkeypatch):
    def full(path, _content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RetryError, match=r"catalog.parquet: the disk is full"):
        catalog_of(events([5, 9]), vocabulary=10).write(tmp_path / "catalog.parquet")
    assert not list(tmp_path.iterdir())
