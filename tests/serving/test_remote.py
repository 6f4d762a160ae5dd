"""`score --engine triton://` with real Triton servers: the rows of a local engine, and what becomes of lost servers."""

from __future__ import annotations

import threading
import time

import polars as pl
import pytest

from genrec_batch import score
from genrec_batch.core.errors import RetryError
from tests.serving.conftest import EXACT, SAMPLE
from tests.serving.running import Server, needed

pytest.importorskip("tritonclient.grpc")

WAYS = {
    "slates": {"decode": "slate"},
    "beams": {"decode": "slate", "beam_width": 3, "top_k": 5},
    "candidates": {"decode": "candidates", "weights": "engagement=0.5,log_prob=0.5"},
    "given candidates": {"candidates": "candidates.parquet"},
    "rules": {"exclude": ("excluded.parquet",), "include_seen": True, "max_per": "creator_id=2"},
}


class Pair:
    """Two servers with the same repository."""

    def __init__(self, repository, folder):
        self._repository, self._folder = repository, folder
        self.servers = [Server(repository, folder / "0.log", ready=False), Server(repository, folder / "1.log")]
        self.servers[0].wait()

    def engine(self, *places, wait=60):
        """Return `--engine` for some of the servers."""
        hosts = ",".join(f"127.0.0.1:{self.servers[place].grpc}" for place in places)
        return f"triton://{hosts}?wait={wait}"

    def kill(self, place):
        """End a server as a machine that loses its power does."""
        self.servers[place].kill()

    def restart(self, place):
        """Start a server again at the same ports."""
        old = self.servers[place]
        self.servers[place] = Server(
            self._repository, self._folder / f"{place}.again.log", ports=(old.http, old.grpc, old.metrics)
        )

    def batches(self, place):
        """Return how many batches a server has computed."""
        return self.servers[place].counters().get("nv_inference_exec_count", 0.0)


@pytest.fixture(scope="module")
def pair(sample, tmp_path_factory):
    needed()
    found = Pair(sample.version.parents[1], tmp_path_factory.mktemp("pair"))
    yield found
    for each in found.servers:
        each.stop()


def scored(sample, target, **options):
    """Return the rows of a run over the sample's log."""
    kept = {"model": str(SAMPLE / "model"), "videos": str(SAMPLE / "videos.parquet")}
    score(sample.folder / "log.parquet", target, **(kept | options))
    return pl.read_parquet(target)


@pytest.mark.parametrize("way", WAYS)
def test_a_thousand_users_get_the_rows_of_a_local_engine(pair, sample, tmp_path, way):
    videos = sample.recs["video_id"].unique().sort().to_list()
    pl.DataFrame({"video_id": videos[::7]}).write_parquet("excluded.parquet")
    users = list(sample.events)
    pl.DataFrame({"user_id": users, "video_id": [videos[user % 50 :: 50] for user in users]}).write_parquet(
        "candidates.parquet"
    )
    ours = scored(sample, tmp_path / "remote.parquet", engine=pair.engine(0, 1), **WAYS[way])
    local = scored(sample, tmp_path / "local.parquet", batch_size="32", **EXACT, **WAYS[way])
    assert local["user_id"].n_unique() > 950
    assert ours.equals(local)


def during(run, pair, place, what, *, after):
    """Do something to a server once it has computed some batches of a run; return what the run raised."""
    before, error = pair.batches(place), []

    def running():
        try:
            run()
        except RetryError as raised:
            error.append(raised)

    thread = threading.Thread(target=running)
    thread.start()
    while thread.is_alive() and pair.batches(place) - before < after:
        time.sleep(0.01)
    assert thread.is_alive(), "the run was over before"
    what(place)
    thread.join()
    return error


def test_a_server_that_is_killed_costs_no_row_and_both_can_be_told_from_the_summary(pair, sample, tmp_path):
    found = []
    small = {"model": str(SAMPLE / "model"), "batch_size": "4", "shard_users": 100}
    options = small | {"engine": pair.engine(0, 1)}

    def run():
        found.append(score(sample.folder / "log.parquet", tmp_path / "killed.parquet", **options))

    assert during(run, pair, 0, pair.kill, after=5) == []
    undisturbed = scored(sample, tmp_path / "one.parquet", videos=None, engine=pair.engine(1), **small)
    assert pl.read_parquet(tmp_path / "killed.parquet").equals(undisturbed)
    (first, second) = found[0]["servers"].values()
    assert (first["failed"] > 0, first["users"] + second["users"]) == (True, 1000)
    assert found[0]["engine_why"].startswith(f"triton: the servers 127.0.0.1:{pair.servers[0].grpc}, 127.0.0.1:")

    # the other one dies, too: what is written stays, and is the beginning of the next run's output
    options = small | {"engine": pair.engine(0, 1, wait=0.5)}
    folder = tmp_path / "parts"

    def again():
        score(sample.folder / "log.parquet", folder, **options)

    (gone,) = during(again, pair, 1, pair.kill, after=100)
    assert "no server answered" in str(gone)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*.parquet")}
    assert written
    pair.restart(0)
    again()
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}.items() >= written.items()
    assert pl.read_parquet(folder / "part-*.parquet").equals(undisturbed)

    # a run waits for its only server, which comes back
    options = small | {"engine": pair.engine(0, wait=300), "videos": None}

    def killed_and_started(place):
        pair.kill(place)
        pair.restart(place)

    waiting = tmp_path / "waiting.parquet"
    assert during(lambda: scored(sample, waiting, **options), pair, 0, killed_and_started, after=5) == []
    assert pl.read_parquet(waiting).equals(undisturbed)
