"""A real Triton server on loopback ports, started by `jobs/triton/serve.sh` from an environment of its own.

Owns: its processes, and what they take in memory. Must not know: what is asked. `make` builds the environment.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("GENREC_TEST_TRITON", ROOT / ".venv-triton"))
SERVE = ROOT / "jobs" / "triton" / "serve.sh"
READY_S = 180


def needed() -> None:
    """Skip where there is no environment of Triton's; fail where it must be."""
    if not (VENV / "bin" / "python").exists():
        if os.environ.get("CI"):
            pytest.fail(f"no {VENV}: `make test` builds it")
        pytest.skip(f"no {VENV}: `make test` builds it")


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Server:
    """`tritonserver` over a model repository, ready once the constructor returns, unless that is not waited for."""

    def __init__(
        self,
        repository: Path,
        log: Path,
        *options: str,
        ports: tuple[int, int, int] | None = None,
        ready: bool = True,
    ) -> None:
        self.http, self.grpc, self.metrics = ports or free_ports(3)
        self.log = log
        ports = [
            f"--{name}-{what}={value}"
            for name, port in (("http", self.http), ("grpc", self.grpc), ("metrics", self.metrics))
            for what, value in (("address", "127.0.0.1"), ("port", port))
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # the package of this checkout, whatever is installed
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [str(SERVE), str(VENV), str(repository), *ports, *options],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=log.parent,
                start_new_session=True,
            )
        if ready:
            self.wait()

    def wait(self) -> None:
        """Return once the server is ready; end it where it does not become so."""
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            if self.get(f"http://127.0.0.1:{self.http}/v2/health/ready") is not None:
                return
            time.sleep(0.2)
        raise AssertionError(f"Triton is not ready:\n{self.log.read_text()[-4000:]}")

    @staticmethod
    def get(url: str) -> str | None:
        """Return what is at a URL, None where nothing answers yet."""
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - of this machine
                return answer.read().decode()
        except (urllib.error.URLError, ConnectionError):
            return None

    def counters(self) -> dict[str, float]:
        """Return the metrics, without labels but for `reason` and `outcome`, summed."""
        found: dict[str, float] = {}
        for line in (self.get(f"http://127.0.0.1:{self.metrics}/metrics") or "").splitlines():
            if line.startswith(("nv_inference", "genrec_")):
                name, _, value = line.rpartition(" ")
                said = re.search(r'(?:reason|outcome)="([^"]*)"', name)
                key = name.partition("{")[0] + (f" {said[1]}" if said else "")
                found[key] = found.get(key, 0.0) + float(value)
        return found

    def rss_mib(self) -> dict[str, float]:
        """Return the resident memory of the server and of the processes of its models, by name."""
        found: dict[str, float] = {}
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                lines = dict(line.partition(":\t")[::2] for line in status.read_text().splitlines())
                ours = os.getpgid(int(status.parent.name)) == self.process.pid
            except OSError:
                continue
            if ours and "VmRSS" in lines:
                found[lines["Name"]] = found.get(lines["Name"], 0.0) + int(lines["VmRSS"].split()[0]) / 1024
        return found

    def kill_models(self) -> None:
        """Kill the processes of the server's models, as the kernel does for want of memory; the server stays."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                process = int(status.parent.name)
                if os.getpgid(process) == self.process.pid != process:
                    os.kill(process, signal.SIGKILL)
            except OSError:
                continue

    def kill(self) -> None:
        """End the server and the processes of its models at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End the server and the processes of its models, which it waits for."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
