"""Damaged files for every reader of ours: whatever the bytes are, it returns or raises an error of ours.

Owns: a whole file of each kind, and the reader that it is given to. Must not know: who damages it (`run.py` with
Hypothesis or atheris, `test_seeds.py` with what they found).
"""

from __future__ import annotations

import datetime as dt
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.core.errors import GenrecError
from genrec_batch.events.dataset import catalog_of
from genrec_batch.io import output, published
from genrec_batch.model import weights
from genrec_batch.model.catalog import Catalog
from genrec_batch.reports import inspect

SIZES = weights.ModelConfig(vocabulary=8, width=4, ffn=4, layers=1, positions=4, heads=2, profile=2, video=2)
SCHEMA = b"""# names
where = "watch_duration >= 0"
explode = ["tags"]
[events]
user_id = "u"
video_id = "CAST(v AS VARCHAR)"
timestamp = "t"
watch_duration = "watch_ms / 1000.0"
[videos]
video_id = "v"
"""


@dataclass(frozen=True, kw_only=True)
class Harness:
    """A whole file as bytes, and what reads it."""

    place: Path
    whole: bytes
    read: Callable[[bytes], object]

    def tried(self, data: bytes) -> bool:
        """Read some bytes; return whether they were accepted. Anything but an error of ours leaves as it is."""
        try:
            self.read(data)
        except GenrecError:
            return False
        return True


def _log() -> pl.DataFrame:
    start = dt.datetime(2026, 5, 1, tzinfo=dt.timezone.utc)
    return pl.DataFrame(
        {
            "user_id": [1, 1, 2, 3],
            "video_id": ["a", "b", "a", "c"],
            "timestamp": [start + dt.timedelta(hours=hour) for hour in range(4)],
            "watch_duration": [1.0, None, 3.0, 4.0],
            "is_liked": [True, False, None, True],
        }
    )


def _place() -> Path:
    return Path(tempfile.mkdtemp(prefix="genrec-fuzz-"))


def _schema(place: Path, data: bytes) -> None:
    (place / "s.toml").write_bytes(data)
    catalog_of(str(place / "log.parquet"), str(place / "s.toml"), 100)


def _parquet(place: Path, data: bytes) -> None:
    (place / "log.parquet").write_bytes(data)
    catalog_of(str(place / "log.parquet"), None, 100)


def _catalog(place: Path, data: bytes) -> None:
    (place / "catalog.parquet").write_bytes(data)
    Catalog.read(place / "catalog.parquet", vocabulary=100)


def _weights(place: Path, data: bytes) -> None:
    (place / "m" / "model.safetensors").write_bytes(data)
    weights.load(place / "m")


def _config(place: Path, data: bytes) -> None:
    (place / "m" / "config.json").write_bytes(data)
    weights.load(place / "m")


def _manifest(place: Path, data: bytes) -> None:
    done = place / "recs"
    (done / published.MANIFEST).write_bytes(data)
    for attempt in (
        partial(published.check, done, "resume"),
        partial(published.check_whole, done),
        partial(output.open_output, done, {"a": 1}, "resume"),
        partial(inspect.inspected, str(done)),
    ):
        try:
            attempt()
        except GenrecError:
            continue


def _output(place: Path) -> bytes:
    """Write a finished output with two users and return its manifest."""
    out = output.open_output(place / "recs", {"a": 1}, None)
    out.metadata |= {"genrec.users": "2", "genrec.config": "{}", "genrec.input": "{}"}
    numbers = {name: pa.array([0.5, 0.25], pa.float32()) for name in ("score", "log_prob", *weights.HEADS)}
    ids = {"user_id": [1, 2], "rank": pa.array([1, 1], pa.int32()), "video_id": [7, 8], "step": [1, 1]}
    scores = pa.array([{"engagement": 0.0, "retention": 0.0, "diversity": 0.0}] * 2)
    users = {"feature_scores": scores, "history_length": [1, 1], "cold_start": [False, False]}
    out.write(0, pa.table({**ids, **numbers, **users}), {"short_users": 0})
    out.finish()
    return (place / "recs" / published.MANIFEST).read_bytes()


@cache
def harnesses() -> dict[str, Harness]:
    """Return all harnesses by name, each with a folder of its own."""
    places = {name: _place() for name in ("schema", "parquet", "catalog", "weights", "config", "manifest")}
    names = {"user_id": "u", "video_id": "v", "timestamp": "t"}
    tagged = _log().rename(names).with_columns(watch_ms=pl.lit(1500), tags=pl.lit([1, 2]))
    tagged.write_parquet(places["schema"] / "log.parquet")
    log = io.BytesIO()
    pq.write_table(_log().to_arrow(), log, write_page_checksum=True)
    items = pl.DataFrame({"token": [2, 3], "video_id": ["a", "b"], "count": [2, 1]}).write_parquet
    items(places["catalog"] / "catalog.parquet")
    for name in ("weights", "config"):
        initial = weights.initial_weights(SIZES, 1)
        weights.save(places[name] / "m", SIZES, initial, trained=True, card="")
        config = json.loads((places[name] / "m" / "config.json").read_text())
        del config["sha256"]  # the harness is for what comes after it
        (places[name] / "m" / "config.json").write_text(json.dumps(config))
    assert np.isfinite(initial["token_embedding.weight"]).all()
    whole = {
        "schema": SCHEMA,
        "parquet": log.getvalue(),
        "catalog": (places["catalog"] / "catalog.parquet").read_bytes(),
        "weights": (places["weights"] / "m" / "model.safetensors").read_bytes(),
        "config": (places["config"] / "m" / "config.json").read_bytes(),
        "manifest": _output(places["manifest"]),
    }
    readers = {
        "schema": _schema, "parquet": _parquet, "catalog": _catalog, "weights": _weights, "config": _config,
        "manifest": _manifest,
    }  # fmt: skip
    return {
        name: Harness(place=place, whole=whole[name], read=partial(readers[name], place))
        for name, place in places.items()
    }


def remove() -> None:
    """Remove the folders of all harnesses."""
    for harness in harnesses().values():
        shutil.rmtree(harness.place, ignore_errors=True)
