"""`plan`: how long a job takes on machines like a measured one, what it costs, and what bounds it.

Owns: the arithmetic, and every assumption in words. Must not know: how rates are measured (`rates`), how a plan is
shown. In: options and `Rates`. Out: plain numbers.

A job is five phases, one after the other: start, reading (the survey of the log), split (by user), scoring, finish.
Each takes as long as the resource that it needs longest: host cores, GPUs, disks, network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from genrec_batch import __version__
from genrec_batch.core.errors import ConfigError
from genrec_batch.reports.plan_options import PlanConfig
from genrec_batch.reports.rates import Rates

GB = 1e9
DISK_GB_S, NETWORK_GB_S = 1.0, 1.25  # assumed where nothing says better: 10 Gbit/s
MAX_EVENTS = 50  # the default of --max-events
FAR = 2.0  # times as many kept events as measured, or half as many: from there on a warning
LEAST_SCORING_S = 10.0  # of a measured run, from which on its rates mean something
LEAST_LOG_S = 1.0  # of its reading, and of its split
FEW = 10.0  # times the measured rows, up to which that matters little
BUSY = 1.5  # runnable threads for each core, of which the run itself has about one
IN_MEMORY = 0.5  # of the memory, for the split log
USER_BYTES = 24  # of memory for each user in the survey: id, count, newest time


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The machines of a plan, all alike."""

    count: int
    cores: int  # of one
    memory_gib: float  # of one
    gpus: int  # of all; 0 for CPUs
    processes: int  # of one
    disk_read_gb_s: float  # of one
    disk_write_gb_s: float
    network_gb_s: float | None  # of one; None: the log and the output are on its disk


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is scored."""

    users: int
    rows: float
    kept_each: float
    log_bytes: float
    record_bytes: float
    output_bytes: float


def planned(config: PlanConfig) -> dict[str, Any]:
    """Return the plan of a job.

    Raises:
        ConfigError: GPUs are planned by the rates of a CPU, or the other way round.
        InputError: the report of the rates cannot be read.
    """
    assert config.rates is not None, "the options are checked"
    rates = Rates.read(config.rates)
    if config.gpus is not None and not rates.gpu:
        raise ConfigError(f"--gpus {config.gpus}: {config.rates} is of a CPU; name the report of a run on such a GPU")
    if config.workers is not None and rates.gpu:
        raise ConfigError(f"--workers {config.workers}: {config.rates} is of a GPU; name the report of a run on a CPU")
    said: list[dict[str, Any]] = []
    machines, job = _machines(config, rates, said), _job(config, rates, said)
    phases = _phases(rates, machines, job)
    seconds = sum(phase["seconds"] for phase in phases)
    limits: dict[str, float] = {}
    for phase in phases:
        limits[phase["limited_by"]] = limits.get(phase["limited_by"], 0.0) + phase["seconds"]
    longest = max(phases, key=lambda phase: float(phase["seconds"]))
    gpu_hours = machines.gpus * seconds / 3600
    cost = None if config.gpu_hour_cost is None else gpu_hours * config.gpu_hour_cost
    _assume(rates, machines, job, said)
    return {
        "status": "ok",
        "command": "plan",
        "version": __version__,
        "job": asdict(job),
        "machines": asdict(machines),
        "seconds": seconds,
        "users_per_s": job.users / seconds,
        "phases": phases,
        "saturates": longest["limited_by"],
        "bounds_in": longest["phase"],
        "limits_s": limits,
        "gpu_busy_share": phases[3]["alone"].get("GPU", 0.0) / seconds if machines.gpus else None,
        "gpu_hours": gpu_hours if machines.gpus else None,
        "cost": cost,
        "measured": {**rates.about, "users": rates.users, "seconds": rates.seconds, "report": config.rates},
        "assumptions": said,
        "warnings": _warnings(rates, job, machines),
    }


def _machines(config: PlanConfig, rates: Rates, said: list[dict[str, Any]]) -> Machines:
    def take(name: str, given: float | None, measured: float | None, assumed: float, unit: str) -> float:
        value = next(each for each in (given, measured, assumed) if each is not None)
        source = "given" if given is not None else "measured" if measured is not None else "assumed"
        said.append({"assumption": name, "value": value, "unit": unit, "source": source})
        return value

    gpus = config.gpus if config.gpus is not None else rates.processes if rates.gpu else 0
    count = config.machines or max(1, math.ceil(gpus / config.gpus_per_machine))
    each = math.ceil(gpus / count)
    share = each / rates.processes if rates.gpu else 1.0  # of the measured machine
    several = NETWORK_GB_S if count > 1 else None
    network = config.network_gb_s if config.network_gb_s is not None else several
    if network is not None:
        take("network of a machine", config.network_gb_s, None, NETWORK_GB_S, "GB/s")
    return Machines(
        count=count,
        cores=int(take("cores of a machine", config.cores, rates.cores * share, 1, "")),
        memory_gib=take("memory of a machine", config.memory_gib, rates.memory_gib * share, 1, "GiB"),
        gpus=gpus,
        processes=each if rates.gpu else config.workers or rates.processes,
        disk_read_gb_s=take("disk of a machine, reading", config.disk_gb_s, rates.disk_read_gb_s, DISK_GB_S, "GB/s"),
        disk_write_gb_s=take("disk of a machine, writing", config.disk_gb_s, rates.disk_write_gb_s, DISK_GB_S, "GB/s"),
        network_gb_s=network,
    )


def _job(config: PlanConfig, rates: Rates, said: list[dict[str, Any]]) -> Job:
    users = int(config.users if config.users is not None else rates.users)
    each = config.events_per_user if config.events_per_user is not None else rates.rows_each
    kept = each if config.events_per_user is not None else rates.kept_each
    kept = min(kept, float(MAX_EVENTS))
    for name, value, unit, source in (
        ("events of a user that the model reads", kept, "", "given" if config.events_per_user else "measured"),
        ("log", rates.log_bytes, "bytes per event", "measured"),
        ("split log", rates.record_bytes, "bytes per event", "measured"),
        ("output", rates.output_bytes, "bytes per user", "measured"),
    ):
        said.append({"assumption": name, "value": value, "unit": unit, "source": source})
    rows = users * each
    return Job(
        users=users,
        rows=rows,
        kept_each=kept,
        log_bytes=rows * rates.log_bytes,
        record_bytes=rows * rates.record_bytes,
        output_bytes=users * rates.output_bytes,
    )


def _phases(rates: Rates, machines: Machines, job: Job) -> list[dict[str, Any]]:
    """Return the phases, each with the seconds that each resource alone would need."""
    cores, many = machines.count * machines.cores, machines.count
    read_s = GB * many * machines.disk_read_gb_s
    write_s = GB * many * machines.disk_write_gb_s
    network_s = None if machines.network_gb_s is None else GB * many * machines.network_gb_s
    shuffled = job.record_bytes * (many - 1) / many  # to the machine that scores the user
    spilled = max(0.0, job.record_bytes - IN_MEMORY * many * machines.memory_gib * 2**30)

    reading = {"host cores": job.rows * rates.reading_core_s / cores}
    split = {"host cores": job.rows * rates.split_core_s / cores}
    scoring = {"host cores": job.users * rates.host.of(job.kept_each) / cores}
    if rates.device is not None:
        scoring["GPU"] = job.users * rates.device.of(job.kept_each) / machines.gpus
    scoring = {name: seconds * rates.overlap for name, seconds in scoring.items()}
    split["disk"], scoring["disk"] = spilled / write_s, spilled / read_s
    if network_s is None:
        reading["disk"] = job.log_bytes / read_s
        split["disk"] += job.log_bytes / read_s
        scoring["disk"] += job.output_bytes / write_s
    else:
        reading["network"] = job.log_bytes / network_s
        split["network"] = (job.log_bytes + shuffled) / network_s
        scoring["network"] = job.output_bytes / network_s
    start = {"start": _start_s(rates, machines)}
    finish = {"finish": rates.finish_s * job.users / rates.users / many}
    named = {"start": start, "reading": reading, "split": split, "scoring": scoring, "finish": finish}
    return [
        {"phase": name, "seconds": max(alone.values()), "limited_by": _longest(name, alone), "alone": alone}
        for name, alone in named.items()
    ]


def _start_s(rates: Rates, machines: Machines) -> float:
    """Return the seconds before the log is read and after it is split.

    Where there are several processes, each imports and opens what the measured one did, as many at once as have cores.
    GPUs' processes do so while the log is read.
    """

    def workers_s(processes: int, cores: int) -> float:
        if rates.gpu or processes == 1:
            return 0.0
        return (rates.start_s + rates.opening_s) * max(1.0, processes / cores)

    more = workers_s(machines.processes, machines.cores) - workers_s(rates.processes, rates.cores)
    return rates.start_s + rates.opening_s + max(0.0, more)


def _longest(phase: str, alone: Mapping[str, float]) -> str:
    """Return the resource that a phase waits for; the host's cores are called by the phase in reading and the split."""
    found = max(alone, key=lambda name: alone[name])
    return phase if found == "host cores" and phase in ("reading", "split") else found


def _assume(rates: Rates, machines: Machines, job: Job, said: list[dict[str, Any]]) -> None:
    """Add what the arithmetic takes for granted, in words."""
    words = [
        "the machines, their cores and their GPUs are as fast as the measured one, and work is spread evenly",
        "reading, the split and the work on the host are divided among all cores"
        + (" of all machines, as with --ray" if machines.count > 1 else ""),
        f"scoring takes {rates.overlap:.2f} times as long as the busier of cores and GPUs, as measured",
        "histories, features and prefill grow with the events that the model reads (at most 50), nothing else does",
        f"the start of a process takes {rates.start_s + rates.opening_s:.1f} s; workers on a CPU start after it",
        "the process's own start and end come on top, some seconds",
    ]
    if machines.network_gb_s is None:
        words.append("the log is read twice from the disk, and the output is written to it")
    else:
        words.append(
            "the log is read twice over the network, what is split goes to the machine that scores the user, and the "
            "output goes back"
        )
    words.append("half of the memory holds the split log; the rest of it is written to the disk and read again")
    words.append("nothing fails, and no earlier output is carried over (--previous)")
    said += [{"assumption": each, "value": None, "unit": "", "source": "assumed"} for each in words]
    memory = job.users * USER_BYTES / 2**30
    said.append({"assumption": "memory for the users' ids", "value": memory, "unit": "GiB", "source": "assumed"})


def _warnings(rates: Rates, job: Job, machines: Machines) -> list[str]:
    """Return why the measured run may say little about the planned one."""
    found, ratio = [], job.kept_each / max(rates.kept_each, 1e-9)
    if not 1 / FAR <= ratio <= FAR:
        found.append(
            f"the measured run read {rates.kept_each:.1f} events of a user, this one {job.kept_each:.1f}; measure "
            "a log that is more alike"
        )
    if not rates.gpu and rates.processes == 1 < machines.processes:
        found.append(
            "the measured run was one process, and several take less time on the same cores, up to a third less; "
            f"measure with --workers {machines.processes}"
        )
    if rates.scoring_s < LEAST_SCORING_S:
        found.append(
            f"the measured run scored users during {rates.scoring_s:.1f} s only, so its rates are rough; measure at "
            f"least {LEAST_SCORING_S:.0f} s"
        )
    if rates.log_s < LEAST_LOG_S and job.rows > FEW * rates.rows_each * rates.users:
        found.append(
            f"the measured run read or split its log in {rates.log_s:.2g} s, mostly overhead; measure a longer log"
        )
    if rates.load > BUSY * rates.cores:
        found.append(
            f"the measured machine had other work (a load of {rates.load:.1f} on {rates.cores} cores), so it is faster "
            "than it looked"
        )
    return found
