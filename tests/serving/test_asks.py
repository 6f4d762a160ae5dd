"""`asks`: what a request may say, and how it is refused."""

from __future__ import annotations

import json

import pytest

from genrec_batch.core.errors import InputError
from genrec_batch.serving import asks


def read(fields):
    return asks.read(json.dumps(fields).encode(), top_k=10, most_events=5)


def test_a_request_without_anything_has_the_repository_s_defaults():
    ask = read({})
    assert ask.wanted == asks.Wanted(top_k=10, weights=None, max_per=None, include_seen=False, given=False)
    assert (ask.events, ask.seen, ask.only, ask.as_of) == ({}, [], None, None)


def test_blends_and_caps_become_the_texts_of_options():
    wanted = read(
        {"weights": {"retention": 0.5, "engagement": 1}, "max_per": {"creator_id": 2}, "candidates": []}
    ).wanted
    assert wanted.weights == "engagement=1,retention=0.5"
    assert wanted.max_per == "creator_id=2"
    assert wanted.given


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([], "the request is a list"),
        ({"user_id": 1.5}, "user_id: a number, expected a whole number or a string"),
        ({"top_kk": 1}, "Did you mean 'top_k'"),
        ({"top_k": "3"}, "top_k: a string, expected a whole number"),
        ({"top_k": True}, "top_k: True"),
        ({"top_k": 0}, "top_k: 0, expected a whole number from 1"),
        ({"total_events": -1}, "total_events: -1"),
        ({"include_seen": 1}, "include_seen: 1, expected true or false"),
        ({"seen": [1.5]}, "seen: expected a list of video ids"),
        ({"only": 7}, "only: expected a list"),
        ({"exclude": list(range(100_001))}, "exclude: 100,001 videos, at most 100,000"),
        ({"weights": "engagement=1"}, "weights: expected an object"),
        ({"weights": {"engagement": True}}, "weights: expected an object"),
        ({"max_per": {"a=1,b": 1}}, "max_per: expected an object"),
        ({"profile": "young"}, "profile: a string, expected an object of columns or a list of numbers"),
        ({"extra_features": [None]}, "extra_features: expected a list of numbers"),
        ({"as_of": {}}, "as_of: an object"),
        ({"events": []}, "events: expected an object with a list for each column"),
        ({"events": {"video_id": 7}}, "events: expected an object with a list for each column"),
        ({"events": {"video_id": [7], "timestamp": []}}, "different lengths (video_id 1, timestamp 0)"),
        ({"events": {str(place): [] for place in range(1001)}}, "events: 1,001 columns, at most 1,000"),
        ({"events": {"video_id": [7] * 6}}, "6 events, at most 5"),
    ],
)
def test_a_field_of_a_wrong_form_is_refused(fields, said):
    with pytest.raises(InputError) as refused:
        read(fields)
    assert said in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff{}", b"[" * 100_000, b'{"top_k": ' + b"9" * 5000 + b"}"])
def test_bytes_that_are_no_json_are_refused(content):
    with pytest.raises(InputError, match="no JSON in UTF-8"):
        asks.read(content, top_k=10, most_events=5)


def test_a_request_that_is_too_large_is_not_read():
    with pytest.raises(InputError, match="at most 8,388,608"):
        asks.read(b" " * (asks.MOST_BYTES + 1), top_k=10, most_events=5)
