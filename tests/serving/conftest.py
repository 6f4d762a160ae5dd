"""The trained sample model as a server opens it, and the output of `score` that it has to equal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from genrec_batch import score
from genrec_batch.demo import synthetic
from genrec_batch.serving import repository
from genrec_batch.serving.arms import Arms
from genrec_batch.serving.options import ExportConfig
from tests.serving.requests import events_of

SAMPLE = Path(__file__).parents[2] / "sample_data"
EXACT = {"engine": "onnxruntime", "precision": "fp32"}


def exported(model, out, **options):
    """Return the folder of a version in a new repository."""
    return repository.export(Path(model), ExportConfig(format="triton", out=str(out), **options))


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """1,000 users of the sample's app: events by user, `score`'s options and rows, the version and what it opens."""
    folder = tmp_path_factory.mktemp("serving")
    synthetic.write(synthetic.SampleConfig(users=1000, events_per_user=25, videos=1200, seed=7), folder / "log.parquet")
    log = pl.read_parquet(folder / "log.parquet")
    options = {"model": str(SAMPLE / "model"), "videos": str(SAMPLE / "videos.parquet"), **EXACT}
    score(folder / "log.parquet", folder / "recs.parquet", **options)
    version = exported(SAMPLE / "model", folder / "repository", videos=str(SAMPLE / "videos.parquet"))
    return SimpleNamespace(
        folder=folder,
        options=options,
        events=events_of(log),
        as_of=log["timestamp"].max().isoformat(),
        recs=pl.read_parquet(folder / "recs.parquet"),
        version=version,
        served=Arms.open(version),
    )
