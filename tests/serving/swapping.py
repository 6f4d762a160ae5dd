"""A registry with models to swap between, a follower in a process of its own, and clients that never pause.

Owns: what goes on while a server is swapped, and what is seen of it. Must not know: which swaps a test makes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from genrec_batch import score
from genrec_batch.model import registering, registry, weights
from tests.serving.requests import events_of, request

ROOT = Path(__file__).parents[2]
CLOSE = 1e-5
NAME = "ranker"


def broken_weights(source, target):
    """Write a model whose weights are numbers and whose scores are none: it loads, and cannot answer."""
    model = weights.load(source)
    tensors = {name: each * np.float32(1e30) for name, each in model.weights.items()}
    weights.save(target, model.config, tensors, trained=True, card="broken\n")
    shutil.copyfile(source / "catalog.parquet", target / "catalog.parquet")


@dataclass
class Truth:
    """What `score` writes with each model: rows by user, under the fingerprint that an answer names."""

    requests: dict = field(default_factory=dict)
    rows: dict = field(default_factory=dict)

    def add(self, model, log_file, folder):
        log = pl.read_parquet(log_file)
        as_of = log["timestamp"].max().isoformat()
        self.requests = {user: request(events, as_of=as_of) for user, events in events_of(log).items()}
        summary = score(log_file, folder / "recs.parquet", model=str(model), engine="onnxruntime", precision="fp32",
                        if_exists="overwrite")  # fmt: skip
        recs = pl.read_parquet(folder / "recs.parquet").sort("user_id", "rank")
        self.rows[summary["model"]] = {
            user: (rows["video_id"].to_list(), rows["score"].to_numpy())
            for (user,), rows in recs.group_by("user_id", maintain_order=True)
        }
        return summary["model"]


@dataclass
class Seen:
    """One answer, or why there was none."""

    client: int
    at: float
    number: int = 0
    model: str = ""
    fault: str = ""


class Load:
    """Clients that ask one request after another, each over its own connection, and compare every answer."""

    def __init__(self, kind, port, truth, clients, model="genrec"):
        self.kind, self.port, self.truth, self.model = kind, port, truth, model
        self.seen, self._end = [], threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(each,)) for each in range(clients)]

    def __enter__(self):
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *exception):
        self._end.set()
        for each in self._threads:
            each.join()

    def _client(self, number):
        users = list(self.truth.requests)
        place = number * 7
        with self.kind.InferenceServerClient(f"127.0.0.1:{self.port}") as connection:
            while not self._end.is_set():
                place += 1
                self.seen.append(self._asked(connection, number, users[place % len(users)]))

    def _asked(self, connection, client, user):
        tensor = self.kind.InferInput("REQUEST", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[self.truth.requests[user]]], np.object_))
        try:
            result = connection.infer(self.model, [tensor])
        except Exception as error:  # whatever it is, the request has failed
            return Seen(client, time.monotonic(), fault=str(error))
        count = result.as_numpy("COUNT")[0, 0]
        model = result.as_numpy("VERSION")[0, 0].decode()
        videos, scores = self.truth.rows[model][user]
        fault = ""
        if result.as_numpy("VIDEO_ID")[0, :count].tolist() != videos:
            fault = f"user {user}: other videos than score writes with {model}"
        elif np.abs(result.as_numpy("SCORE")[0, :count] - scores).max() > CLOSE:
            fault = f"user {user}: other scores than score writes with {model}"
        return Seen(client, time.monotonic(), int(result.get_response().model_version), model, fault)

    def until(self, condition, seconds=180):
        """Wait until an answer that comes from now on meets a condition, and return it."""
        start, end = len(self.seen), time.monotonic() + seconds
        while time.monotonic() < end:
            for each in self.seen[start:]:
                if condition(each):
                    return each
            time.sleep(0.02)
        raise AssertionError(f"no such answer in {seconds} s; the last are {self.seen[-3:]}")

    def faults(self):
        """Return the requests that failed or were answered wrongly, and clients whose versions went back."""
        found = [each.fault for each in self.seen if each.fault]
        for client in {each.client for each in self.seen}:
            numbers = [each.number for each in self.seen if each.client == client and not each.fault]
            if numbers != sorted(numbers):
                found.append(f"client {client}: the versions of its answers go back")
        return found


class Follower:
    """`model follow` in a process of its own, with its log."""

    def __init__(self, root, repository, log, *options, **environment):
        self.log = log
        command = [sys.executable, "-m", "genrec_batch", "model", "follow", NAME, "--registry", str(root)]
        command += ["--out", str(repository), *options]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )

    def until(self, text, seconds=180):
        """Wait until the log has a text."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if text in self.log.read_text():
                return
            time.sleep(0.05)
        raise AssertionError(f"no {text!r} in the log:\n{self.log.read_text()}")

    def stop(self, number=signal.SIGTERM):
        """End it, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def following(*arguments, **environment):
    """Run a follower during the block."""
    follower = Follower(*arguments, **environment)
    try:
        yield follower
    finally:
        if follower.process.poll() is None:
            follower.process.kill()
            follower.process.wait()


def promote(root, directory):
    """Register a model and make it the champion; return its version."""
    version, _ = registering.register(root, NAME, directory)
    registering.promote(version, root)
    return registry.resolve(root, NAME)
