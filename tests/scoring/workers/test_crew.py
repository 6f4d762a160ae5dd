"""A run with several processes: the bytes of one process, whatever is killed meanwhile.

Also tests `worker`, `member`, `merged`, `messages`, `scoring.ranker`, `scoring.about`, `io.part_writer`,
`processes`, `events.dataset_facts`, `engines.devices` and `core.worker_options`. `GENREC_TEST_KILLS` is the number of
random kills of each kind.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError, EngineError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines import devices
from genrec_batch.runtime.clock import Stages
from genrec_batch.scoring.workers import processes
from genrec_batch.scoring.workers.crew import Crew
from genrec_batch.scoring.workers.messages import Opened

ROOT = Path(__file__).parent.parent.parent.parent
KILLS = int(os.environ.get("GENREC_TEST_KILLS", "2"))
FAST = ["--engine", "onnxruntime", "--precision", "fp32", "--top-k", 3, "--shard-users", 4]


def digest(place):
    """Return a sha256 over all that is in an output and beside it."""
    place = Path(place)
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    beside = place.with_name(place.name + ".fingerprints")
    found = hashlib.sha256()
    for file in [*files, *([beside] if beside.exists() else [])]:
        found.update(str(file.relative_to(place.parent)).replace(place.name, "").encode() + file.read_bytes())
    return found.hexdigest()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--dedupe"], id="file"),
        pytest.param(
            ["--memory-limit", "1MiB", "--partition-by", "device_type", "--carry", "users.device_type"], id="folders"
        ),
    ],
)
def test_two_workers_write_the_bytes_of_one_process(run, log, model_dir, options):
    pl.concat([log, log]).write_parquet("events.parquet")
    kinds = pl.DataFrame({"user_id": range(100, 140), "device_type": ["mobile", "tablet"] * 20})
    kinds.write_parquet("users.parquet")
    target = "recs" if "--partition-by" in options else "recs.parquet"
    arguments = ["--model", model_dir, "--users", "users.parquet", *FAST, *options]
    one = run("score", "events.parquet", f"one-{target}", *arguments)
    assert one.code == 0, one.err
    two = run("score", "events.parquet", f"two-{target}", *arguments, "--workers", 2)
    assert two.code == 0, two.err
    assert digest(f"one-{target}") == digest(f"two-{target}")
    assert one.summary["rows"] == two.summary["rows"]
    assert sum(each["scored_users"] for each in two.summary["workers"]) == two.summary["scored_users"] == 40
    assert two.summary.get("duplicates_dropped") == one.summary.get("duplicates_dropped")


def test_arms_and_an_earlier_output_are_those_of_one_process(run, log, model_dir):
    log.sort("user_id").write_parquet("events.parquet")
    arms = ["--arm", f"a={model_dir}:60", "--arm", f"b={model_dir}:40", "--salt", "s", "--as-of", "2026-06-01", *FAST]
    first = run("score", "events.parquet", "night.parquet", *arms)
    assert first.code == 0, first.err
    more = log.filter(pl.col("user_id") < 110).with_columns(pl.col("timestamp") - pl.duration(days=1))
    pl.concat([log, more]).sort("user_id").write_parquet("events.parquet")
    one = run("score", "events.parquet", "one.parquet", *arms, "--previous", "night.parquet")
    two = run("score", "events.parquet", "two.parquet", *arms, "--previous", "night.parquet", "--workers", 2)
    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert digest("one.parquet") == digest("two.parquet")
    assert one.summary["arms"] == two.summary["arms"]
    assert 0 < two.summary["carried_users"] == one.summary["carried_users"] < 40


def test_an_error_that_all_would_meet_is_that_of_one_process(run, log_file, model_dir):
    arguments = ["score", log_file, "recs", "--model", model_dir, *FAST, "--workers", 2]
    done = run(*arguments, "--partition-by", "score")
    assert (done.code, "its type is Float32" in done.err) == (2, True), done.err
    done = run(*arguments[:2], "--user", 105, *arguments[3:])  # printed, so by this process
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("device", "workers", "there", "found"),
    [
        ("cuda", 1, 2, ["cuda:0", "cuda:1"]),
        ("cuda:0,2", 1, 3, ["cuda:0", "cuda:2"]),
        ("cuda:1", 1, 2, ["cuda:1"]),
        ("cpu", 3, 2, ["cpu"] * 3),
    ],
)
def test_each_device_has_a_process(device, workers, there, found):
    assert devices.devices(device, "torch", workers, lambda: there) == found


def test_devices_that_are_not_there_or_share_a_gpu_are_refused():
    with pytest.raises(EngineError, match="no such GPU: cuda:2; CUDA shows 2 GPUs"):
        devices.devices("cuda:0,2", "torch", 1, lambda: 2)
    with pytest.raises(ConfigError, match="--workers 2 is for engines on the CPU"):
        devices.devices("cuda", "torch", 2, lambda: 2)
    with pytest.raises(ConfigError, match="cuda:N,M"):
        ScoreConfig(device="cuda:1,1")


def test_a_worker_is_told_its_own_device_and_cores(monkeypatch):
    """There is no GPU here: what a process for each would be told, of which only the first one compares engines."""
    started = []

    class Silent:
        def __init__(self, cores):
            self.cores, self.told = cores, []
            self.link = self

        def send(self, message, *_files):
            self.told.append(message)

        def end(self):
            return ""

    def start(_module, cores):
        started.append(Silent(cores))
        return started[-1]

    monkeypatch.setattr(processes.Child, "start", start)
    monkeypatch.setattr(devices, "gpus", lambda: 2)
    config, place = ScoreConfig(device="cuda", engine="torch", verify_sample=8), processes.Processes(2)
    crew = Crew(config, "recs", ["cuda:0", "cuda:1"], Stages(), place)
    crew.start()
    crew.close()
    told = [child.told[0].config for child in started]
    assert [(each.device, each.verify_sample, each.workers) for each in told] == [("cuda:0", 8, 1), ("cuda:1", 0, 1)]
    assert sorted(core for child in started for core in child.cores) == sorted(os.sched_getaffinity(0))


class Scripted:
    """A place whose workers say what a test wrote down: for each worker that is started, its messages in turn."""

    same_clock = False

    def __init__(self, *said):
        self._said, self.started = list(said), []

    def start(self, number):
        worker = SimpleNamespace(number=number, told=[], said=deque(self._said.pop(0)), end=lambda: "killed")
        worker.link = SimpleNamespace(send=lambda message, *_files: worker.told.append(message), receive=None)
        worker.link.receive = lambda: self._next(worker)
        self.started.append(worker)
        return worker

    @staticmethod
    def _next(worker):
        message = worker.said.popleft()
        if message is None:
            raise EOFError
        return message, []

    def ready(self, workers, _seconds):
        return [next(worker for worker in reversed(workers) if worker.said)]

    def share(self, what):
        return what, ()


def test_workers_get_the_model_before_the_data_set():
    place = Scripted([Opened(about=SimpleNamespace(engine="an engine"))], [])
    crew = Crew(ScoreConfig(engine="onnxruntime"), "recs", ["cpu", "cpu"], Stages(), place)
    crew.start()
    crew.know("the model")
    dataset = SimpleNamespace(users=SimpleNamespace(store=SimpleNamespace(held={})))
    crew.about(dataset)
    for worker in place.started:
        assert [type(message).__name__ for message in worker.told] == ["Start", "Know", "Load"]
        assert (worker.told[1].model, worker.told[2].data) == ("the model", dataset)


def test_no_part_is_handed_out_before_a_worker_has_verified_even_if_it_must_be_started_again():
    about = SimpleNamespace(engine="an engine")
    opened = Opened(about=about)
    place = Scripted([None, opened], [opened], [opened])  # the first one dies before it has verified
    crew = Crew(ScoreConfig(engine="onnxruntime", verify_sample=8), "recs", ["cpu", "cpu"], Stages(), place)
    crew.start()
    dataset = SimpleNamespace(users=SimpleNamespace(store=SimpleNamespace(held={})))
    assert crew.about(dataset) is about
    first, second, again = place.started
    assert [each.told[0].config.verify_sample for each in (first, second, again)] == [8, 0, 8]
    assert not again.said


def children_of(pid):
    """Return the processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def gone(pids):
    """Return whether processes have ended, given a moment."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def job(run, log, model_dir):
    """Start runs over 20 parts as processes of their own; `one.parquet` is what one process makes."""
    log.write_parquet("events.parquet")
    command = [sys.executable, "-m", "genrec_batch", "score", "events.parquet"]
    options = ["--model", model_dir, *FAST, "--shard-users", 2, "--quiet"]

    def start(target, *more, path=""):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{path}"}
        arguments = [*command, target, *map(str, (*options, *more))]
        return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    one = run("score", "events.parquet", "one.parquet", *options)
    assert one.code == 0, one.err
    return start


def wait_for_parts(process, count=1):
    """Wait until an output has some parts, or its run is over."""
    while process.poll() is None and len(list(Path().glob(".two.parquet*/part-*.parquet"))) < count:
        time.sleep(0.01)


def test_killed_workers_cost_their_parts_only(job):
    draw, killed = random.Random(5), 0
    while killed < KILLS:
        Path("two.parquet").unlink(missing_ok=True)
        with job("two.parquet", "--workers", 2) as process:
            for _ in range(draw.randrange(1, 4)):
                wait_for_parts(process, draw.randrange(0, 20))
                time.sleep(draw.uniform(0.0, 1.0))
                if workers := children_of(process.pid):
                    os.kill(draw.choice(workers), signal.SIGKILL)
                    killed += 1
            said, errors = process.communicate()
        if process.returncode == 75:  # one part met three kills, or all workers did
            with job("two.parquet", "--workers", 2) as again:
                said, errors = again.communicate()
                assert again.returncode == 0, errors
        else:
            assert process.returncode == 0, errors
        assert digest("one.parquet") == digest("two.parquet")
        assert json.loads(said.splitlines()[-1])["rows"] == 120


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_no_process_and_goes_on(job, kind):
    draw = random.Random(6)
    for number in range(max(1, KILLS // 2)):
        Path("two.parquet").unlink(missing_ok=True)
        with job("two.parquet", "--workers", 2) as process:
            if draw.random() < 0.7:
                wait_for_parts(process, draw.randrange(1, 20))
            else:
                time.sleep(draw.uniform(0.0, 5.0))
            workers = children_of(process.pid)
            process.send_signal(kind)
            process.communicate()
        assert gone(workers)
        with job("two.parquet", "--workers", 2, "--if-exists", "resume") as again:  # which may be whole
            _, errors = again.communicate()
            assert again.returncode == 0, errors
        assert digest("one.parquet") == digest("two.parquet")
        print(f"{number + 1} runs ended by {kind.name}, no byte differs", flush=True)


POISON = """
import os, signal
from genrec_batch.io import part_writer
write = part_writer.PartWriter.write
def poisoned(self, number, *rest):
    if number == 7 and os.path.exists("poisoned"):
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, number, *rest)
part_writer.PartWriter.write = poisoned
"""


def test_a_part_that_always_fails_is_left_out_and_named(job, tmp_path):
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison" / "sitecustomize.py").write_text(POISON)
    Path("poisoned").touch()
    with job("two.parquet", "--workers", 2, path=tmp_path / "poison") as process:
        _, errors = process.communicate()
    said = " ".join(errors.split())
    assert process.returncode == 75, errors
    assert "parts that failed 3 times each were left out, 1 in all" in said
    assert "part 7: worker" in said
    assert "it was ended by SIGKILL" in said
    parts = {file.name for file in Path(".two.parquet.unfinished").glob("part-*.parquet")}
    assert parts == {f"part-{number:05d}.parquet" for number in range(20) if number != 7}
    with job("two.parquet", "--workers", 2) as again:
        said, errors = again.communicate()
    assert again.returncode == 0, errors
    assert json.loads(said.splitlines()[-1])["resumed_parts"] == 19
    assert digest("one.parquet") == digest("two.parquet")
