"""`follow` and `server` with a real Triton server: swaps under load, and nothing is lost, mixed or broken."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from genrec_batch.demo import synthetic
from genrec_batch.events import dataset
from genrec_batch.model import registering, weights
from genrec_batch.serving.follow import Follower
from genrec_batch.serving.follow_options import FollowConfig
from tests.serving.conftest import SAMPLE
from tests.serving.running import ROOT, VENV, Server
from tests.serving.swapping import NAME, Load, Truth, broken_weights, following, promote

grpc = pytest.importorskip("tritonclient.grpc")
utils = pytest.importorskip("tritonclient.utils")

CLIENTS = int(os.environ.get("GENREC_TEST_TRITON_CLIENTS", "8"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The sample's model and one with another catalog, what `score` writes with each, and one that is broken."""
    folder = tmp_path_factory.mktemp("models")
    synthetic.write(synthetic.SampleConfig(users=60, events_per_user=20, videos=1200, seed=3), folder / "log.parquet")
    first, second, truth = SAMPLE / "model", folder / "second", Truth()
    config = weights.PRESETS["tiny"]
    weights.save(second, config, weights.initial_weights(config, 9), trained=True, card="for tests\n")
    dataset.catalog_of(str(folder / "log.parquet"), None, config.vocabulary).write(second / "catalog.parquet")
    names = [truth.add(each, folder / "log.parquet", folder) for each in (first, second)]
    broken_weights(first, folder / "broken")
    return SimpleNamespace(first=first, second=second, broken=folder / "broken", truth=truth, names=names)


@pytest.fixture
def place(tmp_path, models):
    """A registry whose champion is the first model, and a repository that has it."""
    if not (VENV / "bin" / "python").exists():
        if os.environ.get("CI"):
            pytest.fail(f"no {VENV}: `make test` builds it")
        pytest.skip(f"no {VENV}: `make test` builds it")
    root, repository = tmp_path / "registry", tmp_path / "repository"
    promote(root, models.first)
    Follower.of(FollowConfig(registry=str(root), out=str(repository)), NAME).look()
    return SimpleNamespace(root=root, repository=repository, folder=tmp_path)


def deployed():
    """Return the options of the server in `jobs/kubernetes/serving`."""
    yaml = pytest.importorskip("yaml")
    file = ROOT / "jobs" / "kubernetes" / "serving" / "deployment.yaml"
    containers = yaml.safe_load(file.read_text())["spec"]["template"]["spec"]["containers"]
    (server,) = [each for each in containers if each["name"] == "triton"]
    return [each.replace("$(POD_UID)", "secret") for each in server["command"][3:]]


@pytest.mark.parametrize("mode", ["explicit", pytest.param("poll", marks=pytest.mark.slow)])
def test_promotions_and_rollbacks_under_load_fail_no_request_and_mix_no_answer(place, models, mode):
    polling = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    options = polling if mode == "poll" else deployed()
    server = Server(place.repository, place.folder / "server.log", *options)
    url = ("--triton", f"http://127.0.0.1:{server.http}", "--every", "0.5")
    first, second = models.names
    took = {}

    def swapped(what, change, model):
        before, begun = max(each.number for each in load.seen), time.monotonic()
        change()
        took[what] = load.until(lambda each: each.number > before and each.model == model).at - begun

    try:
        with (
            following(place.root, place.repository, place.folder / "log", *url) as follower,
            Load(grpc, server.grpc, models.truth, CLIENTS) as load,
        ):
            load.until(lambda each: each.model == first)
            swapped("promote", lambda: promote(place.root, models.second), second)
            swapped("rollback", lambda: registering.rollback(place.root, NAME), first)
            promote(place.root, models.broken)
            follower.until("does not become live")
            load.until(lambda each: each.model == first)
            swapped("promote again", lambda: promote(place.root, models.second), second)
            follower.until("as version 4 of genrec")
            if mode == "explicit":
                refused = pytest.raises(utils.InferenceServerException, match="restricted")
                with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client, refused:
                    client.unload_model("genrec")
            assert follower.stop() == 143
    finally:
        server.stop()
    told = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in took.items())
    answers = {each.number: 0 for each in load.seen}
    for each in load.seen:
        answers[each.number] += 1
    print(f"{mode}: {len(load.seen):,} requests of {CLIENTS} clients, answers by version {answers}; {told}")
    print((place.folder / "log").read_text())
    assert load.faults() == []
    assert {each.model for each in load.seen} == {first, second}
