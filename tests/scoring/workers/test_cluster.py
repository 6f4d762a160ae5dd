"""`score --ray` on a cluster of three nodes on this machine: the bytes of one process, whoever is killed meanwhile.

Also tests `keeper` and `actor`. `GENREC_TEST_RAY_KILLS` is the number of random kills of workers and nodes.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import small_log
from tests.scoring.workers.test_crew import FAST, POISON, ROOT, children_of, digest

pytest.importorskip("ray")
KILLS = int(os.environ.get("GENREC_TEST_RAY_KILLS", "2"))
OPTIONS = [*FAST, "--shard-users", 2, "--quiet"]


@pytest.fixture(scope="module")
def settings():
    """Return the environment of the cluster and of its drivers: a token of their own, nothing that is sent out."""
    told = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_agent_register_timeout_ms": "300000",  # of a node, which would end without its agents
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as there, all nodes are 127.0.0.1
    }
    return {**os.environ, **told, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


class Served:
    """A cluster that runs."""

    def __init__(self, process):
        self._process, self.pid = process, process.pid
        self.address = process.stdout.readline().strip().splitlines()[-1]

    def kill_node(self):
        """Kill a node with all of its processes."""
        self._process.stdin.write("kill\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "killed\n"


@pytest.fixture(scope="module")
def cluster(settings, tmp_path_factory):
    """A cluster that kills whoever writes part 7 while a file `poisoned` is in the folder of its driver."""
    poison = tmp_path_factory.mktemp("poison")
    (poison / "sitecustomize.py").write_text(POISON)
    command = [sys.executable, str(ROOT / "tests" / "fakes" / "ray_cluster.py"), "2"]
    environment = {**settings, "PYTHONPATH": f"{ROOT}{os.pathsep}{poison}"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield Served(process)
        process.stdin.close()


@pytest.fixture
def job(settings, run, model_dir):
    """Start drivers over 20 parts as processes of their own; `one.parquet` is what one process makes."""
    small_log().write_parquet("events.parquet", row_group_size=100)

    def start(target, address, *more, model=("--model", model_dir)):
        command = [sys.executable, "-m", "genrec_batch", "score", "events.parquet", target, *model]
        arguments = map(str, [*command, *OPTIONS, "--ray", address, *more])
        return subprocess.Popen(
            list(arguments), env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    one = run("score", "events.parquet", "one.parquet", "--model", model_dir, *OPTIONS)
    assert one.code == 0, one.err
    return start


def finished(process):
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(said.splitlines()[-1])


def parts():
    return len(list(Path().glob(".two.parquet*/part-*.parquet")))


def working(cluster, *names):
    """Return the processes of a cluster that work for us, by default as workers: children of its nodes' daemons."""
    titles = tuple(f"ray::{name}".encode() for name in names or ("Actor", "piece"))
    found = []
    for pid in [child for daemon in children_of(cluster.pid) for child in children_of(daemon)]:
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(titles):
                found.append(pid)
    return found


def test_killed_workers_and_nodes_cost_their_parts_only(cluster, job):
    draw, killed, runs = random.Random(7), 0, 0
    while killed < KILLS:
        Path("two.parquet").unlink(missing_ok=True)
        code = 75
        while code == 75:  # a part met three kills, or a worker three in a row
            with job("two.parquet", cluster.address) as process:
                stop, again = killed + draw.randrange(1, 16), 0.0
                while process.poll() is None and killed < stop:
                    time.sleep(0.05)
                    if time.monotonic() < again or not (pids := working(cluster)):
                        continue
                    if draw.random() < 0.2:
                        cluster.kill_node()
                    else:
                        os.kill(draw.choice(pids), signal.SIGKILL)
                    killed, again = killed + 1, time.monotonic() + draw.expovariate(1)
                _, errors = process.communicate()
            code, runs = process.returncode, runs + 1
            print(f"{killed} kills in {runs} runs, the last of which ended with {code}", flush=True)
        assert code == 0, errors
        assert digest("one.parquet") == digest("two.parquet")


def started_parts(process, count):
    """Wait until an output has some parts, or its run is over."""
    while process.poll() is None and parts() < count:
        time.sleep(0.01)


def test_a_driver_that_is_ended_goes_on_without_reading_the_log_again(cluster, job):
    for number, code, least in ((signal.SIGTERM, 143, 4), (signal.SIGKILL, -9, 12)):
        with job("two.parquet", cluster.address) as process:
            started_parts(process, least)
            process.send_signal(number)
            _, errors = process.communicate()
        assert process.returncode == code, errors
    there = parts()
    assert 12 <= there < 20
    log, found = Path("events.parquet"), Path("events.parquet").stat()
    with log.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        footer = int.from_bytes(file.read(4), "little") + 8
        file.seek(0)
        file.write(bytes(found.st_size - footer))  # no row of it is read again
    os.utime(log, ns=(found.st_atime_ns, found.st_mtime_ns))
    with job("two.parquet", cluster.address) as again:
        done = finished(again)
    assert done["resumed_parts"] >= there
    assert (done["ray"]["split_taken_again"], done["ray"]["row_groups_read"]) == (True, 0)
    assert digest("one.parquet") == digest("two.parquet")
    small_log().head(300).write_parquet("events.parquet")
    with job("three.parquet", cluster.address) as other:
        assert finished(other)["ray"]["split_taken_again"] is False


def test_the_end_of_the_keeper_ends_the_run_which_goes_on(cluster, job):
    with job("two.parquet", cluster.address) as process:
        started_parts(process, 1)
        for pid in working(cluster, "Keeper"):
            os.kill(pid, signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode in (0, 75), errors  # 0 where all parts had been read
    with job("two.parquet", cluster.address, "--if-exists", "resume") as again:
        assert finished(again)["ray"]["split_taken_again"] is False
    assert digest("one.parquet") == digest("two.parquet")


def test_arms_and_rejects_are_those_of_one_process(cluster, job, run, model_dir):
    bad = pl.read_parquet("events.parquet").with_columns(user_id=pl.lit(None, pl.Int64)).head(9)
    pl.concat([pl.read_parquet("events.parquet"), bad]).write_parquet("events.parquet")
    arms = ["--arm", f"a={model_dir}:60", "--arm", f"b={model_dir}:40", "--salt", "s"]
    one = run("score", "events.parquet", "one.parquet", *OPTIONS, *arms, "--if-exists", "overwrite")
    assert one.code == 0, one.err
    with job("two.parquet", cluster.address, "--rejects", "rejects.parquet", model=arms) as process:
        assert finished(process)["arms"] == one.summary["arms"]
    assert digest("one.parquet") == digest("two.parquet")
    assert len(pl.read_parquet("rejects.parquet")) == 9


def test_a_part_that_always_fails_is_left_out_and_named(cluster, job):
    Path("poisoned").touch()
    with job("two.parquet", cluster.address) as driver:
        _, errors = driver.communicate()
    assert driver.returncode == 75, errors
    assert "part 7: worker" in " ".join(errors.split())
    assert parts() == 19
    Path("poisoned").unlink()
    with job("two.parquet", cluster.address) as again:
        assert finished(again)["resumed_parts"] == 19
    assert digest("one.parquet") == digest("two.parquet")


def test_errors_of_the_keeper_are_those_of_one_process(cluster, job, run):
    Path("events.parquet").write_bytes(b"PAR1 no log")
    with job("two.parquet", cluster.address) as process:
        _, errors = process.communicate()
    assert process.returncode == 3, errors
    done = run("score", "events.parquet", "--user", 100, "--ray", "auto")
    assert (done.code, "--ray goes with OUTPUT" in done.err) == (2, True)
