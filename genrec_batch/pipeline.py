"""The whole job: events in, histories, features, batches through an engine, ranked rows out.

Owns: the order of the steps, shards, batches, lineage, and the summary. Must not know: how any step does its work, or
who called. Users go through in id order, a shard at a time; within a shard, batches hold users of like history length.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from genrec_batch import __version__, console, features, layout, output, recommendations, schema
from genrec_batch.arrays import I64, Ranked
from genrec_batch.batching import Part
from genrec_batch.config import HistoryConfig, ScoreConfig, resolved
from genrec_batch.console import LOG
from genrec_batch.engines import Engine
from genrec_batch.errors import ConfigError, RetryError
from genrec_batch.generate import Decoding, blend, recommend_all
from genrec_batch.job import Job, prepare, read_log
from genrec_batch.profiling import Stages, peak_rss_mib
from genrec_batch.recommendations import Ranking
from genrec_batch.selection import Selection, decoding_of, reference_engine, sample_rows, select
from genrec_batch.verifying import measured

PATHS = ("model", "users", "videos", "candidates", "schema")  # options whose content counts, not their spelling
SHORT = "users have fewer than --top-k videos left to recommend and get fewer rows"


def score(config: ScoreConfig, source: str, target: str | None, stages: Stages | None = None) -> dict[str, Any]:
    """Score a log and write its recommendations; return the run's summary, and the rows themselves without a target.

    Raises:
        GenrecError: see its subclasses; each carries the exit code of its kind.
    """
    stages = stages or Stages()
    if target is not None:
        output.check(Path(target), config.if_exists)
    events, facts, log = read_log(source, config, stages)
    job = prepare(
        config, events, stages, path=source, facts=facts, inputs={"events": log}, candidates=config.candidates
    )
    _not_an_input(target, job)
    scoring = Scoring.of(config, job, stages)
    identity = lineage(config, job, engine=scoring.selection.engine)
    if target is None:
        tables = [scoring.shard(start, stop) for start, stop in shards(len(job), config.shard_users)]
        return summary("score", job, stages, identity, scoring.report()) | {"rows": pa.concat_tables(tables)}
    return run("score", config, job, scoring.shard, identity, Path(target), stages, scoring.report)


def write_features(config: HistoryConfig, source: str, target: str) -> dict[str, Any]:
    """Write what the model would read of each user: user_id, features, tokens (newest last), history_length."""
    stages = Stages()
    output.check(Path(target), config.if_exists)
    events, facts, log = read_log(source, config, stages)
    job = prepare(config, events, stages, path=source, facts=facts, inputs={"events": log})
    _not_an_input(target, job)
    identity = lineage(config, job, engine=None)

    def shard(start: int, stop: int, advance: console.Advance) -> pa.Table:
        part = job.histories.slice(start, stop)
        with stages.time("features"):
            dense_NF = features.compute(part, job.users, job.videos, max_events=config.max_events)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(dense_NF.reshape(-1)), layout.FEATURES)
        tokens = pa.ListArray.from_arrays(pa.array(part.offsets_N1.astype(np.int32)), pa.array(part.tokens_E))
        ids = job.user_ids.slice(start, stop - start).to_arrow(compat_level=pl.CompatLevel.oldest())
        advance(stop - start)
        columns = [ids, flat.cast(pa.list_(pa.float32())), tokens, pa.array(part.lengths_N.astype(np.int32))]
        return pa.table(columns, names=["user_id", "features", "tokens", "history_length"])

    return run("features", config, job, shard, identity, Path(target), stages, dict)


@dataclass(kw_only=True)
class Scoring:
    """A job with its engine: turns shards of users into tables of recommendations."""

    config: ScoreConfig
    job: Job
    stages: Stages
    selection: Selection
    decoding: Decoding
    batch_users: int = 0  # of a batch, at most; halved where the device is too small
    scored_users: int = 0
    short_users: int = 0
    padding: list[int] = field(default_factory=lambda: [0, 0])  # real tokens, tokens computed

    @staticmethod
    def of(config: ScoreConfig, job: Job, stages: Stages, selection: Selection | None = None) -> Scoring:
        """Open the engine of a run, or go on with one that is open.

        Raises:
            ConfigError: the history and the decoded items do not fit the model's positions.
            EngineError: what was asked for is not there.
        """
        read = config.top_k if config.decode == "slate" and not config.candidates else 1  # items read after the history
        need, have = 1 + config.max_events + read, job.model.config.positions
        if need > have:
            raise ConfigError(
                f"--max-events {config.max_events} with --top-k {config.top_k} needs {need} positions, the model has "
                f"{have}"
            )
        decoding = decoding_of(config, job.model)
        if selection is not None:
            return Scoring(config=config, job=job, stages=stages, selection=selection, decoding=decoding)
        rows = sample_rows(job.histories.lengths_N)
        with stages.time("engine"):
            sample = Part.of(job, rows, config).batch(np.arange(len(rows)))
            selection = select(
                job.model, sample, decoding, name=config.engine, device=config.device, precision=config.precision
            )
        LOG.info("engine: %s", selection.why)
        if config.verify_sample:
            with stages.time("verify"):
                rows = sample_rows(job.histories.lengths_N, most=config.verify_sample)
                reference = reference_engine(job.model)
                found = measured(config, job, decoding, rows, selection.engine, reference)
            LOG.info("verified over %d users: %s", len(rows), found.as_dict())
            found.check(min_topk_overlap=config.min_topk_overlap, min_top1=0.0, max_difference=None)
        return Scoring(config=config, job=job, stages=stages, selection=selection, decoding=decoding)

    def __post_init__(self) -> None:
        asked = self.config.batch_size
        self.batch_users = self.selection.batch_users if asked == "auto" else int(asked)

    def shard(self, start: int, stop: int, advance: console.Advance = console.nowhere) -> pa.Table:
        """Return the recommendations of users start..stop of the job, in id order."""
        job, config, stages = self.job, self.config, self.stages
        with stages.time("features"):
            part = Part.of(job, np.arange(start, stop), config)
        weights = config.blend()
        ranking = Ranking.empty(stop - start, config.top_k)
        for rows_B, ranked in self._answers(part):
            ranking.put(rows_B, ranked, blend(ranked, weights))
            self.padding[0] += int(part.histories.lengths_N[rows_B].sum()) + len(rows_B)
            self.padding[1] += (int(part.histories.lengths_N[rows_B].max()) + 1) * len(rows_B)
            advance(len(rows_B))
        self.scored_users += stop - start
        self.short_users += int(((ranking.tokens_NK > 0).sum(axis=1) < part.wanted_N(config.top_k)).sum())
        with stages.time("rows"):
            return recommendations.table(
                job.user_ids.slice(start, stop - start),
                ranking,
                catalog=job.catalog,
                video_type=job.video_type,
                feature_scores_N3=features.feature_scores(part.dense_NF),
                history_length_N=part.histories.lengths_N,
                cold_start_N=part.histories.cold_start_N(),
                nested=config.layout == "nested",
            )

    def _answers(self, part: Part) -> Iterator[tuple[I64, Ranked]]:
        """Yield each batch's rows with what the engine recommends to them.

        Where the device runs out of memory, what is left goes on in batches of half the size, down to one user.
        """
        left = deque(part.spans(self.batch_users))
        while left:
            answers = recommend_all(
                self.selection.engine, (part.batch(rows_B) for rows_B in tuple(left)), self.decoding
            )
            try:
                while left:
                    with self.stages.time("model run"):
                        ranked = next(answers)
                    yield left.popleft(), ranked
            except RetryError as error:
                size = max(len(rows_B) for rows_B in left)
                if size == 1:
                    raise
                self.batch_users = size // 2
                LOG.warning("out of memory with %d users in a batch, going on with %d (%s)", size, size // 2, error)
                left = deque(piece for rows_B in left for piece in _pieces(rows_B, self.batch_users))

    def report(self) -> dict[str, Any]:
        """Return what the summary says of the engine and the decoding."""
        engine, (real, computed) = self.selection.engine, self.padding
        if self.short_users:
            LOG.warning("%s %s", f"{self.short_users:,}", SHORT)
        return {
            "engine": engine.name,
            "device": engine.device,
            "precision": engine.precision,
            "engine_why": self.selection.why,
            "batch_users": self.batch_users,
            "scored_users": self.scored_users,
            "short_users": self.short_users,  # of the scored ones, as is padding_share
            "padding_share": round(1 - real / computed, 4) if computed else 0.0,
        }


def _not_an_input(target: str | None, job: Job) -> None:
    """Raise ConfigError where the output would stand in place of an input, or inside a folder that is read."""
    if target is None:
        return
    place = Path(target).resolve()
    for source in job.inputs.values():
        files = [Path(file).resolve() for file in source.files]
        folder = Path(source.path).resolve()
        if any(place == file or place in file.parents for file in files) or (
            folder.is_dir() and folder in place.parents
        ):
            raise ConfigError(f"OUTPUT {target} stands in the place of input {source.path}; name another")


def _pieces(rows_B: I64, most: int) -> list[I64]:
    return [rows_B[start : start + most] for start in range(0, len(rows_B), most)]


def shards(users: int, size: int) -> list[tuple[int, int]]:
    """Return the (start, stop) of each part of `size` users."""
    return [(start, min(users, start + size)) for start in range(0, users, size)]


def lineage(config: HistoryConfig, job: Job, engine: Engine | None) -> dict[str, Any]:
    """Return what decides a run's bytes: version, fingerprints, engine, options, inputs. No clock, machine or path."""
    return {
        "version": __version__,
        "model": job.model.fingerprint,
        "catalog": job.catalog.fingerprint(),
        "layout": layout.fingerprint(),
        "engine": engine.name if engine else "none",
        "device": engine.device.partition(":")[0] if engine else "none",
        "precision": engine.precision if engine else "none",
        "config": {name: value for name, value in resolved(config).items() if name not in PATHS},
        "schema": {**asdict(schema.column_names(config.schema)), "name": ""},
        "input": {name: {**source.snapshot(), "path": ""} for name, source in job.inputs.items()},
    }


def run(
    command: str,
    config: HistoryConfig,
    job: Job,
    shard: Callable[[int, int, console.Advance], pa.Table],
    identity: dict[str, Any],
    target: Path,
    stages: Stages,
    report: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Compute the shards that are not there yet, write each as a part, put the output in place."""
    out = output.open_output(target, identity, config.if_exists)
    parts = shards(len(job), config.shard_users)
    users = {"genrec.users": str(len(job))}
    told = {"config": resolved(config), "input": {name: source.snapshot() for name, source in job.inputs.items()}}
    plain = {key: value if isinstance(value, str) else _json(value) for key, value in {**identity, **told}.items()}
    out.metadata |= {f"genrec.{key}": value for key, value in plain.items()} | users
    if out.complete:
        LOG.info("%s was finished by an identical run; nothing to do", target)
        there = {"output": str(target), "already_complete": True, **output.finished_facts(target)}
        return summary(command, job, stages, identity, report()) | there
    resumed = len(out.parts_done)
    if resumed:
        LOG.info("going on after %d of %d parts that an identical run left", resumed, len(parts))
    try:
        with console.progress(command, len(job), "users") as advance:
            for number, (start, stop) in enumerate(parts):
                if number in out.parts_done:
                    advance(stop - start)
                    continue
                table = shard(start, stop, advance)
                with stages.time("write"):
                    out.write(number, table)
        with stages.time("write"):
            done = out.finish()
    finally:
        out.close()
    written = {"output": str(target), "resumed_parts": resumed, **done}
    return summary(command, job, stages, identity, report()) | written


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def summary(command: str, job: Job, stages: Stages, identity: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Return the run's summary: what was read, who was scored, by what, how long it took."""
    model_s = stages.seconds.get("model run", 0.0)
    return {
        "status": "ok",
        "command": command,
        "version": __version__,
        "run_id": output.run_id(identity),
        "model": job.model.fingerprint[:16],
        "trained": job.model.trained,
        **job.facts,
        **report,
        "seconds": round(stages.elapsed_s, 3),
        "users_per_s": round(report["scored_users"] / model_s, 1) if model_s else None,
        "stages_s": {name: round(seconds, 3) for name, seconds in stages.seconds.items()},
        "peak_rss_mib": round(peak_rss_mib(), 1),
        "warnings": job.warnings,
    }
