"""The demo: one user, the whole log, quality, speed and an export, with the functions that the commands call.

Owns: the order of the steps, the files it reads and writes, and its sentences. Must not know: how anything is computed
or printed. In: an empty folder or one that the demo made. Out: a model, its graphs and recommendations in that folder.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from genrec_batch.core.errors import ConfigError, EngineError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.demo import synthetic
from genrec_batch.demo.tables import DEEDS, beside, commands, engines, pairs, quality, say, step
from genrec_batch.engines.choose import decoding_of, device_of
from genrec_batch.engines.onnx import export, exported
from genrec_batch.evaluation.options import EvaluateConfig
from genrec_batch.evaluation.run import evaluate
from genrec_batch.events.dataset import catalog_of
from genrec_batch.model import weights
from genrec_batch.reports import engine_facts, tables
from genrec_batch.reports.sections import duration, figure, size
from genrec_batch.runtime import console
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring import pipeline

SAMPLE = Path(__file__).parents[2] / "sample_data" / "events.parquet"  # beside the package in a checkout
TRAINED = SAMPLE.with_name("model")  # trained on the sample log but for each user's newest event

MARK = ".genrec-batch-demo"  # a file in a folder that the demo made and may overwrite
SHOWN = 10  # newest events of the one user, and videos recommended
SIZES = (1, 8, 32)  # users at once, when engines are timed
TIMING_S = 0.3  # of each engine at each size, if the least number of runs takes less
UNTRAINED = "The model is untrained: what it computes is real, but its ranking means nothing until one is trained."


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files that the demo reads and writes, as paths for a command line."""

    log: Path
    users: Path | None
    videos: Path | None
    model: Path
    trained: bool
    output: Path

    def options(self) -> dict[str, Any]:
        """Return the options of `score` that name files."""
        named = {"model": self.model, "users": self.users, "videos": self.videos}
        return {name: str(path) for name, path in named.items() if path is not None}

    def command(self, *more: str, name: str = "score") -> str:
        """Return the command for these files with further arguments."""
        flags = [text for option, path in self.options().items() for text in (f"--{option}", path)]
        return shlex.join(["genrec-batch", name, str(self.log), *more, *flags])


def run(folder: Path, users: int) -> dict[str, Any]:
    """Run the demo in `folder` over the sample log, or over a generated log where there is none.

    Returns: the summary of scoring the whole log, with the demo's own `seconds`, `quality` (None without a trained
    model), `performance` and `export`.

    Raises:
        ConfigError: the folder holds something that the demo did not make.
    """
    began = time.perf_counter()
    files = _prepare(folder, users)
    if not files.trained:
        say(UNTRAINED)
    one = _one_user(files)
    summary = _whole_log(files)
    judged = _quality(files)
    performance = _performance(files)
    written = _export(files, one)
    _what_next(files, one, summary)
    seconds = time.perf_counter() - began
    say(f"The demo took {duration(seconds)}.")
    facts = {
        "command": "demo",
        "quality": judged,
        "performance": performance,
        "export": written,
        "seconds": round(seconds, 3),
    }
    return {**summary, **facts}


def _prepare(folder: Path, users: int) -> Files:
    """Make the folder, the model and, where there is no sample log, a log."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise ConfigError(f"--folder {folder}: not empty and not made by the demo; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    log, beside_log = SAMPLE, [SAMPLE.with_name("users.parquet"), SAMPLE.with_name("videos.parquet")]
    if not log.is_file():
        log = folder / "events.parquet"
        log.unlink(missing_ok=True)
        synthetic.write(synthetic.SampleConfig(users=users, events_per_user=25, seed=7), log)
        LOG.info("there is no sample log beside the package, so a log of %s users was generated", f"{users:,}")
        beside_log = []
    directory = folder / "model"
    shutil.rmtree(directory, ignore_errors=True)
    trained = log == SAMPLE and TRAINED.is_dir()
    if trained:
        shutil.copytree(TRAINED, directory)
    else:
        _untrained(directory, log)
    user_table, video_table = (_near(path) if path.is_file() else None for path in beside_log or (log / "0", log / "0"))
    return Files(
        log=_near(log),
        users=user_table,
        videos=video_table,
        model=_near(directory),
        trained=trained,
        output=_near(folder / "recs.parquet"),
    )


def _untrained(directory: Path, log: Path) -> None:
    """Write seeded reference weights, with the log's videos as the catalog."""
    config = weights.PRESETS["reference"]
    catalog_of(str(log), None, config.vocabulary).write(directory / "catalog.parquet")
    initial = weights.initial_weights(config, weights.DEMO_SEED)
    weights.save(directory, config, initial, trained=False, card="A demo model.\n")


def _near(path: Path) -> Path:
    """Return a path relative to the current folder if it is below it, so that commands are short."""
    near = os.path.relpath(path)
    return path if near.startswith("..") else Path(near)


@contextmanager
def _only_errors() -> Iterator[None]:
    """Log only errors while a step runs what an earlier step has already reported."""
    level = LOG.level
    LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOG.setLevel(level)


def _config(files: Files, **more: Any) -> ScoreConfig:
    return ScoreConfig(**files.options(), **more)


def _one_user(files: Files) -> list[dict[str, Any]]:
    """Show one user's history beside the recommendations; return the recommendations."""
    deeds = [name for name in DEEDS if name != "watch_complete"]
    newest = (
        pl.scan_parquet(files.log)
        .drop_nulls(["user_id", "video_id", "timestamp"])
        .sort("user_id", "timestamp", maintain_order=True)
        .group_by("user_id", maintain_order=True)
        .tail(SHOWN)
    )
    busiest = newest.group_by("user_id").agg(events=pl.len(), deeds=pl.sum_horizontal(pl.col(deeds).sum()))
    user = busiest.sort("events", "deeds", "user_id", descending=[True, True, False]).first().collect()["user_id"][0]
    step(1, "One user: what was watched, and what to show next", files.command("--user", str(user)))
    with _only_errors(), console.busy("scoring one user"):
        rows: list[dict[str, Any]] = pipeline.score(
            _config(files, user=(str(user),), top_k=SHOWN), str(files.log), None
        )["rows"].to_pylist()
    history = newest.filter(pl.col("user_id") == user).collect().reverse().to_dicts()
    beside(user, history, rows, _categories(files))
    return rows


def _categories(files: Files) -> Mapping[Any, str]:
    if files.videos is None:
        return {}
    table = pl.read_parquet(files.videos, columns=["video_id", "category"])
    return dict(zip(table["video_id"].to_list(), table["category"].to_list(), strict=True))


def _whole_log(files: Files) -> dict[str, Any]:
    command = files.command(str(files.output), "--if-exists", "overwrite")
    step(2, "Batch: every user of the log", command)
    summary = pipeline.score(_config(files, if_exists="overwrite"), str(files.log), str(files.output))
    tables.summary(summary)
    return summary


def _quality(files: Files) -> dict[str, float] | None:
    """Show how often the model's lists hold each user's newest video, beside simple rules.

    Returns: HR@10 by list, None where the model is untrained.
    """
    step(
        3,
        "Quality: the newest event of each user, held out when this model was trained",
        files.command("--leave-one-out", name="evaluate"),
    )
    if not files.trained:
        say("Left out: the model is untrained.")
        return None
    with _only_errors(), console.busy("comparing with what users watched next"):
        report = evaluate(EvaluateConfig(**files.options(), leave_one_out=True, ks=str(SHOWN)), str(files.log))
    rows = {row["list"]: row["metrics"] for row in report["rankings"] if row["next"] == 1}
    hits, gains = f"hr@{SHOWN}", f"ndcg@{SHOWN}"
    quality(
        [(name, *(metrics[each]["value"] for each in (hits, gains))) for name, metrics in rows.items()],
        (f"HR@{SHOWN}", f"NDCG@{SHOWN}"),
    )
    say("HR is the share of users whose list holds the video that they watched next; seen videos are left out.")
    return {name: metrics[hits]["value"] for name, metrics in rows.items()}


def _performance(files: Files) -> list[dict[str, Any]]:
    command = shlex.join(["genrec-batch", "profile", "--model", str(files.model), "--data", str(files.log)])
    step(4, "Performance: the engines installed, on histories of 50 events", command)
    loaded = weights.load(files.model)
    config = _config(files)
    wanted = engine_facts.choices((), device_of("cpu", "auto"))
    with _only_errors(), console.busy("timing engines"):
        trial = engine_facts.Trial(
            model=loaded,
            wanted=wanted,
            device="cpu",
            must=False,
            sizes=SIZES,
            events=config.max_events,
            decoding=decoding_of(config, loaded),
            seconds=TIMING_S,
        )
        found = engine_facts.measure(trial, real=None, ceilings={"products": []}, advance=console.nowhere)
    engines(found["engines"])
    say("`profile` measures this and much more: the machine's limits, stages, memory, the data.")
    rows: list[dict[str, Any]] = [
        {name: row[name] for name in ("engine", "precision", "topk_overlap", "points")} for row in found["engines"]
    ]
    return rows


def _export(files: Files, one: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Write the graphs and score the one user with ONNX Runtime from them; return None where a package is missing."""
    step(
        5,
        "Export: ONNX graphs, read back",
        shlex.join(["genrec-batch", "model", "export", str(files.model)]),
    )
    user = str(one[0]["user_id"])
    try:
        paths = export.export(weights.load(files.model), files.model, precision="fp32")
        with _only_errors(), console.busy("reading them back"):
            again = pipeline.score(
                _config(files, user=(user,), top_k=SHOWN, engine="onnxruntime", precision="fp32"), str(files.log), None
            )["rows"].to_pylist()
    except EngineError as error:
        say(f"Left out: {error}")
        return None
    pairs([(str(path), size(path.stat().st_size)) for path in paths if path.suffix == ".onnx"])
    same = len({row["video_id"] for row in one} & {row["video_id"] for row in again})
    say(f"ONNX Runtime read them and recommends {same} of the same {len(one)} videos to user {user}.")
    return {"folder": str(files.model / exported.FOLDER), "same_videos": same, "of": len(one)}


def _what_next(files: Files, one: list[dict[str, Any]], summary: Mapping[str, Any]) -> None:
    user = str(one[0]["user_id"])
    step(6, "The files, and what to try next", f"ls {shlex.quote(str(files.output.parent))}")
    pairs(
        [
            (str(files.output), f"the recommendations: {figure(summary['rows'])} rows"),
            (str(files.model), "the model, its catalog and its graphs"),
            (str(files.log), f"the log: {figure(summary['input_rows'])} rows"),
        ]
    )
    console.stdout.print()
    commands(
        [
            ("look at the output", f"genrec-batch inspect {files.output}"),
            ("why these videos", files.command("--explain", user)),
            ("a report as a page", f"genrec-batch profile --data {files.log} --html report.html"),
            (
                "your own log",
                "genrec-batch score YOUR.parquet recs.parquet  # --schema FILE.toml for other names",
            ),
            ("every night", "jobs/: cron, Airflow, Kubernetes, Docker"),
        ]
    )
