"""The options of `plan`: what is to be scored, on which machines, and the run whose rates are taken.

Owns: their sentences, defaults and checks. Must not know: how a plan is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from genrec_batch.core.declare import option
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import LogConfig


@dataclass(frozen=True, kw_only=True)
class PlanConfig(LogConfig):
    """What is to be scored, on which machines, and the run whose rates are taken."""

    rates: str | None = option(
        "Report of a run whose rates are taken: what `profile --json` or `score --report FILE.json` wrote.",
        panel="Input",
    )
    users: float | None = option("Users to score, such as 1e9. Default: those of the measured run.", panel="Input")
    events_per_user: float | None = option(
        "Events of a user in the log. Default: those of the measured run.", panel="Input"
    )
    gpus: int | None = option("GPUs, in machines of --gpus-per-machine; the rates are those of a GPU.", panel="Engine")
    workers: int | None = option("Processes on a CPU, on each machine; the rates are those of a CPU.", panel="Engine")
    machines: int | None = option("Machines alike. Default: as many as --gpus need, else 1.", panel="Engine")
    gpus_per_machine: int = option("GPUs of a machine.", 8, panel="Engine")
    cores: int | None = option(
        "Cores of a machine. Default: those of the measured one, as many for each GPU.", panel="Engine"
    )
    memory_gib: float | None = option(
        "Memory of a machine in GiB. Default: that of the measured one, as much for each GPU.", panel="Engine"
    )
    disk_gb_s: float | None = option(
        "Speed of a machine's disk in GB/s, reading or writing. Default: what `profile` measured, else 1.",
        panel="Engine",
    )
    network_gb_s: float | None = option(
        "Speed of a machine's network in GB/s: the log and the output go through it. Default: 1.25 with several "
        "machines; with one they are on its disk.",
        panel="Engine",
    )
    gpu_hour_cost: float | None = option("Price of a GPU for an hour, in any currency.", panel="Engine")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rates:
            raise ConfigError(
                "--rates is missing: the report of a run on such a machine; `genrec-batch profile --data EVENTS --json "
                "FILE` makes one"
            )
        if self.gpus is not None and self.workers is not None:
            raise ConfigError("--gpus goes without --workers: a plan is for GPUs or for CPUs")
        if self.gpu_hour_cost is not None and self.gpus is None:
            raise ConfigError("--gpu-hour-cost goes with --gpus")
        for name in ("users", "events_per_user", "gpus", "workers", "machines", "gpus_per_machine", "cores"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 1e15:
                raise ConfigError(f"--{name.replace('_', '-')} {value:g}: at least 1")
        for name in ("memory_gib", "disk_gb_s", "network_gb_s", "gpu_hour_cost"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise ConfigError(f"--{name.replace('_', '-')} {value:g}: above 0")
        if self.gpus is not None and self.machines is not None and self.gpus % self.machines:
            raise ConfigError(f"--gpus {self.gpus}: {self.machines} machines alike cannot have them")
