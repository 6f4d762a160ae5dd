"""What many tests use: a small log on disk and a tiny model directory with its catalog."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from genrec_batch.cli.app import app
from genrec_batch.model import weights

START = dt.datetime(2026, 4, 1, tzinfo=dt.timezone.utc)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup, which runs would inherit
KUAIRAND = Path(__file__).parent.parent.parent / "shared" / "data" / "kuairand"
from tests.logs import catalog_of


def small_log(users=40, videos=120, seed=1, mean=12):
    """A log of integer ids with clock ties, nulls and users of one event."""
    random = np.random.default_rng(seed)
    lengths = np.maximum(1, random.poisson(mean, users))
    lengths[0] = 1
    rows = int(lengths.sum())
    popularity = 1 / np.arange(1, videos + 1)
    percentage = random.gamma(2, 0.3, rows)
    return pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(100, 100 + users), lengths),
            "video_id": 1000 + random.choice(videos, rows, p=popularity / popularity.sum()),
            "timestamp": pl.Series(random.integers(0, 5000, rows) * 600_000_000).cast(pl.Duration("us")) + START,
            "watch_duration": percentage * 20,
            "watch_percentage": [None if i % 11 == 0 else float(p) for i, p in enumerate(percentage)],
            "is_liked": random.random(rows) < 0.1,
            "device_type": random.choice(["mobile", "tablet", "fridge"], rows),
        }
    ).sample(fraction=1.0, shuffle=True, seed=seed)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path, monkeypatch):
    """No options from outside: neither GENREC_BATCH_* nor a genrec-batch.toml of the folder."""
    for name in [name for name in os.environ if name.startswith("GENREC_BATCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GENREC_BATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def log():
    return small_log()


@pytest.fixture
def log_file(tmp_path, log):
    log.write_parquet(tmp_path / "events.parquet")
    return tmp_path / "events.parquet"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, log):
    """A tiny untrained model whose catalog holds the small log's videos."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    config = weights.PRESETS["tiny"]
    weights.save(directory, config, weights.initial_weights(config, 3), trained=True, card="for tests\n")
    catalog_of(log, vocabulary=config.vocabulary).write(directory / "catalog.parquet")
    return directory


class Ran:
    """What a command did: exit code, both streams, the JSON summary."""

    def __init__(self, result):
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        self.exception = result.exception

    @property
    def summary(self):
        return json.loads(self.out.strip().splitlines()[-1])


@pytest.fixture
def run():
    def call(*arguments, **environment):
        return Ran(CliRunner().invoke(app, [str(a) for a in arguments], env=environment))

    return call


@pytest.fixture(scope="session")
def kuairand():
    if not KUAIRAND.is_dir():
        pytest.skip("the KuaiRand log is not beside this checkout")
    return KUAIRAND
