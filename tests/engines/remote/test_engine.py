"""`engine`, `flight`, `fleet`, `connection`: servers return what a local engine does, whatever becomes of one."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import numpy as np
import pytest

from genrec_batch.core.errors import ConfigError, EngineError, ModelError, RetryError
from genrec_batch.engines.decode import Decoding, recommend, recommend_all
from genrec_batch.engines.feed import Feed
from genrec_batch.engines.numbers import NotNumbersError
from genrec_batch.engines.remote import connection
from genrec_batch.engines.remote import fleet as fleets
from genrec_batch.runtime.clock import Stages
from tests.engines.remote.conftest import MODEL, batch, same
from tests.serving.running import free_ports

SLATE = Decoding(top_k=4)
WAYS = {
    "slate": (SLATE, {}),
    "beams": (Decoding(top_k=4, beam_width=3), {}),
    "candidates": (Decoding(mode="candidates", num_candidates=9), {}),
    "given candidates": (SLATE, {"given": True}),
    "profile and video vectors": (SLATE, {"vectors": True}),
    "masks": (SLATE, {"masked": True}),
    "masked candidates": (SLATE, {"masked": True, "given": True}),
}


def aborting(code, times=10**9, text="as the test wants it"):
    """Let the first calls end with a status."""
    left = [times]

    def behave(server, context):
        del server
        if left[0] > 0:
            left[0] -= 1
            context.abort(code, text)

    return behave


def slow(seconds):
    """Let a server compute one batch after the other, each for so long."""
    alone = threading.Lock()

    def behave(server, context):
        del server, context
        with alone:
            time.sleep(seconds)

    return behave


def all_same(engine, local, count=16, rows=4):
    batches = [batch(rows, seed) for seed in range(count)]
    found = list(recommend_all(engine, iter(batches), SLATE))
    assert len(found) == count
    return all(same(one, recommend(local, each, SLATE)) for one, each in zip(found, batches, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_a_server_returns_what_a_local_engine_does(fleet, local, way):
    decoding, options = WAYS[way]
    engine = fleet.engine(fleet.serve(max_batch=32))
    for seed in range(3):
        asked = batch(9, seed, **options)
        assert same(recommend(engine, asked, decoding), recommend(local, asked, decoding))


def test_a_batch_of_more_users_than_a_server_takes_goes_out_in_several(fleet, local):
    server = fleet.serve(max_batch=4)
    asked = batch(11)
    found = recommend(fleet.engine(server), asked, SLATE)
    pieces = [recommend(local, asked.rows(start, start + 4), SLATE) for start in (0, 4, 8)]
    assert np.array_equal(found.tokens_BK, np.concatenate([each.tokens_BK for each in pieces]))
    assert (server.batches, server.users) == (3, 11)


def test_the_servers_say_precision_device_and_size_of_a_batch(fleet):
    engine = fleet.engine(fleet.serve(precision="fp16", device="cuda:0", engine="tensorrt", arithmetic="plans"))
    assert (engine.name, engine.precision, engine.device) == ("triton", "fp16", "cuda:0")
    assert (engine.arithmetic, engine.rows) == ("tensorrt plans", 4)


def test_batches_of_the_job_wait_behind_requests_of_users(fleet):
    server = fleet.serve()
    recommend(fleet.engine(server), batch(2), SLATE)
    assert server.priorities == {2}


def test_two_servers_share_the_batches_and_a_slow_one_gets_fewer(fleet, local):
    fast, late = fleet.serve(), fleet.serve(slow(0.1))
    engine = fleet.engine(fast, late)
    assert all_same(engine, local, 60)
    assert late.batches >= 1
    assert fast.batches > 2 * late.batches
    counts = engine.report()["servers"]
    assert sum(each["users"] for each in counts.values()) == 240
    assert counts[fast.address]["users_per_s"] > counts[late.address]["users_per_s"]


def test_a_batch_at_a_server_that_stands_still_is_computed_by_another(fleet, local):
    stands = threading.Event()

    def behave(server, context):
        del context
        if server.batches > 2:
            stands.wait(30)

    engine = fleet.engine(fleet.serve(behave), fleet.serve())
    assert all_same(engine, local, 16)
    stands.set()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED])
def test_a_batch_that_fails_is_sent_again(fleet, local, code):
    engine = fleet.engine(fleet.serve(aborting(code, 2)), fleet.serve())
    assert all_same(engine, local)
    assert sum(each["failed"] for each in engine.report()["servers"].values()) >= 1


def test_a_server_that_dies_is_survived_and_used_again_once_it_is_back(fleet, local):
    first, second = fleet.serve(), fleet.serve(slow(0.02))
    engine = fleet.engine(first, second)

    def batches():
        for number in range(5000):
            if number == 10:
                first.stop()
            if number == 20:
                again.append(fleet.serve(port=first.port))
            if again and again[0].batches:
                return
            time.sleep(0.005)
            yield batch(4, number)

    again = []
    found = list(recommend_all(engine, batches(), SLATE))
    assert again[0].batches > 0
    assert len(found) >= 20
    assert all(same(each, recommend(local, batch(4, seed), SLATE)) for seed, each in enumerate(found))


def test_the_run_waits_for_a_server_and_then_may_be_tried_again(fleet):
    server = fleet.serve()
    engine = fleet.engine(server, wait=0.6)
    server.stop()
    with pytest.raises(
        RetryError, match=rf"no server answered for 0 s \({server.address}: UNAVAILABLE.*\?wait="
    ) as gone:
        recommend(engine, batch(3), SLATE)
    assert gone.value.exit_code == 75


def test_a_batch_that_is_refused_is_not_sent_again(fleet):
    server = fleet.serve(aborting(grpc.StatusCode.INVALID_ARGUMENT, text="TOKENS has a token"))
    with pytest.raises(EngineError, match=rf"server {server.address} refused a batch of 3 users.*TOKENS has a token"):
        recommend(fleet.engine(server, fleet.serve(max_batch=4)), batch(3), SLATE)
    assert server.batches <= 1


def test_a_batch_at_which_servers_fail_ends_the_run(fleet):
    server = fleet.serve(aborting(grpc.StatusCode.INTERNAL, text="the stub has died"))
    with pytest.raises(EngineError, match=rf"failed 3 times .* the last one was {server.address}.*the stub has died"):
        recommend(fleet.engine(server, wait=30), batch(3), SLATE)


def test_a_server_that_is_busy_for_ever_ends_the_run_with_75(fleet, monkeypatch):
    monkeypatch.setattr(fleets, "LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(fleets, "FIRST_PAUSE_S", 0.01)
    server = fleet.serve(aborting(grpc.StatusCode.UNAVAILABLE, text="Exceeds maximum queue size"))
    with pytest.raises(RetryError, match=r"was sent 10 times, the last time to .*Exceeds maximum queue size"):
        recommend(fleet.engine(server, wait=30), batch(3), SLATE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ITEM": np.zeros((3, 2), np.int32)}, r"ITEM is int32 \[3, 2\], expected int32 \[3, 4\]"),
        ({"LOG_PROB": np.zeros((3, 4))}, r"LOG_PROB is float64 \[3, 4\], expected float32"),
        ({"RETENTION": None}, "RETENTION is missing"),
        ({"ITEM": np.full((3, 4), 500, np.int32)}, r"ITEM has a token that is no item of the model's 75"),
    ],
)
def test_an_answer_that_is_no_ranking_is_the_server_s_fault(fleet, change, said):
    server = fleet.serve(lambda *_: change)
    with pytest.raises(EngineError, match=rf"server {server.address} returned no ranking: {said}"):
        recommend(fleet.engine(server), batch(3), SLATE)


def test_an_answer_without_numbers_names_the_server(fleet):
    server = fleet.serve(lambda *_: {"LOG_PROB": np.full((3, 4), np.nan, np.float32)})
    engine = fleet.engine(server)
    feed = Feed(engine=engine, decoding=SLATE, stages=Stages(), batch_users=4)
    with pytest.raises(NotNumbersError):
        list(feed.recommend([("key", batch(3))]))
    assert engine.title == f"the server {server.address} (torch in fp32 on cpu, 4 users a batch)"


def test_a_server_with_another_model_is_named_with_both_fingerprints(fleet):
    server = fleet.serve(model="f" * 64)
    mine = MODEL.fingerprint[:16]
    with pytest.raises(
        ModelError, match=rf"server {server.address}: it has the model {'f' * 16}, and the run has {mine}"
    ):
        fleet.engine(fleet.serve(), server)


def test_a_server_with_the_same_weights_and_another_catalog_is_refused(fleet):
    with pytest.raises(ModelError, match=r"with 60 tokens, and the run has .* with 70 tokens"):
        fleet.engine(fleet.serve(tokens=60))


@pytest.mark.parametrize(
    "other", [{"precision": "fp16"}, {"arithmetic": "avx2"}, {"max_batch": 8}, {"device": "cuda:0"}]
)
def test_servers_that_compute_otherwise_are_refused(fleet, other):
    with pytest.raises(EngineError, match="rows would depend on who computes them"):
        fleet.engine(fleet.serve(), fleet.serve(**other))


def test_a_precision_that_the_servers_do_not_have_is_refused(fleet):
    assert fleet.engine(fleet.serve(), precision="fp32").precision == "fp32"
    with pytest.raises(EngineError, match="--precision bf16: the servers compute in fp32"):
        fleet.engine(fleet.serve(), precision="bf16")


def test_a_swap_during_the_run_never_mixes_two_models(fleet, local):
    servers = [fleet.serve(), fleet.serve()]
    engine = fleet.engine(*servers, wait=60)

    def batches(swapped):
        for number in range(30):
            if number == 10:
                for each in swapped:
                    each.change(model="e" * 64)
            yield batch(4, number)

    found = list(recommend_all(engine, batches(servers[:1]), SLATE))  # one is left
    assert all(same(each, recommend(local, batch(4, seed), SLATE)) for seed, each in enumerate(found))
    with pytest.raises(RetryError, match=rf"no server has the model of the run any more .*{'e' * 16}"):
        list(recommend_all(engine, batches(servers), SLATE))


def test_a_server_that_comes_back_with_another_precision_stays_out(fleet, local):
    first, second = fleet.serve(), fleet.serve()
    engine = fleet.engine(first, second)
    first.change(precision="bf16")
    assert all_same(engine, local)
    assert engine.report()["servers"][second.address]["users"] == 64


def test_an_http_port_is_recognized(fleet):
    class Web(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    web = HTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        with pytest.raises(
            ConfigError, match=rf":{web.server_port} is an HTTP port; name the port of gRPC, by default 8001"
        ):
            fleet.engine(f"127.0.0.1:{web.server_port}")
    finally:
        web.shutdown()
        web.server_close()


def test_a_server_that_is_not_there_yet_is_left_out(fleet, local):
    engine = fleet.engine(f"127.0.0.1:{free_ports(1)[0]}", fleet.serve())
    assert all_same(engine, local, 5)


def test_no_server_at_all_is_waited_for(fleet):
    began = time.monotonic()
    with pytest.raises(RetryError, match="no server answered"):
        fleet.engine(f"127.0.0.1:{free_ports(1)[0]}", wait=0.3)
    assert time.monotonic() - began > 0.3


def test_a_model_name_that_the_servers_do_not_have_is_refused_at_once(fleet):
    server = fleet.serve(refuses="Request for unknown model: 'genrec' is not found")
    with pytest.raises(EngineError, match=r"refuses batches for its model 'genrec': NOT_FOUND: Request for unknown"):
        fleet.engine(server, wait=60)


def test_what_is_given_up_is_cancelled(fleet):
    arrived, cancelled = threading.Event(), threading.Event()

    def behave(server, context):
        if server.batches > 1:
            if not context.add_callback(cancelled.set):  # it is cancelled already
                cancelled.set()
            arrived.set()
            cancelled.wait(5)

    answers = recommend_all(fleet.engine(fleet.serve(behave)), iter([batch(4), batch(4)]), SLATE)
    next(answers)
    assert arrived.wait(10)
    answers.close()
    assert cancelled.wait(10)


def test_without_the_client_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setattr(connection.importlib, "import_module", _missing)
    with pytest.raises(
        EngineError, match=r"tritonclient with gRPC is not installed .*; pip install 'genrec-batch\[triton\]'"
    ):
        connection.library()


def _missing(name):
    raise ImportError(f"No module named {name!r}")
