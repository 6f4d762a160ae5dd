"""The outcome of a check of precision, kept beside the built engines, so that the next run need not check again.

Owns: the record, what it depends on, and when it is not taken. Must not know: how engines are compared. A record holds
for one model, version, machine, set of libraries and set of options; where anything differs there is none, and the
check is made again. A record that is damaged, belongs to someone else or may be written by others is not read. A folder
that cannot be used costs a check in every run, nothing else.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from genrec_batch import __version__
from genrec_batch.core.declare import differences, values
from genrec_batch.core.errors import EngineError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.plan_cache import EngineCache
from genrec_batch.engines.protocol import Engine
from genrec_batch.model.weights import Model
from genrec_batch.runtime.console import LOG

LIBRARIES = (
    "numpy", "numba", "llvmlite", "torch", "triton", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu12",
    "tensorrt-cu13", "cuda-python",
)  # fmt: skip
FLAGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "NUMBA_CPU_NAME", "NUMBA_DISABLE_JIT")
PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")  # lines of /proc/cpuinfo
NOT_TERMS = ("model", "engine", "device", "precision", "users_only")  # what else stands for, or decides no arithmetic
TOLD = 3  # differences from an earlier check that are named


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a comparison with fp32 found, when, and why it was made."""

    precision: str  # that was taken: fp32, or a faster one
    arithmetic: str  # of the engine in it, see `Engine`
    overlap: float  # share of fp32's top K, of the precision that was taken or else compared last
    refused: Mapping[str, float]  # the same of faster precisions that did not agree, fastest first
    users: int  # that were compared
    at: str  # ISO 8601, UTC
    why: str

    def same_engine(self, engine: Engine) -> bool:
        """Return whether an engine computes as the one that was compared."""
        return (engine.precision, engine.arithmetic) == (self.precision, self.arithmetic)

    def reason(self, name: str, top_k: int, least: float) -> str:
        """Return why an engine of this name computes in the precision; `least` is the overlap that was asked for."""
        refused = ", ".join(f"{precision} {overlap:.1%}" for precision, overlap in self.refused.items())
        if self.precision == "fp32":
            faster = f"what is faster shares under {least:.0%} of its top {top_k} over {self.users} users"
            return f"{name} in fp32: {faster}: {refused}"
        measured = f"its top {top_k} share {self.overlap:.1%} with fp32's over {self.users} users"
        return f"{name} in {self.precision}: {measured}" + (f"; under {least:.0%}: {refused}" if refused else "")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The options of a run that a check depends on, and whether it is to be made anew in any case."""

    options: Mapping[str, Any]
    recheck: bool

    @staticmethod
    def of(config: ScoreConfig) -> Terms:
        """Return the terms of a run: each option that decides rows, and which tables there are, whatever they hold."""
        names = {field.name for field in fields(ScoreConfig)} - set(NOT_TERMS)
        rows = {name: value for name, value in values(config, "rows").items() if name in names}
        tables = {name: bool(value) for name, value in values(config, "content").items() if name in names}
        kept = {"schema": config.schema, "max_events": config.max_events}
        return Terms(options=rows | tables | kept, recheck=config.recheck)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The place of one check's outcome."""

    key: Mapping[str, Any]
    folder: EngineCache
    recheck: bool

    @staticmethod
    def of(
        model: Model, decoding: Decoding, terms: Terms, *, engine: str, device: str, fast: Sequence[str]
    ) -> Record | None:
        """Return the place of the check of precisions; None where the device or a folder for it is not known."""
        machine = machine_of(device.partition(":")[0])
        if machine is None:
            return None
        try:
            folder = EngineCache()
        except EngineError as error:
            LOG.info("--precision auto is checked in every run: %s", error)
            return None
        key = {
            "version": __version__,
            "model": model.fingerprint,
            "tokens": model.tokens,
            "engine": engine,
            "device": device.partition(":")[0],
            "fast": list(fast),
            "machine": machine,
            "libraries": libraries(),
            "decoding": asdict(decoding),
            "options": dict(terms.options),
        }
        return Record(key=json.loads(json.dumps(key)), folder=folder, recheck=terms.recheck)

    def read(self) -> Check | str:
        """Return what an earlier check found, or why it must be made."""
        if self.recheck:
            return "--recheck"
        try:
            text = self.folder.text(self._name())
        except EngineError as error:
            return f"the earlier check cannot be trusted: {error}"
        if text is None:
            return self._first()
        try:
            stored = json.loads(text)
            check = Check(**stored["check"])
            whole = stored["sha256"] == _sha256(self.key, stored["check"])  # kept with this very key
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole or check.precision not in ("fp32", *self.key["fast"]):
            return f"{self._name()} is damaged"
        return check

    def write(self, check: Check) -> None:
        """Keep what a check found; a folder that cannot be written is said, and costs the next run a check."""
        stored = {"key": self.key, "check": asdict(check), "sha256": _sha256(self.key, asdict(check))}
        try:
            self.folder.keep(self._name(), json.dumps(stored, indent=1).encode())
        except EngineError as error:
            LOG.info("--precision auto is checked again in the next run: %s", error)

    def _name(self) -> str:
        return f"{self._of_model()}-{_sha256(self.key)[:24]}.json"

    def _of_model(self) -> str:
        return f"checked-{self.key['model'][:16]}"

    def _first(self) -> str:
        """Return why there is no record: the first run of a model, or what differs from its latest check."""
        others = []
        for path in self.folder.directory.glob(f"{self._of_model()}-*.json"):
            try:
                stored = json.loads(self.folder.text(path.name) or b"")
                others.append((stored["check"]["at"], differences(stored["key"], self.key)))
            except (EngineError, ValueError, KeyError, TypeError, RecursionError):
                continue  # it is no record, so it says nothing of what differs
        if not others:
            return "the first run with this model here"
        at, differing = max(others)
        more = f" and {len(differing) - TOLD} more" if len(differing) > TOLD else ""
        return f"since the check of {at}: {', '.join(differing[:TOLD])}{more}"


def now() -> str:
    """Return the moment, for a record."""
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")


def _sha256(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def libraries() -> Mapping[str, str]:
    """Return the version of each installed library that computes or compiles."""
    from importlib import metadata  # for `--help` it would take longer than anything of ours

    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine_of(kind: str, proc: Path = Path("/proc")) -> Mapping[str, Any] | None:
    """Return what the arithmetic of a kind of device depends on: "cpu" or "cuda"; None where the system does not say.

    Of GPUs that is their name and driver, and they must all be the same; of a CPU its name, what it can do and the
    machine's cores, which are the same for all workers of a run, so that all take the same record.
    """
    cpuinfo = proc / "cpuinfo"
    if not cpuinfo.is_file():
        return None
    lines = [line.partition(":") for line in cpuinfo.read_text().partition("\n\n")[0].splitlines()]
    processor = {name.strip(): value.strip() for name, _, value in lines if name.strip() in PROCESSOR}
    flags = hashlib.sha256(" ".join(sorted(processor.pop("flags", "").split())).encode()).hexdigest()[:16]
    settings = {name: os.environ[name] for name in FLAGS if name in os.environ}
    machine: dict[str, Any] = {**processor, "flags": flags, "cores": os.cpu_count(), "settings": settings}
    if kind == "cpu":
        return machine
    version = proc / "driver" / "nvidia" / "version"
    told = [path.read_text() for path in (proc / "driver" / "nvidia" / "gpus").glob("*/information")]
    names = {line.partition(":")[2].strip() for text in told for line in text.splitlines() if line.startswith("Model:")}
    if len(names) != 1 or not version.is_file():
        return None
    return {**machine, "gpu": names.pop(), "driver": version.read_text().strip()}
