"""`keeper`, `joining`, `actor` and `cluster` without a cluster: what is kept for whom, who has a place, all errors."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from genrec_batch import __version__
from genrec_batch.core.errors import ConfigError, EngineError, RetryError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.events.dataset import Dataset
from genrec_batch.runtime import signals
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring.workers import actor, joining, keeper
from genrec_batch.scoring.workers.cluster import places

ray = pytest.importorskip("ray")


@pytest.fixture
def kept(log, model_dir, tmp_path, monkeypatch):
    """Return a keeper that has the small log, with its options and output."""
    monkeypatch.setattr(LOG, "handlers", [])
    monkeypatch.setattr(LOG, "propagate", False)
    monkeypatch.setattr(keeper, "split", lambda *_: ([], []))
    monkeypatch.setattr(ray, "put", lambda what: what)
    monkeypatch.setattr(ray, "get", lambda what: what)
    model = tmp_path / "model"
    model.mkdir()
    for file in model_dir.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    log.write_parquet("events.parquet")
    config = ScoreConfig(model=str(model), engine="onnxruntime", rejects="rejects.parquet", ray="auto")
    found = keeper.Keeper("split", str(tmp_path))
    assert found.state("first", __version__) == keeper.NEW
    answer = found.opened(config, "events.parquet", "recs", False, 2)
    assert isinstance(answer.kept, keeper.Kept), answer.kept
    dataset = answer.kept.data.unpacked((), Stages())
    assert isinstance(dataset, Dataset)
    assert len(dataset.users) == 40
    early = found.model().unpacked((), Stages())
    assert (early.fingerprint, early.tokens) == (dataset.model.fingerprint, dataset.model.tokens)
    return found


def test_a_later_driver_gets_the_log_while_nothing_has_changed(kept):
    assert kept.state("first", __version__) == keeper.KEPT
    assert kept.state("first", "0.0") == f"genrec-batch {__version__}"


@pytest.mark.parametrize("what", ["events.parquet", "model/config.json", "rejects.parquet"])
def test_a_log_is_not_taken_again_once_an_input_the_model_or_the_rejects_changed(kept, what):
    assert kept.leave("first")
    Path(what).unlink()
    if what != "rejects.parquet":
        Path(what).write_bytes(b"other")
    assert kept.state("second", __version__) == keeper.CHANGED


def test_a_log_that_another_run_uses_is_left_to_it(kept):
    assert kept.state("second", __version__) == keeper.KEPT
    assert not kept.leave("second")
    Path("events.parquet").write_bytes(b"other")
    assert kept.state("second", __version__) == keeper.IN_USE
    assert kept.leave("first")
    assert kept.state("second", __version__) == keeper.CHANGED


def test_an_error_of_the_log_is_not_kept(tmp_path):
    found = keeper.Keeper("split", str(tmp_path))
    answer = found.opened(ScoreConfig(engine="onnxruntime"), "missing.parquet", "recs", False, 2)
    assert "missing.parquet" in answer.kept.text
    assert found.model() is None  # and nobody waits for it
    assert found.state("first", __version__) == keeper.CHANGED


def test_a_worker_whose_keeper_has_ended_asks_for_another_try(monkeypatch):
    def gone(_name, **_options):
        raise ValueError("no such actor")

    monkeypatch.setattr(ray, "get_actor", gone)
    with pytest.raises(RetryError, match="the keeper of the log has ended"):
        keeper.Fetched(keeper="split")(0)


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "head:port"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigError, match="HOST:PORT of the cluster's head, auto or local"):
        joining.joined(address)


def test_an_address_where_nobody_answers_ends_the_run_at_once(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setattr(joining, "REACH_S", 0.1)
    with pytest.raises(RetryError, match=f"--ray {address}: no cluster can be joined there"):
        joining.joined(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RetryError, match=f"--ray auto .RAY_ADDRESS={address}."):
        joining.joined("auto")


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.41.0\\n"), EngineError, "2.41.0"),
        (ray.exceptions.AuthenticationError("wrong"), ConfigError, "RAY_AUTH_TOKEN"),
        (ConnectionError("nobody"), RetryError, "no cluster can be joined there"),
    ],
)
def test_errors_of_joining_are_ours(monkeypatch, raised, kind, text):
    asked = []

    def init(**options):
        asked.append(options["address"])
        raise raised

    monkeypatch.setattr(joining, "imported", lambda: SimpleNamespace(init=init, exceptions=ray.exceptions))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(kind, match=text):
        joining.joined("local")
    assert asked == ["local"]  # and not that of RAY_ADDRESS


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (ray.exceptions.OutOfDiskError("spill"), RetryError, "no room for what is kept"),
        (ray.exceptions.ActorDiedError(), RetryError, "reads the log again and continues"),
        (ray.exceptions.RayTaskError("piece", "", ConfigError("an option")), ConfigError, "an option"),
        (ray.exceptions.RayTaskError("piece", "", ray.exceptions.OutOfDiskError("x")), RetryError, "no room"),
    ],
)
def test_errors_of_a_cluster_are_ours(raised, kind, text):
    with pytest.raises(kind, match=text), joining.faults(ray, "--ray auto"):
        raise raised


def test_a_signal_within_ray_ends_the_run_as_any_other():
    error = SystemError("<built-in method __new__> returned a result with an exception set")
    error.__cause__ = signals.Terminated()
    with pytest.raises(signals.Terminated), joining.faults(ray, "--ray auto"):
        raise error


def test_messages_are_taken_in_the_order_in_which_they_were_sent():
    found = actor.Actor(1, os.devnull, "0.0")
    (failed,) = found.next()
    assert f"has genrec-batch {__version__}, and the command is of 0.0" in str(failed.error())
    for number in (2, 0, 1):
        found.put(number, f"message {number}")
    assert [found.receive()[0] for _ in range(3)] == ["message 0", "message 1", "message 2"]


def cluster_of(*nodes):
    there = [
        {"Alive": True, "Resources": {"CPU": float(cpus), **({"GPU": gpus} if gpus else {})}} for cpus, gpus in nodes
    ]
    there.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8}})
    return SimpleNamespace(nodes=lambda: there)


@pytest.mark.parametrize(
    ("nodes", "workers", "found"),
    [
        ([(8, 0), (8, 0), (0, 0)], 1, (["cpu"] * 2, 8, 0)),  # the head has no core for workers
        ([(2, 0), (14, 0)], 1, (["cpu"] * 2, 7, 0)),  # the larger node has room for both
        ([(1, 0), (1, 0), (1, 0)], 2, (["cpu"] * 2, 1, 0)),
        ([(2, 0)], 4, (["cpu"] * 4, 0.5, 0)),
        (
            [(64, 0), (4, 1), (32, 4)],
            1,
            (["cuda:0"] * 5, 4, 1),
        ),  # cores of a node without a GPU are none for its workers
        ([(1, 2)], 1, (["cuda:0"] * 2, 0, 1)),
    ],
)
def test_every_worker_finds_a_place(nodes, workers, found):
    assert places(cluster_of(*nodes), ScoreConfig(ray="auto", workers=workers)) == found


def test_a_cluster_without_room_is_refused():
    config = ScoreConfig(ray="auto")
    with pytest.raises(RetryError, match="no node of the cluster has a core"):
        places(cluster_of((0, 0)), config)
    with pytest.raises(EngineError, match="no node of the cluster has a GPU"):
        places(cluster_of((4, 0)), replace(config, device="cuda"))
