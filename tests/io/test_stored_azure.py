"""Outputs in Azure's store, by `stored_output`: against Azurite (npm install azurite), where it is on the PATH."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.io.stored import Stored
from tests import s3
from tests.io import commit

pytest.importorskip("obstore")
ACCOUNT = "devstoreaccount1"
# Published by its makers: the same for every Azurite.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture
def container(tmp_path, monkeypatch):
    program = shutil.which("azurite-blob")
    if not program:
        pytest.skip("no Azurite here: npm install --global azurite")
    (port,) = s3.free_ports(1)
    command = [program, "--silent", "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(tmp_path)]
    command += ["--skipApiVersionCheck", "--disableTelemetry"]  # else it reports to its makers
    served = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{port}",
        "AZURE_ALLOW_HTTP": "true",
    }
    for name in s3.open_to_all():
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    try:
        _wait(served, port)
        _make(port, "out")
        yield "az://out"
    finally:
        served.kill()
        served.wait()


def _wait(served, port):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert served.poll() is None, "the server ended"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.skip("Azurite did not start within a minute")


def _make(port, name):
    """Make a container, with a request that is signed by the account's key."""
    date, version = dt.datetime.now(dt.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT"), "2021-08-06"
    text = f"x-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    text = "PUT" + "\n" * 12 + text
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
    headers = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Authorization": f"SharedKey {ACCOUNT}:{signature}",
        "Content-Length": "0",
    }
    url = f"http://127.0.0.1:{port}/{ACCOUNT}/{name}?restype=container"
    request = urllib.request.Request(url, headers=headers, method="PUT")
    urllib.request.urlopen(request, timeout=10).close()  # noqa: S310


@pytest.mark.parametrize(("name", "column"), [("recs", None), ("recs.parquet", None), ("folders", "source")])
def test_an_output_is_written_accepted_and_replaced(container, tmp_path, name, column):
    target = f"{container}/a/{name}"
    assert commit.write(target, 1, None, tmp_path, column) == 0
    assert commit.write(target, 1, "resume", tmp_path, column) == "complete"
    with pytest.raises(ConfigError, match="cannot be resumed"):
        commit.write(target, 2, "resume", tmp_path, column)
    assert commit.write(target, 2, "overwrite", tmp_path, column) == 0
    at = Stored.of(target)
    assert at.finished().run_id == commit.stored_output.run_id({"seed": 2, "input": {}})
    assert len(at.store.below("a")) == (2 if at.single else commit.PARTS + 3)
