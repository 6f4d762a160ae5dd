"""The keeper of a split log in a Ray cluster: it outlives the driver, so that a new one need not read the log again.

Owns: the survey and the split in the cluster, who has which bucket, and for how long. Must not know: workers, parts,
the output. In: a source and options. Out: a `Dataset` as objects in Ray's store, whose buckets are objects, too.

Tasks on all nodes read neighbouring row groups and return an object for each bucket; the keeper owns these, so Ray
computes those of a lost node again. Buckets of a log that is nearly in id order are read by workers themselves, as on
one machine. A keeper that hears nothing of a driver for `PATIENCE_S` ends.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch import __version__
from genrec_batch.core.errors import GenrecError, RetryError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.events import by_user, packed
from genrec_batch.events.by_user import EventStore, RecordReader, Users
from genrec_batch.events.dataset import Dataset
from genrec_batch.events.plausible import Look
from genrec_batch.events.records import Records
from genrec_batch.events.survey import Survey
from genrec_batch.io import read
from genrec_batch.model import opening
from genrec_batch.model.weights import Model
from genrec_batch.runtime import console, threads
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring.workers.joining import NAMESPACE, Ray, faults
from genrec_batch.scoring.workers.messages import Failed
from genrec_batch.scoring.writing import begun
from genrec_batch.stores.bucket import is_uri

PATIENCE_S = 3600.0
ALIVE_S = 10.0  # between two signs of a driver
FORGET_S = 30.0  # after the last one, from which on it is taken for dead
NEW, KEPT, CHANGED, IN_USE = "new", "kept", "changed", "in use"  # states, see `Keeper.state`
HEAD = "node:__internal_head__"  # Ray's own resource of the node that the cluster cannot lose
TRIES = 1000  # of a task whose worker or node dies
TASKS = 4  # that read the log, for each core of the cluster


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Something as objects in Ray's store: a pickle, and an object with its arrays."""

    text: bytes
    arrays: Any  # reference to a list of arrays of bytes

    @staticmethod
    def of(ray: Ray, what: Any) -> Stored:
        """Put something into the store."""
        buffers: list[Any] = []
        text = packed.dumped(what, lambda buffer: buffers.append(np.frombuffer(buffer.raw(), np.uint8)))
        return Stored(text=text, arrays=ray.put(buffers))

    def unpacked(self, files: Sequence[int], stages: Stages) -> Any:
        """Return it, with arrays of this process's own: those in the store cannot be written."""
        del files
        import ray

        return packed.loaded(self.text, [each.copy() for each in ray.get(self.arrays)], stages)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """Where a bucket's records are: objects that a keeper knows."""

    keeper: str

    def __call__(self, number: int) -> list[Records]:
        """Return the records of a bucket, in chunks that can be written."""
        import ray

        with faults(ray, "--ray"):
            try:
                keeper: Any = ray.get_actor(self.keeper, namespace=NAMESPACE)
            except ValueError as error:
                raise RetryError(
                    "--ray: the keeper of the log has ended; parts that are written stay, and the same command reads "
                    "the log again and continues"
                ) from error
            refs = ray.get(keeper.bucket.remote(number))
            return [each.copy() for each in ray.get(refs) if len(each)]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A data set that was opened, and how much of the log was read for its split."""

    data: Stored
    row_groups: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A data set or an error, and what was logged on the way."""

    kept: Kept | Failed
    said: list[tuple[int, str]]


class Keeper:
    """The actor."""

    def __init__(self, name: str, folder: str) -> None:
        enter(folder)
        self._name, self._lock = name, threading.Lock()
        self._answer: Answer | None = None
        self._model: Stored | None = None
        self._model_known = threading.Event()  # or there will be none
        self._dataset: Dataset | None = None
        self._asked: tuple[ScoreConfig, str]
        self._pieces: list[list[Any]] = []  # references: of each task, one for each bucket
        self._heard = time.monotonic()
        self._drivers: dict[str, float] = {}  # when each was last heard of
        self._said: list[tuple[int, str]] = []
        threading.Thread(target=self._wait, name="patience", daemon=True).start()

    def _wait(self) -> None:
        while time.monotonic() - self._heard < PATIENCE_S:
            time.sleep(min(60.0, PATIENCE_S / 4))
        os._exit(0)

    def alive(self, driver: str) -> None:
        """Hear that a driver is there."""
        self._heard = self._drivers[driver] = time.monotonic()

    def leave(self, driver: str) -> bool:
        """Hear that a driver does not come back; return whether no other one is there."""
        self._drivers.pop(driver, None)
        return not self._others(driver)

    def _others(self, driver: str) -> bool:
        """Return whether a driver is not alone."""
        recent = time.monotonic() - FORGET_S
        return any(heard > recent for other, heard in self._drivers.items() if other != driver)

    def state(self, driver: str, version: str) -> str:
        """Return what a driver finds here.

        Returns: NEW: nothing yet; KEPT: the log; CHANGED: a log that is no longer so, or an error; IN_USE: the same,
            and another driver has it; else the version of this package, which is not that of the driver.
        """
        if version != __version__:
            return f"genrec-batch {__version__}"
        if self._answer is None:
            self.alive(driver)
            return NEW
        if self._unchanged():
            self.alive(driver)
            return KEPT
        return IN_USE if self._others(driver) else CHANGED

    def opened(self, config: ScoreConfig, source: str, target: str, arms: bool, workers: int) -> Answer:
        """Open and split the log, once, and return the data set."""
        with self._lock:
            if self._answer is None:
                self._asked = config, target
                LOG.handlers, LOG.propagate = [_Lines(self._said)], False
                LOG.setLevel(logging.INFO)
                import ray

                try:
                    with faults(ray, f"--ray {config.ray}"):
                        kept: Kept | Failed = self._open(config, source, target, workers, arms=arms)
                except GenrecError as error:
                    kept = Failed.of(error)
                finally:
                    self._model_known.set()
                self._answer = Answer(kept=kept, said=self._said)
            return self._answer

    def _open(self, config: ScoreConfig, source: str, target: str, workers: int, *, arms: bool) -> Kept:
        import ray

        def arrange(reader: RecordReader, users: Users, found: Survey) -> EventStore:
            plan = by_user.planned(reader, users, found, shard_users=config.shard_users, processes=max(2, workers))
            if plan.way != "direct":
                self._pieces, looks = split(ray, reader, plan.buckets)
                reader.looks.extend(looks)
                plan.way, plan.fetch = "elsewhere", Fetched(keeper=self._name)
            return plan

        stages = Stages()
        dataset = Dataset.open(
            source,
            config,
            stages,
            begun=begun(config, target),
            arms=arms,
            ahead=self,
            spill_beside=None if is_uri(target) else target,  # for copies of texts, which all nodes read
            arranged=arrange,
        )
        for each in dataset.inputs.values():
            _ = each.fingerprint  # wait for it: drivers need it
        self._dataset = dataset
        groups = len(dataset.log.row_groups) if self._pieces else 0
        return Kept(data=Stored.of(ray, dataset), row_groups=groups)

    def start(self) -> None:
        """Do nothing: workers have begun to import what they need; see `HeadStart`."""

    def know(self, model: Model) -> None:
        """Share the model before the log is split; see `HeadStart`."""
        import ray

        self._model = Stored.of(ray, model)
        self._model_known.set()

    def model(self) -> Stored | None:
        """Return the model as soon as it is read; None where there is none, as after an error."""
        self._model_known.wait()
        return self._model

    def bucket(self, number: int) -> list[Any]:
        """Return the references of a bucket's pieces, in the order of the log."""
        return [pieces[number] for pieces in self._pieces]

    def _unchanged(self) -> bool:
        """Return whether inputs, model and the file of rejects are those that were read and written."""
        if self._dataset is None:
            return False
        config, target = self._asked
        try:
            if config.rejects is not None and not Path(config.rejects).exists():
                return False
            same = all(_is_same(source) for source in self._dataset.inputs.values())
            return same and _is_asked_for(self._dataset.model, config, target)
        except GenrecError:
            return False


def _is_asked_for(model: Model, config: ScoreConfig, target: str) -> bool:
    """Return whether a model that is open is what the options name now."""
    model.files.check()
    if config.model is None:
        return True
    if model.version is None:
        return opening.directory(config.model, "--model") == model.directory
    now = opening.version_of(config.model, config.registry, "--model", begun=begun(config, target))
    return now.label == model.version.label


def _is_same(source: read.Source) -> bool:
    now = read.scan(source.path, "INPUT", hashed=False).first_look
    return source.first_look is not None and now is not None and now.states == source.first_look.states


class _Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, lines: list[tuple[int, str]]) -> None:
        super().__init__()
        self._lines = lines
        self.setFormatter(console.JsonFormatter())  # whereupon no progress is shown

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.getMessage()))


def started(ray: Ray, name: str) -> Any:
    """Return the keeper of a name on the head of the cluster, which is started where there is none."""
    options = {"name": name, "lifetime": "detached", "num_cpus": 0, "max_concurrency": 16, "resources": {HEAD: 0.001}}
    options["get_if_exists"] = True
    return ray.remote(Keeper).options(**options).remote(name, str(Path.cwd()))


def enter(folder: str) -> None:
    """Take a folder for that from which paths are, as it is in the driver; without it, all paths must be absolute."""
    if Path(folder).is_dir():
        os.chdir(folder)


def split(
    ray: Ray, reader: RecordReader, buckets: Sequence[by_user.Bucket]
) -> tuple[list[list[Any]], list[dict[str, Look]]]:
    """Read the log on all nodes.

    Returns: the references of its pieces: of each task, one for each bucket; and what was seen of the columns' values.
    """
    groups, cpus = len(reader.log.row_groups), max(1, int(ray.cluster_resources().get("CPU", 1)))
    sizes = [bucket.stop - bucket.start for bucket in buckets]
    of_user = np.repeat(np.arange(len(buckets), dtype=np.uint16), sizes)
    count = min(groups, TASKS * cpus)
    cuts = [number * groups // count for number in range(count + 1)]
    if sum(node["Alive"] for node in ray.nodes()) == 1:  # this process can read already, and dies with the node

        def put(some: tuple[int, int]) -> list[Any]:
            return [ray.put(each) for each in piece_of(reader, of_user, len(buckets), some)]

        return list(threads.ordered(put, pairwise(cuts), workers=cpus, name="split")), []
    shared, of_user = Stored.of(ray, reader), ray.put(of_user)
    task = ray.remote(piece).options(
        num_returns=len(buckets) + 1,
        num_cpus=0,
        max_retries=TRIES,
        retry_exceptions=False,
        scheduling_strategy="SPREAD",
    )
    found: list[list[Any]] = []
    running: list[Any] = []
    for start, stop in pairwise(cuts):
        if len(running) >= cpus:
            _, running = ray.wait(running, num_returns=1)
        found.append(list(task.remote(shared, of_user, len(buckets), (start, stop), str(Path.cwd()))))
        running.append(found[-1][-1])
    looks = [look for pieces in found for look in ray.get(pieces.pop())]
    return found, looks


def piece(
    shared: Stored, of_user: npt.NDArray[np.uint16], buckets: int, groups: tuple[int, int], folder: str
) -> tuple[Any, ...]:
    """Return the records of some row groups by bucket, in order within each, and what was seen of their values."""
    enter(folder)
    reader: RecordReader = shared.unpacked((), Stages())
    reader.looks.clear()
    return *piece_of(reader, of_user, buckets, groups), reader.looks


def piece_of(
    reader: RecordReader, of_user: npt.NDArray[np.uint16], buckets: int, groups: tuple[int, int]
) -> list[npt.NDArray[Any]]:
    """Return the records of some row groups by bucket, in order within each."""
    found: list[list[Records]] = [[] for _ in range(buckets)]
    for group in range(*groups):
        records, counts = reader.by_bucket(group, of_user, buckets)
        for number, some in enumerate(np.split(records, np.cumsum(counts)[:-1])):
            found[number].append(some)
    return [np.concatenate(each) for each in found]
