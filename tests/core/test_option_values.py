"""Moments and spans of time, as options write them."""

from __future__ import annotations

import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.core.option_values import is_span, span_us


@pytest.mark.parametrize(
    ("text", "hours"), [("30m", 0.5), ("12h", 12), ("7d", 168), ("2w", 336), (" 1.5 d ", 36), ("0.5h", 0.5)]
)
def test_a_span_has_a_unit(text, hours):
    assert is_span(text)
    assert span_us(text, "--carry-for") == hours * 3_600_000_000


@pytest.mark.parametrize("text", ["7", "d", "-1d", "0d", "7 days", "7D", "", "2026-04-30", "9" * 30 + "w"])
def test_what_is_no_span_is_named(text):
    with pytest.raises(ConfigError, match=r"--carry-for .*: a span of time in m, h, d or w, such as 12h or 7d"):
        span_us(text, "--carry-for")


def test_a_moment_is_no_span():
    assert not is_span("2026-04-30")
    assert not is_span("2026-04-30T23:59:59Z")
