"""A real Triton server: what it answers over HTTP and gRPC equals what `score` writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from tests.serving.conftest import SAMPLE, exported
from tests.serving.requests import HEADS, differences, request, rows_of
from tests.serving.running import ROOT, Server, needed

grpc = pytest.importorskip("tritonclient.grpc")
http = pytest.importorskip("tritonclient.http")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

CLOSE = 1e-5
USERS_AT_ONCE = 20
MANY = int(os.environ.get("GENREC_TEST_TRITON_REQUESTS", "640"))  # of the test of memory; 100,000 take half an hour
SLOW = """
import time
from genrec_batch.serving.triton import TritonPythonModel as Fast
class TritonPythonModel(Fast):
    def execute(self, requests):
        time.sleep(2)
        return super().execute(requests)
"""
SLACK_MIB = 24  # of what a process may grow by while it answers: arenas of threads and of sizes of batches


@pytest.fixture(scope="module")
def server(sample, tmp_path_factory):
    needed()
    started = Server(sample.version.parents[1], tmp_path_factory.mktemp("triton") / "server.log")
    yield started
    started.stop()


@contextmanager
def connected(kind, port):
    """Connect a client. Once closed it stays so: tritonclient closes again as it is collected, maybe by another thread,
    which gevent refuses."""
    client = kind.InferenceServerClient(f"127.0.0.1:{port}")
    try:
        yield client
    finally:
        client.close()
        client.close = lambda: None


def asked(client, kind, contents, **options):
    """Return the tensors of a request by name."""
    tensor = kind.InferInput("REQUEST", [len(contents), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(contents, np.object_).reshape(-1, 1))
    return client.infer("genrec", [tensor], **options)


def answers_of(result):
    """Return the lists of a response, user by user."""
    heads = np.stack([result.as_numpy(head.upper()) for head in HEADS], axis=-1)
    names = {"video_K": "VIDEO_ID", "score_K": "SCORE", "log_prob_K": "LOG_PROB", "step_K": "STEP"}
    found = []
    for row, count in enumerate(result.as_numpy("COUNT")[:, 0]):
        fields = {field: result.as_numpy(name)[row, :count] for field, name in names.items()}
        assert set(result.as_numpy("SOURCE")[row, :count]) == {b"model"}
        found.append(Lists(heads_KH=heads[row, :count], **fields))
    return found


def test_requests_that_wait_behind_a_batch_of_two_seconds_are_answered(sample, tmp_path):
    needed()
    version = exported(SAMPLE / "model", tmp_path / "repository")  # with the queue limits that it has by default
    (version / "model.py").write_text(SLOW)
    slow = Server(version.parents[1], tmp_path / "server.log")
    user = next(iter(sample.events))
    content = request(sample.events[user], as_of=sample.as_of)

    def client(_):
        with connected(grpc, slow.grpc) as connection:
            return [asked(connection, grpc, [content]).as_numpy("COUNT").item() for _ in range(2)]

    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(client, range(8))) == [[10, 10]] * 8
    finally:
        slow.stop()


def test_a_model_whose_process_was_killed_is_not_alive_whatever_triton_says(sample, tmp_path):
    needed()
    killed = Server(sample.version.parents[1], tmp_path / "server.log")
    url = f"http://127.0.0.1:{killed.http}"
    probe = [sys.executable, ROOT / "jobs" / "triton" / "alive.py", url, "genrec"]
    try:
        assert subprocess.run(probe, check=False).returncode == 0
        assert subprocess.run([*probe[:-1], "another"], check=False).returncode == 1
        killed.kill_models()
        ended = subprocess.run(probe, check=False, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr[:13]) == (1, "genrec fails:")
        assert Server.get(f"{url}/v2/models/genrec/ready") is not None  # which is why it is asked
    finally:
        killed.kill()
    ended = subprocess.run(probe, check=False, capture_output=True, text=True)
    assert (ended.returncode, "does not answer" in ended.stderr) == (1, True)


def nothing(*, result, error):
    """Take the answer of a request that nobody waits for."""
    del result, error


class Lists(SimpleNamespace):
    """One user's list, as `served.Answer`."""

    def __len__(self):
        return len(self.video_K)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_thousand_users_get_what_score_writes(server, sample, protocol):
    kind = {"http": http, "grpc": grpc}[protocol]
    contents = {user: request(events, as_of=sample.as_of) for user, events in sample.events.items()}
    assert len(contents) == 1000
    users, found = list(contents), {}
    with connected(kind, getattr(server, protocol)) as client:
        for start in range(0, len(users), USERS_AT_ONCE):
            some = users[start : start + USERS_AT_ONCE]
            result = asked(client, kind, [contents[user] for user in some])
            found |= dict(zip(some, answers_of(result), strict=True))
    assert max(differences(rows_of(found), sample.recs).values()) < CLOSE


def test_sixteen_clients_at_once_get_the_same_and_are_answered_together(server, sample):
    before = server.counters()
    contents = {user: request(sample.events[user], as_of=sample.as_of) for user in list(sample.events)[:320]}
    users = list(contents)

    def client(first):
        with connected(grpc, server.grpc) as connection:
            return {u: answers_of(asked(connection, grpc, [contents[u]]))[0] for u in users[first::16]}

    with ThreadPoolExecutor(16) as pool:
        found = {user: answer for part in pool.map(client, range(16)) for user, answer in part.items()}
    recs = sample.recs.filter(pl.col("user_id").is_in(users))
    assert max(differences(rows_of(found), recs).values()) < CLOSE
    after = server.counters()
    users_answered = after["nv_inference_count"] - before["nv_inference_count"]
    assert users_answered == 320
    assert after["nv_inference_exec_count"] - before["nv_inference_exec_count"] < users_answered / 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "the request is no JSON"),
        (b'{"evnts": {}}', "Did you mean 'events'"),
        (b'{"events": {"video_id": [1]}}', "column 'timestamp' is missing"),
        (b'{"top_k": 1000}', "top_k: 1000 videos, at most 100"),
        (json.dumps({"events": {"video_id": [1] * 9000}}).encode(), "9,000 events, at most 5,000"),
        (b" " * (9 << 20), "has 9,437,184 bytes, at most 8,388,608"),
    ],
)
def test_a_bad_or_oversized_request_is_refused_with_the_reason(server, sample, content, said):
    for kind, port in ((http, server.http), (grpc, server.grpc)):
        with connected(kind, port) as client:
            with pytest.raises(InferenceServerException) as refused:
                asked(client, kind, [content])
            assert said in str(refused.value)
            assert answers_of(asked(client, kind, [request(sample.events[1])]))


def test_more_users_than_a_batch_has_are_refused_by_triton(server):
    refused = pytest.raises(InferenceServerException, match="batch-size must be <= 32")
    with connected(http, server.http) as client, refused:
        asked(client, http, [b"{}"] * 33)


def test_a_client_that_goes_away_disturbs_nobody(server, sample):
    contents = [request(sample.events[user], as_of=sample.as_of) for user in (1, 2, 3)]
    with connected(grpc, server.grpc) as client:
        for _ in range(30):
            tensor = grpc.InferInput("REQUEST", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[contents[0]]], np.object_))
            client.async_infer("genrec", [tensor], callback=nothing).cancel()
        found = answers_of(asked(client, grpc, contents))
    for user, answer in zip((1, 2, 3), found, strict=True):
        assert answer.video_K.tolist() == sample.recs.filter(user_id=user)["video_id"].to_list()


def _outcome(client, content):
    """Return why a request that may hardly wait was refused, empty where it was answered."""
    try:
        asked(client, grpc, [content], timeout=1)
    except InferenceServerException as refused:
        return str(refused).lower()
    return ""


def test_a_request_that_waited_too_long_is_refused(server, sample):
    contents = [request(sample.events[user], as_of=sample.as_of) for user in list(sample.events)[:32]]
    with connected(grpc, server.grpc) as client, ThreadPoolExecutor(8) as pool:
        busy = [pool.submit(asked, client, grpc, contents) for _ in range(8)]
        refused = {_outcome(client, contents[0]) for _ in range(50)} - {""}
        assert all(len(each.result().as_numpy("COUNT")) == 32 for each in busy)
    assert all("timeout expired" in each for each in refused)
    assert refused


def test_plain_json_without_a_client_library_is_enough(server, sample):
    text = request(sample.events[1], as_of=sample.as_of).decode()
    body = {"inputs": [{"name": "REQUEST", "datatype": "BYTES", "shape": [1, 1], "data": [text]}]}
    url = f"http://127.0.0.1:{server.http}/v2/models/genrec/infer"
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as answer:
        outputs = {each["name"]: each["data"] for each in json.loads(answer.read())["outputs"]}
    assert outputs["VIDEO_ID"] == sample.recs.filter(user_id=1)["video_id"].to_list()


def test_memory_does_not_grow_with_requests(server, sample):
    contents = [request(sample.events[user], as_of=sample.as_of) for user in list(sample.events)[:64]]
    contents += [b"{", b'{"events": {"video_id": [1]}}']

    def client(requests):
        with connected(grpc, server.grpc) as connection:
            for number in range(requests):
                with suppress(InferenceServerException):
                    asked(connection, grpc, [contents[number % len(contents)]])

    def answered(requests):
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(client, [requests // 16] * 16))
        return server.rss_mib()

    before = after = answered(MANY // 4)
    print(f"after {MANY // 4:,} requests {before}")
    for tenth in range(1, 11):
        after = answered(MANY // 10)
        print(f"after {tenth * MANY // 10:,} more {after}", flush=True)
    assert {name: mib for name, mib in after.items() if mib > before[name] + SLACK_MIB} == {}


def test_metrics_tell_what_was_answered_and_refused(server, sample):
    before = server.counters()
    with connected(http, server.http) as client:
        asked(client, http, [request(sample.events[1]), request(sample.events[2])])
        with pytest.raises(InferenceServerException):
            asked(client, http, [b"{"])
    after = server.counters()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert (grown["genrec_users answered"], grown["genrec_users refused"]) == (2, 1)
    assert grown["nv_inference_count"] == 3
    assert grown["nv_inference_queue_duration_us"] >= 0
