"""`sessions`: what a session answers equals a whole prefill with the features of the session's beginning."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError, EngineError
from genrec_batch.engines.decode import recommend
from genrec_batch.engines.protocol import Prefix
from genrec_batch.model import weights
from genrec_batch.serving import asks
from genrec_batch.serving.arms import Arms
from genrec_batch.serving.options import ExportConfig
from genrec_batch.serving.served import Answer
from genrec_batch.serving.sessions import Found, Sessions
from tests.logs import catalog_of
from tests.serving.conftest import SAMPLE, exported
from tests.serving.requests import events_of, request

CLOSE = 1e-5
REFRESH = 3
NUMBERS = ("score_K", "log_prob_K", "heads_KH")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sessions")


def opened(folder, name, **options):
    options = {"session_cache_mb": 64, "session_refresh": REFRESH, "name": name} | options
    return Arms.open(exported(SAMPLE / "model", folder, videos=str(SAMPLE / "videos.parquet"), **options))


@pytest.fixture
def arms(kept):
    """A repository with sessions, all forgotten."""
    kept.sessions.clear()
    return kept


@pytest.fixture(scope="module")
def kept(folder):
    return opened(folder, "kept")


def first(events, count, **changed):
    """Return a user's oldest events."""
    return {name: values[:count] for name, values in (events | changed).items()}


def in_order(events):
    """Return a user's events, oldest first."""
    order = np.argsort(events["timestamp"], kind="stable")
    return {name: [values[place] for place in order] for name, values in events.items()}


def long_users(sample, least, count=6):
    """Return the events of users who have so many."""
    users = {user: in_order(events) for user, events in sample.events.items() if len(events["video_id"]) >= least}
    return dict(list(users.items())[:count])


def outcomes(arms):
    return dict(arms.sessions.counted()[0])


def same(answer, other):
    assert isinstance(answer, Answer), answer
    assert answer.video_K.tolist() == other.video_K.tolist()
    assert answer.step_K.tolist() == other.step_K.tolist()
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(answer, name), getattr(other, name), atol=CLOSE)


class Twin:
    """The same rule without a cache: every request is a whole prefill."""

    def __init__(self, served, *, refresh, max_events=50):
        self.served, self.refresh = served, refresh
        self.room = max_events - refresh + 1
        self.began = {}  # by user: events of the request, of the history, and the features of the beginning

    def answer(self, user, events, **fields):
        """Return the answer to a request whose events are those of the one before and perhaps newer ones."""
        prepared = self.served.prepared(asks.read(request(events, **fields), top_k=10, most_events=5000))
        count, (before, length, dense_NF) = len(events["video_id"]), self.began.get(user, (0, 0, None))
        if dense_NF is None or count - before >= self.refresh:
            before, length, dense_NF = count, min(len(prepared.history), self.room), None
        history = prepared.history.newest(length + count - before)
        each = replace(prepared, found=Found(key=None, history=history))
        inputs = self.served.inputs([each])
        if dense_NF is None:
            dense_NF = inputs.dense_NF
        self.began[user] = before, length, dense_NF
        batch = replace(inputs, dense_NF=dense_NF).batch(np.arange(1))
        return self.served._lists(each.plan.ranking(recommend(self.served.engine, batch, each.plan.decoding)))[0]


def compared(arms, twin, users, counts):
    """Compare the answers to users whose histories grow; user i is not there in every (i + 2)-th round."""
    for count in counts:
        asking = {
            user: first(events, count) for place, (user, events) in enumerate(users.items()) if count % (place % 6 + 2)
        }
        found = arms.answers([request(events, user_id=user) for user, events in asking.items()])
        for (user, events), answer in zip(asking.items(), found, strict=True):
            same(answer, twin.answer(user, events))
    return outcomes(arms)


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
@pytest.mark.parametrize("decode", ["slate", "candidates"])
def test_every_answer_of_a_session_equals_a_whole_prefill_under_the_same_rule(sample, folder, engine, decode):
    options = {"engine": engine, "decode": decode, "max_events": 20}
    arms = opened(folder, f"{engine}-{decode}", **options)
    plain = opened(folder, f"{engine}-{decode}-off", **options, session_cache_mb=0).served[0]
    counts = compared(
        arms, Twin(plain, refresh=REFRESH, max_events=20), long_users(sample, 26), range(5, 27)
    )  # beyond 20 events a window ends
    assert counts["new"] == 6
    assert counts["hit"] > counts["refresh"] + counts["window"] > counts["window"] > 0
    assert set(counts) == {"new", "hit", "refresh", "window"}


def test_sessions_of_a_log_with_columns_of_its_own_equal_a_whole_prefill(kuairand, tmp_path):
    log = pl.read_parquet(kuairand / "events.parquet").sort("time_ms", maintain_order=True)
    longest = log.group_by("user_id").len().sort("len", "user_id", descending=True).head(40)["user_id"]
    log = log.filter(pl.col("user_id").is_in(longest.implode()))
    config = weights.PRESETS["tiny"]
    catalog_of(log, vocabulary=config.vocabulary).write(tmp_path / "model" / "catalog.parquet")
    weights.save(tmp_path / "model", config, weights.initial_weights(config, 3), trained=True, card="for tests\n")
    options = {"schema": "kuairand", "max_events": 15}
    arms, plain = (
        Arms.open(exported(tmp_path / "model", tmp_path / "repository", session_refresh=5, **options, **cache))
        for cache in ({"session_cache_mb": 8}, {"name": "plain"})
    )
    twin = Twin(plain.served[0], refresh=5, max_events=15)
    counts = compared(arms, twin, events_of(log, tuple(log.columns)), range(4, 24))
    assert counts["new"] == 40
    assert counts["hit"] > counts["refresh"] + counts["window"] > 0


def test_a_session_answers_at_its_beginning_what_a_server_without_sessions_answers(sample, arms):
    for user, events in long_users(sample, 10, 3).items():
        content = request(first(events, 10), as_of=sample.as_of, user_id=user)
        same(arms.answers([content])[0], sample.served.answers([content])[0])


def test_a_request_without_a_user_is_answered_as_without_sessions(sample, arms):
    (_, events), *_ = long_users(sample, 60).items()
    content = request(events)
    same(arms.answers([content])[0], sample.served.answers([content])[0])
    assert (outcomes(arms), len(arms.sessions)) == ({"anonymous": 1}, 0)


def test_the_wishes_of_a_request_are_those_of_the_request_whatever_was_read(sample, arms):
    twin = Twin(sample.served.served[0], refresh=REFRESH)
    (user, events), *_ = long_users(sample, 14).items()
    catalog = sample.served.served[0].videos.id_V[2:].tolist()
    for count, fields in enumerate(
        (
            {},
            {"exclude": catalog[:50]},
            {"only": catalog[:40], "top_k": 3},
            {"candidates": catalog[5:25]},
            {"include_seen": True},
            {"seen": catalog[:30], "weights": {"retention": 0.4}},
        ),
        start=8,
    ):
        (answer,) = arms.answers([request(first(events, count), user_id=user, **fields)])
        same(answer, twin.answer(user, first(events, count), **fields))
    assert outcomes(arms) == {"new": 1, "hit": 4, "refresh": 1}


def test_the_same_history_again_is_gone_on_with_and_equals_its_first_answer(sample, arms):
    (user, events), *_ = long_users(sample, 10).items()
    content = request(first(events, 10), user_id=user)
    before, again, together = (arms.answers([content] * count)[0] for count in (1, 1, 3))
    same(again, before)
    same(together, before)
    assert outcomes(arms) == {"new": 1, "hit": 4}


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("anonymous", lambda events, _: request(events)),
        ("new", lambda events, user: request(events, user_id=str(user))),
        ("profile", lambda events, user: request(events, user_id=user, profile={"country": "DE"})),
        ("profile", lambda events, user: request(events, user_id=user, profile_vector=[0.5] * 256)),
        ("window", lambda events, user: request({n: v[1:] for n, v in events.items()}, user_id=user)),
        ("changed", lambda events, user: request({n: v[:4] + v[5:] for n, v in events.items()}, user_id=user)),
        ("changed", lambda events, user: request(events | {"is_liked": [True] * 11}, user_id=user)),
        (
            "changed",  # the newest event is older than the last one that was read
            lambda events, user: request(
                events | {"timestamp": [*events["timestamp"][:-1], events["timestamp"][5] + 1]}, user_id=user
            ),
        ),
        ("changed", lambda events, user: request(first(events, 9), user_id=user)),
    ],
)
def test_what_differs_from_what_was_read_is_read_anew(sample, arms, reason, change):
    (user, events), *_ = long_users(sample, 11).items()
    events = first(events, 11) | {"is_liked": [False] * 11}
    arms.answers([request(first(events, 10), user_id=user)])
    content = change(events, user)
    (answer,) = arms.answers([content])
    same(answer, sample.served.answers([content])[0])
    assert outcomes(arms) == {"new": 2} if reason == "new" else {"new": 1, reason: 1}


def test_a_refused_request_keeps_nothing(arms):
    arms.answers([b'{"user_id": 1, "events": {"video_id": [1]}}', b"{", b'{"user_id": 2}'])
    assert (len(arms.sessions), arms.sessions.nbytes) == (0, 0)  # a user without events has nothing to keep


def test_another_arm_never_goes_on_with_a_session(sample):
    sessions = Sessions(most_bytes=1 << 20, refresh=5, max_events=50)
    served = sample.served.served[0]
    ask = asks.read(request(first(sample.events[1], 5), user_id=1), top_k=10, most_events=50)
    history = served.prepared(ask).history
    sessions.keep(sessions.find("control", ask, history), Prefix(cache=None, length=5, nbytes=10))
    assert sessions.find("control", ask, history).session is not None
    assert sessions.find("test", ask, history).session is None


def test_what_is_kept_is_bounded_and_who_asked_longest_ago_goes_first(sample, folder):
    arms = opened(folder, "small", session_cache_mb=1, session_refresh=5)
    users = dict(list(sample.events.items())[:120])
    one = {}
    for user, events in users.items():
        arms.answers([request(first(in_order(events), 30), user_id=user)])
        assert arms.sessions.nbytes <= 1 << 20
        one[user] = arms.sessions.nbytes
    counts, evicted = arms.sessions.counted()
    assert counts["new"] == 120
    assert 0 < len(arms.sessions) == 120 - evicted
    assert arms.sessions.nbytes > 0.9 * (1 << 20)
    newest, oldest = list(users)[-len(arms.sessions) :], list(users)[:evicted]
    arms.answers([request(first(in_order(users[user]), 30), user_id=user) for user in newest])
    assert outcomes(arms) == {"hit": len(newest)}
    arms.answers([request(first(in_order(users[oldest[-1]]), 30), user_id=oldest[-1])])
    assert outcomes(arms) == {"new": 1}


def test_a_session_larger_than_the_bound_is_not_kept(sample):
    sessions = Sessions(most_bytes=5000, refresh=5, max_events=50)
    ask = asks.read(request(first(sample.events[1], 5), user_id=1), top_k=10, most_events=50)
    history = sample.served.served[0].prepared(ask).history
    sessions.keep(sessions.find("", ask, history), Prefix(cache=None, length=5, nbytes=5000))
    assert (len(sessions), sessions.nbytes, sessions.counted()[1]) == (0, 0, 1)


def test_threads_share_the_sessions(sample):
    sessions = Sessions(most_bytes=40_000, refresh=5, max_events=50)
    served = sample.served.served[0]
    users = [
        (ask, served.prepared(ask).history)
        for user in list(sample.events)[:40]
        for ask in [asks.read(request(first(sample.events[user], 6), user_id=user), top_k=10, most_events=50)]
    ]

    def asked(number):
        for turn in range(200):
            ask, history = users[(7 * number + turn) % len(users)]
            found = sessions.find("", ask, history)
            assert found.session is None or found.session.prefix.cache == ask.user_id
            if found.kept:
                sessions.keep(found, Prefix(cache=ask.user_id, length=len(history), nbytes=1000 + turn))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(asked, range(8)))
    counts, evicted = sessions.counted()
    assert counts.total() == 1600
    assert evicted > 0
    kept = list(sessions._sessions.values())
    assert sessions.nbytes == sum(each.nbytes for each in kept) <= 40_000


def test_a_repository_without_sessions_keeps_nothing(sample):
    assert sample.served.sessions is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"session_refresh": 0}, "session"),
        ({"session_refresh": 51}, "--session-refresh 51: from 1 to --max-events, 50"),
        ({"session_cache_mb": 8, "engine": "tensorrt"}, "--engine onnxruntime or torch"),
        ({"session_cache_mb": 8, "device": "cuda"}, "--device cpu"),
        ({"session_cache_mb": 8, "format": "onnx", "out": None}, "--format triton"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        ExportConfig(**{"format": "triton", "out": "repository"} | options)


def test_an_engine_that_keeps_no_sessions_is_an_error(folder, monkeypatch):
    version = exported(SAMPLE / "model", folder, name="none", session_cache_mb=8)
    monkeypatch.setattr("genrec_batch.engines.onnx.engine.OnnxRuntimeEngine.keeps_prefixes", False)
    with pytest.raises(EngineError, match="onnxruntime keeps no sessions on cpu"):
        Arms.open(version)
