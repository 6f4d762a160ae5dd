"""The options of where users are scored: on which devices, in how many processes.

Owns: their sentences, defaults and checks. Must not know: how work is divided, engines. They decide no byte beside the
kind of the device.
"""

from __future__ import annotations

from dataclasses import dataclass

from genrec_batch.core.declare import check_at_least, option
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.option_values import check_device


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """On which devices the users of a run are scored, and in how many processes."""

    device: str = option(
        "Device of the engine: auto, cpu, cuda:N, cuda:N,M for several GPUs or cuda for all of them.",
        "auto",
        panel="Engine",
        identity="content",
    )
    workers: int = option(
        "Processes that score users on the CPU, each with its share of the cores; GPUs have one each, see --device. "
        "The output does not depend on it.",
        1,
        panel="Engine",
        identity="none",
    )

    ray: str | None = option(
        "Score in this Ray cluster: its address, auto for that of RAY_ADDRESS or of this machine, local to start one "
        "here. Inputs, model and OUTPUT must be where all nodes see them.",
        panel="Engine",
        identity="none",
    )

    def check_workers(self) -> None:
        """Raise ConfigError where `--device` names no device, or `--workers` is no number of processes."""
        check_device(self.device, several=True)
        check_at_least(self, workers=1)

    def check_one_process(self, what: str) -> None:
        """Raise ConfigError where `what`, which has one process, should have several."""
        if self.workers > 1:
            raise ConfigError(f"--workers {self.workers}: {what} has one process; omit it")
        if self.ray is not None:
            raise ConfigError(f"--ray {self.ray}: {what} has one process; omit it")
        if "," in self.device:
            raise ConfigError(f"--device {self.device}: {what} has one process; name one device")
