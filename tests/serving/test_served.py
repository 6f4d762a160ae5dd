"""`served`, `plans` and `histories`: one truth for both. What a server answers equals what `score` writes."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from genrec_batch import features, score
from genrec_batch.core.arrays import SOURCES
from genrec_batch.core.errors import ConfigError, EngineError, InputError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.events.dataset import Dataset
from genrec_batch.features.batches import Vectorizer
from genrec_batch.model import weights
from genrec_batch.serving import asks
from genrec_batch.serving.arms import Arms
from genrec_batch.serving.served import Answer
from tests.conftest import small_log
from tests.logs import catalog_of
from tests.serving.conftest import EXACT, SAMPLE, exported
from tests.serving.requests import differences, events_of, request, rows_of

CLOSE = 1e-5
BLEND = {"retention": 0.7, "log_prob": 0.1}


def asked(served, contents, size=16):
    """Return the answers to some requests, `size` at a time."""
    found = []
    for start in range(0, len(contents), size):
        found += served.answers(contents[start : start + size])
    return found


def compared(served, recs, contents):
    """Return the largest differences of answers, by user, from `score`'s rows of these users."""
    answers = dict(zip(contents, asked(served, list(contents.values())), strict=True))
    refused = [each for each in answers.values() if not isinstance(each, Answer)]
    assert not refused, refused[0]
    return differences(rows_of(answers), recs.filter(pl.col("user_id").is_in(list(contents))))


def test_answers_equal_what_score_writes_for_a_thousand_users(sample):
    contents = {user: request(events, as_of=sample.as_of) for user, events in sample.events.items()}
    assert len(contents) == 1000
    assert max(compared(sample.served, sample.recs, contents).values()) < CLOSE


def test_the_newest_events_with_a_total_and_a_list_of_what_is_seen_are_enough(sample):
    contents = {}
    for user, events in list(sample.events.items())[:200]:
        newest = {name: values[-50:] for name, values in events.items()}
        seen, total = events["video_id"][:-50], len(events["video_id"])
        contents[user] = request(newest, as_of=sample.as_of, total_events=total, seen=seen)
    assert any(len(events["video_id"]) > 50 for events in list(sample.events.values())[:200])
    assert max(compared(sample.served, sample.recs, contents).values()) < CLOSE


def test_the_order_of_events_and_of_users_does_not_matter(sample):
    contents = {}
    for user, events in list(sample.events.items())[60:0:-1]:
        order = np.argsort([-time for time in events["timestamp"]], kind="stable")
        contents[user] = request({n: [v[i] for i in order] for n, v in events.items()}, as_of=sample.as_of)
    assert max(compared(sample.served, sample.recs, contents).values()) < CLOSE


def test_an_earlier_moment_equals_score_as_of_that_moment(sample, tmp_path):
    as_of = "2026-05-10T12:00:00Z"
    score(sample.folder / "log.parquet", tmp_path / "r.parquet", as_of=as_of, limit=120, **sample.options)
    recs = pl.read_parquet(tmp_path / "r.parquet")
    users = recs["user_id"].unique().to_list()
    contents = {user: request(sample.events[user], as_of=as_of) for user in users}
    assert max(compared(sample.served, recs, contents).values()) < CLOSE


def test_by_default_a_request_is_read_at_its_newest_event(sample):
    events = sample.events[1]
    newest = max(events["timestamp"])
    plain, dated = sample.served.answers([request(events), request(events, as_of=newest)])
    assert plain.score_K.tolist() == dated.score_K.tolist()


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"top_k": 3}, {"top_k": 3}),
        ({"top_k": 20, "weights": "retention=0.7,log_prob=0.1"}, {"top_k": 20, "weights": BLEND}),
        ({"include_seen": True}, {"include_seen": True}),
        ({"max_per": "creator_id=1,category=2"}, {"max_per": {"creator_id": 1, "category": 2}}),
    ],
)  # fmt: skip
def test_what_a_request_wants_means_what_the_option_of_score_means(sample, tmp_path, options, fields):
    score(sample.folder / "log.parquet", tmp_path / "r.parquet", limit=80, **sample.options | options)
    recs = pl.read_parquet(tmp_path / "r.parquet")
    users = recs["user_id"].unique().to_list()
    contents = {user: request(sample.events[user], as_of=sample.as_of, **fields) for user in users}
    assert max(compared(sample.served, recs, contents).values()) < CLOSE


@pytest.mark.parametrize(("rule", "taken"), [("exclude", slice(0, 60)), ("only", slice(0, 30))])
def test_lists_of_a_user_mean_what_the_tables_of_score_mean(sample, tmp_path, rule, taken):
    popular = pl.read_parquet(SAMPLE / "model" / "catalog.parquet")["video_id"][taken].to_list()
    table = pl.DataFrame({"user_id": [1] * len(popular), "video_id": popular})
    table.write_parquet(tmp_path / "rule.parquet")
    path = str(tmp_path / "rule.parquet")
    score(sample.folder / "log.parquet", tmp_path / "r.parquet", limit=4, **sample.options, **{rule: (path,)})
    recs = pl.read_parquet(tmp_path / "r.parquet")
    contents = {user: request(sample.events[user], as_of=sample.as_of) for user in recs["user_id"].unique()}
    contents[1] = request(sample.events[1], as_of=sample.as_of, **{rule: popular})
    assert max(compared(sample.served, recs, contents).values()) < CLOSE


def test_given_candidates_are_scored_as_those_of_the_table(sample, tmp_path):
    catalog = pl.read_parquet(SAMPLE / "model" / "catalog.parquet")["video_id"].to_list()
    given = {user: [*catalog[user : user + 30], 5, catalog[user]] for user in (1, 2, 3)}
    pl.DataFrame({"user_id": list(given), "video_id": list(given.values())}).write_parquet(tmp_path / "c.parquet")
    options = sample.options | {"candidates": str(tmp_path / "c.parquet"), "top_k": 5}
    score(sample.folder / "log.parquet", tmp_path / "r.parquet", **options)
    contents = {u: request(sample.events[u], as_of=sample.as_of, candidates=ids, top_k=5) for u, ids in given.items()}
    assert max(compared(sample.served, pl.read_parquet(tmp_path / "r.parquet"), contents).values()) < CLOSE


@pytest.mark.parametrize("decode", ["slate", "candidates"])
@pytest.mark.parametrize("strings", [False, True])
def test_profiles_vectors_and_further_features_equal_the_tables_of_score(tmp_path, decode, strings):
    random, log = np.random.default_rng(5), small_log()
    if strings:
        log = log.with_columns(pl.col("video_id").cast(pl.String))
    config = weights.ModelConfig(**{**vars(weights.PRESETS["tiny"]), "features": 1027})
    model = tmp_path / "model"
    catalog_of(log, vocabulary=config.vocabulary).write(model / "catalog.parquet")
    weights.save(model, config, weights.initial_weights(config, 3), trained=True, card="for tests\n")
    log.write_parquet(tmp_path / "log.parquet")
    users = log["user_id"].unique().sort()[::2]
    table = pl.DataFrame(
        {
            "user_id": users,
            "age": [None if i % 5 == 0 else 20 + i for i in range(len(users))],
            "vip": [i % 3 == 0 for i in range(len(users))],
            "city": ["Köln" if i % 2 else "Lyon" for i in range(len(users))],
            "profile_vector": random.normal(size=(len(users), 256)).astype(np.float32),
        }
    )
    extra = pl.DataFrame({"user_id": users, "features": random.normal(size=(len(users), 3)).astype(np.float32)})
    videos = pl.DataFrame(
        {
            "video_id": log["video_id"].unique().sort()[::3],
            "creator_id": 7,
            "video_vector": random.normal(size=(len(log["video_id"].unique().sort()[::3]), 512)).astype(np.float32),
        }
    )
    paths = {}
    for name, frame in (("users", table), ("extra_features", extra), ("videos", videos)):
        paths[name] = str(tmp_path / f"{name}.parquet")
        frame.write_parquet(paths[name])
    score(tmp_path / "log.parquet", tmp_path / "r.parquet", model=str(model), decode=decode, **paths, **EXACT)
    served = Arms.open(exported(model, tmp_path / "repository", videos=paths["videos"], decode=decode))
    rows = {row["user_id"]: row for row in table.to_dicts()}
    further = {row["user_id"]: row["features"] for row in extra.to_dicts()}
    contents = {}
    for user, events in events_of(log).items():
        mine = dict(rows.get(user, {}))
        vector = {"profile_vector": mine.pop("profile_vector")} if mine else {}
        fields = {"profile": mine, **vector, "extra_features": further[user]} if mine else {}
        contents[user] = request(events, as_of=log["timestamp"].max().isoformat(), **fields)
    recs = pl.read_parquet(tmp_path / "r.parquet")
    assert max(compared(served, recs, contents).values()) < CLOSE


def test_features_of_a_request_have_the_bits_of_the_batch_job(sample):
    dataset = Dataset.open(str(sample.folder / "log.parquet"), ScoreConfig(**sample.options))
    shard = next(iter(dataset.users.shards()))
    inputs = Vectorizer.of(dataset).inputs(shard.histories, 0)
    users = dataset.users.ids.to_list()
    served = sample.served.served[0]
    contents = [request(sample.events[user], as_of=sample.as_of) for user in users]
    found = served.inputs([served.prepared(asks.read(each, top_k=10, most_events=5000)) for each in contents])
    assert found.dense_NF.tobytes() == inputs.dense_NF.tobytes()
    assert found.histories.tokens_E.tolist() == inputs.histories.tokens_E.tolist()
    dataset.users.close()


def test_a_log_with_columns_of_its_own_and_ties_equals_score(kuairand, tmp_path):
    log = pl.read_parquet(kuairand / "events.parquet")
    users = log["user_id"].unique().sort()[:1000]
    log.filter(pl.col("user_id").is_in(users.implode())).write_parquet(tmp_path / "log.parquet")
    log = pl.read_parquet(tmp_path / "log.parquet")
    config = weights.PRESETS["tiny"]
    catalog_of(log, vocabulary=config.vocabulary).write(tmp_path / "model" / "catalog.parquet")
    weights.save(tmp_path / "model", config, weights.initial_weights(config, 3), trained=True, card="for tests\n")
    options = {"model": str(tmp_path / "model"), "schema": "kuairand", **EXACT}
    score(tmp_path / "log.parquet", tmp_path / "r.parquet", **options)
    served = Arms.open(exported(tmp_path / "model", tmp_path / "repository", schema="kuairand"))
    as_of = int(log["time_ms"].max())
    contents = {user: request(events, as_of=as_of) for user, events in events_of(log, tuple(log.columns)).items()}
    assert len(contents) == 1000
    assert max(compared(served, pl.read_parquet(tmp_path / "r.parquet"), contents).values()) < CLOSE


def test_one_bad_request_costs_no_other(sample):
    good = request(sample.events[1], as_of=sample.as_of)
    first, bad, last = sample.served.answers([good, b"{", good])
    assert isinstance(bad, InputError)
    assert first.video_K.tolist() == last.video_K.tolist() == sample.recs.filter(user_id=1)["video_id"].to_list()


def test_requests_of_all_kinds_in_one_batch_are_answered_as_alone(sample):
    kinds = [
        {},
        {"top_k": 2},
        {"top_k": 40, "weights": {"engagement": 1}},
        {"candidates": sample.events[3]["video_id"][:3], "include_seen": True},
        {"max_per": {"creator_id": 1}},
        {"exclude": sample.recs.filter(user_id=6)["video_id"].to_list()},
    ]
    contents = [request(sample.events[user], as_of=sample.as_of, **fields) for user, fields in enumerate(kinds, 1)]
    narrow = {name: sample.events[9][name] for name in ("video_id", "timestamp")}
    contents += [request(narrow), b"{}", request({"video_id": [], "timestamp": []}, top_k=1)]
    together = sample.served.answers(contents)
    alone = [sample.served.answers([content])[0] for content in contents]
    for one, other in zip(together, alone, strict=True):
        assert one.video_K.tolist() == other.video_K.tolist()
        np.testing.assert_allclose(one.score_K, other.score_K, atol=CLOSE)
    assert [len(each) for each in together] == [10, 2, 40, 3, 10, 10, 10, 10, 1]
    assert {SOURCES[code] for each in together for code in each.source_K} == {"model"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"top_k": 101}, "top_k: 101 videos, at most 100"),
        ({"top_k": 0}, "top_k: 0, expected a whole number from 1"),
        ({"weights": {"engagment": 1}}, "weights: 'engagment' is not one of"),
        ({"max_per": {"creator": 1}}, "max_per creator: --videos has no such column"),
        ({"exclude": ["7"]}, "exclude: '7' is no id of this model's catalog"),
        ({"events": {"video_id": ["7"], "timestamp": [1_777_000_000]}}, "events: video_id: '7' is no id"),
        ({"events": {"video_id": list(range(5001)), "timestamp": [1] * 5001}}, "events: 5,001 events, at most 5,000"),
        ({"profile_vector": [1.0]}, "profile_vector: 1 numbers, and the model reads 256"),
        ({"as_of": "soon"}, "as_of 'soon': not a moment"),
        ({"as_of": -1}, "as_of: -1, which is no time"),
        ({"weights": {"engagement": 1e9}}, "weights: 'engagement' is given twice or is not a finite number"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(sample, fields, said):
    (refused,) = sample.served.answers([json.dumps(fields).encode()])
    assert isinstance(refused, (InputError, ConfigError))
    assert str(refused).startswith(said)  # with the field, not with an option of the command line


def test_an_engine_that_returns_no_numbers_refuses_its_users_only(sample, monkeypatch):
    from genrec_batch.engines import numbers
    from genrec_batch.engines.numbers import NotNumbersError

    def check(batch, ranked, **rest):
        del batch, ranked, rest
        raise NotNumbersError("train it again", rows_R=np.array([1]))

    monkeypatch.setattr(numbers, "check", check)
    first, second = sample.served.answers([request(sample.events[user]) for user in (1, 2)])
    assert isinstance(first, Answer)
    assert isinstance(second, EngineError)
    assert "returned no finite scores for the user; train it again" in str(second)


def test_the_server_uses_the_compiled_features_where_they_are_installed(sample):
    assert sample.served.served[0].kernel == features.kernel_name(features.COMPILED_FROM)
