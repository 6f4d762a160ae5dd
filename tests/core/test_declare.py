"""What options decide: whether a run is recorded as another one, and whether rows of an earlier output are kept."""

from __future__ import annotations

import json

from genrec_batch.core.declare import differences, recorded, values
from genrec_batch.core.options import ScoreConfig


def test_options_that_only_show_or_store_a_run_are_not_recorded():
    config = ScoreConfig(user=("a",), quiet=True, if_exists="resume", memory_limit="2GiB", previous="a.parquet")
    assert recorded(config) == recorded(ScoreConfig(user=("a",)))
    assert recorded(config)["user"] == ["a"]


def test_paths_are_recorded_and_decide_nothing():
    named = ScoreConfig(model="a", users="b", videos="c", candidates="d", schema="kuairand")
    assert values(named, "rows", "bytes") == values(ScoreConfig(), "rows", "bytes")
    assert recorded(named)["model"] == "a"


def test_rows_are_kept_when_only_the_users_or_the_histories_differ():
    tonight = ScoreConfig(limit=5, as_of="2026-04-30", max_events=20, seen_limit=9, shard_users=7, batch_size="3")
    assert values(tonight, "rows") == values(ScoreConfig(), "rows")
    assert values(tonight, "bytes") != values(ScoreConfig(), "bytes")
    assert values(ScoreConfig(top_k=3), "rows") != values(ScoreConfig(), "rows")


def test_differences_name_the_place_and_both_values():
    before, now = {"model": "a", "config": {"top_k": 3, "user": []}}, {"model": "a", "config": {"top_k": 5, "user": []}}
    assert differences(before, now) == ["config.top_k (3, now 5)"]
    assert differences(before, before) == []


def test_a_list_that_came_back_from_json_is_the_tuple_that_was_written():
    now = {"schema": {"explode": (), "columns": ("a", "b")}}
    assert differences(json.loads(json.dumps(now)), now) == []
    assert differences({"explode": ["a"]}, {"explode": ()}) == ["explode (['a'], now [])"]
