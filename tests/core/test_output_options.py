"""`output_options`: lists of columns are read as they are meant, or refused with the way out."""

from __future__ import annotations

import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.core.output_options import Carry


def test_an_entry_names_a_column_its_table_and_what_it_is_called():
    config = ScoreConfig(videos="v", users="u", carry="title, users.country,maker=videos.creator_id,a.b")
    assert config.carried() == (
        Carry(name="title", column="title", table=None),
        Carry(name="country", column="country", table="users"),
        Carry(name="maker", column="creator_id", table="videos"),
        Carry(name="a.b", column="a.b", table=None),
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"carry": "title"}, "--carry title: goes with --videos or --users"),
        ({"carry": "users.country", "videos": "v"}, "--carry users.country: --users is not given"),
        ({"carry": "title,,x", "videos": "v"}, "an empty name"),
        ({"carry": "title,title", "videos": "v"}, "'title' is there twice"),
        ({"carry": "title,title=name", "videos": "v"}, "two columns would be called 'title'"),
        ({"carry": "score", "videos": "v"}, "my_score=score"),
        ({"carry": "video_id_3", "videos": "v", "layout": "wide"}, "the output has a column 'video_id_3' of its own"),
        ({"carry": "=title", "videos": "v"}, "expected NAME, videos.NAME, users.NAME or NEW=NAME"),
        ({"columns": "user_id,rank,video_id,scroe"}, "no column 'scroe'. Did you mean 'score'?"),
        ({"columns": "user_id,rank,score"}, "'video_id' is missing"),
        ({"columns": "user_id,video_id"}, "'rank' is missing"),
        ({"columns": "user_id,rank,video_id", "layout": "wide"}, "leave 'rank' out"),
        ({"columns": "user_id,rank,video_id", "partition_by": "score"}, "not among --columns"),
        ({"layout": "tall"}, "--layout 'tall' is not one of long, nested, wide"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ConfigError) as caught:
        ScoreConfig(**options)
    assert said in str(caught.value)


def test_a_number_in_a_name_is_taken_in_the_wide_layout_only_up_to_top_k():
    ScoreConfig(carry="video_id_11", videos="v", layout="wide", top_k=10)
    ScoreConfig(carry="video_id_3", videos="v")


def test_nested_and_wide_lists_are_in_rank_order_without_the_column():
    for layout in ("nested", "wide"):
        assert ScoreConfig(columns="video_id,user_id", layout=layout).chosen() == ("video_id", "user_id")


@pytest.mark.parametrize("target", [None, "recs.parquet"])
def test_folders_need_a_directory(target):
    with pytest.raises(ConfigError, match="--partition-by arm: folders are made in a directory"):
        ScoreConfig(partition_by="arm").check_target(target)
    ScoreConfig(partition_by="arm").check_target("recs")
