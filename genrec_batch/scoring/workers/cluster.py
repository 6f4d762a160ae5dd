"""A Ray cluster as the place of workers: one actor for each GPU or group of cores, on whatever node has room.

Owns: which actors there are, what they share, and whether the cluster is still there. Must not know: parts, messages'
meaning, how a log is split (`keeper`), what an actor is (`actor`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from genrec_batch import __version__
from genrec_batch.core.errors import ConfigError, EngineError, RetryError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.core.servers import is_servers
from genrec_batch.engines.choose import device_of
from genrec_batch.events.dataset import Dataset
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring.workers import actor, joining, keeper
from genrec_batch.scoring.workers.joining import HEAD_S, Ray
from genrec_batch.scoring.workers.keeper import ALIVE_S, Kept, Stored
from genrec_batch.scoring.workers.messages import Failed
from genrec_batch.scoring.workers.processes import Sent, Started

MOST_ENDS = 3  # of a keeper that has just been started
PLACE_S = 30.0  # for a worker to get a place and begin, after which the user is told
NOT_OF_THE_LOG = {  # options by which an opened log does not differ
    *("if_exists", "ray", "workers", "quiet", "verbose", "log_format", "stall_limit", "previous"),
    *("verify_sample", "min_topk_overlap", "max_drift", "recheck"),
}


class Cluster:
    """A cluster that was joined, for one run."""

    same_clock = False

    def __init__(self, ray: Ray, config: ScoreConfig, source: str, target: str) -> None:
        self._ray, self._config, self._source, self._target = ray, config, source, target
        self._where = f"--ray {config.ray}"
        self._driver = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
        self._keeper: Any = None
        self._kept: Kept | None = None
        self._dataset: Dataset | None = None
        self._told = self._began = time.monotonic()
        self._warned = False
        self.done = False
        self._node = str(ray.get_runtime_context().get_node_id())
        self._head = str(ray.get_runtime_context().gcs_address)
        self.devices, self._cores, self._gpus = places(ray, config)

    @staticmethod
    def join(config: ScoreConfig, source: str, target: str | None) -> Cluster:
        """Join the cluster of `--ray`: `local` starts one on this machine.

        Raises:
            ConfigError: without an output.
            GenrecError: see `joining.joined` and `places`.
        """
        if target is None:
            raise ConfigError("--ray goes with OUTPUT: parts are written where they are computed")
        assert config.ray is not None, "asked for"
        return Cluster(joining.joined(config.ray), config, source, target)

    @contextmanager
    def joined(self) -> Iterator[Cluster]:
        """Be in the cluster for a run, whose errors Ray does not decide, and leave it."""
        try:
            with joining.faults(self._ray, self._where):
                yield self
        finally:
            self._leave()

    def dataset(self, config: ScoreConfig, stages: Stages, know: Callable[[Sent], None], *, arms: bool) -> Dataset:
        """Return the data set, which a keeper in the cluster opens and splits, or has from a killed driver.

        Args:
            config: the options, those of the first of several `arms`.
            stages: the clock of the run.
            know: gets the model before the log is split.
            arms: whether there are several.

        Raises:
            GenrecError: see `Dataset.open`.
        """
        with stages.time("keeper"), console.busy("splitting the log in the cluster"):
            self._keeper, again = self._keeper_of()
            asked = self._keeper.opened.remote(config, self._source, self._target, arms, len(self.devices))
            model = self._keeper.model.remote()
            while not self._ray.wait([model], timeout=ALIVE_S)[0]:
                self._beat()
            if (sent := self._ray.get(model)) is not None:
                know(sent)
            while not self._ray.wait([asked], timeout=ALIVE_S)[0]:
                self._beat()
            answer = self._ray.get(asked)
        for level, text in answer.said:
            LOG.log(level, "%s", text)
        if isinstance(answer.kept, Failed):
            raise answer.kept.error()
        self._kept = answer.kept
        dataset: Dataset = self._kept.data.unpacked((), stages)
        cluster = {"nodes": sum(node["Alive"] for node in self._ray.nodes()), "split_taken_again": again}
        dataset.facts["ray"] = cluster | {"row_groups_read": 0 if again else self._kept.row_groups}
        self._dataset = dataset
        return dataset

    def _keeper_of(self) -> tuple[Any, bool]:
        """Return the keeper of this run, and whether it has the log from an earlier try.

        Raises:
            EngineError: the head has another version of this package, or none.
            RetryError: another run still uses the log as it was before it changed.
        """
        options = {n: v for n, v in dataclasses.asdict(self._config).items() if n not in NOT_OF_THE_LOG}
        key = json.dumps([__version__, options, str(Path.cwd()), self._source, self._target], sort_keys=True)
        name = "split-" + hashlib.sha256(key.encode()).hexdigest()[:24]
        until, ends = time.monotonic() + keeper.FORGET_S + ALIVE_S, 0
        while ends < MOST_ENDS:
            found = keeper.started(self._ray, name)
            try:
                state = self._ray.get(found.state.remote(self._driver, __version__))
            except self._ray.exceptions.ActorDiedError as error:  # it has just ended, or could not begin
                why = joining.said(error)
                if "ModuleNotFoundError" in why:
                    raise EngineError(
                        f"{self._where}: the head of the cluster has no such package ({why}); install genrec-batch "
                        f"{__version__} on all nodes"
                    ) from error
                ends += 1
                continue
            if state == keeper.CHANGED:
                self._ray.kill(found)
                self._until_gone(name)
                continue
            if state == keeper.IN_USE:
                if time.monotonic() < until:  # the other one may have been killed
                    time.sleep(1.0)
                    continue
                raise RetryError(
                    f"{self._where}: another run of this command is using the log as it was before it changed; run it "
                    "again once that one is over"
                )
            if state not in (keeper.NEW, keeper.KEPT):
                raise EngineError(
                    f"{self._where}: the head of the cluster has {state}, and this command is of genrec-batch "
                    f"{__version__}; install the same on all nodes"
                )
            return found, state == keeper.KEPT
        raise RetryError(f"{self._where}: the keeper of the log ends again and again; run the same command again")

    def _until_gone(self, name: str) -> None:
        """Wait until the name of an actor that was killed is free."""
        for _ in range(100):
            try:
                self._ray.get_actor(name)
            except ValueError:
                return
            time.sleep(0.1)

    def start(self, number: int) -> Started:
        """Start a worker on a node that has room."""
        del number
        return actor.started(self._ray, self._cores, self._gpus)

    def ready(self, workers: Sequence[Any], seconds: float) -> list[Started]:
        """Return the workers that have said something or have ended."""
        self._beat()
        if at_once := [each for each in workers if each.link.ready]:
            return at_once
        there = {each.link.pending: each for each in workers}
        some, _ = self._ray.wait(list(there), num_returns=1, timeout=seconds)
        if not some:
            self._check_places([each for each in workers if not each.link.placed], len(workers))
        return [there[pending] for pending in some]

    def _check_places(self, waiting: Sequence[Any], workers: int) -> None:
        """Say once that workers wait for a place in the cluster, or for their process.

        Raises:
            RetryError: none has begun within `--stall-limit`.
        """
        waited, limit = time.monotonic() - self._began, self._config.stall_limit
        if not waiting or waited < PLACE_S:
            return
        there = self._ray.available_resources()
        free = f"{there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} GPUs are free in the cluster"
        each = f"each takes {self._cores:g} cores" + (" and a GPU" if self._gpus else "") + " of a node"
        if not self._warned:
            self._warned = True
            LOG.warning("%d of %d workers have not begun: %s, and %s", len(waiting), workers, each, free)
        if limit and waited > limit and len(waiting) == workers:
            raise RetryError(
                f"{self._where}: no worker has begun within {limit:g} s (--stall-limit): {each}, and {free}; run "
                "the same command again once there is room"
            )

    def _beat(self) -> None:
        """Tell the keeper from time to time that this driver lives, and see that the head of the cluster does."""
        if time.monotonic() - self._told > ALIVE_S and self._keeper is not None:
            self._told = time.monotonic()
            self._check_head()
            self._keeper.alive.remote(self._driver)

    def _check_head(self) -> None:
        """Raise RetryError where the cluster's head is gone, or this process's node, without which nothing can start.

        Ray would end this process with code 1, or let it wait for ever.
        """
        try:
            joining.reach(self._head, HEAD_S)
        except OSError as error:
            raise RetryError(
                f"{self._where}: the head of the cluster at {self._head} is gone ({error}); parts that are written "
                "stay, and the same command continues on another cluster"
            ) from error
        if any(node["NodeID"] == self._node and not node["Alive"] for node in self._ray.nodes()):
            raise RetryError(
                f"{self._where}: the node of this process has left the cluster (its raylet has ended); parts that are "
                "written stay, and the same command continues once the node is back, or on another one"
            )

    def share(self, what: Any) -> tuple[Sent, tuple[int, ...]]:
        """Return something as objects in the store; of the data set, those that the keeper has."""
        if what is self._dataset and self._kept is not None:
            return self._kept.data, ()
        if isinstance(what, Stored):
            return what, ()
        return Stored.of(self._ray, what), ()

    def _leave(self) -> None:
        """Leave the cluster; the keeper stays where the same command can go on, or another run has it."""
        if self._keeper is not None and self.done:
            with suppress(self._ray.exceptions.RayError, TimeoutError):  # it has ended, or the cluster has
                if self._ray.get(self._keeper.leave.remote(self._driver), timeout=ALIVE_S):
                    self._ray.kill(self._keeper)
        self._ray.shutdown()


def places(ray: Ray, config: ScoreConfig) -> tuple[list[str], float, int]:
    """Return the device of each worker, and the cores and GPUs that each reserves, so that all find room.

    Raises:
        EngineError: a GPU is wanted, and the cluster has none.
        RetryError: no node has a core.
    """
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpu = [(int(node.get("CPU", 0)), int(node["GPU"])) for node in there if node.get("GPU")]
    cpus = [int(node["CPU"]) for node in there if node.get("CPU")]
    here = "cuda" if with_gpu and not is_servers(config.engine) else device_of("cpu", config.engine)
    wanted = config.device if config.device != "auto" else here
    if wanted.startswith("cuda"):
        if not with_gpu:
            raise EngineError.of_device(f"--device {config.device}: no node of the cluster has a GPU")
        gpus = sum(count for _, count in with_gpu)
        return ["cuda:0"] * gpus, min(cores // count for cores, count in with_gpu), 1  # Ray shows each actor its own
    if not cpus:
        raise RetryError(
            f"--ray {config.ray}: no node of the cluster has a core for workers; run it again once one has"
        )
    count = config.workers if config.workers > 1 else len(cpus)
    if count > sum(cpus):  # several share a core
        return ["cpu"] * count, 1 / math.ceil(count / sum(cpus)), 0
    cores = sum(cpus) // count
    while sum(each // cores for each in cpus) < count:
        cores -= 1
    return ["cpu"] * count, cores, 0
