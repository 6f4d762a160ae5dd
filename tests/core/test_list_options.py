"""`list_options`: what the texts of the rules mean, and every text that means nothing."""

from __future__ import annotations

import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.core.list_options import Diversity
from genrec_batch.core.options import ScoreConfig


def test_rules_are_read_as_they_are_written():
    config = ScoreConfig(
        videos="v.parquet", max_per="creator_id=2, category=4", boost="is_new=0.5,a=b=-2", diversify="mmr=0.5"
    )
    assert config.caps() == {"creator_id": 2, "category": 4}
    assert config.boosts() == {"is_new": 0.5, "a=b": -2.0}
    assert config.diversity() == Diversity(method="mmr", weight=0.5)
    assert config.rules_asked() == ["--max-per", "--diversify", "--boost"]
    assert ScoreConfig(videos="v", diversify="dpp").diversity() == Diversity(method="dpp", weight=0.3)
    assert ScoreConfig(videos="v", diversify="mmr=0").diversity() is None
    assert not ScoreConfig().composes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_per": "creator_id"}, "--max-per 'creator_id': 'creator_id' is not COLUMN="),
        ({"max_per": "creator_id=0"}, "a whole number from 1"),
        ({"max_per": "creator_id=1.5"}, "a whole number from 1"),
        ({"max_per": "a=1,a=2"}, "'a' is given twice"),
        ({"max_per": "=1"}, "is not COLUMN="),
        ({"boost": "a=nan"}, "--boost 'a=nan'"),
        ({"boost": "a=inf"}, "a number from -1,000,000 to 1,000,000"),
        ({"boost": "a=10000001"}, "a number from -1,000,000 to 1,000,000"),
        ({"diversify": "mrm"}, "'mrm' is not one of mmr, dpp. Did you mean 'mmr'?"),
        ({"diversify": "mmr=1.1"}, "a weight from 0 to 1"),
        ({"diversify": "mmr="}, "a weight from 0 to 1"),
        ({"diversify": "dpp=0.001"}, "or a weight from 0.01 to 1"),
        ({"diversify": "mmr", "diversify_by": "a,a"}, "names of columns, each once"),
        ({"explore": 1.5}, "--explore 1.5: a share from 0 to 1"),
        ({"explore": float("nan")}, "--explore nan: a share from 0 to 1"),
        ({"promote": "p", "promote_share": -0.1}, "--promote-share -0.1: a share from 0 to 1"),
        ({"promote_share": 0.5}, "--promote-share goes with --promote"),
        ({"diversify_by": "a"}, "--diversify-by goes with --diversify"),
        ({"pool": 30}, "--pool goes with"),
        ({"promote": "p", "pool": 30}, "--pool goes with --decode slate"),
        ({"promote": "p", "pool": 5, "decode": "slate"}, "--pool 5 is less than --top-k 10"),
        ({"promote": "p", "beam_width": 4}, "--beam-width goes without --promote"),
        ({"explore": 0.1, "num_candidates": 10}, "10 videos are scored for a list of 10, so there is nothing to draw"),
        ({"explore": 0.1, "decode": "slate", "pool": 10}, "raise --num-candidates, or --pool with --decode slate"),
    ],
)
def test_a_rule_that_cannot_be_read_says_how_it_is_written(options, said):
    with pytest.raises(ConfigError) as error:
        ScoreConfig(videos="v.parquet", **options)
    assert said in str(error.value)


@pytest.mark.parametrize("options", [{"max_per": "a=1"}, {"diversify": "mmr"}, {"boost": "a=1"}])
def test_rules_over_columns_need_the_table_of_videos(options):
    with pytest.raises(ConfigError, match="needs --videos"):
        ScoreConfig(**options)


def test_rules_choose_from_candidates_unless_a_slate_is_asked_for():
    assert ScoreConfig(promote="p").list_decode == "candidates"
    assert ScoreConfig(promote="p", decode="slate").list_decode == "slate"
    assert ScoreConfig().list_decode == "auto"
    assert ScoreConfig(promote="p", decode="slate").pool_steps(7) == 14
    assert ScoreConfig(promote="p", decode="slate", pool=15).pool_steps(7) == 15
    assert ScoreConfig(decode="slate").pool_steps(7) == 7


def test_a_pool_takes_positions_of_the_model():
    slate = ScoreConfig(promote="p", decode="slate", max_events=50, top_k=10)
    slate.check_positions(1 + 50 + 20)
    with pytest.raises(ConfigError, match="needs 71 positions"):
        slate.check_positions(1 + 50 + 19)
    ScoreConfig(promote="p", max_events=50, top_k=10).check_positions(1 + 50 + 1)
