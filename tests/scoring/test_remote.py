"""`score --engine triton://`: rows, summary, metadata and exit codes, with servers in this process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading

import polars as pl
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tritonclient.grpc")

from genrec_batch.engines.onnx.engine import OnnxRuntimeEngine
from genrec_batch.model import weights
from genrec_batch.model.catalog import Catalog
from tests.fakes.triton_server import FakeServer


@pytest.fixture(scope="module")
def served(model_dir):
    model = weights.load(model_dir)
    return model.with_catalog(len(Catalog.read(model_dir / "catalog.parquet", vocabulary=model.config.vocabulary)))


@pytest.fixture
def serve(served):
    """Start servers that compute as `--engine onnxruntime` does."""
    started = []
    engine = OnnxRuntimeEngine(served, device="cpu", precision="fp32", threads=1)

    def start(behave=None, **facts):
        started.append(FakeServer(served, engine, behave=behave, **({"engine": "onnxruntime"} | facts)))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def rows(path):
    return pl.read_parquet(path)


def test_rows_are_those_of_a_local_engine_and_the_run_says_who_computed_them(run, serve, log_file, model_dir):
    servers = [serve(), serve()]
    address = "triton://" + ",".join(each.address for each in servers)
    done = run("score", log_file, "remote.parquet", "--model", model_dir, "--engine", address)
    assert done.code == 0, done.err
    run("score", log_file, "local.parquet", "--model", model_dir, "--engine", "onnxruntime", "--batch-size", "4")
    assert rows("remote.parquet").equals(rows("local.parquet"))
    summary = done.summary
    assert (summary["engine"], summary["precision"], summary["batch_users"]) == ("triton", "fp32", 4)
    assert sum(each["users"] for each in summary["servers"].values()) == summary["scored_users"] == 40
    assert list(summary["servers"]) == [each.address for each in servers]
    metadata = pl.read_parquet_metadata("remote.parquet")
    assert json.loads(metadata["genrec.config"])["engine"] == address
    assert (metadata["genrec.engine"], metadata["genrec.arithmetic"]) == ("triton", "onnxruntime")


def test_several_workers_share_the_servers(run, serve, log_file, model_dir):
    options = ["--model", model_dir, "--shard-users", "5", "--engine", f"triton://{serve().address}"]
    done = run("score", log_file, "two.parquet", *options, "--workers", "2")
    assert done.code == 0, done.err
    assert run("score", log_file, "one.parquet", *options).code == 0
    assert rows("two.parquet").equals(rows("one.parquet"))
    (counts,) = done.summary["servers"].values()
    assert counts["users"] == 40


def test_another_server_goes_on_where_the_first_one_stopped(run, serve, log_file, model_dir):
    gone = threading.Event()

    def behave(server, context):
        if server.users > 20:
            gone.set()
            context.abort(14, "the machine is gone")

    options = ["--model", model_dir, "--shard-users", "5", "--if-exists", "resume"]
    done = run("score", log_file, "parts", *options, "--engine", f"triton://{serve(behave).address}?wait=0.2")
    assert (done.code, gone.is_set()) == (75, True), done.err
    assert "was sent 10 times" in done.err or "no server answered" in done.err
    done = run("score", log_file, "parts", *options, "--engine", f"triton://{serve().address}")
    assert done.code == 0, done.err
    assert 0 < done.summary["scored_users"] < 40
    assert rows("parts/part-*.parquet")["user_id"].n_unique() == 40


@pytest.mark.parametrize(
    ("facts", "code", "said"),
    [
        ({"model": "f" * 64}, 4, "it has the model ffffffffffffffff, and the run has"),
        ({"precision": "fp16"}, 5, "--precision fp32: the servers compute in fp16"),
        ({"refuses": "Request for unknown model"}, 5, "refuses batches for its model 'genrec'"),
    ],
)
def test_servers_that_are_not_what_the_run_needs_end_it(run, serve, log_file, model_dir, facts, code, said):
    server = serve(**facts)
    options = ["--model", model_dir, "--precision", "fp32", "--engine", f"triton://{server.address}"]
    done = run("score", log_file, "recs.parquet", *options)
    assert done.code == code
    assert said in done.err
    assert server.address in done.err or code == 5


def test_a_server_that_returns_no_numbers_is_named_with_the_users(run, serve, log_file, model_dir):
    import numpy as np

    def behave(server, context):
        del context
        return {"RETENTION": np.full((4, 10), np.nan, np.float32)} if server.batches else {}

    server = serve(behave)
    done = run("score", log_file, "recs.parquet", "--model", model_dir, "--engine", f"triton://{server.address}")
    assert done.code == 5
    assert f"the server {server.address} (onnxruntime in fp32 on cpu, 4 users a batch) returned no finite" in done.err
    assert "user_id" in done.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_whose_server_never_answers(serve, log_file, model_dir, number, code):
    asked, over = threading.Event(), threading.Event()

    def behave(server, context):
        del server, context
        asked.set()
        over.wait(60)

    command = ["score", str(log_file), "recs.parquet", "--model", str(model_dir), "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "genrec_batch", *command, "--engine", f"triton://{serve(behave).address}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert asked.wait(60)
        process.send_signal(number)
        assert process.wait(25) == code
    finally:
        over.set()
        process.kill()
        process.wait()


def test_verify_compares_servers_with_an_engine_of_this_machine(run, serve, log_file, model_dir):
    options = ["--model", model_dir, "--engine", f"triton://{serve().address}", "--against", "onnxruntime"]
    done = run("verify", log_file, *options, "--max-difference", "1e-5")
    assert done.code == 0, done.err
    assert done.summary["engine"] == "triton in fp32 on cpu"
    done = run("evaluate", log_file, *options[:4])
    assert done.code == 2
    assert "evaluate, which looks at each step, needs an engine of this machine" in done.err
