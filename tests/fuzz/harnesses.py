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
from genrec_batch.events.log import EventLog
from genrec_batch.io import output, published, read
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
    """Whole files as bytes, what reads one, and the command that does."""

    place: Path
    file: Path
    wholes: tuple[bytes, ...]
    read: Callable[[Path], object]  # of the place
    command: tuple[str, ...]

    def tried(self, data: bytes) -> bool:
        """Read some bytes; return whether they were accepted. Anything but an error of ours leaves as it is."""
        self.file.write_bytes(data)
        try:
            self.read(self.place)
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
            "device_type": ["mobile", None, "tablet", "mobile"],
        }
    )


def _place() -> Path:
    return Path(tempfile.mkdtemp(prefix="genrec-fuzz-"))


def _schema(place: Path) -> None:
    _every_event(str(place / "log.parquet"), str(place / "s.toml"))


def _parquet(place: Path) -> None:
    _every_event(str(place / "log.parquet"), None)


def _every_event(path: str, schema: str | None) -> None:
    catalog_of(path, schema, 100)
    log = EventLog.of(read.scan(path, "INPUT"), schema, "INPUT")
    for number in range(len(log.row_groups)):
        log.usable(number)


def _catalog(place: Path) -> None:
    Catalog.read(place / "m" / "catalog.parquet", vocabulary=SIZES.vocabulary)


def _model(place: Path) -> None:
    weights.load(place / "m")


def _manifest(place: Path) -> None:
    done = place / "recs"
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


def _model_in(place: Path) -> None:
    """Write a model whose config.json has no checksums: the harness is for what comes after them."""
    initial = weights.initial_weights(SIZES, 1)
    assert np.isfinite(initial["token_embedding.weight"]).all()
    weights.save(place / "m", SIZES, initial, trained=True, card="")
    config = json.loads((place / "m" / "config.json").read_text())
    del config["sha256"]
    (place / "m" / "config.json").write_text(json.dumps(config))


def _output(place: Path) -> None:
    """Write a finished output with two users."""
    out = output.open_output(place / "recs", {"a": 1}, None)
    out.metadata |= {"genrec.users": "2", "genrec.config": "{}", "genrec.input": "{}"}
    numbers = {name: pa.array([0.5, 0.25], pa.float32()) for name in ("score", "log_prob", *weights.HEADS)}
    ids = {"user_id": [1, 2], "rank": pa.array([1, 1], pa.int32()), "video_id": [7, 8], "step": [1, 1]}
    scores = pa.array([{"engagement": 0.0, "retention": 0.0, "diversity": 0.0}] * 2)
    users = {"feature_scores": scores, "history_length": [1, 1], "cold_start": [False, False]}
    out.write(0, pa.table({**ids, **numbers, **users}), {"short_users": 0})
    out.finish()


def _written_otherwise(table: pl.DataFrame) -> list[bytes]:
    """Return a table as Parquet without checksums, in the page formats and encodings that writers use."""
    plain = {"compression": "none", "use_dictionary": False, "data_page_version": "1.0"}
    ways = ({}, plain, plain | {"data_page_version": "2.0"}, {"compression": "zstd", "data_page_version": "2.0"})
    made = []
    for way in ways:
        pq.write_table(table.to_arrow(), buffer := io.BytesIO(), **way)
        made.append(buffer.getvalue())
    table.write_parquet(buffer := io.BytesIO(), use_pyarrow=False)
    return [*made, buffer.getvalue()]


# of each harness: its file, what reads it, and the command that does
READERS: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "schema": ("s.toml", _schema, ("features", "log.parquet", "f.parquet", "--schema", "s.toml")),
    "parquet": ("log.parquet", _parquet, ("features", "log.parquet", "f.parquet")),
    "catalog": ("m/catalog.parquet", _catalog, ("features", "log.parquet", "f.parquet", "--model", "m")),
    "weights": ("m/model.safetensors", _model, ("model", "info", "m")),
    "config": ("m/config.json", _model, ("model", "info", "m")),
    "manifest": (f"recs/{published.MANIFEST}", _manifest, ("inspect", "recs")),
}


@cache
def harnesses() -> dict[str, Harness]:
    """Return all harnesses by name, each with a folder of its own."""
    places = {name: _place() for name in READERS}
    names = {"user_id": "u", "video_id": "v", "timestamp": "t"}
    tagged = _log().rename(names).with_columns(watch_ms=pl.lit(1500), tags=pl.lit([1, 2]))
    tagged.write_parquet(places["schema"] / "log.parquet")
    (places["schema"] / "s.toml").write_bytes(SCHEMA)
    for name in ("parquet", "catalog"):
        pq.write_table(_log().to_arrow(), places[name] / "log.parquet", write_page_checksum=True)
    for name in ("catalog", "weights", "config"):
        _model_in(places[name])
    items = pl.DataFrame({"token": [2, 3], "video_id": ["a", "b"], "count": [2, 1]})
    items.write_parquet(places["catalog"] / "m" / "catalog.parquet")
    _output(places["manifest"])
    others = {"parquet": _written_otherwise(_log()), "catalog": _written_otherwise(items)}
    return {
        name: Harness(
            place=place,
            file=place / READERS[name][0],
            wholes=((place / READERS[name][0]).read_bytes(), *others.get(name, ())),
            read=READERS[name][1],
            command=READERS[name][2],
        )
        for name, place in places.items()
    }


def remove() -> None:
    """Remove the folders of all harnesses."""
    for harness in harnesses().values():
        shutil.rmtree(harness.place, ignore_errors=True)
    harnesses.cache_clear()
