"""The whole log in memory: the same events, in the same order, as histories are built from."""

from __future__ import annotations

import numpy as np
import polars as pl

from genrec_batch.events.splits import ALL_EVENTS
from genrec_batch.events.whole import read_whole
from genrec_batch.model.catalog import Catalog
from genrec_batch.runtime.clock import Stages
from tests.histories import build, normalize
from tests.logs import catalog_of


def test_a_whole_log_is_every_history_without_a_limit(log, log_file):
    found = read_whole(str(log_file), lambda found, _: Catalog.from_counts(found.videos, vocabulary=60), Stages())
    events = normalize(log)
    catalog = catalog_of(events, vocabulary=60)
    last = int(events["timestamp"].dt.epoch("us").max())
    ids, theirs = build(events, catalog=catalog, as_of_us=last, max_events=ALL_EVENTS, seen_limit=ALL_EVENTS)
    assert found.ids.equals(ids)
    assert found.catalog.items.equals(catalog.items)
    for name in ("offsets_N1", "time_us_E", "tokens_E", "as_of_us_N"):
        np.testing.assert_array_equal(getattr(found.events, name), getattr(theirs, name))


def test_side_tables_are_joined_by_id(log_file, tmp_path):
    pl.DataFrame({"user_id": [100, 103], "level": [1, 2]}).write_parquet(tmp_path / "users.parquet")
    pl.DataFrame({"video_id": [1000], "category": ["a"]}).write_parquet(tmp_path / "videos.parquet")
    found = read_whole(
        str(log_file),
        lambda found, _: Catalog.from_counts(found.videos, vocabulary=60),
        Stages(),
        users=str(tmp_path / "users.parquet"),
        videos=str(tmp_path / "videos.parquet"),
    )
    assert found.events.user_row_N[:4].tolist() == [0, -1, -1, 1]
    first = found.catalog.tokens(pl.Series([1000]))[0]
    assert ((found.events.video_row_E == 0) == (found.events.tokens_E == first)).all()
    assert set(found.inputs) == {"events", "users", "videos"}
