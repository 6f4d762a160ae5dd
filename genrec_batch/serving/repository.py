"""`model export --format triton`: a version of a Triton model repository.

Owns: the files of a version. Must not know: how a request is answered, how a version appears (`versions`). The layout
is Triton's:

    REPO/NAME/config.pbtxt          name, tensors, batching, queue, instances, warm-up (`config_text`)
    REPO/NAME/warmup/request        the warm-up request
    REPO/NAME/1/model.py            the front, which imports this package
    REPO/NAME/1/serving.json        how requests are answered
    REPO/NAME/1/model/              the model directory; of an experiment REPO/NAME/1/arms/ARM/ for each arm
    REPO/NAME/1/videos.parquet      the table of videos, if one is given

A repository that has the model gets the next version; `config.pbtxt` is that of the newest one.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from genrec_batch.core.declare import values
from genrec_batch.core.errors import ConfigError, ModelError
from genrec_batch.core.options import NEXT_TO_NONE
from genrec_batch.engines.registry import entry
from genrec_batch.events import schema_file, side_tables
from genrec_batch.events.joins import Joins
from genrec_batch.events.table_rows import TableRules
from genrec_batch.events.times import check_zone
from genrec_batch.model import opening, sealed, weights
from genrec_batch.model.catalog import Catalog
from genrec_batch.serving import config_text, versions
from genrec_batch.serving.arms import ARMS_FOLDER, MODEL_FOLDER, SERVING_FILE, VIDEOS_FILE
from genrec_batch.serving.asks import Wanted
from genrec_batch.serving.options import ExportConfig, RepositoryConfig, Serving
from genrec_batch.serving.own_columns import OwnColumns
from genrec_batch.serving.plans import plan_of
from genrec_batch.serving.videos import Videos

FRONT = '''"""The front of the model in Triton's Python backend; all it does is in genrec_batch.serving.triton."""

from genrec_batch.serving.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
PATIENCE_S = 60.0  # for which an export waits for another one
Followed = Mapping[
    str, Mapping[str, str]
]  # by place: label and sha256 of the version of a registry that is served there
MODEL_FILES = ("config.json", sealed.WEIGHTS, sealed.CATALOG)


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a version is made of."""

    folders: Mapping[str, Path]  # model directories by their place in the version
    serving: str  # serving.json
    config: str  # config.pbtxt
    warm_up: bytes  # warmup/request
    videos: pl.DataFrame | None

    @staticmethod
    def of(folders: Mapping[str, Path], config: RepositoryConfig, followed: Followed | None = None) -> Content:
        """Read the models of a version, and check that they can be served with these options.

        Raises:
            ConfigError: an option does not fit a model.
            EngineError: the engine has no such precision.
            InputError: the table of videos cannot be used.
            ModelError: a model cannot be read or has no catalog.
        """
        check_options(config)
        catalogs = [_catalog(each, config) for each in folders.values()]
        kinds = {config_text.id_type(catalog) for catalog in catalogs}
        if len(kinds) > 1:
            raise ConfigError("--arm: the catalogs of the arms have ids of several types, and a tensor has one")
        table = _videos(config, str(next(iter(folders.values()))), catalogs)
        for folder, catalog in zip(folders.values(), catalogs, strict=True):
            _check_usual(config, folder, catalog, table)
        content = config_text.warm_up(catalogs[0], max_events=config.max_events, own=config.schema is not None)
        return Content(
            folders=folders,
            serving=serving_text(config, followed),
            config=config_text.of(config, catalogs[0]),
            warm_up=struct.pack("<I", len(content)) + content,
            videos=table,
        )

    def write(self, folder: Path) -> None:
        """Write the files of the version into an empty folder, and check that each copy is a whole model."""
        for place, directory in self.folders.items():
            _copy(directory, folder / place)
        if self.videos is not None:
            self.videos.write_parquet(folder / VIDEOS_FILE)
        (folder / SERVING_FILE).write_text(self.serving)
        (folder / "model.py").write_text(FRONT)
        (folder / "__pycache__").touch()  # no folder: Python would write into it, and a server that polls load it again


def export(directory: Path | None, config: ExportConfig) -> Path:
    """Add a version of a model, or of the arms of an experiment, to a repository and return its folder.

    Raises:
        ConfigError: neither DIR nor arms are given; or see `Content.of`.
        EngineError, InputError: see `Content.of`.
        ModelError: see `Content.of`, or the repository cannot be written.
        RetryError: the disk is full, or somebody else writes to the repository.
    """
    arms = config.arms()
    if (directory is None) != bool(arms):
        raise ConfigError("model export takes either DIR or --arm NAME=DIR:WEIGHT for each model of an experiment")
    folders = {place_of(arm.name): opening.directory(arm.model, "--arm") for arm in arms}
    if directory is not None:
        folders = {MODEL_FOLDER: directory}
    content = Content.of(folders, config)
    home = config.repository / config.name
    with versions.changing(home, PATIENCE_S), versions.scratch(home) as folder:
        content.write(folder)
        number = versions.place(home, content.config, content.warm_up)
        versions.stay(home, number)
    return home / str(number)


def place_of(arm: str) -> str:
    """Return the place of an arm's model in a version."""
    return f"{ARMS_FOLDER}/{arm}"


def check_options(config: RepositoryConfig) -> None:
    """Check what can be checked without a model; see `Content.of`."""
    if config.timezone is not None:
        check_zone(config.timezone)
    _check_precision(config)
    OwnColumns.of(schema_file.column_names(config.schema))


def serving_text(config: RepositoryConfig, followed: Followed | None) -> str:
    """Return the content of serving.json, by which a version is known to be of these options and models."""
    stored: dict[str, Any] = {
        "serving": config.serving(),
        "schema": asdict(schema_file.column_names(config.schema)),
        "arms": [{"name": arm.name, "buckets": arm.buckets} for arm in config.arms()],
        "salt": config.salt,
        "assign": config.assign,
    }
    if followed is not None:
        stored["followed"] = {"versions": dict(followed), "options": values(config, "rows")}
    return json.dumps(stored, indent=2, sort_keys=True) + "\n"


def _catalog(directory: Path, config: RepositoryConfig) -> Catalog:
    """Return the catalog of a model that can be served."""
    model = weights.load(directory, "DIR")
    if model.training is not None:
        model.training.check_timezone(config.timezone)
    path = directory / sealed.CATALOG
    if not path.is_file():
        raise ModelError(f"{path} is missing: a server has no log to take a catalog from; export a trained model")
    with model.files.held():
        return Catalog.read(path, vocabulary=model.config.vocabulary)


def _check_usual(config: RepositoryConfig, directory: Path, catalog: Catalog, table: pl.DataFrame | None) -> None:
    """Check that a request without wishes can be answered."""
    model = weights.load(directory, "DIR").with_catalog(len(catalog))
    usual = Wanted(top_k=config.top_k, weights=None, max_per=None, include_seen=False, given=False)
    plan_of(usual, Serving.of(config.serving()), model, Videos.of(catalog, table))


def _check_precision(config: RepositoryConfig) -> None:
    known = sorted({each for by_kind in entry(config.engine).precisions.values() for each in by_kind})
    if config.precision not in known:
        raise ConfigError(f"--precision {config.precision}: {config.engine} computes in {', '.join(known)}")


def _videos(config: RepositoryConfig, directory: str, catalogs: Sequence[Catalog]) -> pl.DataFrame | None:
    """Return the rows of `--videos` that can be used, whose ids have to meet those of the catalogs."""
    known = pl.concat([catalog.items["video_id"] for catalog in catalogs]).unique(maintain_order=True)
    joins = Joins(where=f"the catalog of {directory}", users=known.head(0), videos=known, least=NEXT_TO_NONE)
    return side_tables.read_videos(config.videos, config.schema, joins, {}, TableRules())


def _copy(directory: Path, target: Path) -> None:
    """Copy a model directory, and check that what was copied is a whole model."""
    graphs = [path for path in directory.glob("onnx/**/*") if path.is_file()]
    for path in [*(directory / name for name in MODEL_FILES), *graphs]:
        copy = target / path.relative_to(directory)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)  # without its mode: those of a registry are read-only
    weights.load(target, "DIR")
