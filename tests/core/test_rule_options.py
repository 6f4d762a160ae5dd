"""`rule_options`: forms of the rules' values, and options that go with others."""

from __future__ import annotations

import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.core.rule_options import Fallback, MaxAge

DAY_US = 86_400 * 10**6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"again_after": "soon"}, "--again-after 'soon': a span of time in m, h, d or w"),
        ({"max_age": "30"}, "--max-age '30': a span of time"),
        ({"max_age": "=30d"}, "--max-age '=30d': no column before ="),
        ({"max_age": "30d"}, "--max-age 30d goes with --videos"),
        ({"fallback": "newest"}, "--fallback 'newest': popular, popular:7d, popular:by=COLUMN or popular:7d:by=COLUMN"),
        ({"fallback": "popular:week"}, "--fallback 'popular:week': popular, popular:7d"),
        ({"fallback": "popular:by="}, "--fallback 'popular:by=': popular"),
        ({"fallback": "popular:by=country:7d"}, "--fallback 'popular:by=country:7d': popular"),
        ({"fallback": "popular:0d"}, "--fallback 'popular:0d'|--fallback '0d': a span"),
        ({"fallback": "popular", "candidates": "c.parquet"}, "--fallback popular goes without --candidates"),
        ({"exclude": ("a", "b", "a")}, "--exclude a is given twice"),
        ({"exclude_recommended": ("a", "a")}, "--exclude-recommended a is given twice"),
    ],
)
def test_a_bad_rule_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        ScoreConfig(**options)


def test_values_of_rules_are_read():
    config = ScoreConfig(videos="v", max_age="uploaded=2w", fallback="popular:12h:by=country", again_after="36h")
    assert config.max_age_of() == MaxAge(column="uploaded", span_us=14 * DAY_US)
    assert config.fallback_of() == Fallback(span_us=DAY_US // 2, by="country")
    assert config.again_after_us() == 1.5 * DAY_US
    assert ScoreConfig(videos="v", max_age="30d").max_age_of() == MaxAge(column=None, span_us=30 * DAY_US)
    assert ScoreConfig(fallback="popular").fallback_of() == Fallback(span_us=None, by=None)
    assert ScoreConfig().max_age_of() is None
    assert ScoreConfig().fallback_of() is None


def test_an_output_may_not_replace_an_earlier_one_that_is_read():
    with pytest.raises(ConfigError, match=r"--exclude-recommended recs/\.\./recs: this run's OUTPUT would replace it"):
        ScoreConfig(exclude_recommended=("recs/../recs",)).check_not_replaced("recs")
    ScoreConfig(exclude_recommended=("recs1",)).check_not_replaced("recs")
