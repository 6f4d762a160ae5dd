"""`packed`: what one process has, in another one, with the arrays there once for both."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.options import ScoreConfig
from genrec_batch.events import packed
from genrec_batch.events.dataset import Dataset
from genrec_batch.runtime.clock import Stages


def through(what, stages=None):
    file = packed.file_in_memory()
    return packed.pack(what, file).unpacked([file], stages or Stages())


def test_columns_and_arrays_come_back_as_they_were():
    frame = pl.DataFrame(
        {
            "number": [1, None, 3],
            "text": ["a", "long enough to be outside of a view", None],
            "yes": [True, None, False],
            "list": [[1.5], [], None],
            "kind": pl.Series(["x", "y", "x"], dtype=pl.Enum(["x", "y"])),
            "at": pl.Series([0, 1, None]).cast(pl.Datetime("us", "UTC")),
        }
    )
    arrays = {"empty": np.empty((0, 3)), "records": np.zeros(2, [("user", "i4"), ("time_us", "i8")])}
    mine, theirs = (frame[1:], frame, arrays), through((frame[1:], frame, arrays))
    assert all(a.equals(b) and a.schema == b.schema for a, b in zip(mine[:2], theirs[:2], strict=True))
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[2][name], array)
    theirs[2]["records"]["user"] = 7  # its own copy of the page
    assert arrays["records"]["user"].tolist() == [0, 0]


def test_what_belongs_to_one_process_is_left_out():
    stages, future = Stages(), Future()
    assert through({"clock": Stages(), "later": future}, stages) == {"clock": stages, "later": None}


@pytest.mark.parametrize("limit", ["1GiB", "1MiB"])
@pytest.mark.parametrize("order", ["user_id", "timestamp"])
def test_histories_of_another_process_are_the_same(log, limit, order):
    pl.concat([log] * 40).sort(order).write_parquet("events.parquet", row_group_size=3000)
    config = ScoreConfig(memory_limit=limit, shard_users=3, users=None)
    mine = Dataset.open("events.parquet", config, processes=2)
    theirs = through(mine)
    assert theirs.users.store.way == mine.users.store.way
    for ours, other in zip(mine.users.shards(), theirs.users.shards(), strict=True):
        assert ours.number == other.number
        np.testing.assert_array_equal(ours.histories.tokens_E, other.histories.tokens_E)
        np.testing.assert_array_equal(ours.histories.offsets_N1, other.histories.offsets_N1)
    mine.users.close()
