"""Latency and throughput of a Triton server against the rate of requests, beside a FastAPI server, in one run.

    pip install fastapi uvicorn
    python tests/benchmarks/bench_serving.py [--preset reference] [--seconds 10] [--rates 2,4,8] [--write]

Requests of one user with 50 events and 10 videos to choose arrive at random moments (Poisson) at a fixed rate, whether
earlier ones are answered or not. All servers get the same ones, one server after the other at each rate, over HTTP from
the same client, which shares the cores with them. All compute in fp32 with all cores; FastAPI runs once as one process
with a thread for each core, once as a process for each core. A rate is sustained where all are answered and p99 is
within `LIMIT_MS`. Beside that, 32 clients ask again as soon as they have an answer. Processor time is that of the
server's processes, which tells more than the clock where other work shares the machine. The last line is JSON;
`--write` keeps it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import aiohttp
import numpy as np
import polars as pl

from genrec_batch.model import weights
from genrec_batch.serving import asks, repository
from genrec_batch.serving.arms import Arms
from genrec_batch.serving.options import ExportConfig
from tests.logs import catalog_of
from tests.serving.requests import request
from tests.serving.running import Server, free_ports

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "serving.json"
LIMIT_MS = 2000.0  # p99 of a sustained rate
EVENTS, USERS, CLIENTS, PATIENCE_S = 50, 200, 32, 30.0
OUTPUTS = ["VIDEO_ID", "SCORE", "RECOMMENDATION", "ENGAGEMENT", "RETENTION", "MONETIZATION"]


def requests_of(catalog: list[int], count: int = EVENTS) -> list[bytes]:
    """Return requests of users with `count` events and the columns that a feed has at hand."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(USERS):
        times = 1_777_000_000 + np.sort(random.integers(0, 10**6, count))
        events = {
            "video_id": random.choice(catalog, count).tolist(),
            "timestamp": times.tolist(),
            "session_id": (times // 3600).tolist(),
            "watch_duration": random.gamma(2, 5, count).round(2).tolist(),
            "watch_percentage": random.gamma(2, 0.3, count).round(3).tolist(),
            **{name: (random.random(count) < 0.1).tolist() for name in ("is_liked", "is_shared", "watch_complete")},
            "device_type": ["mobile"] * count,
            "recommendation_source": ["home"] * count,
            "recommendation_position": random.integers(1, 30, count).tolist(),
        }
        found.append(request(events))
    return found


class Peer:
    """The FastAPI server."""

    def __init__(self, version: Path, workers: int) -> None:
        (port,) = free_ports(1)
        threads = str(max(1, len(os.sched_getaffinity(0)) // workers))
        environment = os.environ | {
            "GENREC_PEER_VERSION": str(version),
            "GENREC_PEER_THREADS": threads,
            "PYTHONPATH": str(ROOT),
        }
        command = ["-m", "uvicorn", "tests.benchmarks.fastapi_peer:app", "--workers", str(workers), "--port", str(port)]
        self.process = subprocess.Popen(
            [sys.executable, *command, "--log-level", "warning"], cwd=ROOT, env=environment, start_new_session=True
        )
        self.url, self.bodies = f"http://127.0.0.1:{port}/recommend", list[bytes]()
        until = time.monotonic() + 180
        while time.monotonic() < until:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).read()
                return
            time.sleep(0.5)
        self.stop()
        raise RuntimeError("FastAPI is not ready")

    def stop(self) -> None:
        """End its processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def processor_s(group: int) -> float:
    """Return the processor time of a group of processes."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(") ")[2].split()
            if int(fields[2]) == group:
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def body_of(content: bytes) -> bytes:
    """Return the body of a request of Triton's HTTP protocol."""
    tensor = {"name": "REQUEST", "datatype": "BYTES", "shape": [1, 1], "data": [content.decode()]}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": name} for name in OUTPUTS]}).encode()


async def one(session: aiohttp.ClientSession, url: str, body: bytes, found: list[float]) -> None:
    """Ask once, and note the milliseconds until all of the answer is there; NaN where there is none."""
    began = time.perf_counter()
    try:
        async with session.post(url, data=body) as answer:
            await answer.read()
            found.append((time.perf_counter() - began) * 1000 if answer.status == 200 else np.nan)
    except (aiohttp.ClientError, asyncio.TimeoutError):
        found.append(np.nan)


async def at_rate(url: str, bodies: list[bytes], rate: float, seconds: float, seed: int) -> list[float]:
    """Ask at random moments; return the milliseconds of each request."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, round(rate * seconds)))
    found: list[float] = []
    async with session_of() as session:
        began, tasks = time.perf_counter(), []
        for number, moment in enumerate(np.cumsum(gaps)):
            await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
            tasks.append(asyncio.create_task(one(session, url, bodies[number % len(bodies)], found)))
        await asyncio.gather(*tasks)
    return found


async def at_once(url: str, bodies: list[bytes], seconds: float) -> list[float]:
    """Ask with `CLIENTS` clients that each wait for an answer before they ask again."""
    found: list[float] = []
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        while time.perf_counter() < until:
            await one(session, url, bodies[number % len(bodies)], found)
            number += CLIENTS

    async with session_of() as session:
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return found


def session_of() -> aiohttp.ClientSession:
    """Return a session without a limit of connections."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


def told(found: list[float], wall_s: float, used_s: float) -> dict[str, float]:
    """Return percentiles in milliseconds, answers a second, and processor milliseconds of the server for each."""
    answered = [each for each in found if each == each]  # noqa: PLR0124 - not NaN
    p50, p95, p99 = np.percentile(answered or [np.inf], [50, 95, 99])
    return {
        "p50_ms": round(float(p50), 1),
        "p95_ms": round(float(p95), 1),
        "p99_ms": round(float(p99), 1),
        "asked": len(found),
        "answered": len(answered),
        "per_s": round(len(answered) / wall_s, 2),
        "processor_ms": round(1000 * used_s / max(1, len(answered)), 1),
    }


def measured(server, work) -> dict[str, float]:
    """Return what one piece of work shows of a server."""
    before, began = processor_s(server.process.pid), time.perf_counter()
    found = asyncio.run(work)
    return told(found, time.perf_counter() - began, processor_s(server.process.pid) - before)


def features_ms(version: Path, contents: list[bytes]) -> dict[str, float]:
    """Return the milliseconds of a request's history and of its features, without the engine: median and p95."""
    served, found = Arms.open(version).served[0], []
    for content in [*contents, *contents]:
        began = time.thread_time()
        prepared = served.prepared(asks.read(content, top_k=10, most_events=EVENTS))
        between = time.thread_time()
        served.inputs([prepared])
        found.append((between - began, time.thread_time() - between))
    history, features = (np.array(each) * 1000 for each in zip(*found[len(contents) :], strict=True))
    both = history + features
    return {
        "history_ms": round(float(np.median(history)), 3),
        "features_ms": round(float(np.median(features)), 3),
        "both_p95_ms": round(float(np.percentile(both, 95)), 3),
    }


def main() -> None:
    """Measure, print, and keep what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="reference")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rates", default="1,2,4,8,12,16,24,32,48")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, config = Path(scratch), weights.PRESETS[options.preset]
        videos = pl.DataFrame({"video_id": np.arange(1000, 1000 + config.vocabulary - 2)})
        catalog_of(videos, vocabulary=config.vocabulary).write(folder / "model" / "catalog.parquet")
        weights.save(folder / "model", config, weights.initial_weights(config, 1), trained=True, card="a benchmark\n")
        versions = {
            engine: repository.export(
                folder / "model",
                ExportConfig(format="triton", out=str(folder / engine), engine=engine, queue_timeout_ms=30_000.0),
            )
            for engine in ("onnxruntime", "torch")
        }
        contents = requests_of(videos["video_id"].to_list())
        features = features_ms(versions["onnxruntime"], contents)
        print("history and features", features)
        cores = len(os.sched_getaffinity(0))
        servers = {"fastapi, 1 process": Peer(versions["torch"], 1)}
        try:
            servers[f"fastapi, {cores} processes"] = Peer(versions["torch"], cores)
            for each in servers.values():
                each.bodies = contents
            triton = Server(folder / "onnxruntime", folder / "server.log")
            triton.url = f"http://127.0.0.1:{triton.http}/v2/models/genrec/infer"
            triton.bodies = [body_of(content) for content in contents]
            servers["triton"] = triton
            rates, busiest = load(servers, options)
        finally:
            for each in servers.values():
                each.stop()
    best = {
        name: max((float(r) for r, each in found.items() if each["sustained"]), default=0.0)
        for name, found in rates.items()
    }
    result = {
        "machine": f"{platform.machine()}, {cores} cores, load {os.getloadavg()[1]:.1f}",
        "preset": options.preset, "seconds": options.seconds, "limit_ms": LIMIT_MS, "features": features,
        "rates": rates, "clients": busiest, "sustained": best,
    }  # fmt: skip
    if options.write:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def load(servers, options) -> tuple[dict[str, dict[str, object]], dict[str, object]]:
    """Return what each server shows at each rate up to the first that it does not sustain, and with busy clients."""
    rates: dict[str, dict[str, object]] = {name: {} for name in servers}
    for server in servers.values():  # warms up connections, threads and sizes of batches
        asyncio.run(at_once(server.url, server.bodies, 3.0))
    going = list(servers)
    for rate in options.rates.split(","):
        for name in list(going):
            server = servers[name]
            found = measured(server, at_rate(server.url, server.bodies, float(rate), options.seconds, int(float(rate))))
            found["sustained"] = found["answered"] == found["asked"] and found["p99_ms"] <= LIMIT_MS
            rates[name][rate] = found
            print(f"{name:22} {rate:>4}/s", found, flush=True)
            if not found["sustained"]:
                going.remove(name)
    busiest = {}
    for name, server in servers.items():
        busiest[name] = measured(server, at_once(server.url, server.bodies, options.seconds))
        print(f"{name:22} {CLIENTS} clients", busiest[name], flush=True)
    return rates, busiest


if __name__ == "__main__":
    main()
