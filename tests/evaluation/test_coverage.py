"""`coverage`: the share of a log's events whose video a catalog has."""

from __future__ import annotations

import polars as pl
import pytest

from genrec_batch.core.errors import GateError, InputError, ModelError
from genrec_batch.core.options import HistoryConfig
from genrec_batch.evaluation import coverage
from genrec_batch.model.catalog import Catalog


@pytest.fixture
def catalog():
    return Catalog(items=pl.DataFrame({"video_id": [1, 2], "count": [5, 3]}, schema_overrides={"count": pl.UInt64}))


def written(video_ids, path="l.parquet", users=None):
    rows = len(video_ids)
    users = users or [1] * rows
    times = [1_770_000_000 + i for i in range(rows)]
    pl.DataFrame({"user_id": users, "video_id": video_ids, "timestamp": times}).write_parquet(path)
    return path


def share(path, catalog, **options):
    return coverage.share_of_events(HistoryConfig(**options), path, catalog, "--log")


def test_events_count_not_videos(catalog):
    assert share(written([1, 1, 1, 2, 9, 8, 7, 6]), catalog) == 0.5


def test_only_the_events_that_are_scored_count(catalog):
    path = written([1, 1, 9, 9])
    assert share(path, catalog, as_of="2026-02-02T02:40:01Z") == 1.0


def test_what_cannot_be_measured_is_told(catalog):
    with pytest.raises(InputError, match="--log nowhere"):
        share("nowhere", catalog)
    with pytest.raises(ModelError, match=r"video_id is Int64, that of --log l\.parquet is String"):
        share(written(["a", "b"]), catalog)
    with pytest.raises(GateError, match="--log"):
        share(written([1, 2], users=[None, 1]), catalog)
    with pytest.raises(InputError, match="no usable event"):
        share(written([1, 2]), catalog, as_of="2001-01-01")
