"""`triton` and `metrics`: tensors in, tensors out, with the backend's own package replaced by a fake."""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
import weakref

import numpy as np
import pytest

from genrec_batch.core.arrays import EXPLORED, MODEL
from genrec_batch.core.errors import ConfigError, EngineError, InputError, ModelError, RetryError
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.remote import wire
from genrec_batch.serving import triton
from genrec_batch.serving.served import Answer
from tests.fakes import triton_backend
from tests.fakes.triton_backend import Request
from tests.serving.conftest import SAMPLE, exported
from tests.serving.requests import request

ONE = json.dumps({"instance_group": [{"count": 1}]})


@pytest.fixture
def front(sample, monkeypatch):
    """The class that Triton finds in `1/model.py`, initialized as Triton does it."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton_backend)
    model = runpy.run_path(str(sample.version / "model.py"))["TritonPythonModel"]()
    model.initialize(
        {
            "model_repository": str(sample.version.parent),
            "model_version": sample.version.name,
            "model_name": "genrec",
            "model_config": ONE,
        }
    )
    return model


def by_name(response):
    assert response.error is None, response.error
    return {tensor.name(): tensor.array for tensor in response.tensors}


def test_users_of_one_request_and_of_several_get_the_rows_of_score(front, sample):
    contents = {user: request(sample.events[user], as_of=sample.as_of) for user in (1, 2, 3)}
    responses = front.execute([Request([contents[1], contents[2]]), Request([contents[3]])])
    found = [by_name(each) for each in responses]
    assert found[0]["VIDEO_ID"].shape == (2, 10)
    for user, (tensors, row) in {1: (found[0], 0), 2: (found[0], 1), 3: (found[1], 0)}.items():
        rows = sample.recs.filter(user_id=user).sort("rank")
        assert tensors["VIDEO_ID"][row].tolist() == rows["video_id"].to_list()
        assert tensors["COUNT"][row].tolist() == [10]
        assert tensors["STEP"][row].tolist() == rows["step"].to_list()
        assert set(tensors["SOURCE"][row]) == {b"model"}
        for name in ("score", "log_prob", *(head.lower() for head in triton.HEAD_NAMES)):
            np.testing.assert_allclose(tensors[name.upper()][row], rows[name].to_numpy(), atol=1e-5)
    assert all(tensor.dtype == np.float32 for name, tensor in found[0].items() if name in ("SCORE", *triton.HEAD_NAMES))


def test_a_bad_user_refuses_its_request_and_no_other(front, sample):
    good = request(sample.events[1])
    bad, fine = front.execute([Request([good, b"{}}"]), Request([good])])
    assert bad.error.code == "INVALID_ARG"
    assert str(bad.error).startswith("user 1 of 2 of the request: the request is no JSON")
    assert by_name(fine)["COUNT"].tolist() == [[10]]


def test_a_request_that_was_cancelled_is_not_computed(front, sample, monkeypatch):
    seen = []
    answers = front._served.answers

    class Counted:
        def answers(self, contents):
            seen.extend(contents)
            return answers(contents)

    monkeypatch.setattr(front, "_served", Counted())
    good = request(sample.events[1])
    gone, fine = front.execute([Request([good], cancelled=True), Request([good])])
    assert gone.error.code == "CANCELLED"
    assert by_name(fine)["COUNT"].tolist() == [[10]]
    assert len(seen) == 1
    assert {outcome: metric.value for outcome, metric in front._users.items()} == {
        "answered": 1, "refused": 0, "cancelled": 1,
    }  # fmt: skip
    labels = {"model": "genrec", "version": "1", "process": str(os.getpid()), "outcome": "answered"}
    assert front._users["answered"].labels == labels


@pytest.mark.parametrize(
    "content", [b"{", b'{"events": {"video_id": [1]}}', b'{"top_k": 1000}', b'{"max_per": {"nothing": 1}}']
)
def test_a_refused_request_is_released_without_the_garbage_collector(front, content):
    """A request holds memory that is shared with Triton; an error that holds its frames would keep both."""
    requests = [Request([content])]
    held = weakref.ref(requests[0])
    gc.disable()
    try:
        assert front.execute(requests)[0].error is not None
        requests.clear()
        assert held() is None
    finally:
        gc.enable()


def test_users_and_batches_of_the_job_are_answered_side_by_side(front, sample):
    model = sample.served.served[0].model
    tensors = {
        "FEATURES": np.zeros((2, 1024), np.float32),
        "TOKENS": np.zeros((2, 1), np.int32),
        "LENGTHS": np.zeros((2, 1), np.int32),
    }
    said = wire.parameters_of(Decoding(top_k=3), model.fingerprint)
    good = Request([request(sample.events[1])])
    fine, ranked, bad, user = front.execute([good, Request(tensors=tensors, said=said), Request(tensors=tensors), good])
    assert by_name(ranked)["ITEM"].shape == (2, 3)
    assert by_name(fine)["COUNT"].tolist() == by_name(user)["COUNT"].tolist() == [[10]]
    assert (bad.error.code, "say how a batch is decoded" in str(bad.error)) == ("INVALID_ARG", True)
    assert {outcome: metric.value for outcome, metric in front._users.items()} == {
        "answered": 4, "refused": 1, "cancelled": 0,
    }  # fmt: skip


def test_sessions_are_counted_beside_users(sample, monkeypatch, tmp_path):
    version = exported(SAMPLE / "model", tmp_path, session_cache_mb=1, session_refresh=2)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton_backend)
    front = triton.TritonPythonModel()
    front.initialize(
        {"model_repository": str(version.parent), "model_version": "1", "model_name": "genrec", "model_config": ONE}
    )
    metrics = front._metrics

    whole = next(events for events in sample.events.values() if len(events["video_id"]) >= 9)

    def asked(count):
        events = {name: values[:count] for name, values in whole.items()}
        front.execute([Request([request(events, user_id=1), b"{"])])
        return {outcome: metric.value for outcome, metric in metrics.lookups.items() if metric.value}

    assert asked(7) == {"new": 1}
    assert metrics.bytes.value > 0
    assert asked(8) == {"new": 1, "hit": 1}
    assert asked(9) == {"new": 1, "hit": 1, "refresh": 1}
    assert metrics.evicted.value == 0
    mine = {"model": "genrec", "version": "1", "process": str(os.getpid())}
    assert metrics.lookups["hit"].labels == {**mine, "outcome": "hit"}
    assert metrics.bytes.labels == mine
    front.finalize()
    assert metrics.bytes.value == 0


def test_lists_of_different_lengths_end_in_nothing(front, sample):
    contents = [
        request(sample.events[1], top_k=2),
        request(sample.events[2], top_k=4),
        json.dumps({"only": []}).encode(),
    ]
    found = by_name(front.execute([Request(contents)])[0])
    assert found["COUNT"].tolist() == [[2], [4], [0]]
    assert found["VIDEO_ID"].shape == (3, 4)
    assert found["VIDEO_ID"][0, 2:].tolist() == [0, 0]
    assert found["SOURCE"][0].tolist() == [b"model", b"model", b"", b""]
    assert found["SCORE"][2].tolist() == [0, 0, 0, 0]


def test_ids_that_are_texts_leave_as_bytes_and_no_number_is_nan():
    answer = Answer(
        video_K=np.array(["é", "b"], np.object_),
        score_K=np.array([-1, np.nan], np.float32),
        log_prob_K=np.array([-1, np.nan], np.float32),
        step_K=np.array([1, 0], np.int32),
        heads_KH=np.full((2, 4), np.nan, np.float32),
        source_K=np.array([MODEL, EXPLORED], np.int8),
        version="5eed",
        arm="test",
        bucket=7,
    )
    found = triton.tensors([answer])
    assert found["VIDEO_ID"].tolist() == [["é".encode(), b"b"]]
    assert found["SCORE"].tolist() == [[-1, 0]]
    assert found["SOURCE"].tolist() == [[b"model", b"explored"]]
    assert (found["VERSION"].tolist(), found["ARM"].tolist(), found["BUCKET"].tolist()) == (
        [[b"5eed"]],
        [[b"test"]],
        [[7]],
    )
    assert set(found) == set(triton.OUTPUTS) - {"ITEM", "ENGINE"}


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError, "INVALID_ARG"), (ConfigError, "INVALID_ARG"), (RetryError, "UNAVAILABLE"), (EngineError, "INTERNAL")],
)
def test_triton_s_codes(error, code):
    assert triton.code_of(error("x")) == code


def test_a_version_whose_warm_up_is_refused_does_not_become_ready(sample, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton_backend)
    (tmp_path / "1").symlink_to(sample.version)
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "request").write_bytes(b"\0\0\0\0{")
    with pytest.raises(InputError):
        triton.TritonPythonModel().initialize(
            {"model_repository": str(tmp_path), "model_version": "1", "model_name": "x", "model_config": ONE}
        )
    with pytest.raises(ModelError):
        triton.TritonPythonModel().initialize(
            {"model_repository": str(tmp_path), "model_version": "2", "model_name": "x", "model_config": ONE}
        )
